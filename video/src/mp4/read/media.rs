//! Reads media segments: one `moof` with its `mdat`, or several, become one fragment.
//!
//! Other boxes (`styp`, `sidx`, `emsg`, `prft`, also a `moov`) are skipped. It does not cut at keyframes. Pure.

use super::cursor::{Cursor, boxes};
use super::{Defaults, Init, ReadError};
use crate::media::FRAGMENT_BYTES_MAX;
use crate::mp4::SAMPLES_MAX;
use crate::mp4::time::to_ns;
use crate::{Fragment, Frame};
use bytes::Bytes;

/// The frames of this segment. Times are the segment's own; the fragment carries no tags and claims to continue.
pub fn read_media(init: &Init, data: &Bytes) -> Result<Fragment, ReadError> {
    let mut segment = Segment { init, data, samples: vec![Vec::new(); init.timing.len()], count: 0, bytes: 0 };
    for found in boxes(data) {
        let found = found?;
        if found.kind == *b"moof" {
            segment.moof(found.body, found.start)?;
        }
    }
    if segment.count == 0 {
        return Err(ReadError::Missing("any frame"));
    }
    let frames = interleave(segment.samples.into_iter().enumerate().map(frames).collect());
    Ok(Fragment { tracks: init.tracks.clone(), frames, discontinuity: false, tags: Vec::new() })
}

struct Segment<'a> {
    init: &'a Init,
    data: &'a Bytes,
    /// By the track's place in the init segment.
    samples: Vec<Vec<Sample>>,
    count: usize,
    bytes: usize,
}

#[derive(Clone)]
struct Sample {
    decode_ns: i64,
    pts_ns: i64,
    duration_ns: u64,
    keyframe: bool,
    data: Bytes,
}

/// What a `tfhd` says, and how far the runs of its `traf` have come.
struct Run {
    track: usize,
    timescale: u32,
    defaults: Defaults,
    /// Where data offsets count from, and where the data of the next run begins if it does not say.
    base: usize,
    data_at: usize,
    decode_time: u64,
}

