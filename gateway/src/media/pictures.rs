//! Single pictures of a stream. A JPEG that a camera sent is given as it came; of anything else ffmpeg decodes one, if it is
//! on this box: a decoder of every codec is no part of a gateway.
//!
//! ffmpeg reads a fragment from its standard input and has no other file; it is stopped by a bound on time and on what it
//! may write, and few run at once.

use super::archive::Stored;
use super::index::Entry;
use super::shape::{Kind, Refusal};
use bytes::Bytes;
use headwater_video::{Codec, Fragment};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Decoders at once: each takes a core while it runs.
const AT_ONCE: usize = 1;
const WITHIN: Duration = Duration::from_secs(20);
/// Largest picture, in bytes: what GetImages may answer.
pub const PICTURE_BYTES_MAX: u64 = 6 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Jpeg,
    Png,
}

/// What a picture should be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub format: Format,
    /// Pixels; with one of the two the other follows.
    pub width: Option<u32>,
    pub height: Option<u32>,
    /// ffmpeg's scale, 2 (best) to 31.
    pub quality: u8,
    /// The first picture of the fragment will do, wherever the time is within it.
    pub keyframe_only: bool,
}

pub struct Decoder {
    program: Option<PathBuf>,
    places: Semaphore,
}

impl Decoder {
    /// Looks for ffmpeg where programs are.
    pub fn find() -> Decoder {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|dir| dir.join("ffmpeg")).find(|program| program.is_file());
        Decoder { program, places: Semaphore::new(AT_ONCE) }
    }

    /// The picture that is shown at a time of a fragment.
    pub async fn picture(&self, entry: &Entry, stored: &Stored, at_ms: i64, wanted: Wanted) -> Result<Bytes, Refusal> {
        let fragment = stored.fragment()?;
        let video = fragment
            .tracks
            .video()
            .ok_or_else(|| Refusal::new(Kind::UnsupportedMediaType, "The stream has no pictures"))?;
        let as_it_came = wanted.format == Format::Jpeg && wanted.width.is_none() && wanted.height.is_none();
        if video.codec == Codec::Mjpeg && as_it_came {
            return jpeg_at(&fragment, video.number, at_ms);
        }
        let program = self.program.as_ref().ok_or_else(no_decoder)?;
        let _place =
            self.places.acquire().await.map_err(|_| Refusal::new(Kind::Internal, "The gateway is stopping"))?;
        let offset_ms = if wanted.keyframe_only { 0 } else { at_ms.saturating_sub(entry.start_ms).max(0) };
        // Behind the last picture there is none to show: the last but a little.
        let offset_ms = offset_ms.min(i64::from(entry.duration_ms).saturating_sub(20).max(0));
        let decoded = decode(program, stored.bytes.clone(), offset_ms, wanted);
        timeout(WITHIN, decoded)
            .await
            .map_err(|_| Refusal::new(Kind::Internal, "The picture could not be decoded in time"))?
    }
}

fn no_decoder() -> Refusal {
    let says = "This box has no decoder for the stream's codec: install ffmpeg (apt install ffmpeg) and start the gateway again";
    Refusal::new(Kind::NoDecoder, says)
}

fn jpeg_at(fragment: &Fragment, track: u8, at_ms: i64) -> Result<Bytes, Refusal> {
    let at_ns = at_ms.saturating_mul(headwater_video::media::MS);
    let shown = fragment.of_track(track).filter(|frame| frame.pts_ns <= at_ns).last();
    let frame = shown.or(fragment.of_track(track).next());
    frame.map(|frame| frame.data.clone()).ok_or_else(|| Refusal::new(Kind::NotFound, "The fragment has no picture"))
}

async fn decode(program: &PathBuf, media: Bytes, offset_ms: i64, wanted: Wanted) -> Result<Bytes, Refusal> {
    let failed = |says: String| Refusal::new(Kind::Internal, format!("ffmpeg could not decode the picture: {says}"));
    let mut command = Command::new(program);
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-f", "matroska", "-i", "pipe:0"]);
    command.args(["-ss", &format!("{}.{:03}", offset_ms / 1000, offset_ms % 1000), "-frames:v", "1", "-an"]);
    match (wanted.width, wanted.height) {
        (None, None) => {}
        (width, height) => {
            let pixels = |wanted: Option<u32>| wanted.map_or("-2".to_owned(), |pixels| pixels.to_string());
            command.args(["-vf", &format!("scale={}:{}", pixels(width), pixels(height))]);
        }
    }
    match wanted.format {
        Format::Jpeg => command.args(["-c:v", "mjpeg", "-q:v", &wanted.quality.to_string()]),
        Format::Png => command.args(["-c:v", "png"]),
    };
    command.args(["-f", "image2pipe", "pipe:1"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // It stops reading once it has its picture.
            let _ = stdin.write_all(&media).await;
        }
    };
    let take = async {
        let mut picture = Vec::new();
        match stdout {
            Some(stdout) => stdout.take(PICTURE_BYTES_MAX + 1).read_to_end(&mut picture).await.map(|_| picture),
            None => Ok(picture),
        }
    };
    let complain = async {
        let mut says = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(4 << 10).read_to_end(&mut says).await;
        }
        String::from_utf8_lossy(&says).lines().next().unwrap_or("it said nothing").to_owned()
    };
    let ((), picture, says) = tokio::join!(feed, take, complain);
    let picture = picture.map_err(|error| failed(error.to_string()))?;
    match picture.len() as u64 {
        0 => Err(failed(says)),
        length if length > PICTURE_BYTES_MAX => Err(failed(format!("it is larger than {PICTURE_BYTES_MAX} bytes"))),
        _ => Ok(picture.into()),
    }
}
