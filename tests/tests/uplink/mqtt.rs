//! The MQTT sink against mosquitto, a broker that others wrote.

use crate::rig::{Audit, Rig};
use headwater_tests::certificates::Certificates;
use headwater_tests::need;
use headwater_tests::tools::{Process, free_port, program, wait_for_port};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NO_BROKER: &str = "mosquitto is not installed";
const BOUND: Duration = Duration::from_secs(30);

/// mosquitto on a port in the clear, where the judge listens, and if there are certificates on a port over TLS too.
struct Broker {
    port: u16,
    tls_port: u16,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Broker {
    fn start(certificates: Option<&Certificates>) -> Option<Self> {
        let (port, tls_port, dir) = (free_port(), free_port(), tempfile::tempdir().unwrap());
        let mut config = format!("allow_anonymous true\nmax_queued_messages 0\nlistener {port} 127.0.0.1\n");
        if let Some(certificates) = certificates {
            for (name, path) in [
                ("cafile", certificates.cert("ca")),
                ("certfile", certificates.cert("server")),
                ("keyfile", certificates.key("server")),
            ] {
                let copy = dir.path().join(name);
                std::fs::copy(path, &copy).unwrap();
                readable(&copy);
                config = if name == "cafile" { format!("{config}listener {tls_port} 127.0.0.1\n") } else { config };
                config += &format!("{name} {}\n", copy.display());
            }
            config += "require_certificate true\n";
            readable(dir.path());
        }
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Broker { port, tls_port, dir, process: None };
        program("mosquitto")?;
        broker.restart();
        Some(broker)
    }

    fn stop(&mut self) {
        self.process = None;
    }

    fn restart(&mut self) {
        self.stop();
        let mut command = Command::new(program("mosquitto").expect("it was there"));
        command.arg("-c").arg(self.dir.path().join("mosquitto.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::start(&mut command));
        wait_for_port(([127, 0, 0, 1], self.port).into(), BOUND);
    }
}

/// Debian's mosquitto gives up root before it reads these.
fn readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

type Heard = Arc<Mutex<Vec<Publish>>>;

/// A subscriber that keeps its session while the broker is up; it is subscribed when this returns.
async fn subscribe(port: u16) -> (Heard, tokio::task::AbortHandle) {
    let (heard, subscribed) = (Heard::default(), Arc::new(tokio::sync::Notify::new()));
    let (into, told) = (heard.clone(), subscribed.clone());
    let mut options = MqttOptions::new("judge", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    let task = tokio::spawn(async move {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => client.subscribe("#", QoS::AtLeastOnce).await.unwrap(),
                Ok(Event::Incoming(Packet::Publish(publish))) => into.lock().unwrap().push(publish),
                Ok(Event::Incoming(Packet::SubAck(_))) => told.notify_one(),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    tokio::time::timeout(BOUND, subscribed.notified()).await.expect("the judge subscribes");
    (heard, task.abort_handle())
}

fn property(publish: &Publish, name: &str) -> Option<String> {
    let properties = publish.properties.as_ref()?;
    properties.user_properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

fn audit(rig: &Rig, heard: &Heard) -> Audit {
    let heard = heard.lock().unwrap();
    let arrived: Vec<_> = heard
        .iter()
        .map(|publish| {
            let topic = std::str::from_utf8(&publish.topic).unwrap().to_owned();
            (topic.rsplit('/').next().unwrap().to_owned(), publish.payload.clone(), property(publish, "headwater-id"))
        })
        .collect();
    rig.audit(arrived.iter().map(|(key, data, id)| (key.as_str(), &data[..], id.as_deref())))
}

async fn heard_all(heard: &Heard, count: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while heard.lock().unwrap().len() < count && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn sink(broker: &str) -> String {
    format!(r#"{{"type":"mqtt","name":"broker","broker":{broker},"topic":"up/{{stream}}/{{key}}","timeout":"2 s"}}"#)
}

fn plain(broker: &Broker) -> String {
    sink(&format!(r#""mqtt://127.0.0.1:{}""#, broker.port))
}

/// Over TLS, with the certificate of a device.
fn secure(broker: &Broker, certificates: &Certificates, authority: &str, device: &str) -> String {
    let (ca, cert, key) = (certificates.cert(authority), certificates.cert(device), certificates.key(device));
    sink(&format!(r#""mqtts://localhost:{}","ca":"{ca}","cert":"{cert}","key":"{key}""#, broker.tls_port))
}

/// Sends 2,000 records and compares what the judge heard.
async fn delivers(broker: &Broker, sink: &str) {
    let (heard, _judge) = subscribe(broker.port).await;
    let mut rig = Rig::new(2);
    rig.start(sink).await;
    rig.put(2000, 50).await;
    rig.drained("broker", BOUND).await;
    heard_all(&heard, 2000).await;
    assert_eq!(audit(&rig, &heard), Audit { arrived: 2000, ..Audit::default() });
    let heard = heard.lock().unwrap();
    assert!(property(&heard[0], "headwater-id").unwrap().starts_with("hw1/"));
    assert!(heard[0].topic.starts_with(b"up/telemetry/dev-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_broker_gets_every_record_in_order_with_its_id() {
    let broker = need!(Broker::start(None), NO_BROKER);
    delivers(&broker, &plain(&broker)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_over_tls_gets_every_record_and_knows_the_gateways_certificate() {
    need!(program("openssl"), "openssl is not installed");
    let certificates = Certificates::new();
    certificates.device("gateway", "ca");
    let broker = need!(Broker::start(Some(&certificates)), NO_BROKER);
    delivers(&broker, &secure(&broker, &certificates, "ca", "gateway")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_to_a_broker_that_is_not_trusted_or_does_not_trust_us() {
    need!(program("openssl"), "openssl is not installed");
    let certificates = Certificates::new();
    certificates.device("gateway", "ca");
    certificates.device("intruder", "stranger");
    let broker = need!(Broker::start(Some(&certificates)), NO_BROKER);
    let (heard, _judge) = subscribe(broker.port).await;
    for (authority, device) in [("stranger", "gateway"), ("ca", "intruder")] {
        let mut rig = Rig::new(1);
        rig.put(100, 5).await;
        rig.start(&secure(&broker, &certificates, authority, device)).await;
        rig.troubled("", BOUND).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let why = rig.trouble().unwrap_or_default().to_lowercase();
        let says_so = ["unknownissuer", "unknownca", "certificate"].into_iter().any(|word| why.contains(word));
        assert!(says_so, "{authority}, {device}: {why}");
        assert_eq!((rig.backlog("broker"), heard.lock().unwrap().len()), (100, 0));
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_broker_that_goes_away_and_comes_back_is_waited_for() {
    let mut broker = need!(Broker::start(None), NO_BROKER);
    let mut rig = Rig::new(1);
    rig.start(&plain(&broker)).await;
    rig.put(300, 30).await;
    rig.drained("broker", BOUND).await;
    broker.stop();
    rig.put(300, 30).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.backlog("broker"), 300);
    assert!(rig.trouble().is_some());
    broker.restart();
    rig.drained("broker", BOUND).await;
    assert_eq!(rig.trouble(), None);
}
