//! Camera -> gateway -> bucket, against moto's S3: every fragment is in exactly one file, in order, where its index says, and a
//! decoder shows the pictures that went in, from the file and by its playlist over HTTP.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::tools::{self, Process};
use headwater_tests::{need, video};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CAMERA: &str = "cam-1";
const NO_MOTO: &str = "moto is not installed";
/// moto asks who somebody is, and believes it.
const AUTH: &str = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";
/// For all that was sent to be in the bucket, on a box that is busy.
const SOON: Duration = Duration::from_secs(120);

/// Noise, some megabytes of it, with B-frames and a keyframe a second.
const NOISE: [&str; 20] = [
    "-vf",
    "noise=alls=60:allf=t",
    "-r",
    "10",
    "-c:v",
    "libx264",
    "-preset",
    "ultrafast",
    "-bf",
    "2",
    "-b_strategy",
    "0",
    "-g",
    "10",
    "-keyint_min",
    "10",
    "-b:v",
    "7M",
    "-threads",
    "2",
];

struct Moto {
    process: Process,
    addr: SocketAddr,
}

impl Moto {
    fn start() -> Option<Moto> {
        let python = tools::python()?;
        let has_moto = Command::new(&python).args(["-c", "import moto.server"]).stderr(Stdio::null()).status();
        has_moto.ok().filter(|status| status.success())?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, tools::free_port()));
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &addr.port().to_string()]);
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        tools::wait_for_port(addr, Duration::from_secs(60));
        let moto = Moto { process, addr };
        moto.curl(&["-X", "PUT"], "film");
        Some(moto)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.addr, path.replace(' ', "%20").replace('+', "%2B"))
    }

    /// What curl says of a path.
    fn curl(&self, more: &[&str], path: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["-sSf", "-H", &format!("Authorization: {AUTH}")]).args(more).arg(self.url(path));
        tools::run_ok(&mut command, SOON)
    }

    /// Keys that end so, in order.
    fn keys(&self, end: &str) -> Vec<String> {
        let listed = self.curl(&[], "film?list-type=2&max-keys=1000");
        let keys = listed.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.filter(|key| key.ends_with(end)).map(str::to_owned).collect()
    }

    fn fetch(&self, key: &str, into: &Path) {
        let path = into.to_str().expect("a plain path");
        self.curl(&["-o", path], &format!("film/{key}"));
    }

    /// It answers nothing for a while.
    fn pause(&self, pause: Duration) {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, Signal::STOP).expect("moto can be stopped");
        std::thread::sleep(pause);
        kill_process(pid, Signal::CONT).expect("moto goes on");
    }
}

fn gateway(moto: &Moto, more: &str) -> Gateway {
    let toml = format!(
        "[[sink]]\nname = \"film\"\ntype = \"s3-video\"\nbucket = \"film\"\nstreams = [\"{CAMERA}\"]\nrequired = true\n\
         endpoint = \"http://{}\"\nregion = \"us-east-1\"\ntimeout = \"2 s\"\npart_bytes = \"5 MiB\"\n{more}\n",
        moto.addr
    );
    Setup::new(&toml).env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "y").start()
}

fn send(gateway: &Gateway, start_ms: u64, file: &Path) {
    let bytes = std::fs::read(file).expect("a sample");
    let (status, acks) = video::put(gateway.api, &video::put_headers(CAMERA, Some(start_ms)), &bytes);
    assert_eq!(status, 200, "{acks:?}");
}

fn drained(gateway: &Gateway) {
    let done = tools::eventually(SOON, || {
        std::thread::sleep(Duration::from_millis(1_100));
        let is_shown = gateway.http_get("/metrics").1.contains("headwater_sink_backlog{");
        is_shown && gateway.metric("headwater_sink_backlog") == 0.0
    });
    assert!(done, "{} records behind\n{}", gateway.metric("headwater_sink_backlog"), gateway.log());
}

