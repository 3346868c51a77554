//! Video for tests: samples made by ffmpeg, PutMedia as its producers speak it, and what players see, by the MD5 of each frame.

use crate::tools::{program, run, run_ok};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FFMPEG_BOUND: Duration = Duration::from_secs(60);
/// Longest silence of a gateway that should acknowledge.
const ACK_BOUND: Duration = Duration::from_secs(20);

pub const NO_FFMPEG: &str = "ffmpeg is not installed";

/// ffmpeg, which says nothing but errors.
pub fn ffmpeg() -> Option<Command> {
    let mut command = Command::new(program("ffmpeg")?);
    command.args(["-nostdin", "-hide_banner", "-v", "error", "-y"]);
    Some(command)
}

/// A Matroska file of moving pictures, and of a tone if `audio` names an encoder; `video` is ffmpeg's words for the encoder.
pub fn sample(dir: &Path, name: &str, seconds: u32, size: &str, video: &[&str], audio: Option<&str>) -> PathBuf {
    let path = dir.join(format!("{name}.mkv"));
    let mut command = ffmpeg().expect("ffmpeg is there");
    let pictures = format!("testsrc2=size={size}:rate=25:duration={seconds}");
    command.args(["-f", "lavfi", "-i", &pictures]);
    if audio.is_some() {
        command.args(["-f", "lavfi", "-i", &format!("sine=440:duration={seconds}:sample_rate=48000")]);
    }
    command.args(video);
    if let Some(audio) = audio {
        command.args(["-c:a", audio]);
    }
    run_ok(command.args(["-f", "matroska"]).arg(&path), FFMPEG_BOUND);
    path
}

/// H.264 with a keyframe a second and no B-frames, small.
pub const PLAIN: [&str; 12] = [
    "-c:v",
    "libx264",
    "-preset",
    "ultrafast",
    "-tune",
    "zerolatency",
    "-g",
    "25",
    "-keyint_min",
    "25",
    "-threads",
    "1",
];

/// MD5 of each picture that a decoder shows. Whatever the decoder complains of fails the test.
pub fn pictures(input: &str, more: &[&str]) -> Vec<String> {
    hashes(input, more, &["-map", "0:v:0"])
}

/// MD5 of each packet of sound, as it is stored.
pub fn sound(input: &str, more: &[&str]) -> Vec<String> {
    hashes(input, more, &["-map", "0:a:0", "-c", "copy"])
}

fn hashes(input: &str, before: &[&str], what: &[&str]) -> Vec<String> {
    let mut command = ffmpeg().expect("ffmpeg is there");
    command.args(before).args(["-i", input]).args(what).args(["-fps_mode", "passthrough", "-f", "framemd5", "-"]);
    let done = run(&mut command, FFMPEG_BOUND);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.trim().is_empty(), "{command:?}: {}\n{said}", done.status);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.split(',').nth(5)?.trim().to_owned())).collect()
}

/// What a producer heard, a line of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub kind: String,
    pub timecode: Option<i64>,
    pub number: Option<u64>,
    pub error: Option<i64>,
    /// As it came.
    pub line: String,
}

impl Ack {
    fn parse(text: &str) -> Ack {
        let line: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text:?}"));
        Ack {
            line: text.trim_end().to_owned(),
            kind: line["EventType"].as_str().unwrap_or_default().to_owned(),
            timecode: line["FragmentTimecode"].as_i64(),
            number: line["FragmentNumber"].as_str().and_then(|number| number.parse().ok()),
            error: line["ErrorId"].as_i64(),
        }
    }
}

/// The lines of an answer that came whole.
pub fn acks(answer: &str) -> Vec<Ack> {
    let whole = answer.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter(|line| !line.trim().is_empty()).map(Ack::parse).collect()
}

/// PutMedia on a connection of its own: the body goes out piece by piece while acknowledgements come back.
pub struct Put {
    socket: TcpStream,
    acks: Arc<Mutex<Vec<Ack>>>,
    /// Ends with the answer's status; 0 if the connection broke before there was one.
    hearing: JoinHandle<u16>,
}

/// Absolute timecodes, or relative to a start in milliseconds since 1970.
pub fn put_headers(stream: &str, start_ms: Option<u64>) -> String {
    let kind = if start_ms.is_some() { "RELATIVE" } else { "ABSOLUTE" };
    let start = start_ms.unwrap_or(0);
    let start = format!("{}.{:03}", start / 1000, start % 1000);
    format!(
        "x-amzn-stream-name: {stream}\r\nx-amzn-fragment-timecode-type: {kind}\r\nx-amzn-producer-start-timestamp: {start}\r\n"
    )
}

