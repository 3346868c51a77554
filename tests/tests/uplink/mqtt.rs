//! The MQTT sink against mosquitto, a broker that others wrote.

use crate::rig::{Audit, Rig};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Broker {
    port: u16,
    dir: tempfile::TempDir,
    child: Child,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Broker {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let child = Self::run(&dir);
        Broker { port, dir, child }
    }

    fn run(dir: &tempfile::TempDir) -> Child {
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(dir.path().join("mosquitto.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        // Debian puts it where users do not look.
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        command.spawn().expect("mosquitto is needed: apt-get install mosquitto")
    }

    fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::run(&self.dir);
    }
}

type Heard = Arc<Mutex<Vec<Publish>>>;

/// A subscriber that keeps its session while the broker is up.
fn subscribe(port: u16) -> (Heard, tokio::task::AbortHandle) {
    let heard = Heard::default();
    let (into, mut options) = (heard.clone(), MqttOptions::new("judge", "127.0.0.1", port));
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    let task = tokio::spawn(async move {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => client.subscribe("#", QoS::AtLeastOnce).await.unwrap(),
                Ok(Event::Incoming(Packet::Publish(publish))) => into.lock().unwrap().push(publish),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
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

fn sink(port: u16) -> String {
    format!(
        r#"{{"type":"mqtt","name":"broker","broker":"mqtt://127.0.0.1:{port}","topic":"up/{{stream}}/{{key}}","timeout":"2 s"}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_broker_gets_every_record_in_order_with_its_id() {
    let broker = Broker::start();
    let (heard, _judge) = subscribe(broker.port);
    let mut rig = Rig::new(2);
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.start(&sink(broker.port)).await;
    rig.put(2000, 50).await;
    rig.drained("broker", Duration::from_secs(30)).await;
    heard_all(&heard, 2000).await;
    assert_eq!(audit(&rig, &heard), Audit { arrived: 2000, ..Audit::default() });
    let heard = heard.lock().unwrap();
    assert!(property(&heard[0], "headwater-id").unwrap().starts_with("hw1/"));
    assert!(heard[0].topic.starts_with(b"up/telemetry/dev-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_broker_that_goes_away_and_comes_back_is_waited_for() {
    let mut broker = Broker::start();
    let mut rig = Rig::new(1);
    rig.start(&sink(broker.port)).await;
    rig.put(300, 30).await;
    rig.drained("broker", Duration::from_secs(30)).await;
    broker.restart();
    rig.put(300, 30).await;
    rig.drained("broker", Duration::from_secs(30)).await;
    assert_eq!(rig.status()[0].trouble, None);
}
