//! Blocks to frames: SimpleBlock, BlockGroup, and the three lacings (RFC 9559 sections 10.2 and 10.3).
//!
//! A frame without bytes is left out: nothing can be decoded from it, and a fixed lace could name 256 of them in five
//! bytes. A frame never holds much more memory than its own bytes, or few frames kept could hold many blocks: one out of a
//! lace is copied, one out of a group full of other things too. Nothing here knows in which Cluster it is but for the clock it is given. Pure.

use super::header::TrackIn;
use super::ids;
use super::parse::{Event, FRAME_BYTES_MAX, Fault, ParseError};
use crate::ebml;
use crate::media::Frame;
use bytes::{Buf, Bytes, BytesMut};

/// The bits of a block's flags that say how it is laced, and two of their values.
const LACING: u8 = 0x06;
const XIPH: u8 = 0x02;
const FIXED: u8 = 0x04;

/// What a block's time is relative to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub cluster_ticks: i64,
    pub scale_ns: i64,
}

/// What a block says, but for its frames.
struct Block<'a> {
    track: &'a TrackIn,
    pts_ns: i64,
    flags: u8,
}

pub(super) fn simple(
    mut body: Bytes,
    at: u64,
    clock: &Clock,
    tracks: &[TrackIn],
    events: &mut Vec<Event>,
) -> Result<(), ParseError> {
    let block = take_header(&mut body, clock, tracks).map_err(|fault| fault.at(at))?;
    let keyframe = block.flags & 0x80 != 0;
    frames(&block, body, keyframe, None, events).map_err(|fault| fault.at(at))
}

pub(super) fn group(
    body: Bytes,
    at: u64,
    clock: &Clock,
    tracks: &[TrackIn],
    events: &mut Vec<Event>,
) -> Result<(), ParseError> {
    let mut found = None;
    let mut duration_ns = None;
    let mut keyframe = true;
    for element in ebml::Elements::new(&body, at) {
        let element = element?;
        match element.id {
            ids::BLOCK if found.is_none() => {
                let begin = usize::try_from(element.at.saturating_sub(at)).unwrap_or(usize::MAX);
                found = Some((element.at, body.slice(begin..begin.saturating_add(element.body.len()))));
            }
            ids::BLOCK_DURATION => {
                duration_ns = Some(element.uint()?.saturating_mul(clock.scale_ns.unsigned_abs()));
            }
            ids::REFERENCE_BLOCK => keyframe = false,
            _ => {}
        }
    }
    let Some((at, mut data)) = found else { return Ok(()) };
    if data.len() < body.len() / 2 {
        data = Bytes::copy_from_slice(&data);
    }
    let block = take_header(&mut data, clock, tracks).map_err(|fault| fault.at(at))?;
    frames(&block, data, keyframe, duration_ns, events).map_err(|fault| fault.at(at))
}

/// Takes the header off: track number, signed time relative to the Cluster, flags.
fn take_header<'a>(body: &mut Bytes, clock: &Clock, tracks: &'a [TrackIn]) -> Result<Block<'a>, Fault> {
    let (number, bytes) = ebml::vint(body)?.ok_or(Fault::ShortBlock)?;
    let Some(&[high, low, flags]) = body.get(bytes..bytes + 3) else { return Err(Fault::ShortBlock) };
    let track = tracks.iter().find(|track| u64::from(track.track.number) == number);
    let track = track.ok_or(Fault::UnknownTrack(number))?;
    body.advance(bytes + 3);
    let ticks = clock.cluster_ticks.saturating_add(i64::from(i16::from_be_bytes([high, low])));
    Ok(Block { track, pts_ns: ticks.saturating_mul(clock.scale_ns), flags })
}

