//! P2 and P4 at the uplink: the real log and the real sinks against upstreams that fail in every way we know.

mod credentials;
mod files;
mod headwater;
mod kinesis;
mod mqtt;
mod rig;
