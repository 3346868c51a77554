//! Devices that are built with the device SDK against the real gateway: the emulated board, whose firmware runs on a real
//! processor's instructions, and a fleet in one process. They see what a user sees; the audit reads the gateway's log.
//!
//! What is not there (QEMU, a compiler for the board's processor, the fleet's binary) skips the tests that need it.

mod board;
mod contract;
mod fleet;
mod host;
mod lives;
mod ota;
mod picture;
mod readings;
mod storm;
