//! Headwater: the gateway where a stream starts.
//!
//! ```text
//! device --MQTT--> mqtt::connection -> session -> route -> log: shard -> committer -> journal + fdatasync
//!                       ^------------- PUBACK <----------- log: ack <--------+            |
//!                                                          log: fold -> redb blocks <------+
//! HTTP PutRecords ---> api ---> the same door of the log
//! log: cursor -> batch -> sink -> Kinesis | MQTT | files; the sink's ack moves the cursor
//! log: reader -> GetRecords, live tail, console, local MQTT subscribers
//! retention frees what no cursor needs and no reader is owed
//! ```
//! Bytes come in (`mqtt`, `api`), are kept (`log`), go out (`uplink`). `record`, `clock`, `metrics`, `backoff` and `units` are below
//! all of them; `daemon` puts the parts together; `cli` and `main` are above.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod api;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod daemon;
pub mod http;
pub mod log;
pub mod media;
pub mod metrics;
pub mod mqtt;
pub mod problem;
pub mod record;
pub mod units;
pub mod uplink;
pub mod wire;
