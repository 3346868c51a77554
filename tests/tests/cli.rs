//! The command line as a user types it: the real binary, what it prints, what it exits with, and what it says to do when
//! something is wrong.

use headwater_tests::gateway::{Gateway, binary, headwater};
use headwater_tests::tools::{Process, eventually, fast, free_port, program, run};
use headwater_tests::{aws, need};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

/// What a command did: exit code, stdout, stderr.
#[derive(Debug)]
struct Did {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Did {
    fn from(output: Output) -> Did {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Did { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Did {
    /// Stdout of a command that must have worked.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Stderr of a command that must have failed with this code.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.err.trim().is_empty(), "a failure without a word: {self:?}");
        self.err
    }
}

fn cli(args: &[&str]) -> Did {
    run(&mut headwater(args), BOUND).into()
}

/// As a client of this gateway.
fn to(gateway: &Gateway, args: &[&str]) -> Did {
    run(headwater(args).env("HEADWATER_API", gateway.api.to_string()), BOUND).into()
}

/// The same with something on stdin.
fn fed(gateway: &Gateway, args: &[&str], input: &[u8]) -> Did {
    let mut command = headwater(args);
    command.env("HEADWATER_API", gateway.api.to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().into()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

#[test]
fn streams_are_made_listed_described_and_deleted() {
    let gateway = Gateway::plain();
    assert_eq!(to(&gateway, &["stream", "create", "tele", "--shards", "2"]).ok(), "made stream tele with 2 shards\n");
    let again = to(&gateway, &["stream", "create", "tele"]).failed(1);
    assert!(again.contains("ResourceInUseException") && again.contains("tele"), "{again}");
    let made = json(&to(&gateway, &["stream", "create", "other", "--shards", "1", "--json"]).ok());
    assert_eq!((&made["stream"], &made["shards"], &made["created"]), (&"other".into(), &1.into(), &true.into()));

    assert_eq!(to(&gateway, &["stream", "list"]).ok(), "default\nother\ntele\n");
    let listed = json_lines(&to(&gateway, &["stream", "list", "--json"]).ok());
    assert_eq!(
        listed.iter().map(|line| line["stream"].as_str().unwrap()).collect::<Vec<_>>(),
        ["default", "other", "tele"]
    );

    let described = to(&gateway, &["stream", "describe", "tele"]).ok();
    for line in ["status     ACTIVE", "retention  24 h", "shards     2 open", "  shardId-000000000001  "] {
        assert!(described.contains(line), "{line:?} is missing in\n{described}");
    }
    let described = json(&to(&gateway, &["stream", "describe", "tele", "--json"]).ok());
    assert_eq!(described["summary"]["OpenShardCount"], 2);
    assert_eq!(described["shards"].as_array().unwrap().len(), 2);

    let asked = to(&gateway, &["stream", "delete", "tele"]).failed(2);
    assert!(asked.contains("--yes"), "{asked}");
    assert_eq!(to(&gateway, &["stream", "delete", "tele", "--yes"]).ok(), "deleted stream tele\n");
    let gone = to(&gateway, &["stream", "describe", "tele"]).failed(1);
    assert!(gone.contains("ResourceNotFoundException") && gone.contains("tele"), "{gone}");
    assert_eq!(to(&gateway, &["stream", "list"]).ok(), "default\nother\n");
    assert!(to(&gateway, &["stream", "create", "bad name"]).failed(1).contains("streamName"));
    assert!(to(&gateway, &["stream", "create", "x", "--shards", "0"]).failed(2).contains("--shards"));
}

#[test]
fn what_is_put_can_be_read_from_a_position() {
    let gateway = Gateway::plain();
    assert_eq!(to(&gateway, &["put", "one", "-k", "dev"]).ok(), "stored 1 record in default\n");
    let lines: String = (2..=1_200).map(|number| format!("{number}\n")).collect();
    let stored = json(&fed(&gateway, &["put", "--key", "dev", "--json"], lines.as_bytes()).ok());
    assert_eq!((&stored["stream"], &stored["stored"]), (&"default".into(), &1_199.into()));

    let all = json_lines(&to(&gateway, &["tail", "--from", "oldest", "--no-follow", "--json"]).ok());
    let data: Vec<&str> = all.iter().map(|line| line["data"].as_str().unwrap()).collect();
    let expected: Vec<String> = std::iter::once("one".into()).chain((2..=1_200).map(|n| n.to_string())).collect();
    assert_eq!(data, expected, "all records of a key, in order");
    assert!(all.iter().all(|line| line["key"] == "dev" && line["time"].as_f64().unwrap() > 1e9));

    // The text for people: time, shard, key, data.
    let first = to(&gateway, &["tail", "--from", "oldest", "-n", "1"]).ok();
    let words: Vec<&str> = first.split_whitespace().collect();
    assert!(words.len() == 4 && words[0].len() == 12 && words[2..] == ["dev", "one"], "{first:?}");

    // From the middle: by sequence number in a shard, and by time.
    let middle = &all[600];
    let (shard, sequence) = (middle["shard"].as_str().unwrap(), middle["sequence"].as_str().unwrap());
    let rest = to(&gateway, &["tail", "--from", sequence, "--shard", shard, "--no-follow", "--json"]).ok();
    assert_eq!(json_lines(&rest), all[600..]);
    let future = format!("@{}", middle["time"].as_f64().unwrap() as u64 + 3_600);
    let index = shard.trim_start_matches("shardId-").trim_start_matches('0');
    let index = if index.is_empty() { "0" } else { index };
    let by_number = to(&gateway, &["tail", "--from", sequence, "--shard", index, "--no-follow", "--json"]).ok();
    assert_eq!(by_number, rest, "a shard has the number that records are shown with");
    let none = to(&gateway, &["tail", "--shard", "99", "--no-follow"]).failed(1);
    assert!(none.contains("has no shard 99; `headwater stream describe"), "{none}");
    assert!(to(&gateway, &["tail", "--from", &future, "--no-follow"]).failed(1).contains("cannot be greater than"));
    let past = format!("@{}", middle["time"].as_f64().unwrap() as u64 - 3_600);
    assert_eq!(to(&gateway, &["tail", "--from", &past, "--no-follow"]).ok().lines().count(), 1_200);
    assert_eq!(to(&gateway, &["tail", "--no-follow"]).ok(), "", "from latest there is nothing yet");

    assert!(to(&gateway, &["tail", "--from", "yesterday"]).failed(2).contains("write latest, oldest, @TIME"));
    assert!(to(&gateway, &["tail", "--from", sequence]).failed(2).contains("--shard"));
    assert!(to(&gateway, &["tail", "--shard", "nope"]).failed(1).contains("no shard"));
    assert!(to(&gateway, &["tail", "nowhere"]).failed(1).contains("nowhere"));
    assert!(to(&gateway, &["put", "x", "--stream", "nowhere"]).failed(1).contains("nowhere"));
}

#[test]
fn bytes_that_are_no_text_come_out_whole() {
    let gateway = Gateway::plain();
    fed(&gateway, &["put", "-k", "k"], b"\xff\x00\xfe\n").ok();
    let line = json(&to(&gateway, &["tail", "--from", "oldest", "-n", "1", "--json"]).ok());
    assert_eq!(aws::unblob(line["data_base64"].as_str().unwrap()), b"\xff\x00\xfe");
    assert!(to(&gateway, &["tail", "--from", "oldest", "-n", "1"]).ok().ends_with("(3 bytes)\n"));
}

/// Fault: a line of 7 MiB behind 3.9 MiB was put into one call with them, and refused; a line that was too long took up to
/// 499 good ones with it, without a word of how many were stored. Fix: what is gathered goes before the next line is added.
#[test]
fn long_lines_go_by_themselves_and_a_too_long_one_takes_nothing_with_it() {
    let gateway = Gateway::plain();
    let long = |mib: usize| "x".repeat(mib << 20) + "\n";
    let lines = [long(1), long(1), long(1), long(7), long(1), long(3)].concat();
    assert_eq!(fed(&gateway, &["put", "-k", "k"], lines.as_bytes()).ok(), "stored 6 records in default\n");
    let largest = "y".repeat((10 << 20) - 1024) + "\n";
    fed(&gateway, &["put", "-k", &"k".repeat(256)], largest.as_bytes()).ok();
    let says = fed(&gateway, &["put"], ["one\ntwo\n", &long(10)].concat().as_bytes()).failed(2);
    assert!(says.contains("after 2 stored records: a line is longer than"), "{says}");
    let all = to(&gateway, &["tail", "--from", "oldest", "--no-follow"]).ok();
    assert_eq!(all.lines().count(), 9);
}

/// A gateway that says 503 to the first call of each operation, and then answers.
fn busy() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut asked = std::collections::HashSet::new();
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                let read = socket.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..read]);
            }
            let text = String::from_utf8_lossy(&request);
            let operation = text.split("Kinesis_20131202.").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
            let answer = match operation.as_str() {
                "ListShards" => r#"{"Shards":[{"ShardId":"shardId-000000000000"}]}"#,
                "GetShardIterator" => r#"{"ShardIterator":"i"}"#,
                "GetRecords" => r#"{"Records":[{"Data":"aGk=","SequenceNumber":"1","PartitionKey":"k"}]}"#,
                _ => r#"{"FailedRecordCount":0,"Records":[{"SequenceNumber":"1","ShardId":"shardId-000000000000"}]}"#,
            };
            let (status, answer) = match operation == "ListShards" || !asked.insert(operation) {
                true => ("200 OK", answer),
                false => ("503 Busy", r#"{"__type":"ServiceUnavailable","message":"too much is in flight"}"#),
            };
            let length = answer.len();
            let _ = write!(socket, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{answer}");
        }
    });
    address
}

