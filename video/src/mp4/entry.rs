//! `stsd`: how a track is coded.
//!
//! The codec's configuration is copied as Matroska has it, but for Opus, whose numbers are big-endian in MP4, and for
//! AAC, which descriptors wrap. Whether it is whole is checked before, by `codecs`. Pure.

use super::boxes::Boxes;
use crate::codecs::{AacConfig, OpusHead};
use crate::{Codec, Track};

/// ISO/IEC 14496-12 8.5.2, with one entry. The track was checked: what cannot be parsed here is written as nothing.
pub(super) fn stsd(b: &mut Boxes, track: &Track) {
    b.full(b"stsd", 0, 0, |b| {
        b.u32(1);
        match track.codec {
            Codec::H264 => visual(b, track, b"avc1", b"avcC"),
            // hvc1, not hev1: parameter sets are in the hvcC, and Apple's players take nothing else.
            Codec::Hevc => visual(b, track, b"hvc1", b"hvcC"),
            Codec::Av1 => visual(b, track, b"av01", b"av1C"),
            Codec::Aac => aac(b, track),
            Codec::Opus => opus(b, track),
            Codec::Mjpeg | Codec::Other(_) => {}
        }
    });
}

/// ISO/IEC 14496-12 12.1.3.
fn visual(b: &mut Boxes, track: &Track, entry: &[u8; 4], config: &[u8; 4]) {
    b.open(entry, |b| {
        b.zeros(6);
        b.u16(1); // data reference
        b.zeros(16);
        b.u16(track.width as u16);
        b.u16(track.height as u16);
        b.u32(0x0048_0000); // 72 dpi
        b.u32(0x0048_0000);
        b.u32(0);
        b.u16(1); // frames a sample
        b.zeros(32); // compressor name
        b.u16(0x0018); // depth
        b.u16(0xffff);
        b.open(config, |b| b.bytes(&track.private));
    });
}

fn aac(b: &mut Boxes, track: &Track) {
    let config = AacConfig::parse(&track.private);
    let channels = match track.channels {
        0 => config.map_or(2, |config| config.channels),
        channels => channels,
    };
    b.open(b"mp4a", |b| {
        sound(b, channels, super::timescale(track));
        b.full(b"esds", 0, 0, |b| esds(b, &track.private));
    });
}

/// ISO/IEC 14496-12 12.2.3. The rate has 16 bits; a higher one is left to the codec's configuration.
fn sound(b: &mut Boxes, channels: u8, rate: u32) {
    b.zeros(6);
    b.u16(1); // data reference
    b.zeros(8);
    b.u16(channels.into());
    b.u16(16); // bits a sample
    b.zeros(4);
    b.u32(u16::try_from(rate).map_or(0, |rate| u32::from(rate) << 16));
}

/// ISO/IEC 14496-1 7.2.6: ES_Descriptor with DecoderConfigDescriptor (AAC, audio stream), DecoderSpecificInfo and
/// SLConfigDescriptor (MP4's own).
fn esds(b: &mut Boxes, config: &[u8]) {
    let length = config.len() as u32;
    descriptor(b, 3, 3 + 5 + 13 + 5 + length + 5 + 1);
    b.u16(0); // ES_ID: the track says
    b.u8(0);
    descriptor(b, 4, 13 + 5 + length);
    b.bytes(&[0x40, 0x15]);
    b.zeros(3 + 4 + 4); // buffer size and bit rates: not known
    descriptor(b, 5, length);
    b.bytes(config);
    descriptor(b, 6, 1);
    b.u8(2);
}

/// ISO/IEC 14496-1 8.3.3: the length is four times seven bits. [`crate::codecs::PRIVATE_BYTES_MAX`] fits.
fn descriptor(b: &mut Boxes, tag: u8, length: u32) {
    b.u8(tag);
    for shift in [21, 14, 7] {
        b.u8(0x80 | (length >> shift & 0x7f) as u8);
    }
    b.u8((length & 0x7f) as u8);
}

/// "Encapsulation of Opus in ISOBMFF" 4.3.2: an OpusHead of version 0 with big-endian numbers.
fn opus(b: &mut Boxes, track: &Track) {
    let Ok(head) = OpusHead::parse(&track.private) else { return };
    b.open(b"Opus", |b| {
        sound(b, head.channels, 48_000);
        b.open(b"dOps", |b| {
            b.u8(0);
            b.u8(head.channels);
            b.u16(head.pre_skip);
            b.u32(head.input_rate);
            b.bytes(&head.gain.to_be_bytes());
            b.u8(head.family);
            b.bytes(&head.mapping);
        });
    });
}