/// Pictures and sound of all files, in order, after every fragment was found where the indexes say.
fn shown(moto: &Moto, gateway: &Gateway, format: &str) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, file) = (dir.path().join("index"), dir.path().join(format!("film.{format}")));
    let (mut pictures, mut sound, mut times, mut next) = (Vec::new(), Vec::new(), Vec::new(), 1);
    let mut indexes: Vec<(String, Value)> = Vec::new();
    for key in moto.keys(".json") {
        moto.fetch(&key, &json);
        indexes.push((key, serde_json::from_slice(&std::fs::read(&json).expect("it")).expect("JSON")));
    }
    indexes.sort_by_key(|(_, index)| index["first"].as_u64());
    assert_eq!(moto.keys(&format!(".{format}")).len(), indexes.len());
    for (key, index) in &indexes {
        let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_else(|| panic!("{name} in {of}"));
        let key = key.replace(".json", &format!(".{format}"));
        moto.fetch(&key, &file);
        let bytes = std::fs::read(&file).expect("it");
        let mut at = number(index, "head_bytes");
        assert_eq!((number(index, "first"), number(index, "bytes")), (next, bytes.len() as u64), "{key}");
        for fragment in index["fragments"].as_array().expect("a list") {
            assert_eq!(number(fragment, "offset"), at, "{key}");
            let begins = &bytes[at as usize..at as usize + 8];
            assert!(begins.ends_with(b"moof") || begins.starts_with(&[0x1f, 0x43, 0xb6, 0x75]), "{key}: {begins:?}");
            at += number(fragment, "length");
            times.push(fragment["start_ms"].as_i64().expect("a time"));
        }
        assert_eq!(at, bytes.len() as u64, "{key}");
        next = number(index, "next");
        let file = file.to_str().expect("a plain path");
        let of_file = video::pictures(file, &[]);
        if format == "mp4" {
            let list = moto.url(&format!("film/{}", key.replace(".mp4", ".m3u8")));
            let headers = format!("Authorization: {AUTH}\r\n");
            assert_eq!(video::pictures(&list, &["-headers", &headers]), of_file, "{list}");
        }
        pictures.extend(of_file);
        sound.extend(video::sound(file, &[]));
    }
    let stored: Vec<i64> = video::fragments(gateway.api, CAMERA).into_iter().map(|(_, at, _)| at).collect();
    assert_eq!(times, stored, "each once, in order");
    // One whose beginning was answered to nobody, since the gateway was killed: it has no parts, and costs nothing.
    let uploads = moto.curl(&[], "film?uploads=");
    for upload in uploads.split("<Upload>").skip(1) {
        let of = |name: &str| upload.split(&format!("<{name}>")).nth(1).and_then(|rest| rest.split('<').next());
        let (key, id) = of("Key").zip(of("UploadId")).expect("a key and an id");
        let parts = moto.curl(&[], &format!("film/{key}?uploadId={id}"));
        assert!(parts.contains("<UploadId>") && !parts.contains("<Part>"), "an upload is left behind: {parts}");
    }
    (pictures, sound)
}

#[test]
fn p4_every_fragment_is_in_one_file_though_the_gateway_is_killed_and_the_bucket_is_away() {
    need!(video::ffmpeg(), video::NO_FFMPEG);
    let moto = need!(Moto::start(), NO_MOTO);
    let mut gateway = gateway(&moto, "every = \"10 s\"\nmax_bytes_per_s = \"3 MiB\"");
    let dir = tempfile::tempdir().expect("a directory");
    let films = ["a", "b"].map(|name| video::sample(dir.path(), name, 16, "640x360", &NOISE, Some("aac")));
    // Four seconds into a span of ten, some time ago.
    let start_ms = (video::now_ms() - 600_000) / 10_000 * 10_000 + 4_000;
    send(&gateway, start_ms, &films[0]);
    std::thread::sleep(Duration::from_millis(2_500));
    gateway.kill();
    gateway.restart();
    send(&gateway, start_ms + 16_000, &films[1]);
    moto.pause(Duration::from_secs(5));
    std::thread::sleep(Duration::from_millis(1_500));
    gateway.kill();
    gateway.restart();
    drained(&gateway);
    let all = |what: fn(&str, &[&str]) -> Vec<String>| {
        films.iter().flat_map(|film| what(film.to_str().expect("a plain path"), &[])).collect::<Vec<_>>()
    };
    let (pictures, sound) = shown(&moto, &gateway, "mp4");
    assert!(pictures == all(video::pictures), "{} pictures", pictures.len());
    assert!(sound == all(video::sound), "{} packets of sound", sound.len());
    assert!(moto.keys(".mp4").len() >= 4, "{:?}", moto.keys(".mp4"));
}

#[test]
fn video_is_in_the_bucket_as_matroska_under_a_key_of_any_signs() {
    need!(video::ffmpeg(), video::NO_FFMPEG);
    let moto = need!(Moto::start(), NO_MOTO);
    let gateway = gateway(&moto, "every = \"5 s\"\nformat = \"mkv\"\nprefix = \"site 7/{stream}+b/\"");
    let dir = tempfile::tempdir().expect("a directory");
    let film = video::sample(dir.path(), "a", 8, "320x240", &video::PLAIN, Some("aac"));
    send(&gateway, (video::now_ms() - 600_000) / 5_000 * 5_000, &film);
    drained(&gateway);
    let film = film.to_str().expect("a plain path");
    let (pictures, sound) = shown(&moto, &gateway, "mkv");
    assert!(pictures == video::pictures(film, &[]), "{} pictures", pictures.len());
    // A packet of sound in front of the first keyframe is in no fragment.
    let sent = video::sound(film, &[]);
    assert!(sent.ends_with(&sound) && sound.len() + 1 >= sent.len(), "{} of {} packets", sound.len(), sent.len());
    let keys = moto.keys(".mkv");
    assert!(keys.len() == 2 && keys.iter().all(|key| key.starts_with("site 7/cam-1+b/20")), "{keys:?}");
}
