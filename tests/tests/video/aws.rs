//! The operations of AWS's three clients, with boto3, without and with access keys.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::need;
use headwater_tests::tools::{program, python, root, run, run_ok};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN, Put, put_headers, sample};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const NO_PYTHON: &str = "the packages of tests/clients/requirements.txt are not installed";

/// Six seconds of a camera whose clock is right, as if they had just been sent, in twelve pieces; the file.
fn put_camera(gateway: &Gateway, home: &Path) -> PathBuf {
    let path = sample(home, "cam", 6, "192x108", &PLAIN, Some("aac"));
    let file = std::fs::read(&path).unwrap();
    let mut put = Put::begin(gateway.api, &put_headers("cam", Some(video::now_ms() - 6_000))).unwrap();
    for piece in file.chunks(file.len() / 12 + 1) {
        put.send(piece).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, acks) = put.finish();
    assert_eq!((status, video::persisted(&acks).len()), (200, 6));
    path
}

#[test]
fn boto3_has_every_operation_that_is_offered() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let python = need!(python(), NO_PYTHON);
    let (home, gateway) = (tempfile::tempdir().unwrap(), Gateway::plain());
    let file = put_camera(&gateway, home.path());
    let mut command = Command::new(python);
    command
        .arg(root().join("tests/clients/boto3_video.py"))
        .arg(format!("http://{}", gateway.api))
        .arg("cam")
        .arg(file);
    let said = run_ok(&mut command, BOUND);
    assert!(said.contains("all passed"), "{said}");
}

/// A session's URL is its own proof, and outlives the gateway that gave it.
#[test]
fn a_signature_is_asked_for_when_there_are_access_keys_and_a_session_needs_none() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let python = need!(python(), NO_PYTHON);
    let curl = need!(program("curl"), "curl is not installed");
    let (home, mut gateway) = (tempfile::tempdir().unwrap(), Setup::default().start());
    put_camera(&gateway, home.path());
    gateway.setup().api = "access_keys = [{ id = \"AKIDTEST\", secret = \"the secret\" }]".into();
    gateway.restart();
    let endpoint = format!("http://{}", gateway.api);
    let posts = [
        ["listFragments", "{\"StreamName\":\"cam\"}"],
        ["getClip", "{}"],
        ["putMedia", "x"],
        ["streams/cam/media", "x"],
    ];
    for [path, body] in posts {
        let mut command = Command::new(&curl);
        command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", body, "-H", "x-amzn-stream-name: cam"]);
        let status = run_ok(command.arg(format!("{endpoint}/{path}")), BOUND);
        assert!(status == "400" || status == "403", "{path} without a signature: {status}");
    }
    let program = "import boto3,sys\n\
        c=boto3.client('kinesis-video-archived-media',endpoint_url=sys.argv[1],region_name='eu-west-1')\n\
        print(len(c.list_fragments(StreamName='cam')['Fragments']))\n\
        print(c.get_hls_streaming_session_url(StreamName='cam',PlaybackMode='ON_DEMAND',HLSFragmentSelector={'FragmentSelectorType':'PRODUCER_TIMESTAMP','TimestampRange':{'StartTimestamp':int(sys.argv[2])-60,'EndTimestamp':int(sys.argv[2])}})['HLSStreamingSessionURL'])";
    let now_s = (video::now_ms() / 1000).to_string();
    let boto3 = |secret: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", program, &endpoint, &now_s]).env("AWS_ACCESS_KEY_ID", "AKIDTEST");
        run(command.env("AWS_SECRET_ACCESS_KEY", secret), BOUND)
    };
    assert!(!boto3("another secret").status.success());
    let done = boto3("the secret");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut lines = said.lines();
    let (count, url) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default().to_owned());
    assert_eq!(count, "6");
    assert_eq!(video::pictures(&url, &[]).len(), 150);
    gateway.restart();
    assert_eq!(video::pictures(&url, &[]).len(), 150, "a restart ends no session");
}
