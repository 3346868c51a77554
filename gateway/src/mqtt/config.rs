//! What a user writes under `[mqtt]`, `[[route]]` and `[[allow]]`, and the mistakes that can be told before a start.

use super::access;
use super::auth::Users;
use super::route::Routes;
use super::tls;
use crate::problem::Problem;
use crate::units::{ByteSize, Listen, Span};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// `[mqtt]`
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    /// Address of the plain listener; "off" turns it off.
    pub listen: Listen,
    /// Users and password hashes, one `name:hash` a line (`headwater passwd` writes one). Asked for on every listener but
    /// where a client certificate has named the device.
    pub users_file: Option<PathBuf>,
    /// Lets anyone in on a listener that is not on loopback and has no authenticator.
    pub insecure_listen: bool,
    /// Connections open at once, over all listeners.
    pub connections_max: u32,
    /// Connections open at once from one address (over IPv6: from one /64), so that a single stranger cannot take all of
    /// them; 0 is no limit. Raise it where a whole fleet comes through one router or proxy.
    pub connections_per_address_max: u32,
    /// Largest packet taken from a client, told to it as Maximum Packet Size.
    pub packet_size_max: ByteSize,
    /// Messages of one client on their way to disk at once, told to it as Receive Maximum.
    pub receive_maximum: u16,
    /// Longest keep-alive granted; a client that asks for more, or for none, is told this (MQTT 5).
    pub keep_alive_max: Span,
    /// A connection must have finished its TLS handshake, and then its CONNECT, within this.
    pub connect_within: Span,
    /// A client that takes none of what it is sent for this long is let go.
    pub write_within: Span,
    /// Subscriptions of one connection.
    pub subscriptions_max: u32,
    /// MQTT over TLS.
    pub tls: TlsConfig,
}

/// `[mqtt.tls]`
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Address of the TLS listener; "off" turns it off.
    pub listen: Listen,
    /// Certificate chain of the gateway, PEM, its own certificate first.
    pub cert: Option<PathBuf>,
    /// Private key, PEM.
    pub key: Option<PathBuf>,
    /// Certificates that sign devices, PEM: makes TLS mutual, and a certificate's common name the device's identity.
    pub client_ca: Option<PathBuf>,
    /// TLS handshakes begun per second; more wait their turn, so that a storm of connects leaves the cores to the others.
    pub handshakes_per_s: u32,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            listen: (Ipv4Addr::LOCALHOST, 1883).into(),
            users_file: None,
            insecure_listen: false,
            connections_max: 10_000,
            connections_per_address_max: 5_000,
            packet_size_max: ByteSize::mib(1),
            receive_maximum: 1_024,
            keep_alive_max: Span::secs(3_600),
            connect_within: Span::secs(10),
            write_within: Span::secs(30),
            subscriptions_max: 128,
            tls: TlsConfig::default(),
        }
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig { listen: Listen::Off, cert: None, key: None, client_ca: None, handshakes_per_s: 200 }
    }
}

/// One `[[route]]`: the first whose topics match wins.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct RouteConfig {
    /// Topic filters; `$` topics match only explicitly.
    pub topics: Vec<String>,
    /// Stream the messages go to.
    pub stream: String,
    /// Partition key: {client_id}, {identity}, {topic}, {topic[2]}, {property:name}, {json:/a/b} and text between them.
    pub key: String,
    /// false: messages go to whoever listens now and are not kept.
    pub store: bool,
}

impl Default for RouteConfig {
    fn default() -> Self {
        RouteConfig { topics: vec!["#".into()], stream: "default".into(), key: "{client_id}".into(), store: true }
    }
}

/// One `[[allow]]`: once there is one, only what an entry names is allowed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct AllowConfig {
    /// A user, a certificate's common name, or "*" for everyone.
    pub identity: String,
    /// Topic filters it may publish to; {identity} and {client_id} stand for one level.
    pub publish: Vec<String>,
    /// Topic filters it may subscribe to, or to any narrower one.
    pub subscribe: Vec<String>,
}

impl Default for AllowConfig {
    fn default() -> Self {
        AllowConfig { identity: "*".into(), publish: Vec::new(), subscribe: Vec::new() }
    }
}

/// Largest `packet_size_max`: the largest record and room for topic and properties.
const PACKET_BYTES_MAX: u64 = (10 << 20) + (128 << 10);

