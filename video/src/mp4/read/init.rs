//! Reads a `moov`: the tracks, and what their fragments leave out.
//!
//! A track of a codec that is not played here is kept as `Codec::Other("mp4:....")`, so that the others can be. Pure.

use super::cursor::{Cursor, boxes, find};
use super::{Defaults, Init, ReadError, TrackTiming};
use crate::codecs::{AacConfig, OpusHead, PRIVATE_BYTES_MAX};
use crate::media::{TRACKS_MAX, Track};
use crate::{Codec, Kind, Tracks};
use bytes::Bytes;
use std::sync::Arc;

/// Nanoseconds that an Opus decoder needs to settle (RFC 7845 4.6).
const OPUS_PREROLL_NS: u64 = 80_000_000;

/// Reads an init segment; what follows the `moov` is not looked at.
pub fn read_init(data: &[u8]) -> Result<Init, ReadError> {
    let moov = find(data, b"moov", "moov")?;
    let (mut tracks, mut timing) = (Vec::new(), Vec::new());
    for found in boxes(moov) {
        let found = found?;
        if found.kind != *b"trak" {
            continue;
        }
        if tracks.len() == TRACKS_MAX {
            return Err(ReadError::TooManyTracks);
        }
        let (track, its_timing) = trak(found.body, tracks.len() as u8 + 1)?;
        if timing.iter().any(|other: &TrackTiming| other.id == its_timing.id) {
            return Err(ReadError::Invalid("two tracks have one track_ID"));
        }
        tracks.push(track);
        timing.push(its_timing);
    }
    if tracks.is_empty() {
        return Err(ReadError::Missing("trak"));
    }
    mvex(moov, &mut timing)?;
    Ok(Init { tracks: Arc::new(Tracks(tracks)), timing })
}

/// The defaults of each track (ISO/IEC 14496-12 8.8.3). Without them it is no fragmented MP4.
fn mvex(moov: &[u8], timing: &mut [TrackTiming]) -> Result<(), ReadError> {
    for found in boxes(find(moov, b"mvex", "mvex: no fragmented MP4")?) {
        let found = found?;
        if found.kind != *b"trex" {
            continue;
        }
        let mut cursor = Cursor::new(found.body, "trex");
        cursor.u32()?;
        let id = cursor.u32()?;
        cursor.u32()?; // sample description
        let defaults = Defaults { duration: cursor.u32()?, size: cursor.u32()?, flags: cursor.u32()? };
        timing.iter_mut().filter(|track| track.id == id).for_each(|track| track.defaults = defaults);
    }
    Ok(())
}

fn trak(trak: &[u8], number: u8) -> Result<(Track, TrackTiming), ReadError> {
    let mut tkhd = Cursor::new(find(trak, b"tkhd", "tkhd")?, "tkhd");
    let (version, _) = tkhd.version_flags()?;
    tkhd.take(if version == 1 { 16 } else { 8 })?;
    let id = tkhd.u32()?;
    let mdia = find(trak, b"mdia", "mdia")?;
    let mut mdhd = Cursor::new(find(mdia, b"mdhd", "mdhd")?, "mdhd");
    let (version, _) = mdhd.version_flags()?;
    mdhd.take(if version == 1 { 16 } else { 8 })?;
    let timescale = mdhd.u32()?;
    if timescale == 0 {
        return Err(ReadError::Invalid("a track's timescale is 0"));
    }
    let mut hdlr = Cursor::new(find(mdia, b"hdlr", "hdlr")?, "hdlr");
    hdlr.take(8)?;
    let kind = match hdlr.take(4)? {
        b"vide" => Kind::Video,
        b"soun" => Kind::Audio,
        _ => Kind::Other,
    };
    let stbl = find(find(mdia, b"minf", "minf")?, b"stbl", "stbl")?;
    let track = stsd(find(stbl, b"stsd", "stsd")?, number, kind)?;
    Ok((track, TrackTiming { id, timescale, defaults: Defaults::default() }))
}

fn stsd(stsd: &[u8], number: u8, kind: Kind) -> Result<Track, ReadError> {
    let entries = stsd.get(8..).ok_or(ReadError::Truncated("stsd"))?;
    let entry = boxes(entries).next().ok_or(ReadError::Missing("a sample entry"))??;
    let mut track = Track {
        number,
        kind,
        codec: Codec::Other(format!("mp4:{}", entry.kind.escape_ascii()).into()),
        private: Bytes::new(),
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    };
    match kind {
        Kind::Video => visual(&mut track, entry.kind, entry.body)?,
        Kind::Audio => sound(&mut track, entry.kind, entry.body)?,
        Kind::Other => {}
    }
    if track.private.len() > PRIVATE_BYTES_MAX {
        return Err(ReadError::TooLarge);
    }
    Ok(track)
}

