//! The parser: bytes as they come, cut anywhere, to events.
//!
//! Only Segment and Cluster are entered, so that the state is where each of them ends; a master smaller than those is
//! gathered whole and read by `header` or `block`, and what nobody needs passes by uncounted. It is no validator: what a
//! player would skip is skipped. But a length that lies, a block of a track nobody announced, or a first byte that is no
//! EBML is an error, and an error is the end: there is no mark in Matroska at which reading could safely go on. Pure.

use super::header::{self, TrackIn};
use super::{block, ids};
use crate::ebml::{self, EbmlError, EbmlFault, Element, Head, Size};
use crate::media::{Frame, TRACKS_MAX, Tracks};
use bytes::Bytes;
use std::sync::Arc;
use thiserror::Error;

/// Longest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Longest SimpleBlock or BlockGroup, in bytes: room for what is around a frame, so that what was read can be read again
/// once it is written.
const BLOCK_BYTES_MAX: usize = FRAME_BYTES_MAX + 1024;
/// Longest Tracks element, in bytes.
pub const TRACKS_BYTES_MAX: usize = 256 << 10;
/// Longest of the other masters that are read, in bytes.
pub const MASTER_BYTES_MAX: usize = 64 << 10;
/// Memory taken for an element on the word of its head alone, in bytes; beyond it, as its bytes come.
const TRUST_BYTES_MAX: usize = 1 << 20;
/// Nanoseconds of a tick where Info does not say (RFC 9559 section 5.1.2.9).
pub(super) const SCALE_NS_DEFAULT: i64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A second EBML header or Segment: another clock and other tracks may follow.
    NewSegment,
    Tracks(Arc<Tracks>),
    /// Name and value of what is tagged for the whole stream, not for one of its tracks.
    Tags(Vec<(String, String)>),
    ClusterStart {
        timecode_ns: i64,
    },
    Frame(Frame),
    ClusterEnd,
}

/// What is wrong, and the byte of the input at which the element begins that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Matroska, at byte {at}: {fault}")]
pub struct ParseError {
    pub at: u64,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("this does not begin as Matroska does, with an EBML header")]
    NotMatroska,
    #[error("the EBML header says {0}")]
    Header(String),
    #[error(transparent)]
    Ebml(#[from] EbmlFault),
    #[error("element {id:#X} has {bytes} bytes, and {bytes_max} is the most")]
    TooLarge { id: u32, bytes: u64, bytes_max: usize },
    #[error("element {0:#X} does not belong here")]
    Misplaced(u32),
    #[error("more than {TRACKS_MAX} tracks")]
    TooManyTracks,
    #[error("track number {0}: 1 to 127 each once are allowed")]
    TrackNumber(u64),
    #[error("track {0} does not say its codec in 1 to 64 bytes")]
    NoCodec(u8),
    #[error("track {number} is encoded by {encoding}, which is not supported")]
    Encoding { number: u8, encoding: &'static str },
    #[error("a TimestampScale of 0")]
    NoScale,
    #[error("a block before its Cluster's Timestamp")]
    UntimedBlock,
    #[error("a block of track {0}, which the Tracks do not have")]
    UnknownTrack(u64),
    #[error("a block shorter than its own header")]
    ShortBlock,
    #[error("{0} lacing whose sizes do not fit its block")]
    Lacing(&'static str),
    #[error("the input ends inside an element")]
    Truncated,
    #[error("a second Tracks that differs in what should be one fragment")]
    SecondTracks,
}

impl Fault {
    pub(super) fn at(self, at: u64) -> ParseError {
        ParseError { at, fault: self }
    }
}

impl From<EbmlError> for ParseError {
    fn from(error: EbmlError) -> ParseError {
        ParseError { at: error.at, fault: error.fault.into() }
    }
}

/// Takes bytes, gives events. The same bytes give the same events however they are cut.
#[derive(Debug)]
pub struct Parser {
    /// Bytes taken so far.
    at: u64,
    state: State,
    /// The begin of a head whose end has not come yet.
    head: [u8; ebml::HEAD_BYTES_MAX],
    head_len: usize,
    segment: Option<Segment>,
    cluster: Option<Cluster>,
    seen: Seen,
    scale_ns: i64,
    tracks: Vec<TrackIn>,
    tags_dropped: u64,
    failed: Option<ParseError>,
}

#[derive(Debug)]
enum State {
    Head,
    /// So many bytes pass by.
    Skip(u64),
    Gather(Gather),
}

/// An element whose body is being gathered.
#[derive(Debug)]
struct Gather {
    id: u32,
    /// Where its body begins.
    at: u64,
    /// Bytes of its body; never 0.
    need: usize,
    got: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    /// `None`: of unknown size.
    end: Option<u64>,
}

#[derive(Debug)]
struct Cluster {
    end: Option<u64>,
    /// Its Timestamp, once it was read.
    ticks: Option<i64>,
}

/// How far the input has come at its top level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Header,
    Segment,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser::new()
    }
}