impl MqttConfig {
    /// Every mistake in the three sections; `streams` are the names of the streams there will be.
    pub fn check(&self, routes: &[RouteConfig], allow: &[AllowConfig], streams: &[&str]) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.check_listeners(&mut problems);
        self.check_bounds(&mut problems);
        match Routes::new(routes) {
            Err(mistakes) => problems.extend(mistakes),
            Ok(parsed) => problems.extend(missing_streams(routes, &parsed, streams)),
        }
        for (at, rule) in allow.iter().enumerate() {
            problems.extend(access::check(at, rule));
        }
        problems
    }

    fn check_listeners(&self, problems: &mut Vec<Problem>) {
        if self.listen.is_open() && self.users_file.is_none() && !self.insecure_listen {
            problems.push(Problem::new(
                "mqtt.listen",
                "this address is open to others and nothing says who may come in: set mqtt.users_file, or listen on \
                 127.0.0.1, or use [mqtt.tls] with client_ca; insecure_listen = true lets anyone in",
            ));
        }
        if let Some(Err(error)) = self.users_file.as_deref().map(Users::load) {
            problems.push(Problem::new("mqtt.users_file", error.to_string()));
        }
        let tls = &self.tls;
        if tls.listen == Listen::Off {
            return;
        }
        problems.extend(tls::check(tls));
        let authenticated = tls.client_ca.is_some() || self.users_file.is_some();
        if tls.listen.is_open() && !authenticated && !self.insecure_listen {
            problems.push(Problem::new(
                "mqtt.tls.listen",
                "this address is open to others and nothing says who may come in: set mqtt.tls.client_ca or \
                 mqtt.users_file, or listen on 127.0.0.1; insecure_listen = true lets anyone in",
            ));
        }
    }

    fn check_bounds(&self, problems: &mut Vec<Problem>) {
        let mut must = |good: bool, key: &str, says: &str| {
            if !good {
                problems.push(Problem::new(format!("mqtt.{key}"), says));
            }
        };
        must(self.connections_max > 0, "connections_max", "write at least 1");
        must(self.receive_maximum > 0, "receive_maximum", "write 1 to 65535");
        must(self.subscriptions_max > 0, "subscriptions_max", "write at least 1");
        must((1..=10_000).contains(&self.tls.handshakes_per_s), "tls.handshakes_per_s", "write 1 to 10000");
        must(self.connect_within.as_ms() > 0, "connect_within", "write a span such as \"10 s\"");
        must(self.write_within.as_ms() > 0, "write_within", "write a span such as \"30 s\"");
        let keep_alive_s = self.keep_alive_max.as_ms() / 1000;
        must((1..=65_535).contains(&keep_alive_s), "keep_alive_max", "write 1 s to 65535 s");
        must(
            (1_024..=PACKET_BYTES_MAX).contains(&self.packet_size_max.0),
            "packet_size_max",
            "write \"1 KiB\" to \"10 MiB\"",
        );
    }
}

fn missing_streams(configs: &[RouteConfig], routes: &Routes, streams: &[&str]) -> Vec<Problem> {
    let exists = |name: &str| name == "default" || streams.contains(&name);
    let missing = routes.streams().filter(|name| !exists(name.as_str()));
    let at = |name: &str| configs.iter().position(|c| c.store && c.stream == name).unwrap_or(0);
    missing
        .map(|name| {
            Problem::new(
                format!("route[{}].stream", at(name.as_str())),
                format!("there is no stream {name}; add a [[stream]] with name = \"{name}\""),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn keys(config: &MqttConfig) -> Vec<String> {
        config.check(&[], &[], &[]).into_iter().map(|p| p.key).collect()
    }

    /// Those of them that are about where it listens.
    fn listeners(config: &MqttConfig) -> Vec<String> {
        keys(config).into_iter().filter(|key| key.ends_with("listen")).collect()
    }

    #[test]
    fn the_defaults_have_no_mistakes() {
        assert_eq!(keys(&MqttConfig::default()), Vec::<String>::new());
    }

    #[test]
    fn an_open_listener_without_an_authenticator_is_refused_unless_insecure_is_said() {
        let open = MqttConfig { listen: "0.0.0.0:1883".parse().unwrap(), ..Default::default() };
        assert_eq!(keys(&open), ["mqtt.listen"]);
        assert!(keys(&MqttConfig { insecure_listen: true, ..open.clone() }).is_empty());
        assert!(listeners(&MqttConfig { users_file: Some("users".into()), ..open.clone() }).is_empty());
        let tls = TlsConfig {
            listen: "0.0.0.0:8883".parse().unwrap(),
            cert: Some("c".into()),
            key: Some("k".into()),
            ..TlsConfig::default()
        };
        assert_eq!(listeners(&MqttConfig { tls: tls.clone(), ..Default::default() }), ["mqtt.tls.listen"]);
        let mutual = TlsConfig { client_ca: Some("ca".into()), ..tls };
        assert!(listeners(&MqttConfig { tls: mutual, ..Default::default() }).is_empty());
    }

    #[test]
    fn a_file_that_a_start_would_not_take_is_told_at_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let users = MqttConfig { users_file: file("users", "pump\n"), ..Default::default() };
        assert_eq!(keys(&users), ["mqtt.users_file"]);
        assert!(keys(&MqttConfig { users_file: file("empty", ""), ..users }).is_empty());

        let pem = |name: &str| Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mqtt/testdata").join(name));
        let (cert, key) = (pem("server.pem"), pem("server.key"));
        let good = TlsConfig { listen: "127.0.0.1:8883".parse().unwrap(), cert, key, ..TlsConfig::default() };
        let keys_of = |tls: TlsConfig| keys(&MqttConfig { tls, ..Default::default() });
        assert!(keys_of(good.clone()).is_empty());
        for (tls, told) in [
            (TlsConfig { cert: None, key: None, ..good.clone() }, &["mqtt.tls.cert", "mqtt.tls.key"][..]),
            (TlsConfig { cert: Some("/nowhere".into()), ..good.clone() }, &["mqtt.tls.cert"]),
            (TlsConfig { key: Some("/nowhere".into()), ..good.clone() }, &["mqtt.tls.key"]),
            (TlsConfig { client_ca: file("ca", "no PEM"), ..good.clone() }, &["mqtt.tls.client_ca"]),
            (TlsConfig { key: pem("device.key"), ..good.clone() }, &["mqtt.tls.cert"]),
        ] {
            assert_eq!(keys_of(tls), told);
        }
        let off = TlsConfig { listen: Listen::Off, cert: Some("/nowhere".into()), ..good };
        assert!(keys_of(off).is_empty());
    }

    #[test]
    fn a_route_to_a_stream_that_is_not_there_is_told() {
        let route = RouteConfig { stream: "telemetry".into(), ..RouteConfig::default() };
        let found = MqttConfig::default().check(std::slice::from_ref(&route), &[], &["other"]);
        assert_eq!(found[0].key, "route[0].stream");
        assert!(MqttConfig::default().check(&[route], &[], &["telemetry"]).is_empty());
    }
}
