//! What the containers have in common: tracks, frames, and fragments of them. Pure.

use bytes::Bytes;
use std::sync::Arc;

/// Most tracks of a stream: a fourth is refused, as Kinesis Video Streams does.
pub const TRACKS_MAX: usize = 3;
/// Longest fragment, in bytes of its frames.
pub const FRAGMENT_BYTES_MAX: usize = 50 << 20;
/// Nanoseconds of a millisecond.
pub const MS: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Video,
    Audio,
    /// Kept and given back, played by nobody here.
    Other,
}

/// How a track's frames are coded, by Matroska's CodecID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// `V_MPEG4/ISO/AVC`: length-prefixed NAL units; private data is an `avcC`.
    H264,
    /// `V_MPEGH/ISO/HEVC`: the same with an `hvcC`.
    Hevc,
    /// `V_AV1`: low-overhead OBUs without temporal delimiters; private data is an `av1C`.
    Av1,
    /// `V_MJPEG`: a JPEG a frame; no private data.
    Mjpeg,
    /// `A_AAC`: raw access units; private data is an AudioSpecificConfig.
    Aac,
    /// `A_OPUS`: private data is an `OpusHead`.
    Opus,
    /// Any other CodecID: copied through Matroska, refused elsewhere.
    Other(Arc<str>),
}

impl Codec {
    pub fn from_id(id: &str) -> Codec {
        match id {
            "V_MPEG4/ISO/AVC" => Codec::H264,
            "V_MPEGH/ISO/HEVC" => Codec::Hevc,
            "V_AV1" => Codec::Av1,
            "V_MJPEG" => Codec::Mjpeg,
            "A_OPUS" => Codec::Opus,
            // Old muxers append the profile: A_AAC/MPEG4/LC.
            id if id == "A_AAC" || id.starts_with("A_AAC/") => Codec::Aac,
            id => Codec::Other(id.into()),
        }
    }

    /// Matroska's CodecID.
    pub fn id(&self) -> &str {
        match self {
            Codec::H264 => "V_MPEG4/ISO/AVC",
            Codec::Hevc => "V_MPEGH/ISO/HEVC",
            Codec::Av1 => "V_AV1",
            Codec::Mjpeg => "V_MJPEG",
            Codec::Aac => "A_AAC",
            Codec::Opus => "A_OPUS",
            Codec::Other(id) => id,
        }
    }
}

/// A track. Two are equal if a decoder can go on from one to the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Track {
    /// Matroska's TrackNumber, 1 to 127.
    pub number: u8,
    pub kind: Kind,
    pub codec: Codec,
    /// The codec's configuration, as Matroska's CodecPrivate has it; empty if there is none.
    pub private: Bytes,
    pub name: String,
    /// Pixels; 0 for what is no video.
    pub width: u32,
    pub height: u32,
    /// Samples a second and channels; 0 for what is no audio.
    pub sample_rate: u32,
    pub channels: u8,
    /// Nanoseconds a frame lasts if it does not say; 0: not known.
    pub default_duration_ns: u64,
    /// Nanoseconds of the decoder's delay (Opus pre-skip).
    pub codec_delay_ns: u64,
    pub seek_preroll_ns: u64,
}

/// The tracks of a stream, in the order of their numbers' first appearance. At most [`TRACKS_MAX`], numbers distinct.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tracks(pub Vec<Track>);

impl Tracks {
    pub fn video(&self) -> Option<&Track> {
        self.0.iter().find(|track| track.kind == Kind::Video)
    }

    pub fn audio(&self) -> Option<&Track> {
        self.0.iter().find(|track| track.kind == Kind::Audio)
    }

    pub fn get(&self, number: u8) -> Option<&Track> {
        self.0.iter().find(|track| track.number == number)
    }

    /// The track whose keyframes cut fragments: video, or the first where there is none.
    pub fn lead(&self) -> Option<&Track> {
        self.video().or(self.0.first())
    }
}

/// A frame of a track: an access unit of video, a packet of audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub track: u8,
    /// When it is shown, in nanoseconds on the stream's own clock. Frames stand in the order they are decoded.
    pub pts_ns: i64,
    /// As far as the container said.
    pub duration_ns: Option<u64>,
    /// A decoder can begin here.
    pub keyframe: bool,
    pub data: Bytes,
}

/// What plays alone: frames of all tracks from one keyframe of the leading track to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub tracks: Arc<Tracks>,
    /// In decoding order of each track, interleaved as they came.
    pub frames: Vec<Frame>,
    /// It does not continue the fragment before: another clock, other tracks, or something in between is missing.
    pub discontinuity: bool,
    /// Name and value, as the producer tagged it.
    pub tags: Vec<(String, String)>,
}

impl Fragment {
    /// When its first picture is shown, in nanoseconds on the stream's own clock.
    pub fn start_ns(&self) -> i64 {
        self.lead_frames()
            .map(|frame| frame.pts_ns)
            .min()
            .or(self.frames.first().map(|frame| frame.pts_ns))
            .unwrap_or(0)
    }

    /// From its first picture to the end of the last, in nanoseconds; the last lasts as long as the one before it unless
    /// it says.
    pub fn duration_ns(&self) -> u64 {
        let mut times: Vec<i64> = self.lead_frames().map(|frame| frame.pts_ns).collect();
        times.sort_unstable();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return 0 };
        let said = self.lead_frames().find(|frame| frame.pts_ns == *last).and_then(|frame| frame.duration_ns);
        let default = self.tracks.lead().map(|track| track.default_duration_ns).filter(|duration| *duration > 0);
        let step = match times.len() {
            0 | 1 => 0,
            count => last.abs_diff(times[count - 2]),
        };
        last.abs_diff(*first).saturating_add(said.or(default).unwrap_or(step))
    }

    /// Bytes of its frames.
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.data.len()).sum()
    }

    pub fn of_track(&self, number: u8) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| frame.track == number)
    }

    fn lead_frames(&self) -> impl Iterator<Item = &Frame> {
        let lead = self.tracks.lead().map_or(0, |track| track.number);
        self.of_track(lead)
    }
}
