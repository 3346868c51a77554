//! The configuration: TOML text, flags and environment in, one checked [`Config`] out.
//!
//! Each part's section type lives with the part; this module joins them, and `config/read.rs` finds the place of every
//! mistake. Nothing here opens a socket or a data directory. The only I/O is reading the file itself ([`Config::load`]) and,
//! to check them, the users, keys and certificates it names.

mod read;
#[cfg(test)]
mod sample;
mod tree;

pub use read::{Mistake, Mistakes, Override};

use crate::api::ApiConfig;
use crate::console::ConsoleConfig;
use crate::log::{BUDGET_MIN, OnFull, Options, SHARDS_MAX, StreamKind, StreamSettings};
use crate::media::{CameraConfig, MarkConfig, VideoConfig};
use crate::mqtt::{AllowConfig, MqttConfig, RouteConfig};
use crate::problem::Problem;
use crate::record::StreamName;
use crate::units::{ByteSize, Span};
use crate::uplink::SinkConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The stream that is always there: the default route sends everything to it.
pub const DEFAULT_STREAM: &str = "default";
/// A whole configuration file. Every key has a default; the empty file is a gateway on loopback.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub data: DataConfig,
    pub mqtt: MqttConfig,
    pub api: ApiConfig,
    pub console: ConsoleConfig,
    pub video: VideoConfig,
    #[serde(rename = "camera")]
    pub cameras: Vec<CameraConfig>,
    #[serde(rename = "mark")]
    pub marks: Vec<MarkConfig>,
    #[serde(rename = "stream")]
    pub streams: Vec<StreamConfig>,
    #[serde(rename = "route")]
    pub routes: Vec<RouteConfig>,
    #[serde(rename = "allow")]
    pub allows: Vec<AllowConfig>,
    #[serde(rename = "sink")]
    pub sinks: Vec<SinkConfig>,
}

/// Where the records are kept, and how gently.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Directory of the log. One gateway holds it at a time.
    pub dir: PathBuf,
    /// One budget for the whole box; streams have floors and ceilings within it.
    pub max_bytes: ByteSize,
    /// Small commits allowed per second before they wait for company.
    pub thin_commits_per_s: u32,
    /// How long they then wait. Raise both ways to spare a flash card.
    pub linger: Span,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            dir: "headwater-data".into(),
            max_bytes: ByteSize(16 << 30),
            thin_commits_per_s: 50,
            linger: Span::ms(20),
        }
    }
}

impl DataConfig {
    pub fn options(&self) -> Options {
        Options {
            dir: self.dir.clone(),
            max_bytes: self.max_bytes,
            thin_commits_per_s: self.thin_commits_per_s,
            linger: self.linger,
            aging_waits: true,
        }
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        if self.dir.as_os_str().is_empty() {
            problems.push(Problem::new("data.dir", "name a directory, such as \"/var/lib/headwater\""));
        }
        if self.max_bytes < BUDGET_MIN {
            let says = format!("{} is too small; write at least \"{BUDGET_MIN}\"", self.max_bytes);
            problems.push(Problem::new("data.max_bytes", says));
        }
        if self.thin_commits_per_s == 0 {
            problems.push(Problem::new(
                "data.thin_commits_per_s",
                "write at least 1; raise `linger` to commit more rarely",
            ));
        }
        if self.linger > Span::secs(10) {
            problems.push(Problem::new(
                "data.linger",
                "a device would wait this long for every PUBACK; write at most \"10 s\"",
            ));
        }
    }
}

/// A stream that exists from the first start on. Taking it out of the file does not delete it.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// 1 to 128 letters, digits, '_', '.' or '-'.
    pub name: String,
    /// Number of shards, 1 to 1024. Changing it later does not reshard a stream that exists.
    #[serde(default)]
    pub shards: Shards,
    /// How long records are kept.
    #[serde(default = "default_retention")]
    pub retention: Span,
    /// Most bytes on disk; without it, what the box's budget gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// What gives way when the stream is full: "drop-oldest" or "reject".
    #[serde(default)]
    pub on_full: OnFull,
    /// What it holds: "records" or "video". Video has one shard, and gives way first when the box is full.
    #[serde(default)]
    pub kind: StreamKind,
}

fn default_retention() -> Span {
    StreamSettings::default().retention
}

/// How many shards a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    Fixed(u32),
    /// As Kinesis' on-demand mode: grows by itself.
    OnDemand,
}

