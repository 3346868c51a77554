//! The sample configuration of `deploy/`, generated from the types: keys and values from `Default`, the words above them
//! from the doc comments. A test compares; `HEADWATER_BLESS=1` writes it anew.

use super::*;
use serde_json::Value;
use std::fmt::Write as _;

/// Section, the file its type lives in, and the type.
const SECTIONS: [(&str, &str, &str); 5] = [
    ("data", "src/config.rs", "DataConfig"),
    ("mqtt", "src/mqtt/config.rs", "MqttConfig"),
    ("api", "src/api/config.rs", "ApiConfig"),
    ("console", "src/console/config.rs", "ConsoleConfig"),
    ("video", "src/media/config.rs", "VideoConfig"),
];

/// File and name.
type Struct = (&'static str, &'static str);

/// The lists: what stands above an item, the keys that have no default, and the struct whose fields are its keys.
const LISTS: [(&str, &str, Struct); 10] = [
    ("stream", "name = \"telemetry\"", ("src/config.rs", "StreamConfig")),
    ("route", "", ("src/mqtt/config.rs", "RouteConfig")),
    ("allow", "", ("src/mqtt/config.rs", "AllowConfig")),
    ("camera", "name = \"yard\"\nurl = \"rtsp://192.0.2.7/stream1\"", ("src/media/config.rs", "CameraConfig")),
    ("mark", "topic = \"plant/door/+/open\"\nstreams = [\"yard\"]", ("src/media/rules.rs", "MarkConfig")),
    ("sink", "type = \"kinesis\"\nname = \"cloud\"", ("src/uplink/sink/kinesis.rs", "KinesisConfig")),
    ("sink", "type = \"kinesis-video\"\nname = \"cameras\"", ("src/uplink/sink/video.rs", "KinesisVideoConfig")),
    (
        "sink",
        "type = \"s3-video\"\nname = \"film\"\nbucket = \"film\"",
        ("src/uplink/sink/video_s3.rs", "S3VideoConfig"),
    ),
    (
        "sink",
        "type = \"mqtt\"\nname = \"broker\"\nbroker = \"mqtt://127.0.0.1:1884\"",
        ("src/uplink/sink/mqtt.rs", "MqttConfig"),
    ),
    ("sink", "type = \"file\"\nname = \"files\"\ndir = \"/srv/headwater\"", ("src/uplink/sink/file.rs", "FileConfig")),
];
/// Structs whose keys stand in an item as its own do.
const FLATTENED: [Struct; 3] =
    [("src/uplink/config.rs", "Common"), ("src/uplink/config.rs", "Sending"), ("src/uplink/aws.rs", "AwsConfig")];
/// Tables within an item.
const INNER: [Struct; 1] = [("src/uplink/aws.rs", "IotConfig")];

/// Short examples in front of the lists with all keys; a test reads them too.
const EXAMPLES: &str = r#"[[stream]]
name = "telemetry"
shards = 4
retention = "7 days"
max_bytes = "8 GiB"
on_full = "drop-oldest"           # or "reject"

[[route]]                         # the first that matches wins; without any, everything goes to "default" by client id
topics = ["site/+/dev/+/t"]
stream = "telemetry"
key = "{topic[3]}"                # levels count from 0

[[allow]]                         # once there is one, only what an entry names is allowed
identity = "*"
publish = ["site/+/dev/{identity}/t"]

[[sink]]
name = "cloud"
type = "kinesis"                  # kinesis, kinesis-video, s3-video, mqtt or file
streams = ["telemetry"]
target = "telemetry"
region = "eu-west-1"
endpoint = "http://127.0.0.1:4568"  # only for something that is not AWS itself
required = true                   # holds retention until delivered
"#;

const HEAD: &str = "\
# Headwater's configuration. Every key has a default, and the values below are the defaults; keys that are not set by
# default are commented out. `headwater check FILE` tells every mistake. Generated from the types: do not edit here.
";

