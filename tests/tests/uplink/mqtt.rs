//! The MQTT sink against mosquitto, a broker that others wrote.

use crate::rig::{Audit, Rig};
use headwater_tests::certificates::Certificates;
use headwater_tests::need;
use headwater_tests::tools::{Process, free_port, program, run_ok, wait_for_port};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NO_BROKER: &str = "mosquitto is not installed";
const BOUND: Duration = Duration::from_secs(30);

/// mosquitto on a port in the clear, where the judge listens, and if the test asks for it on a second port for others.
struct Broker {
    port: u16,
    guarded_port: u16,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Broker {
    fn start() -> Option<Self> {
        Self::with("", |_| String::new())
    }

    /// Its second port speaks TLS, and asks for a certificate.
    fn with_tls(certificates: &Certificates) -> Option<Self> {
        let line = |dir: &Path, name: &str, path: &str| {
            let copy = dir.join(name);
            std::fs::copy(path, &copy).unwrap();
            readable(&copy);
            format!("{name} {}\n", copy.display())
        };
        Self::with("", |dir| {
            let authority = line(dir, "cafile", &certificates.cert("ca"));
            let own = line(dir, "certfile", &certificates.cert("server"))
                + &line(dir, "keyfile", &certificates.key("server"));
            authority + &own + "allow_anonymous true\nrequire_certificate true\n"
        })
    }

    /// Its second port asks for a name and a password.
    fn with_password(passwd: &Path, name: &str, password: &str) -> Option<Self> {
        Self::with("", |dir| {
            let file = dir.join("passwords");
            let file = file.to_str().unwrap();
            run_ok(Command::new(passwd).args(["-b", "-c", file, name, password]), BOUND);
            readable(Path::new(file));
            format!("allow_anonymous false\npassword_file {file}\n")
        })
    }

    /// It keeps sessions, and what waits in them, over an orderly stop.
    fn that_keeps() -> Option<Self> {
        Self::with("persistence true\nuser root\n", |_| String::new())
    }

    fn with(general: &str, guarded: impl FnOnce(&Path) -> String) -> Option<Self> {
        let (port, guarded_port, dir) = (free_port(), free_port(), tempfile::tempdir().unwrap());
        program("mosquitto")?;
        readable(dir.path());
        let mut config = format!(
            "{general}persistence_location {}/\nper_listener_settings true\nmax_queued_messages 0\n\
             listener {port} 127.0.0.1\nallow_anonymous true\n",
            dir.path().display()
        );
        let guarded = guarded(dir.path());
        if !guarded.is_empty() {
            config += &format!("listener {guarded_port} 127.0.0.1\n{guarded}");
        }
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Broker { port, guarded_port, dir, process: None };
        broker.restart();
        Some(broker)
    }

    /// An orderly stop.
    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let pid = rustix::process::Pid::from_child(&process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        process.0.wait().unwrap();
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

/// A subscriber whose session the broker keeps for as long as it can; it is subscribed when this returns.
async fn subscribe(port: u16) -> (Heard, tokio::task::AbortHandle) {
    let (heard, subscribed) = (Heard::default(), Arc::new(tokio::sync::Notify::new()));
    let (into, told) = (heard.clone(), subscribed.clone());
    let mut options = MqttOptions::new("judge", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5)).set_clean_start(false).set_session_expiry_interval(Some(3600));
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
    sink(&format!(r#""mqtts://localhost:{}","ca":"{ca}","cert":"{cert}","key":"{key}""#, broker.guarded_port))
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
    let broker = need!(Broker::start(), NO_BROKER);
    delivers(&broker, &plain(&broker)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_over_tls_gets_every_record_and_knows_the_gateways_certificate() {
    need!(program("openssl"), "openssl is not installed");
    let certificates = Certificates::new();
    certificates.device("gateway", "ca");
    let broker = need!(Broker::with_tls(&certificates), NO_BROKER);
    delivers(&broker, &secure(&broker, &certificates, "ca", "gateway")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_to_a_broker_that_is_not_trusted_or_does_not_trust_us() {
    need!(program("openssl"), "openssl is not installed");
    let certificates = Certificates::new();
    certificates.device("gateway", "ca");
    certificates.device("intruder", "stranger");
    let broker = need!(Broker::with_tls(&certificates), NO_BROKER);
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

/// A waiting sink was judged by its cursor alone: nobody listened to what the broker got after its restart.
#[tokio::test(flavor = "multi_thread")]
async fn p4_a_broker_that_goes_away_and_comes_back_is_waited_for() {
    // What it acknowledged is its own to keep, so it is one that keeps the judge's session over its restart.
    let mut broker = need!(Broker::that_keeps(), NO_BROKER);
    let (heard, _judge) = subscribe(broker.port).await;
    let mut rig = Rig::new(2);
    rig.put(5000, 30).await;
    rig.start(&plain(&broker)).await;
    heard_all(&heard, 500).await;
    broker.stop();
    let left = rig.backlog("broker");
    assert!(left > 0, "it goes away in the midst of them");
    rig.put(300, 30).await;
    rig.troubled("", BOUND).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiting = rig.backlog("broker");
    assert!((301..=left + 300).contains(&waiting), "{waiting} wait, {left} were left");
    broker.restart();
    rig.drained("broker", BOUND).await;
    assert_eq!(rig.trouble(), None);
    let until = Instant::now() + BOUND;
    while audit(&rig, &heard).lost > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let audit = audit(&rig, &heard);
    audit.nothing_lost_or_reordered();
    // At most what was under way twice: 512 messages to the broker, 20 from there to the judge.
    assert!(audit.duplicated <= 532, "{audit:?}");
    assert!(heard.lock().unwrap().iter().all(|publish| property(publish, "headwater-id").is_some()));
}

/// It may answer 0x10, no matching subscribers: a success (docs/uplink.md).
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_to_which_nobody_listens_gets_every_record() {
    let broker = need!(Broker::start(), NO_BROKER);
    let mut rig = Rig::new(1);
    rig.start(&plain(&broker)).await;
    rig.put(300, 30).await;
    rig.drained("broker", BOUND).await;
    assert_eq!(rig.trouble(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_asks_for_a_password_gets_every_record_once_the_file_has_it() {
    let passwd = need!(program("mosquitto_passwd"), "mosquitto_passwd is not installed");
    let broker = need!(Broker::with_password(&passwd, "gateway", "open sesame"), NO_BROKER);
    let (heard, _judge) = subscribe(broker.port).await;
    let file = broker.dir.path().join("ours");
    std::fs::write(&file, "open barley\n").unwrap();
    let sink = sink(&format!(
        r#""mqtt://127.0.0.1:{}","username":"gateway","password_file":"{}","pipeline":true"#,
        broker.guarded_port,
        file.display()
    ));
    let mut rig = Rig::new(2);
    rig.put(2000, 3).await;
    rig.start(&sink).await;
    rig.troubled("the broker refuses the connection", BOUND).await;
    assert_eq!((rig.backlog("broker"), heard.lock().unwrap().len()), (2000, 0));
    std::fs::write(&file, "open sesame\n").unwrap();
    rig.drained("broker", BOUND).await;
    heard_all(&heard, 2000).await;
    assert_eq!(audit(&rig, &heard), Audit { arrived: 2000, ..Audit::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_what_was_evicted_before_it_could_leave_is_told_to_the_broker() {
    let broker = need!(Broker::start(), NO_BROKER);
    let (heard, _judge) = subscribe(broker.port).await;
    let mut rig = Rig::new(1);
    rig.put(100, 10).await;
    rig.start(&plain(&broker)).await;
    rig.drained("broker", BOUND).await;
    rig.stop().await;
    rig.put_until_evicted().await;
    rig.start(&plain(&broker)).await;
    rig.drained("broker", BOUND).await;
    let until = Instant::now() + BOUND;
    let told = || audit(&rig, &heard).gaps.iter().map(|gap| gap["count"].as_u64().unwrap()).sum::<u64>();
    while audit(&rig, &heard).lost > told() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let audit = audit(&rig, &heard);
    assert_eq!((audit.reordered, audit.duplicated), (0, 0));
    assert!(audit.lost > 0);
    assert_eq!(rig.told_as_evicted(&audit.gaps, 100), audit.lost);
    // In the place of what is lost, known by its type, and without a record's id.
    let heard = heard.lock().unwrap();
    let gap = &heard[100];
    let properties = gap.properties.as_ref().unwrap();
    assert_eq!(gap.topic, "up/telemetry/headwater-gap");
    assert_eq!(properties.content_type.as_deref(), Some("application/vnd.headwater.gap+json"));
    assert_eq!(properties.user_properties, [("headwater-key".to_owned(), "headwater-gap".to_owned())]);
}
