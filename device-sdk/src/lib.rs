//! The map of the SDK; its page is `README.md`.
//!
#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

#[cfg(any(test, feature = "sim"))]
extern crate std;

#[cfg(test)]
use headwater_device_host as _;

mod apart;
mod config;
mod device;
mod downlink;
pub mod link;
mod mqtt;
#[cfg(feature = "embassy-net")]
pub mod net;
#[cfg(feature = "ota")]
pub mod ota;
pub mod outbox;
pub mod ram;
mod recorder;
mod run;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod store;
#[cfg(feature = "tls")]
pub mod tls;
mod trace;

pub use config::{
    ANSWER_BYTES_MAX, Config, Counts, Failure, ID_BYTES_MAX, RECEIVE_BYTES, Rest, SetupError, memory_bytes,
};
pub use device::{Device, Transport};
pub use downlink::{Blob, Downlink, chunk_bytes};
pub use headwater_wire::{Column, ColumnType, Null, Value};
pub use recorder::{RecordError, Recorder, Status};