impl Default for Shards {
    fn default() -> Self {
        Shards::Fixed(StreamSettings::default().shards)
    }
}

impl Serialize for Shards {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Shards::Fixed(n) => to.serialize_u32(*n),
            Shards::OnDemand => to.serialize_str("on-demand"),
        }
    }
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl de::Visitor<'_> for Visit {
            type Value = Shards;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number of shards, such as 4")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Shards, E> {
                u32::try_from(n).map(Shards::Fixed).map_err(|_| E::custom(format!("{n} shards: write 1 to 1024")))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Shards, E> {
                u32::try_from(n).map(Shards::Fixed).map_err(|_| E::custom(format!("{n} shards: write 1 to 1024")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Shards, E> {
                match text {
                    "on-demand" => Ok(Shards::OnDemand),
                    _ => Err(E::custom(format!("write a number of shards such as 4, not {text:?}"))),
                }
            }
        }
        from.deserialize_any(Visit)
    }
}

impl StreamConfig {
    /// Name and settings for the log. Call after [`Config::check`]; a bad name is an error here too.
    pub fn settings(&self) -> Result<(StreamName, StreamSettings), crate::record::BadStreamName> {
        let shards = match self.shards {
            Shards::Fixed(n) => n,
            Shards::OnDemand => StreamSettings::default().shards,
        };
        // A camera's fragments have one order.
        let shards = if self.kind == StreamKind::Video { 1 } else { shards };
        let settings = StreamSettings {
            shards,
            retention: self.retention,
            max_bytes: self.max_bytes,
            on_full: self.on_full,
            kind: self.kind,
        };
        Ok((StreamName::new(&self.name)?, settings))
    }

    fn check(&self, at: usize, problems: &mut Vec<Problem>) {
        let key = |name: &str| format!("stream[{at}].{name}");
        if let Err(bad) = StreamName::new(&self.name) {
            problems.push(Problem::new(key("name"), bad.to_string()));
        }
        match self.shards {
            Shards::Fixed(1..=SHARDS_MAX) => {}
            Shards::Fixed(n) => {
                problems.push(Problem::new(key("shards"), format!("{n} shards: write 1 to {SHARDS_MAX}")));
            }
            Shards::OnDemand => problems.push(Problem::new(
                key("shards"),
                "shards that grow by themselves are not there yet; write a number, such as 4",
            )),
        }
        if self.retention < Span::secs(60) {
            problems.push(Problem::new(key("retention"), "write at least \"1 min\""));
        }
        if self.max_bytes.is_some_and(|size| size < ByteSize::mib(16)) {
            problems.push(Problem::new(key("max_bytes"), "write at least \"16 MiB\""));
        }
    }
}

