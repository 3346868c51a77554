#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

#[cfg(any(test, feature = "sim"))]
extern crate std;

#[cfg(test)]
use headwater_device_host as _;

mod device;
pub mod link;
mod mqtt;
#[cfg(feature = "embassy-net")]
pub mod net;
pub mod outbox;
pub mod ram;
mod recorder;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod trace;

pub use device::{
    ANSWER_BYTES_MAX, Config, Counts, Device, Downlink, Failure, ID_BYTES_MAX, RECEIVE_BYTES, Rest, SetupError,
    Transport, memory_bytes,
};
pub use headwater_wire::{Column, ColumnType, Null, Value};
pub use recorder::{RecordError, Recorder, Status};