/// Fault: a gateway that said 503 ended `put` and `tail`, which every SDK outlives. Fix: it is asked again, as when throttled.
#[test]
fn a_busy_gateway_is_asked_again() {
    let address = busy();
    assert_eq!(cli(&["put", "x", "--api", &address]).ok(), "stored 1 record in default\n");
    assert!(cli(&["tail", "-n", "1", "--api", &address]).ok().ends_with("hi\n"));
}

/// Fault: `tail -n 0` counted down from 0 and never ended. Fix: it is a mistake.
#[test]
fn a_tail_of_no_records_is_a_mistake() {
    assert!(cli(&["tail", "-n", "0"]).failed(2).contains("--count"));
}

/// Fault: `headwater completions bash | head` panicked. Fix: a reader that went away ends it quietly.
#[test]
fn completions_for_a_reader_that_went_away_end_quietly() {
    let mut child = headwater(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let did: Did = child.wait_with_output().unwrap().into();
    assert_eq!((did.code, did.err.as_str()), (Some(0), ""));
    assert!(cli(&["completions", "bash"]).ok().contains("complete -F"));
}

#[test]
fn a_live_tail_shows_what_comes_after_it() {
    let gateway = Gateway::plain();
    to(&gateway, &["put", "before", "-k", "k"]).ok();
    let mut command = headwater(&["tail", "-n", "3", "--json"]);
    command.env("HEADWATER_API", gateway.api.to_string()).stdout(Stdio::piped());
    let mut tail = Process::start(&mut command);
    let mut number = 0;
    let ended = eventually(BOUND, || {
        number += 1;
        to(&gateway, &["put", &format!("live {number}"), "-k", "k"]).ok();
        tail.0.try_wait().unwrap().is_some()
    });
    assert!(ended, "the tail did not end after three records");
    let mut said = String::new();
    tail.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let seen: Vec<u32> = json_lines(&said)
        .iter()
        .map(|line| line["data"].as_str().unwrap().strip_prefix("live ").expect("nothing from before").parse().unwrap())
        .collect();
    assert_eq!(seen, [seen[0], seen[0] + 1, seen[0] + 2], "in order and without a hole");
}

/// 4,000 lines of 300 digits that hardly compress.
fn noise() -> String {
    let mut random = fastrand::Rng::with_seed(5);
    let line = |_| (0..300).map(|_| random.alphanumeric()).chain(['\n']).collect::<String>();
    (0..4_000).map(line).collect()
}

/// The data directory of a gateway that was stopped with 4,000 records in it, in segments.
fn stopped() -> (Gateway, String) {
    let mut gateway = Gateway::plain();
    fed(&gateway, &["put"], noise().as_bytes()).ok();
    assert!(gateway.stop().success());
    let dir = gateway.dir().display().to_string();
    (gateway, dir)
}

#[test]
fn the_log_of_a_stopped_gateway_is_inspected_and_verified() {
    let mut gateway = Gateway::plain();
    let dir = gateway.dir().display().to_string();
    let held = cli(&["log", "inspect", &dir]).failed(1);
    assert!(held.contains("another headwater"), "{held}");
    to(&gateway, &["put", "one", "-k", "k"]).ok();
    assert!(gateway.stop().success());

    let text = cli(&["log", "inspect", &dir]).ok();
    for line in [
        "stream default: 1 records",
        "nothing seems to be damaged; `headwater log verify` reads the blocks too",
        "incarnation 1",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    let report = json(&cli(&["log", "inspect", &dir, "--json"]).ok());
    assert_eq!(report["streams"][0]["records"], 1);
    assert_eq!(report["problems"], Value::Array(vec![]));
    let text = cli(&["log", "verify", &dir]).ok();
    assert!(text.contains("1 blocks good") && text.contains("nothing is damaged"), "{text}");
    let from_env: Did = run(headwater(&["log", "verify"]).env("HEADWATER_DATA", &dir), BOUND).into();
    from_env.ok();
    let repaired = cli(&["log", "repair", &dir]).ok();
    assert!(repaired.contains("nothing is damaged"), "there was nothing to do:\n{repaired}");

    let empty = tempfile::tempdir().unwrap();
    let says = cli(&["log", "verify", &empty.path().display().to_string()]).failed(1);
    assert!(says.contains("name the data directory of a gateway"), "{says}");
    assert!(cli(&["log", "verify", "/nowhere/at/all"]).failed(1).contains("/nowhere/at/all"));
    gateway.restart();
    assert_eq!(to(&gateway, &["tail", "--from", "oldest", "--no-follow"]).ok().lines().count(), 1);
}

// A bit of redb's own tables: blocks are read well, and redb panics where the database is closed. The tools ended with a
// panic, or called such a segment whole.
#[test]
fn a_flipped_bit_anywhere_in_a_segment_is_found_or_harmless_and_never_a_panic() {
    let (mut gateway, dir) = stopped();
    let segment = Path::new(&dir).join("segments/00000001/00000001.redb");
    let sound = std::fs::read(&segment).unwrap();
    let mut kinds = [0; 2];
    for at in (0..320).step_by(13).chain((4096..sound.len()).step_by(20_011)) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x80;
        std::fs::write(&segment, bytes).unwrap();
        let verified = cli(&["log", "verify", &dir]);
        assert!(matches!(verified.code, Some(0 | 1)) && !verified.err.contains("panicked"), "{at}: {verified:?}");
        if verified.code == Some(0) {
            continue;
        }
        let signs = ["moved to quarantine", "do not have their checksum"];
        for (kind, _) in kinds.iter_mut().zip(signs).filter(|(_, sign)| verified.out.contains(sign)) {
            *kind += 1;
            if *kind % 8 == 1 {
                let copy = tempfile::tempdir().unwrap();
                let copied = Command::new("cp").arg("-a").arg(format!("{dir}/.")).arg(copy.path()).status().unwrap();
                assert!(copied.success());
                let copy = copy.path().display().to_string();
                cli(&["log", "repair", &copy]).ok();
                cli(&["log", "verify", &copy]).ok();
            }
        }
    }
    assert!(kinds.iter().all(|kind| *kind > 8), "{kinds:?}: redb's tables and our blocks are in reach of this");
    // Nothing was changed by looking: with the bit back, all is there.
    std::fs::write(&segment, &sound).unwrap();
    gateway.restart();
    assert_eq!(to(&gateway, &["tail", "--from", "oldest", "--no-follow"]).ok().lines().count(), 4_000);
}

#[test]
fn a_damaged_log_is_told_by_verify_and_repair_says_what_it_did() {
    let (mut gateway, dir) = stopped();
    let report = json(&cli(&["log", "verify", &dir, "--json"]).ok());
    let segments = report["streams"][0]["segments"].as_array().unwrap();
    let big = segments.iter().max_by_key(|segment| segment["bytes"].as_u64()).unwrap();
    let (name, blocks) = (big["file"].as_str().unwrap().to_owned(), big["blocks"].as_u64().unwrap());
    assert!(blocks > 2, "too little to damage a part of: {report}");
    let file = Path::new(&dir).join(&name);
    flip_in_the_middle(&file);

    let found = cli(&["log", "verify", &dir]);
    assert!(found.err.contains(&format!("headwater log repair {dir}")), "{found:?}");
    assert!(found.out.contains(&name), "the damaged file is named: {found:?}");
    let before = std::fs::read(&file).unwrap();
    assert_eq!(cli(&["log", "verify", &dir]).code, Some(1), "a second look finds the same");
    assert!(std::fs::read(&file).unwrap() == before, "verify changes nothing");

    let repaired = cli(&["log", "repair", &dir]).ok();
    let done = repaired.split("done:").nth(1).unwrap_or_else(|| panic!("nothing was done:\n{repaired}"));
    assert!(done.contains(&name) && done.contains("quarantine"), "what was done to which file:\n{repaired}");
    let quarantine = Path::new(&dir).join("quarantine");
    assert_eq!(files_below(&quarantine).len(), 1, "the damaged file itself is kept for whoever wants to look");

    // Whole again; the ledger accounts for every record that is gone, and the gateway serves the rest.
    let after = json(&cli(&["log", "verify", &dir, "--json"]).ok());
    let lost: u64 =
        after["streams"][0]["gaps"].as_array().unwrap().iter().map(|gap| gap["count"].as_u64().unwrap()).sum();
    assert!(lost > 0 && lost < 4_000, "something is lost and something saved: {after}");
    gateway.restart();
    let left = to(&gateway, &["tail", "--from", "oldest", "--no-follow"]).ok().lines().count() as u64;
    assert_eq!(left + lost, 4_000, "every record is there or told");
}

fn flip_in_the_middle(path: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, middle).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, middle).unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn without_a_gateway_a_client_says_what_to_do() {
    let nobody = format!("127.0.0.1:{}", free_port());
    for args in [&["stream", "list"][..], &["put", "x"], &["tail"], &["stream", "create", "x"]] {
        let says = cli(&[args, &["--api", &nobody]].concat()).failed(1);
        for words in [&nobody, "is it running?", "headwater run", "--api"] {
            assert!(says.contains(words), "{words:?} is missing in {says:?}");
        }
    }
    let says = json(&cli(&["stream", "list", "--api", &nobody, "--json"]).failed(1));
    assert!(says["error"].as_str().unwrap().contains("is it running?"), "{says}");
    // The console's port is a server too, and the wrong one.
    let gateway = Gateway::plain();
    let says = cli(&["stream", "list", "--api", &gateway.console.to_string()]).failed(1);
    assert!(says.contains("is that the gateway's AWS port?"), "{says}");
}

