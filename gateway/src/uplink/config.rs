//! The `[[sink]]` sections of the configuration.

use super::aws::AwsConfig;
use super::sink::file::FileConfig;
use super::sink::kinesis::KinesisConfig;
use super::sink::mqtt::MqttConfig;
use super::sink::video::KinesisVideoConfig;
use super::sink::video_s3::S3VideoConfig;
use crate::problem::Problem;
use crate::record::StreamName;
use crate::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// One destination. The keys that all types have stand in [`Common`], those of a destination behind a network in [`Sending`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SinkConfig {
    Kinesis(KinesisConfig),
    KinesisVideo(KinesisVideoConfig),
    S3Video(S3VideoConfig),
    Mqtt(MqttConfig),
    File(FileConfig),
}

/// Keys of every `[[sink]]`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Common {
    /// Names the sink's position in the log and its figures; do not change it later.
    pub name: String,
    /// Streams to forward; empty: all there are.
    pub streams: Vec<String>,
    /// Holds retention until delivered.
    pub required: bool,
    /// Most bytes a second, for all streams of the sink together; 0: no cap.
    pub max_bytes_per_s: ByteSize,
}

/// Keys of every `[[sink]]` that sends over a network. A disk needs no window, and refuses no single record.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default)]
pub struct Sending {
    /// Most bytes of one shard between the oldest record that is not acknowledged and the newest that was sent.
    pub window: ByteSize,
    /// Most memory for records on their way, for each stream.
    pub memory: ByteSize,
    /// How long a record may wait for company before it is sent.
    pub linger: Span,
    /// Local stream that takes records the destination refuses for good; empty: they are only told of as a gap.
    pub dead_letter: String,
}

impl Default for Common {
    fn default() -> Self {
        Common { name: String::new(), streams: Vec::new(), required: false, max_bytes_per_s: ByteSize(0) }
    }
}

impl Default for Sending {
    fn default() -> Self {
        Sending {
            window: ByteSize::mib(64),
            memory: ByteSize::mib(16),
            linger: Span::ms(50),
            dead_letter: String::new(),
        }
    }
}

impl SinkConfig {
    pub fn common(&self) -> &Common {
        match self {
            SinkConfig::Kinesis(config) => &config.common,
            SinkConfig::KinesisVideo(config) => &config.common,
            SinkConfig::S3Video(config) => &config.common,
            SinkConfig::Mqtt(config) => &config.common,
            SinkConfig::File(config) => &config.common,
        }
    }

    /// `None` for files and for video.
    fn sending(&self) -> Option<&Sending> {
        match self {
            SinkConfig::Kinesis(config) => Some(&config.sending),
            SinkConfig::Mqtt(config) => Some(&config.sending),
            SinkConfig::File(_) | SinkConfig::KinesisVideo(_) | SinkConfig::S3Video(_) => None,
        }
    }

    /// Of those that go to AWS.
    fn aws(&self) -> Option<&AwsConfig> {
        match self {
            SinkConfig::Kinesis(config) => Some(&config.aws),
            SinkConfig::KinesisVideo(config) => Some(&config.aws),
            SinkConfig::S3Video(config) => Some(&config.aws),
            SinkConfig::Mqtt(_) | SinkConfig::File(_) => None,
        }
    }

    /// The local stream for what the destination refuses, if one is named.
    pub fn dead_letter(&self) -> Option<&String> {
        let letters = match self {
            SinkConfig::KinesisVideo(config) => Some(&config.dead_letter),
            SinkConfig::S3Video(config) => Some(&config.dead_letter),
            _ => self.sending().map(|sending| &sending.dead_letter),
        };
        letters.filter(|name| !name.is_empty())
    }

    /// It takes streams of video alone.
    pub fn is_for_video(&self) -> bool {
        matches!(self, SinkConfig::KinesisVideo(_) | SinkConfig::S3Video(_))
    }

    /// Host and port of an MQTT broker.
    pub fn broker(&self) -> Option<(String, u16)> {
        let SinkConfig::Mqtt(config) = self else { return None };
        config.address().map(|(_, host, port)| (host, port))
    }

    /// Mistakes of this section; `key` is its path, as in `sink[0]`.
    pub fn check(&self, key: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.common().check(key, &mut problems);
        if let Some(sending) = self.sending() {
            sending.check(key, &self.common().streams, &mut problems);
        }
        if let Some(aws) = self.aws() {
            aws.check(key, &mut problems);
        }
        match self {
            SinkConfig::Kinesis(config) => config.check(key, &mut problems),
            SinkConfig::KinesisVideo(config) => config.check(key, &mut problems),
            SinkConfig::S3Video(config) => config.check(key, &mut problems),
            SinkConfig::Mqtt(config) => config.check(key, &mut problems),
            SinkConfig::File(config) => config.check(key, &mut problems),
        }
        problems
    }

    /// Mistakes of all sections together.
    pub fn check_all(sinks: &[SinkConfig]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut names = HashSet::new();
        for (at, sink) in sinks.iter().enumerate() {
            let key = format!("sink[{at}]");
            if !names.insert(&sink.common().name) {
                let says = format!("two sinks are named {:?}; give each its own name", sink.common().name);
                problems.push(Problem::new(format!("{key}.name"), says));
            }
            problems.extend(sink.check(&key));
        }
        problems
    }
}