impl Config {
    /// Reads a file, lays the overrides over it, and checks the whole. Without a file: the defaults and the overrides.
    pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Config, Mistakes> {
        let (name, text) = match file {
            None => ("(defaults)".to_owned(), String::new()),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|error| Mistakes::unreadable(&name, &error))?;
                (name, text)
            }
        };
        Config::parse(&name, &text, overrides)
    }

    /// The same for text that is already there; `name` stands in front of every mistake.
    pub fn parse(name: &str, text: &str, overrides: &[Override]) -> Result<Config, Mistakes> {
        read::parse(name, text, overrides)
    }

    /// Everything that is wrong although the types are right.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.data.check(&mut problems);
        let mut names = BTreeSet::from([DEFAULT_STREAM]);
        for (at, stream) in self.streams.iter().enumerate() {
            stream.check(at, &mut problems);
            if !names.insert(&stream.name) && stream.name != DEFAULT_STREAM {
                let says = format!("there are two streams {:?}; give each a name of its own", stream.name);
                problems.push(Problem::new(format!("stream[{at}].name"), says));
            }
        }
        let known: Vec<&str> = names.iter().copied().collect();
        problems.extend(self.mqtt.check(&self.routes, &self.allows, &known));
        problems.extend(self.api.check());
        problems.extend(self.console.check());
        problems.extend(self.video.check());
        problems.extend(CameraConfig::check_all(&self.cameras, &self.video));
        problems.extend(MarkConfig::check_all(&self.marks, crate::mqtt::is_topic_filter));
        self.check_addresses(&mut problems);
        problems.extend(SinkConfig::check_all(&self.sinks));
        for (at, sink) in self.sinks.iter().enumerate() {
            problems.extend(sink.broker().and_then(|(host, port)| self.own_listener(&host, port)).map(|own| {
                let says =
                    format!("this is the gateway's own {own}, and records would go in circles; name another broker");
                Problem::new(format!("sink[{at}].broker"), says)
            }));
            let common = sink.common();
            // A stream of video is made by its camera, unless that is switched off.
            let made_later = sink.is_for_video() && self.video.create;
            let wanted = common.streams.iter().filter(|_| !made_later).map(|name| ("streams", name));
            let wanted = wanted.chain(sink.dead_letter().map(|name| ("dead_letter", name)));
            for (key, name) in wanted.filter(|(_, name)| !names.contains(name.as_str())) {
                let says = format!("there is no stream {name:?}; add a [[stream]] with name = {name:?}");
                problems.push(Problem::new(format!("sink[{at}].{key}"), says));
            }
        }
        self.check_kinds(&mut problems);
        problems
    }

    /// Video goes into streams of video, and nothing else does.
    fn check_kinds(&self, problems: &mut Vec<Problem>) {
        let cameras = self.cameras.iter().enumerate();
        let marks = self.marks.iter().enumerate();
        let sinks = self.sinks.iter().enumerate().filter(|(_, sink)| sink.is_for_video());
        let named = cameras
            .map(|(at, camera)| (format!("camera[{at}].name"), std::slice::from_ref(&camera.name)))
            .chain(marks.map(|(at, mark)| (format!("mark[{at}].streams"), &mark.streams[..])))
            .chain(sinks.map(|(at, sink)| (format!("sink[{at}].streams"), &sink.common().streams[..])));
        for (key, names) in named {
            if let Some(name) = names.iter().find(|name| self.is_of_records(name)) {
                let says = match name.as_str() {
                    DEFAULT_STREAM => format!("{name:?} is the stream of records without a route; name another"),
                    _ => format!("{name:?} is a stream of records; write kind = \"video\" in its [[stream]]"),
                };
                problems.push(Problem::new(key, says));
            }
        }
        let is_of_video =
            |name: &str| self.streams.iter().any(|stream| stream.name == name && stream.kind == StreamKind::Video);
        for (at, route) in self.routes.iter().enumerate().filter(|(_, route)| route.store && is_of_video(&route.stream))
        {
            let says =
                format!("{:?} is a stream of video, and a message is none; name a stream of records", route.stream);
            problems.push(Problem::new(format!("route[{at}].stream"), says));
        }
    }

    fn is_of_records(&self, name: &str) -> bool {
        let declared = self.streams.iter().find(|stream| stream.name == name);
        declared.map_or(name == DEFAULT_STREAM, |stream| stream.kind != StreamKind::Video)
    }

    /// The MQTT listener that a client of this machine reaches under an address.
    fn own_listener(&self, host: &str, port: u16) -> Option<&'static str> {
        let ip = if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>().ok() }?;
        let listeners = [("mqtt.listen", self.mqtt.listen), ("mqtt.tls.listen", self.mqtt.tls.listen)];
        let is_it =
            |own: SocketAddr| own.port() == port && (own.ip() == ip || own.ip().is_unspecified() && ip.is_loopback());
        listeners.into_iter().find(|(_, listen)| listen.address().is_some_and(is_it)).map(|(key, _)| key)
    }

    /// Of two listeners that want the same address the second is told: at a start it would be the one that fails.
    fn check_addresses(&self, problems: &mut Vec<Problem>) {
        let listeners = [
            ("mqtt.listen", self.mqtt.listen),
            ("mqtt.tls.listen", self.mqtt.tls.listen),
            ("api.listen", self.api.listen),
            ("console.listen", self.console.listen),
        ];
        let addresses: Vec<_> = listeners.iter().filter_map(|(key, listen)| Some((key, listen.address()?))).collect();
        for (at, (key, address)) in addresses.iter().enumerate() {
            let is_taken = |other: &SocketAddr| {
                let everywhere = other.ip().is_unspecified() || address.ip().is_unspecified();
                address.port() != 0 && other.port() == address.port() && (other.ip() == address.ip() || everywhere)
            };
            if let Some((by, other)) = addresses[..at].iter().find(|(_, other)| is_taken(other)) {
                let says = format!("{address} is taken by {by} = \"{other}\"; write another port");
                problems.push(Problem::new(**key, says));
            }
        }
    }
}

#[cfg(test)]
mod tests;
