//! What runs the gateway on a box: the service unit, what it tells systemd, and how it stops.

use headwater_tests::audit::{Fleet, Verdict, audit};
use headwater_tests::gateway::{Gateway, Setup, headwater};
use headwater_tests::mqtt::{Client, Version, kind};
use headwater_tests::tools::{program, root, run, run_ok};
use headwater_tests::{aws, need, tools};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

/// The unit, with a program that exists in the place of ours.
fn unit_file() -> (tempfile::TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(root().join("deploy/systemd/headwater.service")).unwrap();
    let path = home.path().join("headwater.service");
    std::fs::write(&path, unit.replace("/usr/bin/headwater", "/bin/true")).unwrap();
    (home, path.display().to_string())
}

#[test]
fn systemd_accepts_the_unit() {
    let analyze = need!(program("systemd-analyze"), "systemd-analyze is not installed");
    let (_home, unit) = unit_file();
    let output = run(Command::new(analyze).args(["verify", &unit]), BOUND);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_unit_exposes_little() {
    let analyze = need!(program("systemd-analyze"), "systemd-analyze is not installed");
    let (_home, unit) = unit_file();
    let said = run_ok(Command::new(analyze).args(["security", "--offline=true", &unit]), BOUND);
    let level = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
    let level: f64 = level.split(": ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(10.0);
    assert!(level < 2.0, "exposure level {level}, of 10\n{said}");
}

#[test]
fn the_sample_configuration_is_good() {
    let sample = root().join("deploy/headwater.toml").display().to_string();
    run_ok(&mut headwater(&["check", &sample]), BOUND);
}

#[test]
fn systemd_is_told_ready_watchdog_and_stopping() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let setup = Setup::default().env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "1000000");
    let mut gateway = setup.start();
    let mut heard = String::new();
    let mut hear = |word: &str| {
        let mut message = [0; 512];
        while !heard.contains(word) {
            let length = socket.recv(&mut message).unwrap_or_else(|e| panic!("no {word}: {e}; heard {heard:?}"));
            heard.push_str(&String::from_utf8_lossy(&message[..length]));
            heard.push('\n');
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    assert!(gateway.stop().success());
    hear("STOPPING=1");
}

/// Fault: the beat came from the loop that waits for signals, so a gateway whose disk had stopped answering, and which
/// could acknowledge nothing any more, was never started again. Now a commit that hangs for the watchdog's time stops it.
#[test]
fn the_watchdog_is_not_told_while_a_commit_hangs() {
    let strace = need!(program("strace"), "strace is not installed").display().to_string();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let trace = home.path().join("trace").display().to_string();
    // The journal's sync takes six seconds from the moment on that the file below names.
    let slow = ["-D", "-f", "-o", &trace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=6s:when=12+"];
    let setup = Setup::default().env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "1000000");
    let gateway = setup.under(&[&[strace.as_str()][..], &slow].concat()).start();
    let put = |data: &str| {
        let record =
            serde_json::json!({"StreamName": "default", "PartitionKey": "k", "Data": aws::blob(data.as_bytes())});
        aws::try_call(gateway.api, "PutRecord", &record)
    };
    let beats = |during: Duration| {
        let end = Instant::now() + during;
        let mut seen = Vec::new();
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left)).unwrap();
            let mut message = [0; 64];
            if let Ok(length) = socket.recv(&mut message) {
                seen.push((Instant::now(), String::from_utf8_lossy(&message[..length]).into_owned()));
            }
        }
        seen.iter().filter(|(_, said)| said.contains("WATCHDOG=1")).count()
    };
    assert!(beats(Duration::from_secs(3)) >= 3, "an idle gateway is alive");
    let hung = std::thread::scope(|scope| {
        // One after the other until one hangs: an acknowledgement waits for its sync.
        let putting = scope.spawn(|| {
            (0..40).any(|at| {
                let asked = Instant::now();
                put(&at.to_string()).is_ok() && asked.elapsed() > Duration::from_secs(3)
            })
        });
        // The first second of a hang may still be beaten; the rest is silent.
        let mut quietest = usize::MAX;
        while !putting.is_finished() {
            quietest = quietest.min(beats(Duration::from_secs(2)));
        }
        assert_eq!(quietest, 0, "beats went on while nothing could be committed");
        putting.join().unwrap()
    });
    assert!(hung, "no sync was delayed; does this strace know delay_enter?");
    assert!(gateway.log().contains("a commit hangs"), "{}", gateway.log());
}

