//! TLS 1.2 and 1.3, with and without client certificates.

use super::harness::*;
use crate::mqtt::{MqttConfig, RouteConfig, TlsConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/mqtt/testdata").join(name)
}

async fn gateway(mutual: bool) -> Gateway {
    gateway_with(mutual, MqttConfig::default()).await
}

async fn gateway_with(mutual: bool, config: MqttConfig) -> Gateway {
    let tls = TlsConfig {
        handshakes_per_s: config.tls.handshakes_per_s,
        listen: "127.0.0.1:0".parse().unwrap(),
        cert: Some(file("server.pem")),
        key: Some(file("server.key")),
        client_ca: mutual.then(|| file("ca.pem")),
    };
    let route = RouteConfig { key: "{identity}".into(), ..Default::default() };
    Gateway::with(MqttConfig { tls, ..config }, &[route], &[]).await
}

/// CONNACK and PUBACK as seen over TLS; an error if either does not come.
async fn publish_over(
    gateway: &Gateway,
    version: &'static SupportedProtocolVersion,
    who: Option<&str>,
) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = match who {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let cert = CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    let socket = TcpStream::connect(gateway.mqtt.as_ref().unwrap().tls_local_addr().unwrap()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(&[connect(4, true, "c1"), publish(1, 1, "a", "x")].concat()).await?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, [0x20, 2, 0, 0, 0x40, 2, 0, 1]);
    Ok(())
}

#[tokio::test]
async fn tls_of_both_versions_carries_mqtt() {
    let gateway = gateway(false).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        publish_over(&gateway, version, None).await.unwrap();
    }
    assert_eq!(&gateway.records("default")[0].key[..], b"c1", "no identity: the client id");
}

#[tokio::test]
async fn with_a_client_ca_the_certificate_names_the_device_and_strangers_stay_out() {
    let gateway = gateway(true).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        publish_over(&gateway, version, Some("device")).await.unwrap();
        publish_over(&gateway, version, Some("stranger")).await.unwrap_err();
        publish_over(&gateway, version, None).await.unwrap_err();
    }
    let records = gateway.records("default");
    assert_eq!(records.len(), 2);
    assert_eq!(&records[0].key[..], b"pump-7");
    gateway.until_rejects("tls_handshake", 4).await;
}

#[tokio::test]
async fn an_address_without_a_place_gets_no_handshake() {
    let config = MqttConfig { connections_per_address_max: 1, ..Default::default() };
    let gateway = gateway_with(false, config).await;
    let held = gateway.connected(4, "plain").await;
    publish_over(&gateway, &rustls::version::TLS13, None).await.unwrap_err();
    assert_eq!((gateway.rejects("connections_per_address_max"), gateway.rejects("tls_handshake")), (1, 0));
    drop(held);
    for _ in 0..100 {
        if publish_over(&gateway, &rustls::version::TLS13, None).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a connection that left is free again");
}

/// So many handshakes a second, and clients that connect and say nothing use none of them up.
#[tokio::test]
async fn handshakes_take_turns_and_the_plain_door_does_not_wait_for_them() {
    let tls = TlsConfig { handshakes_per_s: 20, ..TlsConfig::default() };
    let gateway = Arc::new(gateway_with(false, MqttConfig { tls, ..Default::default() }).await);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(gateway.mqtt.as_ref().unwrap().tls_local_addr().unwrap()).await.unwrap());
    }
    let begun = Instant::now();
    let (gateway, mut storm) = (&gateway, tokio::task::JoinSet::new());
    for _ in 0..31 {
        let gateway = gateway.clone();
        storm.spawn(async move { publish_over(&gateway, &rustls::version::TLS13, None).await });
    }
    let mut plain = gateway.connected(4, "plain").await;
    plain.send(&publish(1, 1, "a", "x")).await;
    plain.expect(&[0x40, 2, 0, 1]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // All have one client id, and each takes over from the one before; that is not what is asked here.
    let done = storm.join_all().await.len();
    // Thirty intervals of 50 ms lie between the first and the last.
    assert!(begun.elapsed() >= Duration::from_millis(1_450), "{done} handshakes in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_handshake_whose_turn_would_come_too_late_is_refused_at_once() {
    let tls = TlsConfig { handshakes_per_s: 2, ..TlsConfig::default() };
    let config = MqttConfig { tls, connect_within: crate::units::Span::ms(700), ..Default::default() };
    let gateway = Arc::new(gateway_with(false, config).await);
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let gateway = gateway.clone();
        storm.spawn(async move { publish_over(&gateway, &rustls::version::TLS13, None).await.is_ok() });
    }
    let let_in = storm.join_all().await.into_iter().filter(|done| *done).count();
    assert!((1..=3).contains(&let_in), "{let_in}");
    assert!(gateway.rejects("tls_busy") >= 16, "{}", gateway.metrics.render());
}