impl Put {
    pub fn begin(api: SocketAddr, headers: &str) -> io::Result<Put> {
        let mut socket = TcpStream::connect(api)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ACK_BOUND))?;
        let head = format!(
            "POST /putMedia HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
        );
        socket.write_all(head.as_bytes())?;
        let acks = Arc::<Mutex<Vec<Ack>>>::default();
        let (reader, heard) = (socket.try_clone()?, acks.clone());
        let hearing = std::thread::spawn(move || hear(reader, &heard).unwrap_or(0));
        Ok(Put { socket, acks, hearing })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        write!(self.socket, "{:x}\r\n", bytes.len())?;
        self.socket.write_all(bytes)?;
        self.socket.write_all(b"\r\n")
    }

    pub fn heard(&self) -> Vec<Ack> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the body well; status and all that was heard.
    pub fn finish(mut self) -> (u16, Vec<Ack>) {
        let _ = self.socket.write_all(b"0\r\n\r\n");
        self.wait()
    }

    /// Ends the connection in the middle.
    pub fn cut(self) -> Vec<Ack> {
        let _ = self.socket.shutdown(Shutdown::Write);
        self.wait().1
    }

    /// Waits for the gateway to end the answer.
    pub fn wait(self) -> (u16, Vec<Ack>) {
        let status = self.hearing.join().expect("the answer is read");
        let acks = std::mem::take(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner));
        (status, acks)
    }
}

/// Reads the answer's lines as they come.
fn hear(from: TcpStream, acks: &Mutex<Vec<Ack>>) -> io::Result<u16> {
    let mut from = BufReader::new(from);
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut chunked = false;
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
    }
    if !chunked {
        return Ok(status);
    }
    let mut text = Vec::new();
    loop {
        line.clear();
        // A connection that is cut ends what can be heard.
        if from.read_line(&mut line).unwrap_or(0) == 0 {
            break;
        }
        let Ok(length) = usize::from_str_radix(line.trim(), 16) else { break };
        let mut piece = vec![0; length + 2];
        if length == 0 || from.read_exact(&mut piece).is_err() {
            break;
        }
        text.extend_from_slice(&piece[..length]);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let one: Vec<u8> = text.drain(..=end).collect();
            let one = String::from_utf8_lossy(&one);
            if !one.trim().is_empty() {
                acks.lock().unwrap_or_else(PoisonError::into_inner).push(Ack::parse(&one));
            }
        }
    }
    Ok(status)
}

/// Sends a whole file at once.
pub fn put(api: SocketAddr, headers: &str, file: &[u8]) -> (u16, Vec<Ack>) {
    let mut put = Put::begin(api, headers).expect("a connection");
    for piece in file.chunks(16 << 10) {
        // Who is refused hears why below.
        if put.send(piece).is_err() {
            break;
        }
    }
    put.finish()
}

/// The plain POST: status and what is said.
pub fn post(api: SocketAddr, stream: &str, file: &[u8]) -> (u16, String) {
    let length = file.len();
    let head = format!(
        "POST /streams/{stream}/media HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    crate::aws::request(api, &head, file).unwrap_or_else(|e| panic!("{stream}: {e}"))
}

/// Numbers of what was persisted, in the order heard.
pub fn persisted(acks: &[Ack]) -> Vec<u64> {
    acks.iter().filter(|ack| ack.kind == "PERSISTED").filter_map(|ack| ack.number).collect()
}

/// One of Kinesis Video's operations; the answer's status and JSON.
pub fn ask(api: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST /{path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let (status, text) = crate::aws::request(api, &head, body.as_bytes()).unwrap_or_else(|e| panic!("{path}: {e}"));
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// All of ListFragments, in the order they came: number, producer's time in milliseconds, length in milliseconds.
pub fn fragments(api: SocketAddr, stream: &str) -> Vec<(u64, i64, i64)> {
    let (mut all, mut token) = (Vec::new(), Value::Null);
    loop {
        let mut body = serde_json::json!({ "StreamName": stream });
        if token.is_string() {
            body["NextToken"] = token;
        }
        let (status, page) = ask(api, "listFragments", &body);
        assert_eq!(status, 200, "{page}");
        for one in page["Fragments"].as_array().into_iter().flatten() {
            let number = one["FragmentNumber"].as_str().and_then(|number| number.parse().ok()).expect("a number");
            let ms = |value: &Value| (value.as_f64().unwrap_or(0.0) * 1000.0).round() as i64;
            let length = one["FragmentLengthInMilliseconds"].as_i64().unwrap_or(0);
            all.push((number, ms(&one["ProducerTimestamp"]), length));
        }
        token = page["NextToken"].clone();
        if !token.is_string() {
            return all;
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

/// Waits until a stream has so many fragments.
pub fn wait_for_fragments(api: SocketAddr, stream: &str, least: usize, bound: Duration) {
    let began = Instant::now();
    while ask(api, "describeStream", &serde_json::json!({ "StreamName": stream })).0 != 200
        || fragments(api, stream).len() < least
    {
        assert!(began.elapsed() < bound, "{stream} has not {least} fragments within {bound:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