impl Parser {
    pub fn new() -> Parser {
        Parser {
            at: 0,
            state: State::Head,
            head: [0; ebml::HEAD_BYTES_MAX],
            head_len: 0,
            segment: None,
            cluster: None,
            seen: Seen::Nothing,
            scale_ns: SCALE_NS_DEFAULT,
            tracks: Vec::new(),
            tags_dropped: 0,
            failed: None,
        }
    }

    /// Takes more input and appends what it completes. What was complete before a fault is appended too; after one, every
    /// call gives the same error.
    pub fn push(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<(), ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.run(input, events);
        self.failed = result.as_ref().err().cloned();
        result
    }

    /// The input is over: closes a Cluster of unknown size; an error if an element is not whole.
    pub fn finish(&mut self, events: &mut Vec<Event>) -> Result<(), ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let between = matches!(self.state, State::Head) && self.head_len == 0;
        let open = |end: Option<u64>| end.is_some();
        let whole = between
            && self.seen != Seen::Nothing
            && !self.cluster.as_ref().is_some_and(|cluster| open(cluster.end))
            && !self.segment.as_ref().is_some_and(|segment| open(segment.end));
        self.close_cluster(events);
        if whole { Ok(()) } else { Err(Fault::Truncated.at(self.at)) }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Bytes of memory held for an element that is not whole yet.
    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Gather(gather) => gather.got.capacity(),
            State::Head | State::Skip(_) => 0,
        }
    }

    /// Tags that were too many or too long to keep.
    pub fn tags_dropped(&self) -> u64 {
        self.tags_dropped
    }

    fn run(&mut self, mut input: &[u8], events: &mut Vec<Event>) -> Result<(), ParseError> {
        while !input.is_empty() {
            input = match &mut self.state {
                State::Head => self.take_head(input, events)?,
                State::Skip(left) => {
                    let (taken, rest) = input.split_at(input.len().min(usize::try_from(*left).unwrap_or(usize::MAX)));
                    *left -= taken.len() as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    self.at += taken.len() as u64;
                    rest
                }
                State::Gather(_) => self.take_body(input, events)?,
            };
            self.close_ended(events);
        }
        Ok(())
    }

    fn take_head<'a>(&mut self, input: &'a [u8], events: &mut Vec<Event>) -> Result<&'a [u8], ParseError> {
        let began = self.at - self.head_len as u64;
        let before = self.head_len;
        let fresh = input.len().min(ebml::HEAD_BYTES_MAX - before);
        self.head[before..before + fresh].copy_from_slice(&input[..fresh]);
        let head = match ebml::head(&self.head[..before + fresh]) {
            Ok(Some(head)) => head,
            Ok(None) => {
                self.head_len += fresh;
                self.at += fresh as u64;
                return Ok(&input[fresh..]);
            }
            Err(_) if began == 0 => return Err(Fault::NotMatroska.at(0)),
            Err(fault) => return Err(Fault::from(fault).at(began)),
        };
        // The head ends in this input: a head that had ended before was taken then.
        let taken = head.bytes.saturating_sub(before);
        self.head_len = 0;
        self.at += taken as u64;
        self.open(head, began, events)?;
        Ok(&input[taken..])
    }

    /// Decides on an element by its head, which is just read.
    fn open(&mut self, head: Head, began: u64, events: &mut Vec<Event>) -> Result<(), ParseError> {
        self.close_unsized(head.id, events);
        let end = match head.size {
            Size::Known(size) => Some(self.at.saturating_add(size)),
            Size::Unknown => None,
        };
        let limit = self.cluster.as_ref().and_then(|cluster| cluster.end);
        let limit = limit.or(self.segment.as_ref().and_then(|segment| segment.end)).unwrap_or(u64::MAX);
        if end.unwrap_or(self.at) > limit {
            return Err(Fault::from(EbmlFault::Overruns(head.id)).at(began));
        }
        match (self.place(), head.id) {
            (Place::Top, ids::EBML) => self.gather(head, began, MASTER_BYTES_MAX, events),
            (Place::Top, _) if self.seen == Seen::Nothing => Err(Fault::NotMatroska.at(began)),
            (Place::Top, ids::SEGMENT) => {
                self.begin_segment(Seen::Segment, events);
                self.segment = Some(Segment { end });
                Ok(())
            }
            (Place::Segment, ids::CLUSTER) => {
                self.cluster = Some(Cluster { end, ticks: None });
                Ok(())
            }
            (Place::Segment, ids::TRACKS) => self.gather(head, began, TRACKS_BYTES_MAX, events),
            (Place::Segment, ids::INFO | ids::TAGS) => self.gather(head, began, MASTER_BYTES_MAX, events),
            (Place::Cluster, ids::TIMESTAMP) => self.gather(head, began, MASTER_BYTES_MAX, events),
            (Place::Cluster, ids::SIMPLE_BLOCK | ids::BLOCK_GROUP) => self.gather(head, began, BLOCK_BYTES_MAX, events),
            (Place::Segment | Place::Cluster, id) if ids::is_top(id) => Err(Fault::Misplaced(id).at(began)),
            (Place::Cluster, id) if ids::is_beside_cluster(id) => Err(Fault::Misplaced(id).at(began)),
            (_, id) => match head.size {
                Size::Known(0) => Ok(()),
                Size::Known(size) => {
                    self.state = State::Skip(size);
                    Ok(())
                }
                Size::Unknown => Err(Fault::from(EbmlFault::UnknownSize(id)).at(began)),
            },
        }
    }

    fn place(&self) -> Place {
        match (&self.segment, &self.cluster) {
            (_, Some(_)) => Place::Cluster,
            (Some(_), None) => Place::Segment,
            (None, None) => Place::Top,
        }
    }

    fn gather(&mut self, head: Head, began: u64, max: usize, events: &mut Vec<Event>) -> Result<(), ParseError> {
        let id = head.id;
        let Size::Known(bytes) = head.size else { return Err(Fault::from(EbmlFault::UnknownSize(id)).at(began)) };
        let need = usize::try_from(bytes).unwrap_or(usize::MAX);
        if need > max {
            return Err(Fault::TooLarge { id, bytes, bytes_max: max }.at(began));
        }
        if need == 0 {
            return self.element(id, self.at, Bytes::new(), events);
        }
        self.state = State::Gather(Gather { id, at: self.at, need, got: Vec::new() });
        Ok(())
    }

    fn take_body<'a>(&mut self, input: &'a [u8], events: &mut Vec<Event>) -> Result<&'a [u8], ParseError> {
        let State::Gather(gather) = &mut self.state else { return Ok(input) };
        let missing = gather.need - gather.got.len();
        let (taken, rest) = input.split_at(input.len().min(missing));
        self.at += taken.len() as u64;
        let body = if taken.len() == gather.need {
            Bytes::copy_from_slice(taken)
        } else {
            if gather.got.is_empty() {
                gather.got.reserve_exact(gather.need.min(TRUST_BYTES_MAX));
            }
            gather.got.extend_from_slice(taken);
            if taken.len() < missing {
                return Ok(rest);
            }
            Bytes::from(std::mem::take(&mut gather.got))
        };
        let (id, at) = (gather.id, gather.at);
        self.state = State::Head;
        self.element(id, at, body, events)?;
        Ok(rest)
    }

    /// An element is there whole.
    fn element(&mut self, id: u32, at: u64, body: Bytes, events: &mut Vec<Event>) -> Result<(), ParseError> {
        let element = Element { id, at, body: &body };
        match id {
            ids::EBML => {
                header::check_ebml(&element)?;
                self.begin_segment(Seen::Header, events);
            }
            ids::INFO => self.scale_ns = header::scale_ns(&element)?,
            ids::TRACKS => {
                self.tracks = header::tracks(&element)?;
                let tracks = self.tracks.iter().map(|track| track.track.clone()).collect();
                events.push(Event::Tracks(Arc::new(Tracks(tracks))));
            }
            ids::TAGS => {
                let (tags, dropped) = header::tags(&element)?;
                self.tags_dropped = self.tags_dropped.saturating_add(dropped);
                if !tags.is_empty() {
                    events.push(Event::Tags(tags));
                }
            }
            ids::TIMESTAMP => self.start_cluster(&element, events)?,
            ids::SIMPLE_BLOCK => {
                let clock = self.clock(at)?;
                block::simple(body, at, &clock, &self.tracks, events)?;
            }
            ids::BLOCK_GROUP => {
                let clock = self.clock(at)?;
                block::group(body, at, &clock, &self.tracks, events)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A header or a Segment begins. The first of both is the input's begin, a Segment after a header belongs to it, and
    /// all else is a new Segment, which knows nothing of the one before.
    fn begin_segment(&mut self, now: Seen, events: &mut Vec<Event>) {
        if self.seen == Seen::Segment {
            events.push(Event::NewSegment);
            self.scale_ns = SCALE_NS_DEFAULT;
            self.tracks.clear();
        }
        self.seen = now;
    }

    fn start_cluster(&mut self, element: &Element<'_>, events: &mut Vec<Event>) -> Result<(), ParseError> {
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.ticks.is_none()) else {
            return Err(Fault::Misplaced(ids::TIMESTAMP).at(element.at));
        };
        let ticks = i64::try_from(element.uint()?).unwrap_or(i64::MAX);
        cluster.ticks = Some(ticks);
        events.push(Event::ClusterStart { timecode_ns: ticks.saturating_mul(self.scale_ns) });
        Ok(())
    }

    fn clock(&self, at: u64) -> Result<block::Clock, ParseError> {
        let ticks = self.cluster.as_ref().and_then(|cluster| cluster.ticks).ok_or(Fault::UntimedBlock.at(at))?;
        Ok(block::Clock { cluster_ticks: ticks, scale_ns: self.scale_ns })
    }

    /// Closes what has no size and cannot hold an element of this id.
    fn close_unsized(&mut self, id: u32, events: &mut Vec<Event>) {
        let unsized_cluster = self.cluster.as_ref().is_some_and(|cluster| cluster.end.is_none());
        if unsized_cluster && (ids::is_top(id) || ids::is_beside_cluster(id)) {
            self.close_cluster(events);
        }
        let unsized_segment = self.segment.as_ref().is_some_and(|segment| segment.end.is_none());
        if unsized_segment && self.cluster.is_none() && ids::is_top(id) {
            self.segment = None;
        }
    }

    /// Closes what ends at this byte.
    fn close_ended(&mut self, events: &mut Vec<Event>) {
        let ended = |end: Option<u64>| end.is_some_and(|end| self.at >= end) && matches!(self.state, State::Head);
        let segment_ended = self.segment.as_ref().is_some_and(|segment| ended(segment.end));
        // A Cluster of unknown size ends with its Segment.
        if segment_ended || self.cluster.as_ref().is_some_and(|cluster| ended(cluster.end)) {
            self.close_cluster(events);
        }
        if segment_ended {
            self.segment = None;
        }
    }

    fn close_cluster(&mut self, events: &mut Vec<Event>) {
        if self.cluster.take().is_some_and(|cluster| cluster.ticks.is_some()) {
            events.push(Event::ClusterEnd);
        }
    }
}

/// In what the next element lies.
enum Place {
    Top,
    Segment,
    Cluster,
}
