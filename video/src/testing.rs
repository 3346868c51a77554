//! What the tests share: tracks and frames out of thin air, the sample file, and ffmpeg where it is installed. Not in the
//! product.

use crate::fragment::{Fragmenter, Limits};
use crate::matroska::{Event, ParseError, Parser};
use crate::media::{Codec, Fragment, Frame, Kind, MS, Track, Tracks};
use bytes::Bytes;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// H.264 with B-frames and AAC, 3 s, as ffmpeg writes it into a pipe. See `testdata/README.md`.
pub const SAMPLE: &[u8] = include_bytes!("../testdata/h264-aac.mkv");

pub fn video_track() -> Track {
    Track {
        number: 1,
        kind: Kind::Video,
        codec: Codec::H264,
        private: Bytes::from_static(&[1, 100, 0, 10, 255]),
        name: "front door".into(),
        width: 640,
        height: 360,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 40_000_000,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    }
}

pub fn audio_track() -> Track {
    Track {
        number: 2,
        kind: Kind::Audio,
        codec: Codec::Opus,
        private: Bytes::from_static(b"OpusHead"),
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: 48_000,
        channels: 2,
        default_duration_ns: 0,
        codec_delay_ns: 6_500_000,
        seek_preroll_ns: 80_000_000,
    }
}

pub fn tracks() -> Arc<Tracks> {
    Arc::new(Tracks(vec![video_track(), audio_track()]))
}

pub fn frame(track: u8, pts_ms: i64, keyframe: bool) -> Frame {
    let data = Bytes::from(format!("{track}@{pts_ms}"));
    Frame { track, pts_ns: pts_ms * MS, duration_ns: None, keyframe, data }
}

/// A fragment of 25 pictures a second with a packet of sound after each, which begins at `start_ms`.
pub fn fragment(start_ms: i64, pictures: i64) -> Fragment {
    let pair = |index: i64| {
        let pts_ms = start_ms + index * 40;
        [frame(1, pts_ms, index == 0), frame(2, pts_ms + 3, true)]
    };
    Fragment { tracks: tracks(), frames: (0..pictures).flat_map(pair).collect(), discontinuity: false, tags: vec![] }
}

/// All events of an input, and the error after them.
pub fn parse(input: &[u8]) -> (Vec<Event>, Result<(), ParseError>) {
    parse_pieces([input])
}

pub fn parse_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), ParseError>) {
    let mut parser = Parser::new();
    let mut events = Vec::new();
    let pushed = pieces.into_iter().try_for_each(|piece| parser.push(piece, &mut events));
    let result = pushed.and_then(|()| parser.finish(&mut events));
    (events, result)
}

pub fn frames(events: &[Event]) -> Vec<Frame> {
    let frame = |event: &Event| match event {
        Event::Frame(frame) => Some(frame.clone()),
        _ => None,
    };
    events.iter().filter_map(frame).collect()
}

pub fn cut(events: Vec<Event>) -> Vec<Fragment> {
    let mut fragmenter = Fragmenter::new(Limits::default());
    let mut fragments: Vec<Fragment> =
        events.into_iter().filter_map(|event| fragmenter.push(event).expect("within limits")).collect();
    fragments.extend(fragmenter.finish());
    fragments
}

/// What ffmpeg writes to its standard output; `None`, and a word about it, where it is not installed or lacks an encoder.
pub fn ffmpeg(args: &str) -> Option<Vec<u8>> {
    let args = format!("-nostdin -v error {args}");
    let output = Command::new("ffmpeg").args(args.split_whitespace()).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Some(output.stdout),
        Ok(output) => {
            eprintln!("not tested, ffmpeg {args}: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("not tested, no ffmpeg: {error}");
            None
        }
    }
}

/// A file that is gone once this is dropped.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new(name: &str, content: &[u8]) -> TempFile {
        let path = std::env::temp_dir().join(format!("headwater-video-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("a file in the temporary directory");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
