//! The `[video]` section, and the `[[camera]]` items.

use crate::problem::Problem;
use crate::record::StreamName;
use crate::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Video in and out: see docs/video.md. It is on the AWS port and the console's.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct VideoConfig {
    /// Whether a producer that names a stream which is not there makes it. Off: it gets an error.
    pub create: bool,
    /// How long the fragments of a stream are kept that was made so.
    pub retention: Span,
    /// Producers at once, over all streams.
    pub max_producers: u32,
    /// Readers of media at once: players, GetMedia, clips.
    pub max_readers: u32,
    /// Memory for what they are answered and have not read yet, of all of them together.
    pub reader_memory: ByteSize,
    /// MQTT clients send chunks on topics that begin with it: `video/STREAM/init`, `video/STREAM/17`. Such topics are asked
    /// for before any route. Empty: they are topics like others.
    pub mqtt_prefix: String,
    /// A producer that sends nothing for so long is given up.
    pub idle_timeout: Span,
    /// Memory for fragments that are being built or written, of all producers together. A fragment takes twice its size.
    pub memory: ByteSize,
    /// Keep one picture in so long a time for longer, in a stream of its own: "cam" is thinned out into "cam.thin".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thin_every: Option<Span>,
    /// How long those pictures are kept.
    pub thin_retention: Span,
}

impl Default for VideoConfig {
    fn default() -> Self {
        VideoConfig {
            create: true,
            retention: Span::days(7),
            max_producers: 32,
            max_readers: 64,
            reader_memory: ByteSize::mib(128),
            mqtt_prefix: "video".into(),
            idle_timeout: Span::secs(60),
            memory: ByteSize::mib(128),
            thin_every: None,
            thin_retention: Span::days(90),
        }
    }
}

impl VideoConfig {
    /// Mistakes, with what to write instead.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, says: &str| problems.push(Problem::new(format!("video.{key}"), says));
        if self.max_producers == 0 {
            wrong("max_producers", "at least 1");
        }
        if self.max_readers == 0 {
            wrong("max_readers", "at least 1");
        }
        if self.reader_memory < ByteSize::mib(16) {
            wrong("reader_memory", "at least \"16 MiB\": a day of video is a playlist of 10 MiB");
        }
        if self.retention < Span::secs(60) {
            wrong("retention", "at least \"1 min\"; whole segments go, so less keeps no less");
        }
        let prefix = &self.mqtt_prefix;
        if prefix.starts_with(['$', '/'])
            || prefix.ends_with('/')
            || prefix.contains(['+', '#', '\0'])
            || prefix.len() > 256
        {
            wrong(
                "mqtt_prefix",
                "the first levels of a topic, such as \"video\" or \"site/video\"; \"\" turns chunks over MQTT off",
            );
        }
        if self.idle_timeout < Span::secs(1) {
            wrong("idle_timeout", "at least \"1 s\"");
        }
        if self.memory < ByteSize::mib(16) {
            wrong("memory", "at least \"16 MiB\": a fragment of 8 MiB takes it all");
        }
        if self.thin_every.is_some_and(|every| every < Span::secs(1)) {
            wrong("thin_every", "at least \"1 s\"; leave it out to keep no pictures for longer");
        }
        problems
    }
}

/// A camera that speaks RTSP: the gateway goes to it and keeps what it sends. H.264, H.265 and JPEG with AAC.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CameraConfig {
    /// The stream its pictures go to; made if it is not there.
    pub name: String,
    /// Its address, such as "rtsp://192.0.2.7/stream1"; no password in it.
    pub url: String,
    /// Empty: the camera asks for none.
    #[serde(default)]
    pub username: String,
    /// File that holds the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// "tcp" or "udp". UDP is for a camera that is near and cannot do TCP: what is lost on the way stays lost.
    #[serde(default)]
    pub transport: RtspTransport,
    /// Whether its sound is kept too.
    #[serde(default = "audio")]
    pub audio: bool,
    /// A camera that sends nothing for so long is connected to anew.
    #[serde(default = "stall_timeout")]
    pub stall_timeout: Span,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum RtspTransport {
    #[default]
    Tcp,
    Udp,
}

fn audio() -> bool {
    true
}

fn stall_timeout() -> Span {
    Span::secs(10)
}

impl CameraConfig {
    /// Mistakes, with what to write instead.
    pub fn check_all(cameras: &[CameraConfig], video: &VideoConfig) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (at, camera) in cameras.iter().enumerate() {
            let mut wrong = |key: &str, says: String| problems.push(Problem::new(format!("camera[{at}].{key}"), says));
            camera.check(&mut wrong);
            if cameras[..at].iter().any(|other| other.name == camera.name) {
                wrong("name", format!("there are two cameras {:?}; give each a name of its own", camera.name));
            }
        }
        if cameras.len() > video.max_producers as usize {
            let says = format!("{} cameras want as many producers; write at least {0}", cameras.len());
            problems.push(Problem::new("video.max_producers", says));
        }
        problems
    }

    /// Host and port, for the log: some cameras want their password in what stands behind.
    pub fn address(&self) -> &str {
        let authority = self.url.strip_prefix("rtsp://").unwrap_or_default();
        authority.split(['/', '?']).next().unwrap_or_default()
    }

    fn check(&self, wrong: &mut dyn FnMut(&str, String)) {
        if let Err(bad) = StreamName::new(&self.name) {
            wrong("name", bad.to_string());
        }
        // The URL is not repeated here: there may be a password in it.
        match self.address() {
            "" => wrong("url", "write an address such as \"rtsp://192.0.2.7/stream1\"; rtsps is not there yet".into()),
            authority if authority.contains('@') => {
                wrong("url", "the URL has a user name in it; write `username` and `password_file` instead".into());
            }
            _ if self.url.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                wrong("url", "an address has no blanks in it".into());
            }
            _ => {}
        }
        match &self.password_file {
            Some(_) if self.username.is_empty() => wrong("username", "a password needs a username".into()),
            Some(path) => {
                if let Err(error) = std::fs::File::open(path) {
                    wrong("password_file", format!("{} cannot be read: {error}", path.display()));
                }
            }
            None => {}
        }
        if !(Span::secs(1)..=Span::secs(600)).contains(&self.stall_timeout) {
            wrong("stall_timeout", "write \"1 s\" to \"10 min\"".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(url: &str) -> CameraConfig {
        let camera = serde_json::json!({ "name": "yard", "url": url });
        serde_json::from_value(camera).unwrap()
    }

    #[test]
    fn what_is_wrong_with_a_camera_is_told_and_its_password_is_not() {
        let told = |camera: CameraConfig| {
            let problems = CameraConfig::check_all(&[camera], &VideoConfig::default());
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(told(camera("rtsp://192.0.2.7:554/a?b=c")), "");
        let secret = told(camera("rtsp://admin:geheim@192.0.2.7/a"));
        assert!(secret.contains("password_file") && !secret.contains("geheim"), "{secret}");
        for url in ["", "rtsp://", "http://192.0.2.7/a", "rtsps://192.0.2.7/a"] {
            assert!(told(camera(url)).contains("camera[0].url"), "{url}");
        }
        let missing =
            CameraConfig { password_file: Some("/no/such/file".into()), username: "a".into(), ..camera("rtsp://a/") };
        assert!(told(missing).contains("/no/such/file"));
        let nobody = CameraConfig { password_file: Some("/no/such/file".into()), ..camera("rtsp://a/") };
        assert!(told(nobody).contains("username"));
        let two = vec![camera("rtsp://a/"); 2];
        assert_eq!(CameraConfig::check_all(&two, &VideoConfig::default()).len(), 1);
    }
}
