//! The clients people really use, and the Kinesis of others as upstream: mosquitto's, paho and rumqttc over MQTT; the AWS
//! CLI, boto3 and the SDK for JavaScript over HTTP; kinesalite and kinesis-mock behind the uplink, read back with AWS' own
//! de-aggregator.

use headwater_tests::audit::{Acked, Fleet, Verdict, audit};
use headwater_tests::aws::Got;
use headwater_tests::gateway::{Gateway, Setup, headwater};
use headwater_tests::mqtt::{self, Client, Version};
use headwater_tests::tools::{self, Process, npm_package, program, python, root, run, run_ok};
use headwater_tests::{aws, need};
use headwater_wire::{CHUNK_HEADER_BYTES_MAX, CONTENT_TYPE, Chunk, ENVELOPE_HEADER_BYTES_MAX, Envelope, Kind};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const NO_PYTHON: &str = "the packages of tests/clients/requirements.txt are not installed";
const NO_NODE: &str = "node or the packages of tests/clients/package.json are not installed";

fn script(name: &str) -> std::path::PathBuf {
    root().join("tests/clients").join(name)
}

fn host_and_port(addr: SocketAddr) -> [String; 2] {
    [addr.ip().to_string(), addr.port().to_string()]
}

/// `mosquitto_pub` sends a line a message and ends when all are acknowledged; `mosquitto_sub` writes them down.
fn mosquitto(gateway: &Gateway, version: &str, qos: &str) {
    let (publish, subscribe) = (program("mosquitto_pub").unwrap(), program("mosquitto_sub").unwrap());
    let [host, port] = host_and_port(gateway.mqtt);
    let home = tempfile::tempdir().unwrap();
    let (lines, got) = (home.path().join("lines"), home.path().join("got"));
    let sent: String = (0..100).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    std::fs::write(&lines, &sent).unwrap();
    let topic = format!("mosquitto/{version}/{qos}");
    let common = ["-h", &host, "-p", &port, "-V", version, "-q", qos, "-t", &topic];
    let mut subscriber = Command::new(subscribe);
    subscriber.args(common).args(["-i", "mosquitto-sub", "-C", "100", "-W", "30"]);
    subscriber.stdout(std::fs::File::create(&got).unwrap());
    let mut subscriber = Process::start(&mut subscriber);
    let subscribed = || gateway.metric("headwater_mqtt_subscriptions") > 0.0;
    assert!(tools::eventually(Duration::from_secs(10), subscribed), "mosquitto_sub did not subscribe");
    let mut publisher = Command::new(publish);
    publisher.args(common).args(["-i", "mosquitto-pub", "-l"]).stdin(std::fs::File::open(&lines).unwrap());
    let mut publisher = Process::start(&mut publisher);
    assert!(publisher.0.wait().unwrap().success(), "mosquitto_pub -V {version} -q {qos}");
    let status = subscriber.0.wait().unwrap();
    let got = std::fs::read_to_string(&got).unwrap();
    assert!(status.success(), "mosquitto_sub -V {version} -q {qos}: {status}, got\n{got}");
    assert_eq!(got, sent, "-V {version} -q {qos}");
    let unsubscribed = || gateway.metric("headwater_mqtt_subscriptions") == 0.0;
    assert!(tools::eventually(Duration::from_secs(10), unsubscribed), "a subscription outlived its connection");
}

#[test]
fn mosquitto_pub_and_sub_speak_both_versions_and_all_qos() {
    need!(program("mosquitto_pub"), "mosquitto_pub is not installed");
    let gateway = Gateway::plain();
    for version in ["311", "5"] {
        for qos in ["0", "1", "2"] {
            mosquitto(&gateway, version, qos);
        }
    }
    let kept = aws::read_stream(gateway.api, "default");
    assert_eq!(kept.len(), 600);
    assert!(kept.iter().all(|got| got.key == "mosquitto-pub"), "the client id is the default key");
}

