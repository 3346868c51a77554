//! What a codec's private data says: the name a playlist gives it (RFC 6381), and whether it is whole enough to be
//! used.
//!
//! Only configuration records are read (ISO/IEC 14496-15 for H.264 and HEVC, AV1-in-ISOBMFF 2.3, ISO/IEC 14496-3
//! 1.6.2.1 for AAC, RFC 7845 5.1 for Opus); parameter sets and frames are not. Pure.

use crate::{Codec, Track, Tracks};
use std::fmt::Write;

/// Longest private data that is looked at, in bytes.
pub const PRIVATE_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{codec}: private data {what}")]
    Private { codec: &'static str, what: &'static str },
    #[error("{0} cannot be played from MP4")]
    Unsupported(String),
    #[error("no track can be played from MP4")]
    NoTrack,
}

/// The codec's name as RFC 6381 has it: `avc1.64001f`, `mp4a.40.2`. Private data that a player could not use is an
/// error.
pub fn name(track: &Track) -> Result<String, CodecError> {
    match &track.codec {
        Codec::H264 => avc(&track.private),
        Codec::Hevc => hevc(&track.private),
        Codec::Av1 => av1(&track.private),
        Codec::Aac => Ok(format!("mp4a.40.{}", AacConfig::parse(&track.private)?.object_type)),
        Codec::Opus => OpusHead::parse(&track.private).map(|_| "opus".into()),
        Codec::Mjpeg | Codec::Other(_) => Err(CodecError::Unsupported(track.codec.id().into())),
    }
}

/// The names of all tracks that MP4 carries, with commas between: what CODECS says in a playlist.
pub fn names(tracks: &Tracks) -> Result<String, CodecError> {
    let mut out = String::new();
    for track in tracks.0.iter().filter(|track| in_mp4(&track.codec)) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&name(track)?);
    }
    if out.is_empty() { Err(CodecError::NoTrack) } else { Ok(out) }
}

/// Whether MP4 carries the codec here.
pub fn in_mp4(codec: &Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::Hevc | Codec::Av1 | Codec::Aac | Codec::Opus)
}

/// ISO/IEC 14496-15 5.3.3.1: profile, compatibility and level are the bytes after the version.
fn avc(private: &[u8]) -> Result<String, CodecError> {
    let error = |what| CodecError::Private { codec: "H.264", what };
    check_length(private, 7, "H.264")?;
    let [version, profile, compatibility, level, _, sets, rest @ ..] = private else {
        return Err(error("is too short"));
    };
    if *version != 1 {
        return Err(error("is no avcC: its version is not 1"));
    }
    let rest = nal_units(rest, u16::from(sets & 0x1f)).ok_or(error("ends within an SPS"))?;
    let (pictures, rest) = rest.split_first().ok_or(error("ends before its PPS"))?;
    nal_units(rest, u16::from(*pictures)).ok_or(error("ends within a PPS"))?;
    if sets & 0x1f == 0 || *pictures == 0 {
        return Err(error("has no SPS or no PPS"));
    }
    Ok(format!("avc1.{profile:02x}{compatibility:02x}{level:02x}"))
}

/// ISO/IEC 14496-15 8.3.3.1 for the record, E.3 for the name.
fn hevc(private: &[u8]) -> Result<String, CodecError> {
    let error = |what| CodecError::Private { codec: "HEVC", what };
    check_length(private, 23, "HEVC")?;
    let (head, mut rest) = private.split_at_checked(23).ok_or(error("is too short"))?;
    let [1, profile, c0, c1, c2, c3, constraints @ .., _, _, _, _, _, _, _, _, _, arrays] = head else {
        return Err(error("is no hvcC: its version is not 1"));
    };
    let mut found = [false; 3];
    for _ in 0..*arrays {
        let [kind, high, low, units @ ..] = rest else { return Err(error("ends within its arrays")) };
        let count = u16::from_be_bytes([*high, *low]);
        // NAL unit types 32 to 34: VPS, SPS, PPS.
        if let Some(found) = usize::from(kind & 0x3f).checked_sub(32).and_then(|index| found.get_mut(index)) {
            *found |= count > 0;
        }
        rest = nal_units(units, count).ok_or(error("ends within a parameter set"))?;
    }
    if found != [true; 3] {
        return Err(error("lacks a VPS, an SPS or a PPS"));
    }
    let compatibility = u32::from_be_bytes([*c0, *c1, *c2, *c3]).reverse_bits();
    let [constraints @ .., level] = constraints else { return Err(error("is too short")) };
    Ok(hevc_name(*profile, compatibility, constraints, *level))
}

fn hevc_name(profile: u8, compatibility: u32, constraints: &[u8], level: u8) -> String {
    let space = ["", "A", "B", "C"][usize::from(profile >> 6)];
    let tier = if profile & 0x20 == 0 { 'L' } else { 'H' };
    let mut out = format!("hvc1.{space}{}.{compatibility:X}.{tier}{level}", profile & 0x1f);
    // Trailing zero bytes of the constraints are left out.
    let used = constraints.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    for byte in constraints.iter().take(used) {
        let _ = write!(out, ".{byte:X}");
    }
    out
}

