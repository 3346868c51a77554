//! The gateway goes to a camera: a real RTSP server sends H.264 with AAC, dies, comes back, and asks for a password.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::need;
use headwater_tests::tools::{self, eventually, free_port, run};
use headwater_tests::{aws, cameras};
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);

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
    need!(cameras::rtsp_is_there(), cameras::NO_RTSP);
    let port = free_port();
    let gateway = Setup::new(&format!("[[camera]]\nname = \"yard\"\nurl = \"rtsp://127.0.0.1:{port}/cam\"\n")).start();
    let server = cameras::rtsp(port, &[]);
    wait_for(&gateway, 3);
    assert_eq!(gateway.metric("headwater_camera_connected"), 1.0);
    assert!(gateway.log().contains("V_MPEG4/ISO/AVC A_AAC"), "{}", gateway.log());
    drop(server);
    assert!(eventually(BOUND, || gateway.metric("headwater_camera_connected") == 0.0));
    let before = fragments(&gateway);
    let _server = cameras::rtsp(port, &[]);
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

/// The fault: sound and reports that went on were taken for a sign of life, and a camera without pictures was never left.
#[test]
fn a_camera_whose_pictures_stall_while_its_sound_goes_on_is_connected_to_anew() {
    need!(cameras::rtsp_is_there(), cameras::NO_RTSP);
    let port = free_port();
    let _server = cameras::rtsp(port, &["--stall-after", "4"]);
    let toml = format!("[[camera]]\nname = \"yard\"\nurl = \"rtsp://127.0.0.1:{port}/cam\"\nstall_timeout = \"3 s\"\n");
    let gateway = Setup::new(&toml).start();
    let stalled = || gateway.log().contains("nothing came for 3s");
    wait_for(&gateway, 2);
    assert!(!stalled(), "{}", gateway.log());
    assert!(eventually(BOUND, stalled), "{}", gateway.log());
    let before = fragments(&gateway);
    wait_for(&gateway, before + 3);
    let log = gateway.log();
    assert_eq!(log.matches("a camera is connected").count(), 2, "{log}");
    assert_eq!(log.matches("no picture").count(), 1, "{log}");
    assert_eq!(gateway.metric("headwater_camera_failures_total"), 1.0);
    // The sound of the wait is there, behind the last picture: it did go on.
    let clip = format!("http://{}/video/yard/clip.mp4", gateway.console);
    let probe = ["-v", "error", "-select_streams", "a", "-show_entries", "packet=pts_time", "-of", "csv=p=0", &clip];
    let sound = tools::run_ok(Command::new("ffprobe").args(probe), BOUND);
    let probe = ["-v", "error", "-select_streams", "v", "-show_entries", "packet=pts_time", "-of", "csv=p=0", &clip];
    let pictures = tools::run_ok(Command::new("ffprobe").args(probe), BOUND);
    let times =
        |text: &str| text.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect::<Vec<f64>>();
    let (sound, pictures) = (times(&sound), times(&pictures));
    let gap = pictures.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).expect("pictures");
    let within = sound.iter().filter(|at| (gap[0]..gap[1]).contains(*at)).count();
    assert!(gap[1] - gap[0] > 2.5 && within > 50, "{within} packets of sound in the gap {gap:?}");
}

#[test]
fn a_wrong_password_is_told_and_the_right_one_is_taken_without_a_restart() {
    need!(cameras::rtsp_is_there(), cameras::NO_RTSP);
    let (port, home) = (free_port(), tempfile::tempdir().unwrap());
    let file = home.path().join("password");
    std::fs::write(&file, "verkehrt\n").unwrap();
    let _server = cameras::rtsp(port, &["viewer", "geheim"]);
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
