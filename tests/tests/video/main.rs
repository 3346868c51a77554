//! Video on the real binary: ffmpeg and GStreamer send it, boto3 asks for it, ffmpeg and a browser play it, and faults of all
//! kinds come between. A picture that comes out is compared with the one that went in by the MD5 of its pixels.
//!
//! `ingest` is the ways in over HTTP and `acknowledgements` what their producers hear, `chunks` those over MQTT, `rtsp` the gateway
//! that goes to a camera, `aws` the operations, `pictures` motion JPEG, `playback` the ways out and `latency` how soon, `upstream` is
//! from one gateway to the next, `s3` into a bucket, `whole` all of it at once, `faults` what breaks.

mod acknowledgements;
mod aws;
mod chunks;
mod faults;
mod ingest;
mod latency;
mod pictures;
mod playback;
mod rtsp;
mod s3;
mod upstream;
mod whole;