/// AV1-in-ISOBMFF 2.3.3 for the record, 5 for the name.
fn av1(private: &[u8]) -> Result<String, CodecError> {
    check_length(private, 4, "AV1")?;
    let [0x81, profile_level, flags, _, ..] = private else {
        return Err(CodecError::Private { codec: "AV1", what: "is no av1C: marker and version are not 0x81" });
    };
    let (profile, level) = (profile_level >> 5, profile_level & 0x1f);
    let tier = if flags & 0x80 == 0 { 'M' } else { 'H' };
    let depth = match (flags & 0x40 != 0, flags & 0x20 != 0) {
        (true, true) if profile == 2 => 12,
        (true, _) => 10,
        _ => 8,
    };
    Ok(format!("av01.{profile}.{level:02}{tier}.{depth:02}"))
}

/// The first fields of an AudioSpecificConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AacConfig {
    pub object_type: u8,
    /// Samples a second; 0 where the index is a reserved one.
    pub sample_rate: u32,
    /// Channel configuration; 0: the stream says.
    pub channels: u8,
}

impl AacConfig {
    /// ISO/IEC 14496-3 1.6.2.1.
    pub fn parse(private: &[u8]) -> Result<AacConfig, CodecError> {
        /// Samples a second by samplingFrequencyIndex.
        const RATES: [u32; 13] =
            [96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350];
        let error = |what| CodecError::Private { codec: "AAC", what };
        check_length(private, 2, "AAC")?;
        let mut bits = Bits { data: private, at: 0 };
        let mut config = || {
            let object_type = match bits.take(5)? {
                31 => 32 + bits.take(6)?,
                object_type => object_type,
            };
            let sample_rate = match bits.take(4)? {
                15 => bits.take(24)?,
                index => RATES.get(index as usize).copied().unwrap_or(0),
            };
            Some((object_type, sample_rate, bits.take(4)?))
        };
        let (object_type, sample_rate, channels) = config().ok_or(error("is too short"))?;
        if object_type == 0 {
            return Err(error("has no object type"));
        }
        // Channel configuration 7 is eight channels; the higher ones are rare and only named in the stream.
        let channels = if channels == 7 { 8 } else { channels as u8 };
        Ok(AacConfig { object_type: object_type as u8, sample_rate, channels })
    }
}

/// RFC 7845 5.1, as Matroska's CodecPrivate has it; numbers are little-endian there and big-endian in MP4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpusHead {
    pub channels: u8,
    /// Samples at 48 kHz to drop at the start.
    pub pre_skip: u16,
    pub input_rate: u32,
    pub gain: i16,
    pub family: u8,
    /// Stream count, coupled count, and a byte a channel; empty for family 0.
    pub mapping: Vec<u8>,
}

impl OpusHead {
    pub fn parse(private: &[u8]) -> Result<OpusHead, CodecError> {
        let error = |what| CodecError::Private { codec: "Opus", what };
        check_length(private, 19, "Opus")?;
        let rest = private.strip_prefix(b"OpusHead").ok_or(error("is no OpusHead"))?;
        let [version, channels, p0, p1, r0, r1, r2, r3, g0, g1, family, rest @ ..] = rest else {
            return Err(error("is too short"));
        };
        // The upper four bits are the major version: 0 is all there is.
        if version >> 4 != 0 || *channels == 0 {
            return Err(error("has a version that is not known, or no channels"));
        }
        let mapping = match family {
            0 if *channels > 2 => return Err(error("has more channels than its mapping family")),
            0 => &[],
            _ => rest.get(..2 + usize::from(*channels)).ok_or(error("ends within its channel mapping"))?,
        };
        Ok(OpusHead {
            channels: *channels,
            pre_skip: u16::from_le_bytes([*p0, *p1]),
            input_rate: u32::from_le_bytes([*r0, *r1, *r2, *r3]),
            gain: i16::from_le_bytes([*g0, *g1]),
            family: *family,
            mapping: mapping.to_vec(),
        })
    }

    pub fn private(&self) -> Vec<u8> {
        let mut out = b"OpusHead\x01".to_vec();
        out.push(self.channels);
        out.extend(self.pre_skip.to_le_bytes());
        out.extend(self.input_rate.to_le_bytes());
        out.extend(self.gain.to_le_bytes());
        out.push(self.family);
        out.extend(&self.mapping);
        out
    }
}

fn check_length(private: &[u8], least: usize, codec: &'static str) -> Result<(), CodecError> {
    match private.len() {
        0 => Err(CodecError::Private { codec, what: "is missing" }),
        length if length < least => Err(CodecError::Private { codec, what: "is too short" }),
        length if length > PRIVATE_BYTES_MAX => Err(CodecError::Private { codec, what: "is too long" }),
        _ => Ok(()),
    }
}

/// Skips `count` NAL units with lengths of 16 bits; none of them is empty.
fn nal_units(mut data: &[u8], count: u16) -> Option<&[u8]> {
    for _ in 0..count {
        let (length, rest) = data.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        data = rest.get(length..).filter(|_| length > 0)?;
    }
    Some(data)
}

/// Reads bits from the highest down.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.data.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests;
