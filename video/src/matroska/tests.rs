//! One file a promise: robust (nothing panics, any cut gives the same), reading, lacing, writing, and the oracles.

mod lacing;
mod oracle;
mod reading;
mod robust;
mod writing;
