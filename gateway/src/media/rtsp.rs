//! Ordinary IP cameras: the gateway goes to them and pulls (RTSP, rfc2326), each in a task of its own.
//!
//! `retina` speaks the protocol and puts packets together to frames; here they become events, as a container's parser would
//! give them, and go the way of every producer. A camera's clock means nothing: it is anchored to this box's. A connection that
//! breaks, stalls or is refused is made anew, later each time; what was being built is kept as far as it came, and the next
//! fragment says that something is between them. Each change of state is one line in the log, and none has a password.

use super::config::{CameraConfig, RtspTransport};
use super::intake::{Cutter, Timecodes};
use super::producer::Producer;
use super::stream::{Camera, Settings};
use super::{Media, StreamError};
use crate::backoff::Backoff;
use crate::metrics::StreamLabel;
use bytes::Bytes;
use futures_core::Stream as _;
use headwater_video::matroska::{Event, FRAME_BYTES_MAX};
use headwater_video::{Codec, Frame, Kind, Track, Tracks};
use retina::client::{
    Credentials, Demuxed, Described, InitialTimestampPolicy, PlayOptions, Session, SessionOptions, SetupOptions,
    Stream, Transport,
};
use retina::codec::{CodecItem, FrameFormat, ParametersRef, VideoParametersCodec};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Waits between two tries, in milliseconds.
const BACKOFF: Backoff = Backoff { first_ms: 500, most_ms: 30_000 };
/// A connection that lasted so long was a good one: the next failure is the first again, in milliseconds.
const GOOD_MS: u64 = 10_000;
/// How long a camera may take until it plays.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// What is told of a fault, in characters: `retina` describes packets at length.
const SAYS_MAX: usize = 200;
/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 1 << 10;
/// Matroska's numbers of the two tracks.
const VIDEO: u8 = 1;
const AUDIO: u8 = 2;

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("it refuses the user name or the password: see `username` and `password_file` of this [[camera]]")]
    Password,
    #[error("the file with its password cannot be read: {0}")]
    PasswordFile(String),
    #[error("it answers {0}: {1}")]
    Status(u16, String),
    #[error("it has no H.264, H.265 or JPEG to send")]
    NoVideo,
    #[error("nothing came for {0:?}")]
    Stalled(Duration),
    #[error("it does not play within {CONNECT_WITHIN:?}")]
    Slow,
    #[error("{0}")]
    Broken(String),
    #[error("it ended the stream")]
    Ended,
    #[error("too many producers: raise video.max_producers")]
    NoPlace,
    #[error("its fragments cannot be kept: {0}")]
    Keep(String),
}

impl From<retina::Error> for Fault {
    fn from(error: retina::Error) -> Fault {
        // The first line says what it is; those behind it name the connection and the packet.
        let text = error.to_string();
        let says: String = text.lines().next().unwrap_or_default().chars().take(SAYS_MAX).collect();
        match error.status_code() {
            Some(401 | 403) => Fault::Password,
            Some(status) => Fault::Status(status, says),
            None => Fault::Broken(says),
        }
    }
}

impl Media {
    /// Goes to all cameras, until the gateway stops.
    pub fn pull(&self, cameras: &[CameraConfig]) {
        for camera in cameras {
            tokio::spawn(pull(self.clone(), camera.clone()));
        }
    }

    /// The stream of a camera that is configured is made without asking.
    async fn camera_of_config(&self, name: &str) -> Result<Arc<Camera>, StreamError> {
        if let Err(StreamError::NotFound(_)) = self.camera(name) {
            self.create(name, Settings::default()).await?;
        }
        self.camera_for_producer(name).await
    }
}

async fn pull(media: Media, config: CameraConfig) {
    let mut stopped = media.stopped();
    let label = StreamLabel { stream: config.name.clone() };
    media.inner.metrics.camera_connected.get_or_create(&label).set(0);
    let (mut failures, mut told) = (0u32, None);
    while !*stopped.borrow() {
        let began_ms = media.inner.clock.now().mono_ms;
        // A task of its own: should a packet ever make the library panic, it costs a connection.
        let connection = tokio::spawn(connection(media.clone(), config.clone()));
        let fault = match connection.await {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => fault,
            Err(error) => Fault::Broken(format!("a fault of the gateway: {error}")),
        };
        let was_up = media.inner.metrics.camera_connected.get_or_create(&label).set(0) == 1;
        media.inner.metrics.camera_failures.get_or_create(&label).inc();
        let lasted_ms = media.inner.clock.now().mono_ms.saturating_sub(began_ms);
        failures = if was_up && lasted_ms >= GOOD_MS { 1 } else { failures.saturating_add(1) };
        if was_up || told.as_ref() != Some(&fault) {
            tracing::warn!(camera = %config.name, address = config.address(), "no picture: {fault}; tried again until it comes");
        }
        told = Some(fault);
        let wait = Duration::from_millis(BACKOFF.wait_ms(failures, fastrand::u64(..)).max(BACKOFF.first_ms / 2));
        let _ = timeout(wait, stopped.wait_for(|stop| *stop)).await;
    }
}