impl Segment<'_> {
    fn moof(&mut self, moof: &[u8], start: usize) -> Result<(), ReadError> {
        // Without default-base-is-moof the first traf counts from the moof, each other from the end of the one
        // before.
        let mut data_end = start;
        for found in boxes(moof) {
            let found = found?;
            if found.kind == *b"traf" {
                data_end = self.traf(found.body, start, data_end)?;
            }
        }
        Ok(())
    }

    fn traf(&mut self, traf: &[u8], moof_start: usize, data_end: usize) -> Result<usize, ReadError> {
        let mut run: Option<Run> = None;
        for found in boxes(traf) {
            let found = found?;
            match (&found.kind, &mut run) {
                (b"tfhd", None) => run = Some(self.tfhd(found.body, moof_start, data_end)?),
                (b"tfdt", Some(run)) => run.decode_time = tfdt(found.body)?,
                (b"trun", Some(run)) => self.trun(found.body, run)?,
                (b"tfdt" | b"trun", None) => return Err(ReadError::Missing("tfhd")),
                _ => {}
            }
        }
        run.map(|run| run.data_at).ok_or(ReadError::Missing("tfhd"))
    }

    /// ISO/IEC 14496-12 8.8.7.
    fn tfhd(&self, body: &[u8], moof_start: usize, data_end: usize) -> Result<Run, ReadError> {
        let mut cursor = Cursor::new(body, "tfhd");
        let (_, flags) = cursor.version_flags()?;
        let id = cursor.u32()?;
        let found = self.init.timing.iter().enumerate().find(|(_, timing)| timing.id == id);
        let (track, timing) = found.ok_or(ReadError::UnknownTrack(id))?;
        if flags & 0x1 != 0 {
            return Err(ReadError::Invalid("offsets count from the start of a file: default-base-is-moof is needed"));
        }
        let mut optional = |flag: u32, default| if flags & flag == 0 { Ok(default) } else { cursor.u32() };
        optional(0x2, 0)?; // sample description
        let defaults = Defaults {
            duration: optional(0x8, timing.defaults.duration)?,
            size: optional(0x10, timing.defaults.size)?,
            flags: optional(0x20, timing.defaults.flags)?,
        };
        let base = if flags & 0x02_0000 == 0 { data_end } else { moof_start };
        // Times begin at 0 where there is no tfdt, which CMAF and MSE demand.
        Ok(Run { track, timescale: timing.timescale, defaults, base, data_at: base, decode_time: 0 })
    }

    /// ISO/IEC 14496-12 8.8.8.
    fn trun(&mut self, body: &[u8], run: &mut Run) -> Result<(), ReadError> {
        let mut cursor = Cursor::new(body, "trun");
        let (version, flags) = cursor.version_flags()?;
        let count = cursor.u32()? as usize;
        self.count = self.count.saturating_add(count);
        if self.count > SAMPLES_MAX {
            return Err(ReadError::TooLarge);
        }
        if flags & 0x1 != 0 {
            let offset = cursor.u32()? as i32;
            run.data_at = run.base.checked_add_signed(offset as isize).ok_or(ReadError::Truncated("mdat"))?;
        }
        let mut first_flags = if flags & 0x4 == 0 { None } else { Some(cursor.u32()?) };
        for _ in 0..count {
            let mut optional = |flag: u32, default| if flags & flag == 0 { Ok(default) } else { cursor.u32() };
            let duration = optional(0x100, run.defaults.duration)?;
            let size = optional(0x200, run.defaults.size)?;
            let own_flags = optional(0x400, run.defaults.flags)?;
            let composition = optional(0x800, 0)?;
            // Version 0 has them unsigned.
            let composition = if version == 0 { i64::from(composition) } else { i64::from(composition as i32) };
            self.sample(run, duration, size, first_flags.take().unwrap_or(own_flags), composition)?;
        }
        Ok(())
    }

    fn sample(&mut self, run: &mut Run, duration: u32, size: u32, flags: u32, shift: i64) -> Result<(), ReadError> {
        let end = run.data_at.checked_add(size as usize).filter(|end| *end <= self.data.len());
        let end = end.ok_or(ReadError::Truncated("mdat"))?;
        self.bytes = self.bytes.saturating_add(size as usize);
        if self.bytes > FRAGMENT_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        let decode_time = i128::from(run.decode_time);
        let sample = Sample {
            decode_ns: to_ns(decode_time, run.timescale),
            pts_ns: to_ns(decode_time + i128::from(shift), run.timescale),
            duration_ns: to_ns(duration.into(), run.timescale).unsigned_abs(),
            // sample_is_non_sync_sample.
            keyframe: flags & 0x1_0000 == 0,
            data: self.data.slice(run.data_at..end),
        };
        self.samples.get_mut(run.track).ok_or(ReadError::Missing("track"))?.push(sample);
        run.data_at = end;
        run.decode_time = run.decode_time.saturating_add(duration.into());
        Ok(())
    }
}

/// ISO/IEC 14496-12 8.8.12.
fn tfdt(body: &[u8]) -> Result<u64, ReadError> {
    let mut cursor = Cursor::new(body, "tfdt");
    let (version, _) = cursor.version_flags()?;
    if version == 1 { cursor.u64() } else { cursor.u32().map(u64::from) }
}

/// A track's samples as frames, with decode times. MP4 has durations between decode times; a frame's own lasts until
/// the next one is shown, and that of the last is the last sample's.
fn frames((index, samples): (usize, Vec<Sample>)) -> Vec<(i64, Frame)> {
    let mut shown: Vec<i64> = samples.iter().map(|sample| sample.pts_ns).collect();
    shown.sort_unstable();
    let last_ns = samples.last().map_or(0, |sample| sample.duration_ns);
    let duration_ns = |pts_ns: i64| {
        let next = shown.get(shown.partition_point(|time| *time <= pts_ns));
        next.map_or(last_ns, |next| next.abs_diff(pts_ns))
    };
    // Broken decode times may run back: the order of the samples counts.
    let mut latest = i64::MIN;
    let frame = |sample: Sample| {
        latest = latest.max(sample.decode_ns);
        let duration_ns = Some(duration_ns(sample.pts_ns)).filter(|duration| *duration > 0);
        let Sample { pts_ns, keyframe, data, .. } = sample;
        (latest, Frame { track: index as u8 + 1, pts_ns, duration_ns, keyframe, data })
    };
    samples.into_iter().map(frame).collect()
}

/// All tracks' frames by decode time, which keeps the order of each track.
fn interleave(tracks: Vec<Vec<(i64, Frame)>>) -> Vec<Frame> {
    let mut all: Vec<(i64, Frame)> = tracks.into_iter().flatten().collect();
    all.sort_by_key(|(decode_ns, _)| *decode_ns);
    all.into_iter().map(|(_, frame)| frame).collect()
}