/// A message comes at the lesser of the QoS it was published with and the QoS that was granted.
#[test]
fn mosquitto_sub_gets_the_lesser_of_published_and_granted_qos() {
    let publish = need!(program("mosquitto_pub"), "mosquitto_pub is not installed");
    let gateway = Gateway::plain();
    let [host, port] = host_and_port(gateway.mqtt);
    for version in ["311", "5"] {
        let home = tempfile::tempdir().unwrap();
        let mut subscribers = Vec::new();
        for granted in ["0", "1", "2"] {
            let (got, id) = (home.path().join(granted), format!("granted-{granted}"));
            let mut subscriber = Command::new(program("mosquitto_sub").unwrap());
            subscriber.args(["-h", &host, "-p", &port, "-V", version, "-q", granted, "-t", "qos/+", "-i", &id]);
            subscriber.args(["-F", "%t %q", "-C", "3", "-W", "30"]).stdout(std::fs::File::create(&got).unwrap());
            subscribers.push((granted, got, Process::start(&mut subscriber)));
        }
        let subscribed = || gateway.metric("headwater_mqtt_subscriptions") == 3.0;
        assert!(tools::eventually(Duration::from_secs(10), subscribed), "mosquitto_sub did not subscribe");
        for published in ["0", "1", "2"] {
            let topic = format!("qos/{published}");
            let common = ["-h", &host, "-p", &port, "-V", version, "-i", "publisher", "-m", "x"];
            run_ok(Command::new(&publish).args(common).args(["-t", &topic, "-q", published]), BOUND);
        }
        for (granted, got, mut subscriber) in subscribers {
            assert!(subscriber.0.wait().unwrap().success(), "-V {version}, granted {granted}");
            let lesser = |published: &str| format!("qos/{published} {}\n", published.min(granted));
            let expected: String = ["0", "1", "2"].map(lesser).concat();
            assert_eq!(std::fs::read_to_string(&got).unwrap(), expected, "-V {version}, granted {granted}");
        }
        let gone = || gateway.metric("headwater_mqtt_subscriptions") == 0.0;
        assert!(tools::eventually(Duration::from_secs(10), gone), "a subscription outlived its connection");
    }
}

#[test]
fn paho_speaks_both_versions_and_all_qos() {
    let python = need!(python(), NO_PYTHON);
    let gateway = Gateway::plain();
    let said = run_ok(Command::new(python).arg(script("paho_client.py")).args(host_and_port(gateway.mqtt)), BOUND);
    assert_eq!(said.lines().count(), 6, "{said}");
    assert_eq!(aws::read_stream(gateway.api, "default").len(), 300);
}

#[test]
fn rumqttc_publishes_and_hears_its_own_messages() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::Packet;
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let gateway = Gateway::plain();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let [host, _] = host_and_port(gateway.mqtt);
    let (acked, heard) = runtime.block_on(async {
        let options = MqttOptions::new("rumqttc", host, gateway.mqtt.port());
        let (client, mut connection) = AsyncClient::new(options, 200);
        client.subscribe("rumqttc/#", QoS::AtLeastOnce).await.unwrap();
        for n in 0..100 {
            client.publish("rumqttc/t", QoS::AtLeastOnce, false, n.to_string()).await.unwrap();
        }
        let (mut acked, mut heard) = (0, Vec::new());
        let all = async {
            while acked < 100 || heard.len() < 100 {
                match connection.poll().await.expect("the connection stays") {
                    Event::Incoming(Packet::PubAck(_)) => acked += 1,
                    Event::Incoming(Packet::Publish(publish)) => heard.push(publish.payload.to_vec()),
                    _ => {}
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(20), all).await;
        (acked, heard)
    });
    let sent: Vec<_> = (0..100).map(|n: u32| n.to_string().into_bytes()).collect();
    assert_eq!((acked, heard), (100, sent));
}

#[test]
fn the_aws_cli_creates_puts_and_reads() {
    let cli = need!(program("aws"), NO_PYTHON);
    let gateway = Gateway::plain();
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command.arg(script("aws_cli.sh")).arg(cli).arg(format!("http://{}", gateway.api)).current_dir(home.path());
    run_ok(&mut command, Duration::from_secs(180));
}

#[test]
fn boto3_speaks_to_the_api() {
    let python = need!(python(), NO_PYTHON);
    let gateway = Gateway::plain();
    let endpoint = format!("http://{}", gateway.api);
    run_ok(Command::new(python).arg(script("boto3_api.py")).arg(endpoint), BOUND);
}

#[test]
fn the_sdk_for_javascript_speaks_h2c_to_the_api() {
    let sdk = need!(npm_package("@aws-sdk/client-kinesis"), NO_NODE);
    let gateway = Gateway::plain();
    // A module is looked for beside its script: copied to where the packages are.
    let beside = sdk.ancestors().nth(3).unwrap().join("h2c.mjs");
    std::fs::copy(script("h2c.mjs"), &beside).unwrap();
    let endpoint = format!("http://{}", gateway.api);
    run_ok(Command::new(program("node").unwrap()).arg(beside).arg(endpoint), BOUND);
}

/// With keys on both sides, so that the door checks what the SDK signs.
#[test]
fn the_sdk_for_rust_speaks_to_the_api() {
    let client = std::env::var("HEADWATER_AWS_SDK_RUST").ok().filter(|path| Path::new(path).is_file());
    let client = need!(client, "tests/clients/aws-sdk-rust was not built (tests/run builds it, not with --fast)");
    let keys = |secret: &str| format!("access_keys = [{{ id = \"AKIDTEST\", secret = \"{secret}\" }}]\n");
    let door = |secret: &str| Setup::default().api(&keys(secret)).start();
    let speak = |gateway: &Gateway| run(Command::new(&client).arg(format!("http://{}", gateway.api)), BOUND);
    let done = speak(&door("secret"));
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success() && said.contains("all passed"), "{said}");
    assert!(!speak(&door("another")).status.success(), "a client that is refused says so");
}