#[test]
fn a_stop_drains_and_loses_nothing() {
    let mut gateway = Gateway::plain();
    let fleet = Fleet::start(gateway.mqtt, 8, 1_000);
    fleet.wait_for_more(200, BOUND);
    let asked = Instant::now();
    assert!(gateway.stop().success(), "{}", gateway.log());
    assert!(asked.elapsed() < Duration::from_secs(15), "the stop took {:?}", asked.elapsed());
    let acked = fleet.finish();
    gateway.restart();
    let verdict = audit(&acked, &aws::read_stream(gateway.api, "default"));
    assert_eq!(verdict, Verdict { stored: verdict.stored, ..Verdict::default() });
}

#[test]
fn health_readiness_and_metrics_answer() {
    let gateway = Gateway::plain();
    assert_eq!(gateway.http_get("/healthz").0, 200);
    assert_eq!(gateway.http_get("/readyz").0, 200);
    let (status, text) = gateway.http_get("/metrics");
    assert_eq!(status, 200);
    for name in ["headwater_commits_total", "headwater_mqtt_connections", "headwater_commit_latency_seconds_bucket"] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
}

#[test]
fn a_second_gateway_on_the_same_directory_is_refused() {
    let gateway = Gateway::plain();
    let dir = gateway.dir().display().to_string();
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("second.toml");
    let off =
        "[mqtt]\nlisten = \"127.0.0.1:0\"\n[api]\nlisten = \"127.0.0.1:0\"\n[console]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&config, off).unwrap();
    let config = config.display().to_string();
    let second = run(&mut headwater(&["run", "--config", &config, "--data", &dir]), BOUND);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another headwater"), "{said}");
    assert!(tools::eventually(BOUND, || gateway.http_get("/readyz").0 == 200), "the first goes on");
}

/// Shards and hours of retention of a stream.
fn about(gateway: &Gateway, stream: &str) -> (u64, u64) {
    let asked = aws::call(gateway.api, "DescribeStreamSummary", &serde_json::json!({"StreamName": stream}));
    let about = &asked.unwrap_or_else(|refused| panic!("{stream}: {refused:?}"))["StreamDescriptionSummary"];
    (about["OpenShardCount"].as_u64().unwrap(), about["RetentionPeriodHours"].as_u64().unwrap())
}

