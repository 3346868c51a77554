//! One message of a camera that speaks MQTT: an init, or a chunk that becomes one fragment. Pure.
//!
//! A chunk is an fMP4 segment (`moof` and `mdat`, perhaps its own `moov`), a cluster of Matroska, a whole Matroska file, or a
//! JPEG: its first bytes say which. It is kept as it came, one fragment, for its answer is one PUBACK: so it has to play
//! alone, and to begin with a keyframe.

use bytes::Bytes;
use headwater_video::jpeg::{self, JpegError};
use headwater_video::matroska::{Event, ParseError, Parser};
use headwater_video::media::MS;
use headwater_video::mp4::{self, ReadError};
use headwater_video::{Fragment, Tracks};
use std::sync::Arc;

/// Longest init, in bytes: it is kept in the state.
pub const INIT_BYTES_MAX: usize = 64 << 10;
/// Longest chunk, in nanoseconds of its leading track.
const DURATION_NS_MAX: u64 = 20_000_000_000;
/// Furthest that two frames of a chunk may lie apart, in nanoseconds: tracks do not run quite together.
const SPREAD_NS_MAX: u64 = 40_000_000_000;

const EBML: &[u8] = &[0x1a, 0x45, 0xdf, 0xa3];
const CLUSTER: &[u8] = &[0x1f, 0x43, 0xb6, 0x75];
const JPEG: &[u8] = &[0xff, 0xd8];
/// What an fMP4 segment may begin with.
const BOXES: [&[u8]; 8] = [b"moof", b"styp", b"sidx", b"emsg", b"prft", b"ftyp", b"moov", b"free"];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFault {
    #[error(
        "this is no init: publish ftyp and moov of a fragmented MP4, or the head of a Matroska file up to its Tracks"
    )]
    NoInit,
    #[error("an init has at most {INIT_BYTES_MAX} bytes")]
    InitTooLong,
    #[error("a chunk is an fMP4 segment, a Matroska cluster or file, or a JPEG; this begins like none of them")]
    Unknown,
    #[error("a chunk came before its init: publish the init on `video/STREAM/init` first")]
    BeforeInit,
    #[error("the init is one of {0}, and the chunk is not")]
    OtherInit(&'static str),
    #[error(transparent)]
    Mp4(#[from] ReadError),
    #[error(transparent)]
    Matroska(#[from] ParseError),
    #[error(transparent)]
    Jpeg(#[from] JpegError),
    #[error("a chunk without a frame")]
    Empty,
    #[error("a chunk that does not begin with a keyframe: cut chunks at keyframes (ffmpeg: `-movflags frag_keyframe`)")]
    NoKeyframe,
    #[error("a chunk of more than {} s: cut it shorter", DURATION_NS_MAX / 1_000_000_000)]
    TooLong,
}

/// What chunks of a stream need to be understood.
#[derive(Clone, Debug)]
pub enum Init {
    Mp4(mp4::Init),
    /// As it came: it stands before each cluster.
    Matroska(Bytes, Arc<Tracks>),
}

pub fn read_init(payload: &[u8]) -> Result<Init, ReadFault> {
    if payload.len() > INIT_BYTES_MAX {
        return Err(ReadFault::InitTooLong);
    }
    if is_mp4(payload) {
        return Ok(Init::Mp4(mp4::read_init(payload)?));
    }
    if !payload.starts_with(EBML) {
        return Err(ReadFault::NoInit);
    }
    let (mut parser, mut events) = (Parser::new(), Vec::new());
    parser.push(payload, &mut events)?;
    let mut tracks = None;
    for event in events {
        match event {
            Event::Tracks(found) => tracks = Some(found),
            Event::Frame(_) => return Err(ReadFault::NoInit),
            _ => {}
        }
    }
    let tracks = tracks.filter(|_| parser.held_bytes() == 0).ok_or(ReadFault::NoInit)?;
    Ok(Init::Matroska(Bytes::copy_from_slice(payload), tracks))
}

/// A chunk as a fragment on its own clock; a JPEG has none, and was taken now.
pub fn read_chunk(init: Option<&Init>, payload: &[u8], now_ms: u64) -> Result<Fragment, ReadFault> {
    let fragment = match payload {
        jpeg if jpeg.starts_with(JPEG) => jpeg::fragment(Bytes::copy_from_slice(jpeg), now_ms as i64 * MS)?,
        file if file.starts_with(EBML) => matroska(&[file])?,
        cluster if cluster.starts_with(CLUSTER) => match init {
            Some(Init::Matroska(head, tracks)) => {
                let mut fragment = matroska(&[head, cluster])?;
                if fragment.tracks == *tracks {
                    fragment.tracks = tracks.clone();
                }
                fragment
            }
            Some(Init::Mp4(_)) => return Err(ReadFault::OtherInit("MP4")),
            None => return Err(ReadFault::BeforeInit),
        },
        segment if is_mp4(segment) => {
            let own = mp4::read_init(segment).ok();
            let init = match (own.as_ref(), init) {
                (Some(own), _) => own,
                (None, Some(Init::Mp4(init))) => init,
                (None, Some(Init::Matroska(..))) => return Err(ReadFault::OtherInit("Matroska")),
                (None, None) => return Err(ReadFault::BeforeInit),
            };
            mp4::read_media(init, &Bytes::copy_from_slice(segment))?
        }
        _ => return Err(ReadFault::Unknown),
    };
    check(&fragment)?;
    Ok(fragment)
}

fn is_mp4(payload: &[u8]) -> bool {
    payload.get(4..8).is_some_and(|kind| BOXES.contains(&kind))
}

fn matroska(pieces: &[&[u8]]) -> Result<Fragment, ParseError> {
    let (mut parser, mut events) = (Parser::new(), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut events)?;
    }
    // A Segment that says how long it is goes on in the next chunk; a cluster that is not whole is an error.
    let whole = matches!(events.last(), Some(Event::ClusterEnd));
    let finished = parser.finish(&mut events);
    if !whole {
        finished?;
    }
    let mut fragment = Fragment { tracks: Arc::default(), frames: vec![], discontinuity: false, tags: vec![] };
    for event in events {
        match event {
            Event::Tracks(tracks) => fragment.tracks = tracks,
            Event::Tags(tags) => fragment.tags.extend(tags),
            Event::Frame(frame) => fragment.frames.push(frame),
            Event::NewSegment | Event::ClusterStart { .. } | Event::ClusterEnd => {}
        }
    }
    Ok(fragment)
}

fn check(fragment: &Fragment) -> Result<(), ReadFault> {
    let lead = fragment.tracks.lead().ok_or(ReadFault::Empty)?;
    let first = fragment.of_track(lead.number).next().ok_or(ReadFault::Empty)?;
    if !first.keyframe {
        return Err(ReadFault::NoKeyframe);
    }
    let times = || fragment.frames.iter().map(|frame| frame.pts_ns);
    let (from, to) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
    if to.abs_diff(from) > SPREAD_NS_MAX || fragment.duration_ns() > DURATION_NS_MAX {
        return Err(ReadFault::TooLong);
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use headwater_video::{Codec, Frame, Kind, Track, matroska};
    use proptest::prelude::*;

    /// A fragment of two pictures, the first shown at this time.
    pub fn fragment(start_ms: i64) -> Fragment {
        let track = Track {
            number: 1,
            kind: Kind::Video,
            codec: Codec::H264,
            private: Bytes::from_static(
                b"\x01\x64\x00\x1f\xff\xe1\x00\x08\x67\x64\x00\x1f\xac\xd9\x40\x50\x01\x00\x04\x68\xeb\xe3\xcb",
            ),
            name: String::new(),
            width: 640,
            height: 480,
            sample_rate: 0,
            channels: 0,
            default_duration_ns: 0,
            codec_delay_ns: 0,
            seek_preroll_ns: 0,
        };
        let frame = |at: i64| Frame {
            track: 1,
            pts_ns: (start_ms + at) * MS,
            duration_ns: None,
            keyframe: at == 0,
            data: Bytes::from(vec![start_ms as u8; 40]),
        };
        let (tracks, frames) = (Arc::new(Tracks(vec![track])), vec![frame(0), frame(500)]);
        Fragment { tracks, frames, discontinuity: false, tags: vec![] }
    }

    pub fn mkv_init() -> Vec<u8> {
        matroska::head(&fragment(0).tracks)
    }

    pub fn mkv_chunk(start_ms: i64) -> Vec<u8> {
        matroska::cluster(&fragment(start_ms), 0)
    }

    const JPEG: &[u8] =
        b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xff\xc0\x00\x0b\x08\x01\xe0\x02\x80\x01\x01\x11\x00\xff\xda";

    fn mp4_init() -> Vec<u8> {
        mp4::init(&fragment(0).tracks).unwrap()
    }

    fn mp4_chunk() -> Vec<u8> {
        mp4::media(&fragment(2_000), 1, mp4::Timing::default()).unwrap()
    }

    #[test]
    fn each_kind_of_chunk_is_a_fragment() {
        let mkv = read_init(&mkv_init()).unwrap();
        let cluster = read_chunk(Some(&mkv), &mkv_chunk(3_000), 0).unwrap();
        assert_eq!((cluster.start_ns(), cluster.frames.len()), (3_000 * MS, 2));
        let file = [mkv_init(), mkv_chunk(3_000)].concat();
        assert_eq!(read_chunk(None, &file, 0).unwrap(), cluster);
        let mp4 = read_init(&mp4_init()).unwrap();
        let segment = read_chunk(Some(&mp4), &mp4_chunk(), 0).unwrap();
        assert_eq!((segment.start_ns(), segment.frames.len()), (2_000 * MS, 2));
        let alone = [mp4_init(), mp4_chunk()].concat();
        assert_eq!(read_chunk(None, &alone, 0).unwrap().frames, segment.frames);
        assert_eq!(read_chunk(None, JPEG, 7).unwrap().start_ns(), 7 * MS);
    }

    #[test]
    fn what_cannot_be_kept_is_told_with_what_to_do() {
        assert_eq!(read_chunk(None, &mkv_chunk(0), 0), Err(ReadFault::BeforeInit));
        assert_eq!(read_chunk(None, &mp4_chunk(), 0), Err(ReadFault::BeforeInit));
        let (mkv, mp4) = (read_init(&mkv_init()).unwrap(), read_init(&mp4_init()).unwrap());
        assert_eq!(read_chunk(Some(&mkv), &mp4_chunk(), 0), Err(ReadFault::OtherInit("Matroska")));
        assert_eq!(read_chunk(Some(&mp4), &mkv_chunk(0), 0), Err(ReadFault::OtherInit("MP4")));
        assert_eq!(read_chunk(None, b"GIF89a...", 0), Err(ReadFault::Unknown));
        let mut late = fragment(0);
        late.frames.remove(0);
        let late = matroska::cluster(&late, 0);
        assert_eq!(read_chunk(Some(&mkv), &late, 0), Err(ReadFault::NoKeyframe));
        let mut long = fragment(0);
        long.frames[1].pts_ns = 30_000 * MS;
        assert_eq!(read_chunk(Some(&mkv), &matroska::cluster(&long, 0), 0), Err(ReadFault::TooLong));
        assert!(read_chunk(Some(&mkv), &mkv_chunk(0)[..90], 0).is_err(), "a cluster that is cut");
        assert!(matches!(read_init(&[&mkv_init()[..], &mkv_chunk(0)].concat()), Err(ReadFault::NoInit)));
        assert!(matches!(read_init(&mkv_init()[..60]), Err(ReadFault::NoInit)));
        assert!(matches!(read_init(&vec![0; INIT_BYTES_MAX + 1]), Err(ReadFault::InitTooLong)));
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_fragment_and_never_a_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300), head in 0usize..4, at in 0usize..400, byte: u8,
        ) {
            let init = read_init(&if at % 2 == 0 { mkv_init() } else { mp4_init() }).unwrap();
            let begin: &[u8] = [EBML, CLUSTER, JPEG, b"\0\0\0\x10moof"][head];
            let _ = read_init(&noise);
            let _ = read_chunk(Some(&init), &[begin, &noise].concat(), 0);
            for mut whole in [mkv_chunk(1), mp4_chunk(), [mp4_init(), mp4_chunk()].concat(), JPEG.to_vec(), mkv_init()] {
                let at = at % whole.len();
                whole[at] = byte;
                let _ = read_init(&whole);
                if let Ok(fragment) = read_chunk(Some(&init), &whole, 0) {
                    prop_assert!(fragment.duration_ns() <= DURATION_NS_MAX && !fragment.frames.is_empty());
                }
            }
        }
    }
}