/// One connection, from its first word to its end; `Ok` if it is the gateway that ends it.
async fn connection(media: Media, config: CameraConfig) -> Result<(), Fault> {
    let keep = |error: StreamError| Fault::Keep(error.to_string());
    let camera = media.camera_of_config(&config.name).await.map_err(keep)?;
    let _place = media.producer_place().map_err(|_| Fault::NoPlace)?;
    let mut stopped = media.stopped();
    let playing = tokio::select! {
        playing = timeout(CONNECT_WITHIN, play(&config)) => playing.map_err(|_| Fault::Slow)??,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let (mut producer, _) = Producer::begin(camera, media.inner.clock.clone());
    let mut puller = Puller::new(&media, &config, playing);
    let ended = tokio::select! {
        ended = puller.run(&mut producer) => ended,
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    };
    puller.count_dropped();
    // What came before the fault is whole frames, and is kept.
    let finished = producer.finish_frames(&mut puller.cutter).await;
    let kept = producer.end().await;
    ended?;
    finished.map_err(|error| Fault::Keep(error.to_string()))?;
    kept.map(drop).map_err(|error| Fault::Keep(error.to_string()))
}

/// A camera that plays, and which of its streams are wanted.
struct Playing {
    demuxed: Demuxed,
    video: usize,
    audio: Option<usize>,
}

async fn play(config: &CameraConfig) -> Result<Playing, Fault> {
    let url = config.url.parse().map_err(|error| Fault::Broken(format!("the URL is none: {error}")))?;
    let options = SessionOptions::default().user_agent("Headwater".into()).creds(credentials(config)?);
    let mut session: Session<Described> = Session::describe(url, options).await?;
    let find = |media: &str, codecs: &[&str]| {
        let wanted = |stream: &Stream| stream.media() == media && codecs.contains(&stream.encoding_name());
        session.streams().iter().position(wanted)
    };
    let video = find("video", &["h264", "h265", "jpeg"]).ok_or(Fault::NoVideo)?;
    let audio = find("audio", &["mpeg4-generic"]).filter(|_| config.audio);
    let other = find_other_audio(&session).filter(|_| config.audio && audio.is_none());
    if let Some(codec) = other {
        tracing::info!(camera = %config.name, codec, "its sound is left out: only AAC is taken over RTSP");
    }
    for stream in std::iter::once(video).chain(audio) {
        let transport = match config.transport {
            RtspTransport::Tcp => Transport::Tcp(Default::default()),
            RtspTransport::Udp => Transport::Udp(Default::default()),
        };
        session.setup(stream, SetupOptions::default().transport(transport).frame_format(FrameFormat::MP4)).await?;
    }
    // Many cameras do not say where their streams begin, or say it wrong.
    let options = PlayOptions::default().initial_timestamp(InitialTimestampPolicy::Permissive);
    Ok(Playing { demuxed: session.play(options).await?.demuxed()?, video, audio })
}

fn find_other_audio(session: &Session<Described>) -> Option<String> {
    let stream = session.streams().iter().find(|stream| stream.media() == "audio")?;
    Some(stream.encoding_name().chars().take(32).collect())
}

/// Read for each connection: who changes a password changes the file.
fn credentials(config: &CameraConfig) -> Result<Option<Credentials>, Fault> {
    if config.username.is_empty() {
        return Ok(None);
    }
    let username = config.username.clone();
    let password = match &config.password_file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|error| Fault::PasswordFile(error.to_string()))?,
    };
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Fault::PasswordFile(format!("it has more than {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(Some(Credentials { username, password: password.trim_end_matches(['\r', '\n']).to_owned() }))
}

/// Frames of one connection on their way to the producer.
struct Puller<'a> {
    media: &'a Media,
    config: &'a CameraConfig,
    playing: Playing,
    cutter: Cutter,
    tracks: Arc<Tracks>,
    label: StreamLabel,
    dropped: u64,
}