/// A section that goes takes no stream along, and one that is changed touches no number of shards: either would cost
/// records. The default stream needs no section, so without one it stays as somebody made it by hand.
#[test]
fn the_configuration_creates_and_updates_streams_and_never_deletes_one() {
    let old = "[[stream]]\nname = \"old\"\nshards = 1\nretention = \"4 days\"\n";
    let tele = |shards: u32, days: u32| {
        format!("[[stream]]\nname = \"tele\"\nshards = {shards}\nretention = \"{days} days\"\n")
    };
    let mut gateway = Setup::new(&(tele(2, 3) + old)).start();
    let streams = |gateway: &Gateway| {
        let api = gateway.api.to_string();
        run_ok(&mut headwater(&["stream", "list", "--api", &api]), BOUND)
    };
    assert_eq!(streams(&gateway), "default\nold\ntele\n");
    assert_eq!((about(&gateway, "tele"), about(&gateway, "old")), ((2, 72), (1, 96)));
    let put = |gateway: &Gateway, stream: &str| {
        let record = serde_json::json!({"StreamName": stream, "PartitionKey": "k", "Data": aws::blob(b"kept")});
        aws::call(gateway.api, "PutRecord", &record).unwrap();
    };
    assert_eq!(about(&gateway, "default"), (4, 168), "as a start makes it");
    let api = gateway.api.to_string();
    for by_hand in [&["delete", "default", "--yes"][..], &["create", "default", "--shards", "7"]] {
        run_ok(&mut headwater(&[&["stream"], by_hand, &["--api", &api]].concat()), BOUND);
    }
    ["tele", "old", "default"].iter().for_each(|stream| put(&gateway, stream));

    gateway.setup().toml = tele(5, 6);
    gateway.stop();
    gateway.restart();
    assert_eq!(streams(&gateway), "default\nold\ntele\n");
    assert_eq!(about(&gateway, "tele"), (2, 144), "updated, with the shards it has");
    let warned = |gateway: &Gateway| {
        let log = gateway.log();
        let is_it = |line: &&str| line.contains("number of shards of a stream that exists is left as it is");
        log.lines().filter(is_it).map(str::to_owned).collect::<Vec<_>>()
    };
    let said = warned(&gateway);
    assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains("tele"), "{}", gateway.log());
    assert_eq!(about(&gateway, "old"), (1, 96), "its section is gone");
    assert_eq!(about(&gateway, "default"), (7, 24), "made again by hand");

    let own = "[[stream]]\nname = \"default\"\nshards = 7\nretention = \"2 days\"\n";
    gateway.setup().toml = tele(2, 6) + own;
    gateway.stop();
    gateway.restart();
    assert_eq!(about(&gateway, "default"), (7, 48), "a section of its own counts");
    assert_eq!(warned(&gateway), Vec::<String>::new());
    for stream in ["tele", "old", "default"] {
        put(&gateway, stream);
        assert_eq!(aws::read_stream(gateway.api, stream).len(), 2, "{stream}");
    }
}

// Each record came back as another, until its headers were full.
#[test]
fn a_gateway_does_not_forward_to_its_own_broker() {
    let mut gateway = Gateway::plain();
    let port = gateway.mqtt.port();
    // A name that the configuration alone does not give away.
    gateway.setup().toml =
        format!("[[sink]]\nname = \"up\"\ntype = \"mqtt\"\nbroker = \"mqtt://[::ffff:127.0.0.1]:{port}\"\n");
    gateway.stop();
    gateway.restart();
    Client::connect(gateway.mqtt, "once", Version::V5).unwrap().publish("t", b"x").unwrap();
    let is_told = || gateway.http_get("/status").1.contains("in circles");
    assert!(tools::eventually(BOUND, is_told), "{}", gateway.http_get("/status").1);
    assert_eq!(gateway.metric("headwater_stream_records{stream=\"default\"}"), 1.0);
}

/// The live bus is a library with connections of its own; a log by default speaks of the gateway's alone.
#[test]
fn the_log_does_not_tell_of_the_bus_unless_it_is_asked_to() {
    for (filter, told) in [(None, false), (Some("info"), true)] {
        let setup = filter.iter().fold(Setup::default(), |setup, filter| setup.env("HEADWATER_LOG", filter));
        let gateway = setup.start();
        let mut client = Client::connect(gateway.mqtt, "live", Version::V5).unwrap();
        assert_eq!(client.subscribe("#", 0).unwrap(), 0);
        client.send("t", b"x").unwrap();
        // PUBACK, and the message over the bus.
        let kinds = [client.read().unwrap().kind(), client.read().unwrap().kind()];
        assert!(kinds.contains(&kind::PUBLISH), "{kinds:?}");
        assert_eq!(gateway.log().contains("rumqttd"), told, "{}", gateway.log());
    }
}