/// A Kinesis of others, on a loopback port.
struct Upstream {
    endpoint: String,
    _process: Process,
}

fn node_server(package: &Path, main: &str, args: &[String], env: &[(&str, String)], port: u16) -> Upstream {
    let mut command = Command::new(program("node").unwrap());
    command.arg("--require").arg(script("loopback.cjs")).arg(package.join(main)).args(args).current_dir(package);
    command.envs(env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::start(&mut command);
    tools::wait_for_port(([127, 0, 0, 1], port).into(), BOUND);
    Upstream { endpoint: format!("http://127.0.0.1:{port}"), _process: process }
}

fn kinesalite(package: &Path) -> Upstream {
    let port = tools::free_port();
    node_server(package, "cli.js", &["--port".into(), port.to_string()], &[], port)
}

fn kinesis_mock(package: &Path) -> Upstream {
    let (plain, tls) = (tools::free_port(), tools::free_port());
    let env = [("KINESIS_MOCK_PLAIN_PORT", plain.to_string()), ("KINESIS_MOCK_TLS_PORT", tls.to_string())];
    node_server(package, "main.js", &[], &env, plain)
}

/// Everything in the upstream's stream as AWS' own code takes it apart, and how many aggregates there were.
fn read_upstream(python: &Path, upstream: &Upstream) -> (Vec<Got>, u64) {
    let mut command = Command::new(python);
    command.arg(script("upstream.py")).args(["read", &upstream.endpoint, "telemetry"]);
    let output = run(&mut command, BOUND);
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("ERROR"), "{said}");
    let records = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("upstream.py writes JSON");
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        Got { sequence: text("sequence"), key: text("key"), data: aws::unblob(&text("data")) }
    });
    let aggregates = said.lines().find_map(|line| line.strip_suffix(" aggregates")?.parse().ok());
    (records.collect(), aggregates.unwrap_or(0))
}

/// A fleet publishes, the uplink forwards, and the upstream holds what was acknowledged, once, in order, each record under
/// its own key.
fn forwards_to(upstream: &Upstream, python: &Path, aggregate: bool) {
    run_ok(
        Command::new(python).arg(script("upstream.py")).args(["create", &upstream.endpoint, "telemetry", "3"]),
        BOUND,
    );
    let sink = format!(
        "[[sink]]\nname = \"cloud\"\ntype = \"kinesis\"\nstreams = [\"default\"]\ntarget = \"telemetry\"\n\
         region = \"eu-west-1\"\nendpoint = {:?}\nrequired = true\naggregate = {aggregate}\n",
        upstream.endpoint
    );
    let setup = Setup::new(&sink).env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let gateway = setup.start();
    let fleet = Fleet::start(gateway.mqtt, 8, 100);
    std::thread::sleep(Duration::from_secs(3));
    let acked: Acked = fleet.finish();
    let drained = || gateway.metric("headwater_sink_backlog") == 0.0;
    assert!(tools::eventually(BOUND, drained), "the backlog does not drain\n{}", gateway.log());
    let (records, aggregates) = read_upstream(python, upstream);
    let verdict = audit(&acked, &records);
    assert_eq!(verdict, Verdict { stored: acked.values().sum(), ..Verdict::default() });
    assert!(records.iter().all(|got| got.key.starts_with("device-")), "sub-records keep their own keys");
    assert_eq!(aggregates > 0, aggregate, "{aggregates} aggregates");
}

