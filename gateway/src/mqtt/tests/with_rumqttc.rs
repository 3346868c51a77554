//! A client that others wrote.

use super::harness::*;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

#[tokio::test]
async fn rumqttc_publishes_and_subscribes_at_every_qos_in_311() {
    let gateway = Gateway::start().await;
    let mut options = MqttOptions::new("c1", "127.0.0.1", gateway.addr().port());
    options.set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 100);
    for (n, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
        client.subscribe(format!("t/{n}"), qos).await.unwrap();
    }
    let mut got = Vec::new();
    let mut subscribed = 0;
    while got.len() < 9 {
        let event = tokio::time::timeout(SOON, events.poll()).await.unwrap().unwrap();
        match event {
            Event::Incoming(Packet::SubAck(_)) => {
                subscribed += 1;
                if subscribed == 3 {
                    for topic in 0..3 {
                        for (n, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
                            client.publish(format!("t/{topic}"), qos, false, n.to_string()).await.unwrap();
                        }
                    }
                }
            }
            Event::Incoming(Packet::Publish(p)) => {
                got.push((p.topic, p.qos, String::from_utf8_lossy(&p.payload).into_owned()));
            }
            _ => {}
        }
    }
    // The payload is the QoS it was published with; what comes is the lesser of it and what was granted.
    for (topic, expected) in [("t/0", [0, 0, 0]), ("t/1", [0, 1, 1]), ("t/2", [0, 1, 2])] {
        let here = got.iter().filter(|(t, ..)| t == topic);
        let (payloads, qos): (Vec<_>, Vec<_>) = here.map(|(_, qos, payload)| (payload.as_str(), *qos as u8)).unzip();
        assert_eq!((&payloads[..], &qos[..]), (&["0", "1", "2"][..], &expected[..]), "{topic}");
    }
}

#[tokio::test]
async fn rumqttc_of_mqtt_5_is_acknowledged_and_told_of_refusals() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let gateway = Gateway::start().await;
    let (client, mut events) = AsyncClient::new(MqttOptions::new("c5", "127.0.0.1", gateway.addr().port()), 100);
    client.publish("a/b", QoS::AtLeastOnce, false, "x").await.unwrap();
    client.publish("$SYS/b", QoS::AtLeastOnce, false, "x").await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        if let Ok(Event::Incoming(Packet::PubAck(ack))) = tokio::time::timeout(SOON, events.poll()).await.unwrap() {
            answers.push(ack.reason);
        }
    }
    assert_eq!(answers, [PubAckReason::Success, PubAckReason::TopicNameInvalid]);
}
