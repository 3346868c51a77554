//! What a user gets for a configuration, right or wrong.

use super::*;

fn mistakes(text: &str) -> Vec<String> {
    match Config::parse("h.toml", text, &[]) {
        Ok(config) => panic!("taken without a word: {config:?}"),
        Err(mistakes) => mistakes.0.iter().map(|mistake| mistake.to_string()).collect(),
    }
}

#[test]
fn the_empty_file_is_a_gateway_on_loopback() {
    let config = Config::parse("h.toml", "", &[]).unwrap();
    assert_eq!(config.data.thin_commits_per_s, 50);
    assert!(config.streams.is_empty() && config.sinks.is_empty());
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_to_write_instead() {
    let text = r#"
[data]
dri = "/srv/x"
max_bytes = "3 parsecs"
linger = "20 ms"

[[stream]]
name = "telemetry"
shards = 0

[[stream]]
name = "tele metry"
on_full = "drop-old"

[consol]
"#;
    assert_eq!(
        mistakes(text),
        [
            "h.toml:3:1: data.dri: there is no key `dri` here; did you mean `dir`?",
            "h.toml:4:1: data.max_bytes: write a size as a number and a unit, such as \"64 MiB\" or \"16 GiB\", not \"3 parsecs\"",
            "h.toml:9:1: stream[0].shards: 0 shards: write 1 to 1024",
            "h.toml:12:1: stream[1].name: a stream name is 1 to 128 letters, digits, '_', '.' or '-': \"tele metry\" is not",
            "h.toml:13:1: stream[1].on_full: there is no `drop-old` here; did you mean `drop-oldest`?",
            "h.toml:15:2: consol: there is no key `consol` here; did you mean `console`?",
        ]
    );
}

#[test]
fn a_missing_name_and_a_broken_line_are_told() {
    assert_eq!(mistakes("[[stream]]\nshards = 2\n"), ["h.toml:1:1: stream[0]: `name` is missing; add `name = ...`"]);
    let told = mistakes("[data]\ndir = /var\n[api]\nlissen = \"x\"\n");
    assert!(told[0].starts_with("h.toml:2:"), "{told:?}");
    assert!(told.iter().any(|line| line.contains("`lissen`") && line.contains("`listen`")), "{told:?}");
}

#[test]
fn an_override_stands_above_the_file_and_is_named_when_it_is_wrong() {
    let over = |value: &str| Override { key: "data.max_bytes", value: value.into(), source: "--max-bytes" };
    let text = "[data]\nmax_bytes = \"1 GiB\"\n";
    let config = Config::parse("h.toml", text, &[over("2 GiB")]).unwrap();
    assert_eq!(config.data.max_bytes, ByteSize(2 << 30));
    let told = Config::parse("h.toml", text, &[over("2")]).unwrap_err();
    assert!(told.to_string().starts_with("--max-bytes: data.max_bytes: write a size"), "{told}");
    let told = Config::parse("h.toml", text, &[over("1 MiB")]).unwrap_err();
    assert!(told.to_string().starts_with("--max-bytes: data.max_bytes: 1 MiB is too small"), "{told}");
}

#[test]
fn a_file_that_is_not_there_is_told_by_name() {
    let told = Config::load(Some(Path::new("/nowhere/h.toml")), &[]).unwrap_err();
    assert_eq!(told.to_string(), "/nowhere/h.toml: there is no such file");
}

proptest::proptest! {
    #[test]
    fn noise_is_refused_and_never_panics(noise in "[\\[\\]a-z=\"\\.\n {}#0-9é]{0,200}") {
        let _ = Config::parse("h.toml", &noise, &[]);
    }
}

#[test]
fn mistakes_in_a_sink_and_a_route_are_told_at_their_key() {
    let text = r#"
[mqtt]
listen = "127.0.0.1"

[[route]]
topics = ["site/+/dev/+/t"]
stream = "telemetri"
key = "{topic[3]"

[[sink]]
name = "cloud"
type = "kinesis"
streams = ["telemetry"]
tagret = "telemetry"

[[sink]]
name = "b"
type = "kinesi"

[[sink]]
type = "file"
required = 5
linger = "1 s"
"#;
    assert_eq!(
        mistakes(text),
        [
            "h.toml:3:1: mqtt.listen: \"127.0.0.1\" is not an address; write an IP address and a port such as \"127.0.0.1:4567\", or \"off\"",
            "h.toml:8:1: route[0].key: a '{' without its '}', or the other way round, in \"{topic[3]\"",
            "h.toml:13:1: sink[0].streams: there is no stream \"telemetry\"; add a [[stream]] with name = \"telemetry\"",
            "h.toml:14:1: sink[0].tagret: there is no key `tagret` here; did you mean `target`?",
            "h.toml:18:1: sink[1].type: there is no `kinesi` here; did you mean `kinesis`?",
            "h.toml:20:1: sink[2].name: name the sink with 1 to 64 letters, digits, '-', '_' or '.', such as name = \"cloud\"",
            "h.toml:20:1: sink[2].dir: name the directory for the files, such as dir = \"/srv/headwater\"",
            "h.toml:22:1: sink[2].required: write true or false, not 5",
            "h.toml:23:1: sink[2].linger: there is no key `linger` here; write one of compression, dir, \
             max_bytes_per_s, name, required, roll_after, roll_bytes, streams, type",
        ]
    );
}

#[test]
fn a_value_of_another_type_is_told_what_to_write() {
    let told = |text: &str| mistakes(text).join("; ").split_once(": ").unwrap().1.to_owned();
    for (text, says) in [
        ("[mqtt]\nreceive_maximum = 100000\n", "mqtt.receive_maximum: write a whole number, such as 1024, not 100000"),
        ("[mqtt]\ninsecure_listen = \"yes\"\n", "mqtt.insecure_listen: write true or false, not \"yes\""),
        (
            "[mqtt]\nlisten = 1883\n",
            "mqtt.listen: write an IP address and a port such as \"127.0.0.1:4567\", or \"off\", not 1883",
        ),
        (
            "[data]\nlinger = 20\n",
            "data.linger: write a span of time as a number and a unit, such as \"20 ms\", not 20",
        ),
        ("[data]\ndir = [\"x\"]\n", "data.dir: write a path in quotes, such as \"headwater-data\", not a list"),
        ("[sink]\nname = \"x\"\n", "sink: write [[sink]], in two brackets: there may be several, not a table"),
        ("stream = 3\n", "stream: write a list in brackets, not 3"),
        (
            "[api]\naccess_keys = [\"x\"]\n",
            "api.access_keys[0]: write a table such as { id = \"...\", secret = \"...\" }, not \"x\"",
        ),
    ] {
        assert_eq!(told(text), says);
    }
}

#[test]
fn two_listeners_that_cannot_both_have_their_address_are_told() {
    let at =
        |mqtt: &str, api: &str| format!("[mqtt]\nlisten = {mqtt:?}\ninsecure_listen = true\n[api]\nlisten = {api:?}\n");
    for (mqtt, api) in
        [("127.0.0.1:4567", "127.0.0.1:4567"), ("0.0.0.0:4567", "127.0.0.1:4567"), ("[::]:4567", "127.0.0.1:4567")]
    {
        let told = mistakes(&at(mqtt, api));
        assert_eq!(
            told,
            [format!("h.toml:5:1: api.listen: {api} is taken by mqtt.listen = \"{mqtt}\"; write another port")]
        );
    }
    for (mqtt, api) in [("127.0.0.1:0", "127.0.0.1:0"), ("127.0.0.2:4567", "127.0.0.1:4567"), ("off", "127.0.0.1:4567")]
    {
        assert!(Config::parse("h.toml", &at(mqtt, api), &[]).is_ok());
    }
}

#[test]
fn a_sink_that_names_the_gateways_own_broker_is_told() {
    let at = |listen: &str, broker: &str| {
        let mqtt = format!("[mqtt]\nlisten = {listen:?}\ninsecure_listen = true\n");
        mqtt + &format!("[[sink]]\nname = \"up\"\ntype = \"mqtt\"\nbroker = {broker:?}\n")
    };
    for (listen, broker) in [
        ("127.0.0.1:1883", "mqtt://127.0.0.1:1883"),
        ("0.0.0.0:1883", "mqtt://localhost"),
        ("10.0.0.9:1884", "mqtt://10.0.0.9:1884"),
    ] {
        let told = mistakes(&at(listen, broker));
        assert!(told[0].contains("sink[0].broker: this is the gateway's own mqtt.listen"), "{told:?}");
    }
    for (listen, broker) in [("127.0.0.1:1883", "mqtt://127.0.0.1:1884"), ("0.0.0.0:1883", "mqtt://10.0.0.9:1883")] {
        assert!(Config::parse("h.toml", &at(listen, broker), &[]).is_ok());
    }
}

#[test]
fn every_listener_can_be_turned_off_by_the_same_word() {
    let text = "[mqtt]\nlisten = \"off\"\n[mqtt.tls]\nlisten = \"off\"\n[api]\nlisten = \"off\"\n[console]\nlisten = \"off\"\n";
    let config = Config::parse("h.toml", text, &[]).unwrap();
    assert_eq!((config.api.listen.address(), config.console.listen.address()), (None, None));
    assert_eq!((config.mqtt.listen.address(), config.mqtt.tls.listen.address()), (None, None));
    for section in ["mqtt", "mqtt.tls", "api", "console"] {
        let told = mistakes(&format!("[{section}]\nlisten = \"localhost\"\n"));
        assert!(
            told[0].starts_with(&format!("h.toml:2:1: {section}.listen: \"localhost\" is not an address")),
            "{told:?}"
        );
        assert!(told[0].ends_with("or \"off\""), "{told:?}");
    }
}

#[test]
fn what_stands_behind_an_item_that_was_cut_out_is_told_at_its_own_place() {
    let text = r#"
[[route]]
topics = ["a/#"]

[[route]]
topics = "b/#"

[[route]]
topics = ["c/#"]
key = "{topic["

[[stream]]
shards = 2

[[stream]]
name = "two"
retention = "1 s"

[[allow]]
identity = 3

[[allow]]
publsh = ["x"]

[[sink]]
name = "no type"

[[sink]]
name = "a"
type = "kinesi"

[[sink]]
name = "b"
type = "kinesis"
streams = ["two"]
region = 5
tagret = "x"

[[sink]]
type = "file"
name = "c d"
streams = ["three"]
"#;
    assert_eq!(
        mistakes(text),
        [
            "h.toml:6:1: route[1].topics: write a list, such as [\"b/#\"], not \"b/#\"",
            "h.toml:10:1: route[2].key: a '{' without its '}', or the other way round, in \"{topic[\"",
            "h.toml:12:1: stream[0]: `name` is missing; add `name = ...`",
            "h.toml:17:1: stream[1].retention: write at least \"1 min\"",
            "h.toml:20:1: allow[0].identity: write a text in quotes, such as \"*\", not 3",
            "h.toml:23:1: allow[1].publsh: there is no key `publsh` here; did you mean `publish`?",
            "h.toml:25:1: sink[0]: `type` is missing; add `type = ...`",
            "h.toml:30:1: sink[1].type: there is no `kinesi` here; did you mean `kinesis`?",
            "h.toml:36:1: sink[2].region: write a text in quotes, not 5",
            "h.toml:37:1: sink[2].tagret: there is no key `tagret` here; did you mean `target`?",
            "h.toml:39:1: sink[3].dir: name the directory for the files, such as dir = \"/srv/headwater\"",
            "h.toml:41:1: sink[3].name: name the sink with 1 to 64 letters, digits, '-', '_' or '.', such as name = \"cloud\"",
            "h.toml:42:1: sink[3].streams: there is no stream \"three\"; add a [[stream]] with name = \"three\"",
        ]
    );
}

#[test]
fn a_sink_for_video_may_name_streams_that_cameras_make_and_none_of_records() {
    let sink = "[[sink]]\nname = \"up\"\ntype = \"kinesis-video\"\nstreams = [\"cam\"]\n";
    assert!(Config::parse("h.toml", sink, &[]).is_ok());
    let off = format!("{sink}[video]\ncreate = false\n");
    assert!(mistakes(&off)[0].contains("there is no stream \"cam\""), "{:?}", mistakes(&off));
    let records = format!("{sink}[[stream]]\nname = \"cam\"\n");
    assert!(mistakes(&records)[0].contains("is a stream of records"), "{:?}", mistakes(&records));
}

#[test]
fn a_camera_and_a_mark_may_not_name_a_stream_of_records_nor_a_route_one_of_video() {
    let camera = "[[camera]]\nname = \"yard\"\nurl = \"rtsp://192.0.2.7/a\"\n";
    let mark = "[[mark]]\ntopic = \"door/open\"\nstreams = [\"gate\", \"yard\"]\n";
    let stream = |kind| format!("{camera}{mark}[[stream]]\nname = \"yard\"\n{kind}");
    assert!(Config::parse("h.toml", &stream("kind = \"video\"\n"), &[]).is_ok());
    let says = "\"yard\" is a stream of records; write kind = \"video\" in its [[stream]]";
    let told = [format!("h.toml:2:1: camera[0].name: {says}"), format!("h.toml:6:1: mark[0].streams: {says}")];
    assert_eq!(mistakes(&stream("")), told);
    let default = camera.replace("yard", "default");
    assert!(mistakes(&default)[0].contains("\"default\" is the stream of records"), "{:?}", mistakes(&default));
    let route = "[[stream]]\nname = \"yard\"\nkind = \"video\"\n[[route]]\ntopics = [\"a/#\"]\nstream = \"yard\"\n";
    assert!(
        mistakes(route)[0].starts_with("h.toml:6:1: route[0].stream: \"yard\" is a stream of video"),
        "{:?}",
        mistakes(route)
    );
}