#[test]
fn kinesalite_gets_every_record_aggregated() {
    let (package, python) = (need!(npm_package("kinesalite"), NO_NODE), need!(python(), NO_PYTHON));
    forwards_to(&kinesalite(&package), &python, true);
}

#[test]
fn kinesalite_gets_every_record_one_by_one() {
    let (package, python) = (need!(npm_package("kinesalite"), NO_NODE), need!(python(), NO_PYTHON));
    forwards_to(&kinesalite(&package), &python, false);
}

#[test]
fn kinesis_mock_gets_every_record_aggregated() {
    let (package, python) = (need!(npm_package("kinesis-local"), NO_NODE), need!(python(), NO_PYTHON));
    forwards_to(&kinesis_mock(&package), &python, true);
}

/// What a device with a camera publishes: the picture in parts, each an envelope.
fn publish_parts(gateway: &Gateway, device: &str, blob: u32, picture: &[u8], parts: std::ops::Range<usize>) {
    const PART_BYTES: usize = 480;
    let mut client = Client::connect(gateway.mqtt, device, Version::V5).unwrap();
    for (at, bytes) in picture.chunks(PART_BYTES).enumerate().take(parts.end).skip(parts.start) {
        let (mut head, mut chunk_head) = ([0; ENVELOPE_HEADER_BYTES_MAX], [0; CHUNK_HEADER_BYTES_MAX]);
        let envelope = Envelope { kind: Kind::Chunk, epoch: blob, first: at as u64 + 1, count: 1, body: &[] };
        let chunk = Chunk { offset: (at * PART_BYTES) as u64, total: picture.len() as u64, bytes };
        let (head_length, chunk_length) = (envelope.write_head(&mut head), chunk.write_head(&mut chunk_head));
        let (head, chunk_head) = (&head[..head_length.unwrap()], &chunk_head[..chunk_length.unwrap()]);
        let mut body = Vec::new();
        mqtt::put_text(&mut body, "camera");
        body.extend_from_slice(&client.take_id().to_be_bytes());
        mqtt::put_length(&mut body, 3 + CONTENT_TYPE.len());
        body.push(3);
        mqtt::put_text(&mut body, CONTENT_TYPE);
        body.extend_from_slice(&[head, chunk_head, bytes].concat());
        client.send_raw(&mqtt::packet(mqtt::kind::PUBLISH << 4 | 2, &body)).unwrap();
        let answer = client.read().unwrap();
        assert_eq!((answer.kind(), answer.reason()), (mqtt::kind::PUBACK, 0));
    }
}

fn picture(seed: u64, length: usize) -> Vec<u8> {
    let mut noise = fastrand::Rng::with_seed(seed);
    [0xff, 0xd8, 0xff].into_iter().chain(std::iter::repeat_with(|| noise.u8(..)).take(length - 3)).collect()
}

/// The documentation's own program, and ours, on the same stream.
#[test]
fn a_picture_in_parts_comes_back_by_the_command_and_by_the_program_in_the_documentation() {
    let python = need!(python(), NO_PYTHON);
    let gateway = Gateway::plain();
    let (one, two) = (picture(1, 50_000), picture(2, 30_001));
    publish_parts(&gateway, "cam-1", 7, &one, 0..usize::MAX);
    publish_parts(&gateway, "cam-2", 1, &two, 0..usize::MAX);
    publish_parts(&gateway, "cam-2", 2, &one, 0..9);
    let home = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(home.path().join(name)).unwrap();

    let mut command = headwater(&["blobs", "--out", "pictures", "--json"]);
    let said = run_ok(command.env("HEADWATER_API", gateway.api.to_string()).current_dir(home.path()), BOUND);
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let incomplete: Vec<_> = lines.iter().filter(|line| line["whole"] == false).collect();
    assert_eq!((incomplete.len(), &incomplete[0]["missing"]), (1, &serde_json::json!([[4_320, 50_000]])), "{said}");
    let summary = lines.last().unwrap();
    assert_eq!((&summary["whole"], &summary["written"], &summary["incomplete"]), (&2.into(), &2.into(), &1.into()));
    assert!(read("pictures/cam-1-7.jpg") == one && read("pictures/cam-2-1.jpg") == two, "{said}");
    assert_eq!(std::fs::read_dir(home.path().join("pictures")).unwrap().count(), 2, "nothing else is left");

    let docs = std::fs::read_to_string(root().join("docs/device-sdk.md")).unwrap();
    let program = docs.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let mut command = Command::new(python);
    command.args(["-c", program]).current_dir(home.path()).env("ENDPOINT", format!("http://{}", gateway.api));
    command.envs([("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any"), ("AWS_REGION", "eu-west-1")]);
    run_ok(command.env("AWS_DEFAULT_REGION", "eu-west-1"), BOUND);
    assert!(read("cam-1-7.jpg") == one && read("cam-2-1.jpg") == two);
}

