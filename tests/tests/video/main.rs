//! Video on the real binary: cameras as they are send it, and what comes out is what went in.
//!
//! `chunks` is chunks over MQTT, `rtsp` the gateway that goes to a camera.

mod chunks;
mod rtsp;