/// A field of a struct in the source: its name, its type as written, its doc comment.
struct Field {
    name: String,
    kind: String,
    docs: Vec<String>,
}

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fields(source: &str, name: &str) -> Vec<Field> {
    let start = source.find(&format!("pub struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
    let mut docs = Vec::new();
    let mut fields = Vec::new();
    for line in source[start..].lines().skip(1).map(str::trim).take_while(|line| *line != "}") {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim().to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            let kind = kind.trim().trim_end_matches(',').to_owned();
            fields.push(Field { name: name.trim().to_owned(), kind, docs: std::mem::take(&mut docs) });
        }
    }
    fields
}

/// The same with the fields of flattened structs where these stand.
fn flat_fields(file: &str, name: &str) -> Vec<Field> {
    let flat = |field: Field| match FLATTENED.iter().find(|(_, name)| *name == field.kind) {
        Some((file, name)) => fields(&source(file), name),
        None => vec![field],
    };
    fields(&source(file), name).into_iter().flat_map(flat).collect()
}

fn section(into: &mut String, path: &str, source: &str, name: &str, values: &Value) {
    let fields = fields(source, name);
    let _ = writeln!(into, "\n[{path}]");
    let is_table = |field: &&Field| values[&field.name].is_object();
    for field in fields.iter().filter(|field| !is_table(field)) {
        key(into, path, field, values);
    }
    for field in fields.iter().filter(is_table) {
        section(into, &format!("{path}.{}", field.name), source, &field.kind, &values[&field.name]);
    }
}

/// A key with its words above it.
fn key(into: &mut String, path: &str, field: &Field, values: &Value) {
    assert!(!field.docs.is_empty(), "{path}.{} has no doc comment, and a user would read it", field.name);
    for doc in &field.docs {
        let _ = writeln!(into, "# {doc}");
    }
    let _ = match &values[&field.name] {
        Value::Null => writeln!(into, "# {} = {}", field.name, example(&field.kind)),
        value => writeln!(into, "{} = {}", field.name, toml_value(value)),
    };
}

/// All lists with all their keys, as TOML that is not commented out.
fn lists() -> Vec<String> {
    let item = |(list, given, (file, name)): &(&str, &str, Struct)| {
        let text = format!("[[{list}]]\n{given}\n");
        let config = Config::parse("lists", &text, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let values = serde_json::to_value(config).unwrap()[list][0].take();
        let mut into = format!("[[{list}]]\n");
        let mut inner = String::new();
        if let Some(kind) = values["type"].as_str() {
            let _ = writeln!(into, "type = {kind:?}");
        }
        for field in flat_fields(file, name) {
            match values[&field.name].is_object() {
                false => key(&mut into, list, &field, &values),
                true => {
                    let (file, _) = INNER.iter().find(|(_, name)| *name == field.kind).expect("a known table");
                    let path = format!("{list}.{}", field.name);
                    section(&mut inner, &path, &source(file), &field.kind, &values[&field.name]);
                }
            }
        }
        into + &inner
    };
    LISTS.iter().map(item).collect()
}

/// What stands behind a key that is not set.
fn example(kind: &str) -> &'static str {
    match kind {
        "Option<PathBuf>" => "\"FILE\"",
        "Option<ByteSize>" => "\"1 GiB\"",
        "Option<Span>" => "\"5 s\"",
        "Option<String>" => "\"...\"",
        "Option<SocketAddr>" => "\"127.0.0.1:8883\"",
        other => panic!("no example for {other}"),
    }
}

fn toml_value(value: &Value) -> String {
    match value {
        // JSON strings, numbers, booleans and arrays of them are TOML as they stand.
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Array(_) => value.to_string(),
        other => panic!("{other} has no TOML form here"),
    }
}

fn generate() -> String {
    let values = serde_json::to_value(Config::default()).unwrap();
    let mut text = HEAD.to_owned();
    for (path, file, name) in SECTIONS {
        section(&mut text, path, &source(file), name, &values[path]);
    }
    text.push_str("\n# Examples of the lists:\n\n");
    comment_out(&mut text, EXAMPLES);
    text.push_str("\n# The lists with all their keys and the defaults of these:\n");
    for list in lists() {
        text.push('\n');
        comment_out(&mut text, &list);
    }
    text
}

fn comment_out(into: &mut String, text: &str) {
    for line in text.lines() {
        let mark = if line.is_empty() { "" } else { "# " };
        let _ = writeln!(into, "{mark}{line}");
    }
}

#[test]
fn the_sample_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/headwater.toml");
    let generated = generate();
    if std::env::var_os("HEADWATER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &generated).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, generated, "run this test with HEADWATER_BLESS=1 to write deploy/headwater.toml anew");
}

#[test]
fn the_sample_is_the_defaults_and_its_examples_are_good() {
    let sample = Config::parse("headwater.toml", &generate(), &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let values = |config: &Config| serde_json::to_value(config).unwrap();
    assert_eq!(values(&sample), values(&Config::default()));
    Config::parse("examples", EXAMPLES, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
}

#[test]
fn the_lists_have_every_key_and_are_good_once_the_mark_is_taken_away() {
    let sample = generate();
    let (_, commented) = sample.split_once("with all their keys and the defaults of these:\n").unwrap();
    let text: Vec<&str> = commented.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
    let config = Config::parse("lists", &text.join("\n"), &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    // As the types write them, so that a key that is forgotten above is missed here.
    for sink in &config.sinks {
        let value = serde_json::to_value(sink).unwrap();
        let (kind, keys) = (value["type"].as_str().unwrap(), value.as_object().unwrap());
        let list = lists().into_iter().find(|list| list.contains(&format!("type = {kind:?}"))).unwrap();
        for key in keys.keys() {
            let there = |line: &str| {
                line.trim_start_matches("# ").starts_with(&format!("{key} =")) || line == format!("[sink.{key}]")
            };
            assert!(list.lines().any(there), "{kind}: {key} is missing in\n{list}");
        }
    }
    assert_eq!(config.sinks.len(), 5);
}