/// Aggregated by a sink, over a shard that is split in the middle of the picture.
#[test]
fn a_picture_in_parts_comes_back_from_kinesis() {
    let (package, python) = (need!(npm_package("kinesalite"), NO_NODE), need!(python(), NO_PYTHON));
    let upstream = kinesalite(&package);
    let script = |what: &[&str]| {
        let mut command = Command::new(&python);
        command.arg(script("upstream.py")).args([what[0], &upstream.endpoint, "telemetry"]).args(&what[1..]);
        run_ok(&mut command, BOUND);
    };
    script(&["create", "1"]);
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    let sink = format!(
        "[[sink]]\nname = \"cloud\"\ntype = \"kinesis\"\nstreams = [\"default\"]\ntarget = \"telemetry\"\n\
         region = \"eu-west-1\"\nendpoint = {:?}\nrequired = true\n",
        upstream.endpoint
    );
    let setup = keys.iter().fold(Setup::new(&sink), |setup, (name, value)| setup.env(name, value));
    let gateway = setup.start();
    let drain = || {
        let drained = || gateway.metric("headwater_sink_backlog") == 0.0;
        assert!(tools::eventually(BOUND, drained), "the backlog does not drain\n{}", gateway.log());
    };
    let all = picture(1, 60_000);
    publish_parts(&gateway, "cam-1", 7, &all, 0..60);
    drain();
    script(&["split"]);
    publish_parts(&gateway, "cam-1", 7, &all, 60..usize::MAX);
    drain();
    let home = tempfile::tempdir().unwrap();
    let mut command = headwater(&["blobs", "telemetry", "--aws", "--out", ".", "--json"]);
    command.envs(keys).env("AWS_REGION", "eu-west-1").env("AWS_ENDPOINT_URL", &upstream.endpoint);
    let said = run_ok(command.current_dir(home.path()), BOUND);
    assert!(std::fs::read(home.path().join("cam-1-7.jpg")).is_ok_and(|file| file == all), "{said}");
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let (parts, records) = (summary["parts"].as_u64().unwrap(), summary["records"].as_u64().unwrap());
    assert!(parts >= 125 && records < parts, "they came aggregated: {said}");
}

#[test]
fn the_aarch64_binary_takes_mosquitto_pub_under_emulation() {
    let binary = std::env::var("HEADWATER_AARCH64_BIN").ok().filter(|path| Path::new(path).is_file());
    let binary = need!(binary, "no aarch64 binary was built (deploy/cross-aarch64)");
    let qemu = need!(program("qemu-aarch64-static"), "qemu-user-static is not installed");
    let publish = need!(program("mosquitto_pub"), "mosquitto_pub is not installed");
    let qemu = qemu.display().to_string();
    let setup = Setup::default().under(&[&qemu, "-L", "/usr/aarch64-linux-gnu"]);
    let mut gateway = setup.binary(Path::new(&binary)).start();
    let [host, port] = host_and_port(gateway.mqtt);
    for n in 0..20 {
        let message = format!("message {n}");
        let args = ["-h", &host, "-p", &port, "-q", "1", "-i", "pi", "-t", "pi/t", "-m", &message];
        run_ok(Command::new(&publish).args(args), BOUND);
    }
    gateway.restart();
    let kept: Vec<_> = aws::read_stream(gateway.api, "default").into_iter().map(|got| got.data).collect();
    assert_eq!(kept, (0..20).map(|n| format!("message {n}").into_bytes()).collect::<Vec<_>>());
    assert!(gateway.stop().success());
}
