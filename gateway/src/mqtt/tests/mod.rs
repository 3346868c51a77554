//! The MQTT door in front of a real log, over real sockets. Tests read as the trace of a client.

mod abuse;
mod bench;
mod devices;
mod durability;
mod envelopes;
mod harness;
mod memory;
mod protocol;
mod subscribers;
mod wills;
mod with_rumqttc;
mod with_tls;
