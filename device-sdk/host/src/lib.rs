//! What the device SDK finds on a board, on a computer: a clock for `embassy-time` that thousands of tasks may wait on,
//! and a transport over tokio's TCP. Link it and both are there.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![deny(missing_docs)]

pub mod fleet;
mod tcp;
mod time;

pub use tcp::{Tcp, TcpStreamIo};

use critical_section as _;