fn frames(
    block: &Block<'_>,
    mut data: Bytes,
    keyframe: bool,
    duration_ns: Option<u64>,
    events: &mut Vec<Event>,
) -> Result<(), Fault> {
    let track = &block.track.track;
    let mut frame = |data: Bytes, pts_ns: i64, duration_ns: Option<u64>| {
        if data.is_empty() {
            return Ok(());
        }
        let data = unstrip(&block.track.strip, data);
        if data.len() > FRAME_BYTES_MAX {
            let (bytes, bytes_max) = (data.len() as u64, FRAME_BYTES_MAX);
            return Err(Fault::TooLarge { id: ids::BLOCK, bytes, bytes_max });
        }
        events.push(Event::Frame(Frame { track: track.number, pts_ns, duration_ns, keyframe, data }));
        Ok(())
    };
    let Some(sizes) = lace(block.flags, &mut data)? else {
        return frame(data, block.pts_ns, duration_ns);
    };
    // A BlockDuration is that of all frames of the lace together.
    let each = duration_ns.map(|duration| duration / sizes.len().max(1) as u64);
    let step = i64::try_from(each.unwrap_or(track.default_duration_ns)).unwrap_or(i64::MAX);
    for (index, size) in sizes.into_iter().enumerate() {
        let pts_ns = block.pts_ns.saturating_add(step.saturating_mul(index as i64));
        let one = data.split_to(size.min(data.len()));
        frame(Bytes::copy_from_slice(&one), pts_ns, each)?;
    }
    Ok(())
}

/// Puts back what header stripping took off.
fn unstrip(prefix: &[u8], data: Bytes) -> Bytes {
    if prefix.is_empty() {
        return data;
    }
    let mut whole = BytesMut::with_capacity(prefix.len() + data.len());
    whole.extend_from_slice(prefix);
    whole.extend_from_slice(&data);
    whole.freeze()
}

/// Sizes of the frames of a lace, its header taken off; they sum up to what is left. `None`: no lace.
fn lace(flags: u8, data: &mut Bytes) -> Result<Option<Vec<usize>>, Fault> {
    let name = match flags & LACING {
        0 => return Ok(None),
        XIPH => "Xiph",
        FIXED => "fixed-size",
        _ => "EBML",
    };
    let fault = Fault::Lacing(name);
    let Some(count) = take_byte(data).map(|count| usize::from(count) + 1) else { return Err(fault) };
    let sizes = match flags & LACING {
        XIPH => xiph_sizes(data, count),
        FIXED => fixed_sizes(data, count),
        _ => ebml_sizes(data, count),
    };
    sizes.map(Some).ok_or(fault)
}

fn fixed_sizes(data: &mut Bytes, count: usize) -> Option<Vec<usize>> {
    data.len().is_multiple_of(count).then(|| vec![data.len() / count; count])
}

/// Each size but the last as a run of 255 and a smaller byte, added up.
fn xiph_sizes(data: &mut Bytes, count: usize) -> Option<Vec<usize>> {
    let mut sizes = Vec::with_capacity(count);
    for _ in 1..count {
        let mut size = 0;
        loop {
            let byte = take_byte(data)?;
            size += usize::from(byte);
            if byte < u8::MAX {
                break;
            }
        }
        sizes.push(size);
    }
    with_last(sizes, data.len())
}

/// The first size as it is, each next as the signed difference to the one before.
fn ebml_sizes(data: &mut Bytes, count: usize) -> Option<Vec<usize>> {
    let mut sizes: Vec<usize> = Vec::with_capacity(count);
    for index in 1..count {
        let (value, bytes) = ebml::vint(data).ok().flatten()?;
        data.advance(bytes);
        let value = i64::try_from(value).ok()?;
        let size = match sizes.last().filter(|_| index > 1) {
            None => value,
            // RFC 9559 section 10.3.3: a difference is stored with half the range added.
            Some(last) => i64::try_from(*last).ok()?.checked_add(value - (ebml::vint_ones(bytes) >> 1) as i64)?,
        };
        // A size beyond the block would overflow only in a sum, but there it never gets.
        sizes.push(usize::try_from(size).ok().filter(|size| *size <= data.len())?);
    }
    with_last(sizes, data.len())
}

/// The last frame takes what the others leave.
fn with_last(mut sizes: Vec<usize>, bytes: usize) -> Option<Vec<usize>> {
    let last = bytes.checked_sub(sizes.iter().sum())?;
    sizes.push(last);
    Some(sizes)
}

fn take_byte(data: &mut Bytes) -> Option<u8> {
    let byte = data.first().copied()?;
    data.advance(1);
    Some(byte)
}