#[test]
fn a_gateway_that_asks_for_keys_is_served_with_those_of_the_environment() {
    let port = free_port();
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("h.toml");
    let text = format!(
        "[mqtt]\nlisten = \"off\"\n[console]\nlisten = \"127.0.0.1:0\"\n[api]\nlisten = \"127.0.0.1:{port}\"\n\
         access_keys = [{{ id = \"AKTEST\", secret = \"secret\" }}]\n[data]\ndir = {:?}\n",
        home.path().join("data")
    );
    std::fs::write(&config, text).unwrap();
    let _gateway = Process::start(headwater(&["run", "--config", &config.display().to_string()]).stderr(Stdio::null()));
    headwater_tests::tools::wait_for_port(([127, 0, 0, 1], port).into(), BOUND);
    let api = format!("127.0.0.1:{port}");
    let says = cli(&["stream", "list", "--api", &api]).failed(1);
    assert!(says.contains("AWS_ACCESS_KEY_ID"), "{says}");
    let keys = [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let signed: Did = run(headwater(&["stream", "list", "--api", &api]).envs(keys), BOUND).into();
    assert_eq!(signed.ok(), "default\n");
}

#[test]
fn exit_codes_are_as_documented() {
    assert!(cli(&[]).failed(2).contains("Usage: headwater"));
    assert!(cli(&["runn"]).failed(2).contains("run"), "the command that was meant");
    assert!(cli(&["run", "--stop-within", "soon"]).failed(2).contains("--stop-within"));
    assert!(cli(&["--version"]).ok().starts_with("headwater "));
    assert!(cli(&["help", "stream"]).ok().contains("create"));

    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("h.toml");
    let file = path.display().to_string();
    std::fs::write(&path, "[data]\nlinger = \"1 s\"\n").unwrap();
    assert_eq!(cli(&["check", &file]).ok(), format!("{file}: good: 0 streams, 0 routes, 0 sinks configured\n"));
    std::fs::write(&path, "[data]\nlinger = \"1 s\"\nmax_byte = \"1 GiB\"\n").unwrap();
    let line = format!("{file}:3:1: data.max_byte: there is no key `max_byte` here; did you mean `max_bytes`?");
    assert!(cli(&["check", &file]).failed(2).contains(&line));
    assert!(cli(&["run", "--config", &file]).failed(2).contains(&line), "run says the same");
    let told = json(&cli(&["check", &file, "--json"]).failed(2));
    assert_eq!((&told["mistakes"][0]["line"], &told["mistakes"][0]["key"]), (&3.into(), &"data.max_byte".into()));
}

#[test]
fn every_port_can_be_turned_off_by_config_flag_and_environment() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("off.toml");
    let sections = ["mqtt", "api", "console"].map(|name| format!("[{name}]\nlisten = \"off\"\n")).concat();
    std::fs::write(&config, sections).unwrap();
    let by_config = vec!["--config".to_owned(), config.display().to_string()];
    let by_flag = ["mqtt", "api", "console"].map(|name| [format!("--{name}-listen"), "off".to_owned()]).concat();
    let by_env = ["HEADWATER_MQTT_LISTEN", "HEADWATER_API_LISTEN", "HEADWATER_CONSOLE_LISTEN"];
    for (at, (args, env)) in [(by_config, &[][..]), (by_flag, &[]), (vec![], &by_env[..])].into_iter().enumerate() {
        let data = home.path().join(format!("data-{at}")).display().to_string();
        let path = home.path().join(format!("said-{at}"));
        let mut command = headwater(&["run", "--data", &data]);
        command.args(&args).envs(env.iter().map(|name| (*name, "off")));
        let mut process = Process::start(command.stderr(std::fs::File::create(&path).unwrap()));
        let said = || std::fs::read_to_string(&path).unwrap();
        let ready = || said().lines().any(|line| line.starts_with("headwater ready gateway="));
        assert!(eventually(BOUND, || ready() || process.0.try_wait().unwrap().is_some()) && ready(), "{}", said());
    }
}

