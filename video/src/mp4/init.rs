//! The init segment: `ftyp` and a `moov` without samples, which says what the tracks are.
//!
//! It has no times: how long the file is, is not known when it is written. It is the same bytes for the same tracks, so
//! that a player may keep it. Pure.

use super::boxes::Boxes;
use super::{Mp4Error, entry, time};
use crate::{Codec, Kind, Track, Tracks, codecs};

/// The init segment of these tracks. Those that MP4 does not carry are left out; it is an error only if none is left.
pub fn init(tracks: &Tracks) -> Result<Vec<u8>, Mp4Error> {
    let carried: Vec<&Track> = carried(tracks).collect();
    for track in &carried {
        check(track)?;
    }
    if carried.is_empty() {
        return Err(Mp4Error::NoTrack);
    }
    let mut boxes = Boxes::with_capacity(2048);
    // iso6: signed composition offsets and default-base-is-moof.
    boxes.open(b"ftyp", |b| b.bytes(b"iso6\0\0\0\x01iso6iso5mp41"));
    boxes.open(b"moov", |b| {
        mvhd(b, carried.iter().map(|track| track.number).max().unwrap_or(0));
        for track in &carried {
            trak(b, track);
        }
        b.open(b"mvex", |b| carried.iter().for_each(|track| trex(b, track)));
    });
    Ok(boxes.finish())
}

/// The tracks that MP4 carries, of a kind that fits their codec.
pub(super) fn carried(tracks: &Tracks) -> impl Iterator<Item = &Track> {
    tracks.0.iter().filter(|track| match track.codec {
        Codec::H264 | Codec::Hevc | Codec::Av1 => track.kind == Kind::Video,
        Codec::Aac | Codec::Opus => track.kind == Kind::Audio,
        Codec::Mjpeg | Codec::Other(_) => false,
    })
}

fn check(track: &Track) -> Result<(), Mp4Error> {
    codecs::name(track)?;
    let error = |what| Err(Mp4Error::Track { track: track.number, what });
    if track.number == 0 {
        // ISO/IEC 14496-12 8.3.2.3: track_ID is never zero.
        return error("number 0 is none in MP4");
    }
    if track.width > u32::from(u16::MAX) || track.height > u32::from(u16::MAX) {
        return error("wider or higher than 65,535 pixels");
    }
    Ok(())
}

/// ISO/IEC 14496-12 8.2.2.
fn mvhd(b: &mut Boxes, last_track: u8) {
    b.full(b"mvhd", 0, 0, |b| {
        b.zeros(8); // creation and modification: not known
        b.u32(1000);
        b.u32(0); // duration: that of the fragments
        b.u32(0x0001_0000); // rate
        b.u16(0x0100); // volume
        b.zeros(10);
        matrix(b);
        b.zeros(24);
        b.u32(u32::from(last_track) + 1);
    });
}

fn trak(b: &mut Boxes, track: &Track) {
    b.open(b"trak", |b| {
        tkhd(b, track);
        b.open(b"mdia", |b| {
            mdhd(b, track);
            hdlr(b, track);
            b.open(b"minf", |b| {
                media_header(b, track);
                dinf(b);
                b.open(b"stbl", |b| {
                    entry::stsd(b, track);
                    for kind in [b"stts", b"stsc", b"stco"] {
                        b.full(kind, 0, 0, |b| b.u32(0));
                    }
                    b.full(b"stsz", 0, 0, |b| b.zeros(8));
                });
            });
        });
    });
}

/// ISO/IEC 14496-12 8.3.2. Flags: enabled, in the movie, in its preview.
fn tkhd(b: &mut Boxes, track: &Track) {
    b.full(b"tkhd", 0, 7, |b| {
        b.zeros(8);
        b.u32(track.number.into());
        b.zeros(4 + 4 + 8); // reserved, duration, reserved
        b.zeros(2 + 2); // layer, alternate group
        b.u16(if track.kind == Kind::Audio { 0x0100 } else { 0 });
        b.u16(0);
        matrix(b);
        b.u32(track.width << 16);
        b.u32(track.height << 16);
    });
}

fn mdhd(b: &mut Boxes, track: &Track) {
    b.full(b"mdhd", 0, 0, |b| {
        b.zeros(8);
        b.u32(time::timescale(track));
        b.u32(0);
        b.u16(0x55c4); // language: "und"
        b.u16(0);
    });
}

fn hdlr(b: &mut Boxes, track: &Track) {
    b.full(b"hdlr", 0, 0, |b| {
        b.u32(0);
        b.bytes(if track.kind == Kind::Audio { b"soun" } else { b"vide" });
        b.zeros(12);
        b.u8(0); // no name
    });
}

fn media_header(b: &mut Boxes, track: &Track) {
    match track.kind {
        Kind::Audio => b.full(b"smhd", 0, 0, |b| b.zeros(4)),
        _ => b.full(b"vmhd", 0, 1, |b| b.zeros(8)),
    }
}

/// ISO/IEC 14496-12 8.7.2: the one data reference is this file.
fn dinf(b: &mut Boxes) {
    b.open(b"dinf", |b| {
        b.full(b"dref", 0, 0, |b| {
            b.u32(1);
            b.full(b"url ", 0, 1, |_| {});
        });
    });
}

/// ISO/IEC 14496-12 8.8.3: defaults, which each fragment overrides.
fn trex(b: &mut Boxes, track: &Track) {
    b.full(b"trex", 0, 0, |b| {
        b.u32(track.number.into());
        b.u32(1); // sample description
        b.zeros(12); // duration, size, flags
    });
}

/// The unity matrix.
fn matrix(b: &mut Boxes) {
    for value in [0x0001_0000, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000] {
        b.u32(value);
    }
}