/// ISO/IEC 14496-12 12.1.3.
fn visual(track: &mut Track, entry: [u8; 4], body: &[u8]) -> Result<(), ReadError> {
    let mut cursor = Cursor::new(body, "a visual sample entry");
    cursor.take(24)?;
    track.width = cursor.u16()?.into();
    track.height = cursor.u16()?.into();
    cursor.take(50)?;
    let (codec, config, name) = match &entry {
        b"avc1" | b"avc3" => (Codec::H264, b"avcC", "avcC"),
        b"hvc1" | b"hev1" => (Codec::Hevc, b"hvcC", "hvcC"),
        b"av01" => (Codec::Av1, b"av1C", "av1C"),
        _ => return Ok(()),
    };
    track.private = Bytes::copy_from_slice(find(cursor.rest(), config, name)?);
    track.codec = codec;
    Ok(())
}

/// ISO/IEC 14496-12 12.2.3; version 1 is QuickTime's, with four more numbers.
fn sound(track: &mut Track, entry: [u8; 4], body: &[u8]) -> Result<(), ReadError> {
    let mut cursor = Cursor::new(body, "an audio sample entry");
    cursor.take(8)?;
    let version = cursor.u16()?;
    cursor.take(6)?;
    track.channels = cursor.u16()?.min(255) as u8;
    cursor.take(6)?;
    track.sample_rate = cursor.u32()? >> 16;
    cursor.take(if version == 1 { 16 } else { 0 })?;
    match &entry {
        b"mp4a" => aac(track, find(cursor.rest(), b"esds", "esds")?),
        b"Opus" => opus(track, find(cursor.rest(), b"dOps", "dOps")?),
        _ => Ok(()),
    }
}

/// ISO/IEC 14496-1 7.2.6. An `mp4a` may also be MP3: that stays another codec.
fn aac(track: &mut Track, esds: &[u8]) -> Result<(), ReadError> {
    /// objectTypeIndication of ISO/IEC 14496-3.
    const MPEG4_AUDIO: u8 = 0x40;
    let mut cursor = Cursor::new(esds, "esds");
    cursor.u32()?;
    let mut es = descriptor(&mut cursor, 3)?;
    es.u16()?;
    let flags = es.u8()?;
    es.take(if flags & 0x80 == 0 { 0 } else { 2 })?;
    let url = if flags & 0x40 == 0 { 0 } else { es.u8()? };
    es.take(url.into())?;
    es.take(if flags & 0x20 == 0 { 0 } else { 2 })?;
    let mut decoder = descriptor(&mut es, 4)?;
    let object_type = decoder.u8()?;
    decoder.take(12)?;
    if object_type != MPEG4_AUDIO {
        return Ok(());
    }
    let private = descriptor(&mut decoder, 5)?.rest();
    let config = AacConfig::parse(private).map_err(|_| ReadError::Invalid("the AudioSpecificConfig is none"))?;
    if track.sample_rate == 0 {
        track.sample_rate = config.sample_rate;
    }
    track.private = Bytes::copy_from_slice(private);
    track.codec = Codec::Aac;
    Ok(())
}

/// ISO/IEC 14496-1 8.3.3: tag, and a length of up to four times seven bits.
fn descriptor<'a>(cursor: &mut Cursor<'a>, tag: u8) -> Result<Cursor<'a>, ReadError> {
    if cursor.u8()? != tag {
        return Err(ReadError::Invalid("the esds has another descriptor than expected"));
    }
    let mut length = 0usize;
    for _ in 0..4 {
        let byte = cursor.u8()?;
        length = length << 7 | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(Cursor::new(cursor.take(length)?, "esds"))
}

/// "Encapsulation of Opus in ISOBMFF" 4.3.2.
fn opus(track: &mut Track, dops: &[u8]) -> Result<(), ReadError> {
    let mut cursor = Cursor::new(dops, "dOps");
    if cursor.u8()? != 0 {
        return Err(ReadError::Invalid("the dOps has a version that is not known"));
    }
    let head = OpusHead {
        channels: cursor.u8()?,
        pre_skip: cursor.u16()?,
        input_rate: cursor.u32()?,
        gain: cursor.u16()? as i16,
        family: cursor.u8()?,
        mapping: cursor.rest().to_vec(),
    };
    let private = head.private();
    // Whoever gets the track can rely on its OpusHead.
    let head = OpusHead::parse(&private).map_err(|_| ReadError::Invalid("the dOps is none"))?;
    track.private = head.private().into();
    track.channels = head.channels;
    track.sample_rate = 48_000;
    track.codec_delay_ns = u64::from(head.pre_skip) * 1_000_000 / 48;
    track.seek_preroll_ns = OPUS_PREROLL_NS;
    track.codec = Codec::Opus;
    Ok(())
}