#[test]
fn an_address_that_is_taken_is_told_with_what_to_do() {
    let gateway = Gateway::plain();
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").display().to_string();
    let taken = gateway.mqtt.to_string();
    let off = ["--api-listen", "off", "--console-listen", "off"];
    let says = cli(&[&["run", "--data", &data, "--mqtt-listen", &taken][..], &off].concat()).failed(1);
    assert!(says.contains(&taken) && says.contains("an address is taken"), "{says}");
}

#[test]
fn completions_load_in_their_shells() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cli(&["completions", shell]).ok();
        for word in ["headwater", "completions", "inspect"] {
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
    }
    let bash = need!(program("bash"), "bash is not installed");
    let script = "source <(\"$0\" completions bash) && complete -p headwater && \
                  COMP_WORDS=(headwater str) COMP_CWORD=1 && _headwater headwater str headwater; echo \"${COMPREPLY[@]}\"";
    let did: Did = run(Command::new(bash).args(["-c", script]).arg(binary()), BOUND).into();
    let said = did.ok();
    assert!(said.contains("-F _headwater") && said.lines().any(|line| line == "stream"), "{said}");
}

#[test]
fn a_short_bench_prints_one_line_of_json() {
    let ingest = ["bench", "ingest", "--duration", "1 s", "--connections", "4", "--window", "20"];
    let report = cli(&ingest).ok();
    assert_eq!(report.lines().count(), 1, "{report}");
    let report = json(&report);
    assert_eq!(report["bench"], "ingest");
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert!(number("acked") > 0.0 && number("acked") <= number("sent"), "{report}");
    assert!(number("acked_per_s") > 0.0 && report["refused"] == 0, "{report}");
    assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["p50"].as_f64(), "{report}");
    let counted = report["gateway_counters"]["commits"].as_u64().unwrap();
    assert!(counted > 0, "{report}");

    let count = if fast() { "2000" } else { "20000" };
    let report = json(&cli(&["bench", "drain", "--count", count, "--connections", "4"]).ok());
    assert_eq!(report["bench"], "drain", "{report}");
    let report = json(&cli(&["bench", "recover", "--bytes", "8 MiB", "--connections", "4"]).ok());
    assert_eq!(report["bench"], "recover", "{report}");
    assert!(report["folds_at_first_puback"].is_u64(), "{report}");
    assert!(cli(&["bench", "ingest", "--payload", "3"]).failed(2).contains("--payload"));
}