impl<'a> Puller<'a> {
    fn new(media: &'a Media, config: &'a CameraConfig, playing: Playing) -> Puller<'a> {
        let label = StreamLabel { stream: config.name.clone() };
        let mut cutter = Cutter::new(Timecodes::Anchored);
        cutter.thin(media.inner.shared.thin_every_ms);
        Puller { media, config, playing, cutter, tracks: Arc::default(), label, dropped: 0 }
    }

    async fn run(&mut self, producer: &mut Producer) -> Result<(), Fault> {
        let stall = self.config.stall_timeout.0;
        // Sound and reports are no sign of life of a picture.
        let mut pictured = Instant::now();
        loop {
            let demuxed = &mut self.playing.demuxed;
            let next = std::future::poll_fn(|cx| Pin::new(&mut *demuxed).poll_next(cx));
            let item = timeout_at(pictured + stall, next).await.map_err(|_| Fault::Stalled(stall))?;
            let frame = match item.ok_or(Fault::Ended)?? {
                CodecItem::VideoFrame(frame) => {
                    pictured = Instant::now();
                    self.count_lost(frame.loss());
                    if self.tracks.0.is_empty() || frame.has_new_parameters() {
                        self.announce(producer).await?;
                    }
                    let (stamp, keyframe) = (frame.timestamp(), frame.is_random_access_point());
                    Frame {
                        track: VIDEO,
                        pts_ns: pts_ns(stamp),
                        duration_ns: None,
                        keyframe,
                        data: frame.into_data().into(),
                    }
                }
                CodecItem::AudioFrame(frame) => {
                    self.count_lost(frame.loss());
                    let data = Bytes::copy_from_slice(frame.data());
                    Frame { track: AUDIO, pts_ns: pts_ns(frame.timestamp()), duration_ns: None, keyframe: true, data }
                }
                _ => continue,
            };
            // Before its picture sound has nowhere to go, and a frame that no container carries is none.
            if self.tracks.get(frame.track).is_none() || frame.data.len() > FRAME_BYTES_MAX {
                self.drop_frames(1);
                continue;
            }
            let pushed = producer.event(&mut self.cutter, Event::Frame(frame)).await;
            pushed.map_err(|error| Fault::Keep(error.to_string()))?;
            self.count_dropped();
        }
    }

    /// Tells which tracks there are, once it is known of the video, and again when it changed.
    async fn announce(&mut self, producer: &mut Producer) -> Result<(), Fault> {
        let streams = self.playing.demuxed.streams();
        let Some(video) = streams[self.playing.video].parameters().and_then(video_track) else { return Ok(()) };
        let audio = self.playing.audio.and_then(|audio| audio_track(streams[audio].parameters()?));
        let tracks = Arc::new(Tracks(std::iter::once(video).chain(audio).collect()));
        if self.tracks == tracks {
            return Ok(());
        }
        let codecs: Vec<&str> = tracks.0.iter().map(|track| track.codec.id()).collect();
        tracing::info!(camera = %self.config.name, address = self.config.address(), codecs = codecs.join(" "), "a camera is connected");
        self.media.inner.metrics.camera_connected.get_or_create(&self.label).set(1);
        self.tracks = tracks.clone();
        let pushed = producer.event(&mut self.cutter, Event::Tracks(tracks)).await;
        pushed.map_err(|error| Fault::Keep(error.to_string()))
    }

    fn count_lost(&self, packets: u16) {
        if packets > 0 {
            self.media.inner.metrics.camera_packets_lost.get_or_create(&self.label).inc_by(packets.into());
        }
    }

    fn drop_frames(&self, frames: u64) {
        self.media.inner.metrics.camera_frames_dropped.get_or_create(&self.label).inc_by(frames);
    }

    /// What the cutter has dropped since.
    fn count_dropped(&mut self) {
        let before = std::mem::replace(&mut self.dropped, self.cutter.frames_dropped());
        if self.dropped > before {
            self.drop_frames(self.dropped - before);
        }
    }
}

/// Nanoseconds since the stream's beginning.
fn pts_ns(stamp: retina::Timestamp) -> i64 {
    let ns = i128::from(stamp.elapsed()) * 1_000_000_000 / i128::from(stamp.clock_rate().get());
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn track(number: u8, kind: Kind, codec: Codec, private: Bytes) -> Track {
    Track {
        number,
        kind,
        codec,
        private,
        name: String::new(),
        width: 0,
        height: 0,
        sample_rate: 0,
        channels: 0,
        default_duration_ns: 0,
        codec_delay_ns: 0,
        seek_preroll_ns: 0,
    }
}

fn video_track(parameters: ParametersRef<'_>) -> Option<Track> {
    let ParametersRef::Video(parameters) = parameters else { return None };
    let (codec, private) = match parameters.codec_params() {
        VideoParametersCodec::H264 { .. } => (Codec::H264, parameters.extra_data()),
        VideoParametersCodec::H265 { .. } => (Codec::Hevc, parameters.extra_data()),
        VideoParametersCodec::Jpeg => (Codec::Mjpeg, &[][..]),
        _ => return None,
    };
    let (width, height) = parameters.pixel_dimensions();
    Some(Track { width, height, ..track(VIDEO, Kind::Video, codec, Bytes::copy_from_slice(private)) })
}

fn audio_track(parameters: ParametersRef<'_>) -> Option<Track> {
    let ParametersRef::Audio(parameters) = parameters else { return None };
    // Without its configuration nobody can decode it.
    let private = Some(parameters.extra_data()).filter(|private| !private.is_empty())?;
    let channels = u8::try_from(parameters.channels().get()).ok()?;
    let made = track(AUDIO, Kind::Audio, Codec::Aac, Bytes::copy_from_slice(private));
    Some(Track { sample_rate: parameters.clock_rate(), channels, ..made })
}
