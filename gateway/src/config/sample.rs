//! The sample configuration of `deploy/`, generated from the types: keys and values from `Default`, the words above them
//! from the doc comments. A test compares; `HEADWATER_BLESS=1` writes it anew.

use super::*;
use serde_json::Value;
use std::fmt::Write as _;

/// Section, the file its type lives in, and the type.
const SECTIONS: [(&str, &str, &str); 4] = [
    ("data", "src/config.rs", "DataConfig"),
    ("mqtt", "src/mqtt/config.rs", "MqttConfig"),
    ("api", "src/api/config.rs", "ApiConfig"),
    ("console", "src/console/config.rs", "ConsoleConfig"),
];

/// Lists have no defaults to show, so these are examples; a test reads them too.
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
type = "kinesis"                  # kinesis, mqtt or file
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

fn section(into: &mut String, path: &str, source: &str, name: &str, values: &Value) {
    let fields = fields(source, name);
    let _ = writeln!(into, "\n[{path}]");
    let is_table = |field: &&Field| values[&field.name].is_object();
    for field in fields.iter().filter(|field| !is_table(field)) {
        for doc in &field.docs {
            let _ = writeln!(into, "# {doc}");
        }
        assert!(!field.docs.is_empty(), "{path}.{} has no doc comment, and a user would read it", field.name);
        let _ = match &values[&field.name] {
            Value::Null => writeln!(into, "# {} = {}", field.name, example(&field.kind)),
            value => writeln!(into, "{} = {}", field.name, toml_value(value)),
        };
    }
    for field in fields.iter().filter(is_table) {
        section(into, &format!("{path}.{}", field.name), source, &field.kind, &values[&field.name]);
    }
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
    for line in EXAMPLES.lines() {
        let _ = writeln!(text, "{}", if line.is_empty() { String::new() } else { format!("# {line}") });
    }
    text
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