#[test]
fn logs_are_lines_of_json_when_asked() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").display().to_string();
    let off = ["--mqtt-listen", "127.0.0.1:0", "--api-listen", "off", "--console-listen", "off"];
    let path = home.path().join("said");
    let mut command = headwater(&[&["run", "--data", &data, "--log-format", "json"][..], &off].concat());
    let mut process = Process::start(command.stderr(std::fs::File::create(&path).unwrap()));
    let said = || std::fs::read_to_string(&path).unwrap();
    assert!(eventually(BOUND, || said().contains("headwater ready")), "{}", said());
    let pid = rustix::process::Pid::from_raw(process.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(process.0.wait().unwrap().success());
    let said = said();
    // The two lines that tests and scripts wait for are for them, not for the log.
    let logged: Vec<&str> = said.lines().filter(|line| !line.starts_with("headwater ")).collect();
    assert!(!logged.is_empty(), "{said}");
    for line in logged {
        let line = json(line);
        assert!(
            line["level"].is_string() && line["timestamp"].is_string() && line["fields"]["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn a_command_that_is_interrupted_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().display().to_string();
    let mut command = headwater(&["bench", "ingest", "--duration", "60 s", "--connections", "2", "--dir", &dir]);
    let mut bench = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    assert!(eventually(BOUND, || std::fs::read_dir(home.path()).unwrap().next().is_some()), "nothing was begun");
    std::thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_raw(bench.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let asked = Instant::now();
    assert!(eventually(BOUND, || bench.0.try_wait().unwrap().is_some()), "it goes on");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(files_below(home.path()).is_empty(), "left behind: {:?}", files_below(home.path()));
}
