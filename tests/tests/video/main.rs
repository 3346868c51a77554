//! Video on the real binary.
//!
//! `upstream` is from one gateway to the next.

mod upstream;