/// `headwater passwd FILE USER` with a line on stdin; whether it succeeded, and what it said.
fn passwd(file: &str, more: &[&str], line: &str) -> (bool, String) {
    let mut command = headwater(&["passwd", file]);
    command.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(line.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn passwd_makes_the_file_that_lets_a_user_in() {
    let publish = need!(program("mosquitto_pub"), "mosquitto_pub is not installed");
    let home = tempfile::tempdir().unwrap();
    let users = home.path().join("users").display().to_string();
    assert!(passwd(&users, &["pump"], "s3 cret\r\nnot read\n").0);
    assert!(passwd(&users, &["valve"], "other").0);
    assert_eq!(std::fs::metadata(&users).unwrap().permissions().mode() & 0o777, 0o600);
    let gateway = Setup::default().mqtt(&format!("users_file = {users:?}")).start();
    let (host, port) = (gateway.mqtt.ip().to_string(), gateway.mqtt.port().to_string());
    let lets_in = |user: &str, password: &str| {
        let mut command = Command::new(&publish);
        command.args(["-h", &host, "-p", &port, "-q", "1", "-t", "t", "-m", "x", "-u", user, "-P", password]);
        run(&mut command, BOUND).status.success()
    };
    assert!(lets_in("pump", "s3 cret") && lets_in("valve", "other"));
    assert!(!lets_in("pump", "other"));
    drop(gateway);
    // Changed, taken out, and refused: the other line stays as it is.
    let line_of = |user: &str| {
        let text = std::fs::read_to_string(&users).unwrap();
        text.lines().find(|line| line.starts_with(user)).map(str::to_owned)
    };
    let (pump, valve) = (line_of("pump"), line_of("valve"));
    let (changed, said) = passwd(&users, &["pump"], "new\n");
    assert!(changed && said.contains("changed pump"), "{said}");
    assert!(line_of("pump") != pump && line_of("valve") == valve);
    let (deleted, said) = passwd(&users, &["pump", "--delete"], "");
    assert!(deleted && said.contains("deleted pump"), "{said}");
    assert_eq!((line_of("pump"), line_of("valve")), (None, valve.clone()));
    for (more, line, why) in [
        (&["pump", "--delete"][..], "", "no user \"pump\""),
        (&["pump"], "\n", "empty"),
        (&["pu:mp"], "x\n", "colon"),
        (&["pump"], &"x".repeat(65_536), "65,535"),
    ] {
        let (done, said) = passwd(&users, more, line);
        assert!(!done && said.contains(why), "{more:?}: {said}");
    }
    assert_eq!((line_of("pump"), line_of("valve")), (None, valve));
    let (done, said) = passwd("/etc/passwd", &["root"], "x\n");
    assert!(!done && said.contains("/etc/passwd, line 1"), "{said}");
}

/// A terminal shows none of the password, and is as it was afterwards.
#[test]
fn passwd_asks_twice_on_a_terminal_and_shows_nothing() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, tcgetattr};
    let home = tempfile::tempdir().unwrap();
    let users = home.path().join("users").display().to_string();
    let on_terminal = |answers: [&str; 2]| {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).and_then(|()| unlockpt(&ours)).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let mut command = headwater(&["passwd", &users, "pump"]);
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop(command);
        let mut screen = std::fs::File::from(ours);
        let mut shown = String::new();
        for (prompt, answer) in ["Password for pump: ", "The same again: "].into_iter().zip(answers) {
            while !shown.ends_with(prompt) {
                let mut chunk = [0; 512];
                let count = screen.read(&mut chunk).unwrap();
                shown.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            screen.write_all(answer.as_bytes()).unwrap();
            if answer.contains('\x03') {
                break;
            }
        }
        let status = child.wait().unwrap();
        let modes = tcgetattr(&theirs).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "the terminal is as it was");
        drop(theirs);
        // Reading ends with an error once nobody holds the other end.
        let _ = screen.read_to_string(&mut shown);
        (status.success(), shown)
    };
    for (answers, why) in [(["hidden-1\r", "hidden-2\r"], "not the same"), (["hidden-1\x03", ""], "given up")] {
        let (done, shown) = on_terminal(answers);
        assert!(!done && shown.contains(why) && !shown.contains("hidden"), "{shown}");
        assert!(!std::path::Path::new(&users).exists());
    }
    let (done, shown) = on_terminal(["hiddex\x7fn-3\r", "hidden-3\r"]);
    assert!(done && shown.contains("added pump") && !shown.contains("hidde"), "{shown}");
}
