//! What the tests of Headwater stand on: the real binary in a process of its own, clients written by hand so that they can
//! misbehave, and the audit that compares what was acknowledged with what the log holds.
//!
//! `tests/promises` holds a module a promise, `clients` the clients that people really use, `devices` what is built with the
//! device SDK, `service` what runs it on a box, `tidy` the rules of the tree. They see what a user sees: nothing of the gateway is linked in here. Only `simulation`, which
//! breaks the log on a disk of its own making, links the log, and `uplink`, which runs the gateway's uplink against an upstream that fails on purpose.

pub mod aggregate;
pub mod audit;
pub mod aws;
pub mod cameras;
pub mod certificates;
pub mod forwarded;
pub mod gateway;
pub mod identity;
pub mod matroska;
pub mod mqtt;
pub mod proxy;
pub mod tools;
pub mod trace;
pub mod upstream;
pub mod video;
