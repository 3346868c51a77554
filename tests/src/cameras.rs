//! Cameras for tests that do not send by HTTP: an RTSP server of GStreamer's, and what a camera publishes over MQTT, cut by ffmpeg.

use crate::tools::{Process, root, run, run_ok};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
pub const NO_RTSP: &str = "no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-{good,bad,ugly} gstreamer1.0-libav";
/// Debian's, which has `gi`.
const PYTHON: &str = "/usr/bin/python3";

/// A server to be, if this machine has what it needs.
pub fn rtsp_is_there() -> Option<()> {
    let has = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None);\
               import sys; sys.exit(not all(map(Gst.ElementFactory.find, ['x264enc', 'avenc_aac', 'rtph264pay'])))";
    let python = Path::new(PYTHON).exists();
    (python && run(Command::new(PYTHON).args(["-c", has]), BOUND).status.success()).then_some(())
}

/// H.264 with AAC at `rtsp://127.0.0.1:PORT/cam`, a keyframe a second; `who` may be a user and a password.
pub fn rtsp(port: u16, who: &[&str]) -> Process {
    let script = root().join("tests/clients/rtsp_server.py");
    Process::start(Command::new(PYTHON).arg(script).arg(port.to_string()).args(who).stdout(Stdio::null()))
}

/// Pictures of 192 by 108 with B-frames, a keyframe a second, 25 pictures between; `to` is ffmpeg's words for what becomes of them.
pub fn film(seconds: u32, to: &[&str]) {
    let input = format!("testsrc=size=192x108:rate=25:duration={seconds}");
    let source = ["-v", "error", "-f", "lavfi", "-i", &input];
    let codec =
        ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25", "-sc_threshold", "0", "-pix_fmt", "yuv420p"];
    run_ok(Command::new("ffmpeg").args(source).args(codec).args(to), BOUND);
}

/// The same as fragmented MP4, a second each: `init.mp4`, `0.m4s` ... in the folder, and the list of them that is returned.
pub fn segments(folder: &Path, seconds: u32) -> PathBuf {
    let at = |name: &str| folder.join(name).display().to_string();
    let hls = ["-f", "hls", "-hls_segment_type", "fmp4", "-hls_time", "1", "-hls_list_size", "0"];
    let (names, list) = (at("%d.m4s"), at("list.m3u8"));
    film(seconds, &[&hls[..], &["-hls_segment_filename", &names, &list]].concat());
    list.into()
}