impl Common {
    fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            problem("name", "name the sink with 1 to 64 letters, digits, '-', '_' or '.', such as name = \"cloud\"");
        }
        if self.streams.iter().any(|stream| StreamName::new(stream).is_err()) {
            problem("streams", "a stream's name is 1 to 128 letters, digits, '_', '.' or '-'");
        }
    }
}

impl Sending {
    fn check(&self, key: &str, streams: &[String], problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        if self.window.0 < 1 << 20 {
            problem("window", "write at least \"1 MiB\"; \"64 MiB\" suits most");
        }
        if self.memory.0 < 1 << 20 {
            problem("memory", "write at least \"1 MiB\"; \"16 MiB\" suits most");
        }
        if self.linger > Span::secs(60) {
            problem("linger", "write at most \"60 s\": it delays every record");
        }
        if !self.dead_letter.is_empty() && StreamName::new(&self.dead_letter).is_err() {
            problem("dead_letter", "name a stream of this gateway: 1 to 128 letters, digits, '_', '.' or '-'");
        }
        if streams.contains(&self.dead_letter) {
            problem("dead_letter", "name a stream that this sink does not forward, or refused records go in circles");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Serialize, Debug)]
    struct File {
        sink: Vec<SinkConfig>,
    }

    const SAMPLE: &str = r#"
        [[sink]]
        name = "cloud"
        type = "kinesis"
        streams = ["telemetry"]
        target = "telemetry"
        region = "eu-west-1"
        endpoint = "http://127.0.0.1:4568"
        required = true
        max_bytes_per_s = "2 MiB"
        [[sink]]
        name = "broker"
        type = "mqtt"
        broker = "mqtts://broker.example:8883"
        [[sink]]
        name = "disk"
        type = "file"
        dir = "/srv/files"
        compression = "gzip"
        [[sink]]
        name = "cameras"
        type = "kinesis-video"
        streams = ["cam-1", "cam-2"]
        only = "marked"
    "#;

    #[test]
    fn a_section_is_read_as_users_write_it_and_reads_back() {
        let file: File = toml::from_str(SAMPLE).unwrap();
        assert_eq!(SinkConfig::check_all(&file.sink), []);
        let common = file.sink[0].common();
        assert_eq!((common.name.as_str(), common.required, common.max_bytes_per_s), ("cloud", true, ByteSize::mib(2)));
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<File>(&text).unwrap().sink, file.sink);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let wrong = SAMPLE.replace("region", "regoin");
        let error = toml::from_str::<File>(&wrong).unwrap_err().to_string();
        assert!(error.contains("regoin"), "{error}");
        let error = toml::from_str::<File>(&SAMPLE.replace("\"kinesis\"", "\"kafka\"")).unwrap_err().to_string();
        assert!(error.contains("kafka") && error.contains("`kinesis`"), "{error}");
    }

    #[test]
    fn a_key_of_sinks_that_send_is_no_key_of_files() {
        for key in ["window = \"8 MiB\"", "memory = \"8 MiB\"", "linger = \"1 s\"", "dead_letter = \"refused\""] {
            let with = |section: &str| SAMPLE.replace(section, &format!("{section}\n{key}"));
            toml::from_str::<File>(&with("type = \"mqtt\"")).unwrap();
            let error = toml::from_str::<File>(&with("type = \"file\"")).unwrap_err().to_string();
            let (name, _) = key.split_once(' ').unwrap();
            assert!(error.contains(&format!("unknown field `{name}`")), "{error}");
        }
    }

    #[test]
    fn every_mistake_says_what_to_write() {
        let text = r#"
            [[sink]]
            type = "kinesis"
            endpoint = "127.0.0.1:4567"
            streams = ["a", "b"]
            dead_letter = "a"
            [[sink]]
            type = "mqtt"
            broker = "tcp://x"
            topic = "a/#"
            [[sink]]
            type = "file"
            name = "disk"
            [[sink]]
            type = "kinesis-video"
            name = "cameras"
            target = "all"
            create_retention = "1 s"
            idle = "1 ms"
            [[sink]]
            type = "s3-video"
            name = "film"
            bucket = "Film"
            prefix = "/all/"
            every = "7 min"
            part_bytes = "1 MiB"
        "#;
        let file: File = toml::from_str(text).unwrap();
        let keys: Vec<_> = SinkConfig::check_all(&file.sink).into_iter().map(|problem| problem.key).collect();
        let expected = [
            "sink[0].name",
            "sink[0].dead_letter",
            "sink[0].endpoint",
            "sink[1].name",
            "sink[1].name",
            "sink[1].broker",
            "sink[1].topic",
            "sink[2].dir",
            "sink[3].target",
            "sink[3].create_retention",
            "sink[3].idle",
            "sink[4].bucket",
            "sink[4].prefix",
            "sink[4].prefix",
            "sink[4].every",
            "sink[4].part_bytes",
        ];
        assert_eq!(keys, expected);
    }
}
