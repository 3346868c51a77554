#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
//! x
extern crate core;
#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod outbox;
pub mod ram;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
