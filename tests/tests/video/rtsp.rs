//! The gateway goes to a camera: a real RTSP server sends H.264 with AAC, dies, comes back, and asks for a password.

use headwater_tests::aws;
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::need;
use headwater_tests::tools::{Process, eventually, free_port, root, run};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const NO_SERVER: &str = "no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-{good,bad,ugly} gstreamer1.0-libav";
/// Debian's, which has `gi`.
const PYTHON: &str = "/usr/bin/python3";

/// A server to be, if this machine has what it needs.
fn there() -> Option<()> {
    let has = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None);\
               import sys; sys.exit(not all(map(Gst.ElementFactory.find, ['x264enc', 'avenc_aac', 'rtph264pay'])))";
    let python = Path::new(PYTHON).exists();
    (python && run(Command::new(PYTHON).args(["-c", has]), BOUND).status.success()).then_some(())
}

fn camera(port: u16, who: &[&str]) -> Process {
    let script = root().join("tests/clients/rtsp_server.py");
    Process::start(Command::new(PYTHON).arg(script).arg(port.to_string()).args(who).stdout(Stdio::null()))
}

fn fragments(gateway: &Gateway) -> usize {
    let body = br#"{"StreamName": "yard"}"#;
    let head = format!(
        "POST /listFragments HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        gateway.api,
        body.len()
    );
    let (_, text) = aws::request(gateway.api, &head, body).unwrap_or_default();
    text.matches("FragmentNumber").count()
}

fn wait_for(gateway: &Gateway, count: usize) {
    let came = eventually(BOUND, || fragments(gateway) >= count);
    assert!(came, "{} fragments, not {count}\n{}", fragments(gateway), gateway.log());
}

#[test]
fn a_camera_that_goes_and_comes_back_is_recorded_on() {
    need!(there(), NO_SERVER);
    let port = free_port();
    let gateway = Setup::new(&format!("[[camera]]\nname = \"yard\"\nurl = \"rtsp://127.0.0.1:{port}/cam\"\n")).start();
    let server = camera(port, &[]);
    wait_for(&gateway, 3);
    assert_eq!(gateway.metric("headwater_camera_connected"), 1.0);
    assert!(gateway.log().contains("V_MPEG4/ISO/AVC A_AAC"), "{}", gateway.log());
    drop(server);
    assert!(eventually(BOUND, || gateway.metric("headwater_camera_connected") == 0.0));
    let before = fragments(&gateway);
    let _server = camera(port, &[]);
    wait_for(&gateway, before + 3);
    let (status, list) = gateway.http_get("/video/yard/playlist.m3u8");
    assert_eq!((status, list.matches("#EXT-X-DISCONTINUITY\n").count()), (200, 1), "{list}");
    let log = gateway.log();
    assert_eq!(log.matches("a camera is connected").count(), 2, "a line a change of state: {log}");
    assert!(gateway.metric("headwater_camera_failures_total") >= 1.0);
    // What came is whole: it decodes without a word.
    let url = format!("http://{}/video/yard/playlist.m3u8", gateway.console);
    let decoded = run(Command::new("ffmpeg").args(["-v", "error", "-i", &url, "-f", "null", "-"]), BOUND);
    assert!(decoded.status.success() && decoded.stderr.is_empty(), "{}", String::from_utf8_lossy(&decoded.stderr));
}

#[test]
fn a_wrong_password_is_told_and_the_right_one_is_taken_without_a_restart() {
    need!(there(), NO_SERVER);
    let (port, home) = (free_port(), tempfile::tempdir().unwrap());
    let file = home.path().join("password");
    std::fs::write(&file, "verkehrt\n").unwrap();
    let _server = camera(port, &["viewer", "geheim"]);
    let toml = format!(
        "[[camera]]\nname = \"yard\"\nurl = \"rtsp://127.0.0.1:{port}/cam\"\nusername = \"viewer\"\npassword_file = {:?}\n",
        file.display().to_string()
    );
    let gateway = Setup::new(&toml).start();
    let told = eventually(BOUND, || gateway.log().contains("refuses the user name or the password"));
    assert!(told, "{}", gateway.log());
    std::fs::write(&file, "geheim\n").unwrap();
    wait_for(&gateway, 2);
    let log = gateway.log();
    assert_eq!(log.matches("refuses the user name").count(), 1, "{log}");
    assert!(!log.contains("verkehrt") && !log.contains("geheim"), "{log}");
}
