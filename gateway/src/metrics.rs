//! Every figure the gateway shows, in one table. Counted where it happens, rendered for Prometheus by the console.

mod card;
mod device;

pub use card::CardLife;
pub use device::Device;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabel {
    pub stream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SinkLabel {
    pub sink: String,
    pub stream: String,
}

/// `part` is where it happened (`mqtt`, `api`, `log`, `uplink`); `reason` is one of a fixed set, never a stranger's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub part: &'static str,
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationLabel {
    pub operation: &'static str,
    /// HTTP status.
    pub status: u16,
}

/// For a gauge that is absent until it knows something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoLabel {}

macro_rules! metrics {
    ($( $field:ident: $type:ty = $make:expr, $name:literal, $unit:expr, $help:literal; )*) => {
        /// All metrics. One per process (or per gateway in a test); parts hold it in an `Arc`.
        #[derive(Debug)]
        pub struct Metrics {
            $( #[doc = $help] pub $field: $type, )*
            registry: Registry,
        }

        impl Metrics {
            pub fn new() -> Arc<Self> {
                let mut registry = Registry::with_prefix("headwater");
                $(
                    let $field: $type = $make;
                    match $unit {
                        None => registry.register($name, $help, $field.clone()),
                        Some(unit) => registry.register_with_unit($name, $help, unit, $field.clone()),
                    }
                )*
                Arc::new(Metrics { $( $field, )* registry })
            }

            /// Name, type, unit, help: the table in the docs is made from this.
            #[cfg(test)]
            fn table() -> Vec<(&'static str, &'static str, Option<Unit>, &'static str)> {
                vec![$( ($name, stringify!($type), $unit, $help), )*]
            }
        }
    };
}

fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 18))
}

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const PLAIN: Option<Unit> = None;

metrics! {
    // Bytes in.
    mqtt_connections: Gauge = Gauge::default(), "mqtt_connections", PLAIN, "MQTT connections open now";
    mqtt_connects: Counter = Counter::default(), "mqtt_connects", PLAIN, "MQTT connections accepted since start";
    mqtt_subscriptions: Gauge = Gauge::default(), "mqtt_subscriptions", PLAIN, "MQTT subscriptions held now";
    mqtt_delivered: Counter = Counter::default(), "mqtt_delivered", PLAIN, "Messages sent to MQTT subscribers";
    mqtt_wills: Counter = Counter::default(), "mqtt_wills", PLAIN, "Last wills published for MQTT clients that went without a goodbye";
    device_lost: Counter = Counter::default(), "device_lost_records", PLAIN, "Records that devices have numbered and lost before they sent them";
    rejects: Family<ReasonLabel, Counter> = Family::default(), "rejects", PLAIN, "Input refused, by part and reason";
    api_requests: Family<OperationLabel, Counter> = Family::default(), "api_requests", PLAIN, "AWS API requests answered";
    video_chunks_missing: Family<StreamLabel, Counter> = Family::default(), "video_chunks_missing", PLAIN, "Chunks over MQTT that never came, by the numbers that were left out";
    video_chunks_repeated: Family<StreamLabel, Counter> = Family::default(), "video_chunks_repeated", PLAIN, "Chunks over MQTT that came again and were on disk already";
    camera_connected: Family<StreamLabel, Gauge> = Family::default(), "camera_connected", PLAIN, "1 while pictures of a [[camera]] come, 0 while they do not";
    camera_failures: Family<StreamLabel, Counter> = Family::default(), "camera_failures", PLAIN, "Connections to a [[camera]] that ended or never came to be; each is made anew";
    camera_frames_dropped: Family<StreamLabel, Counter> = Family::default(), "camera_frames_dropped", PLAIN, "Frames of a [[camera]] that are in no fragment: before its first keyframe, or of a fragment that outgrew its limits";
    camera_packets_lost: Family<StreamLabel, Counter> = Family::default(), "camera_packets_lost", PLAIN, "RTP packets of a [[camera]] that never came";
    // Bytes kept.
    records_in: Family<StreamLabel, Counter> = Family::default(), "records_in", PLAIN, "Records made durable";
    payload_in: Family<StreamLabel, Counter> = Family::default(), "payload_in", BYTES, "Payload bytes made durable";
    commits: Counter = Counter::default(), "commits", PLAIN, "Groups committed to the journal";
    commit_latency: Histogram = latency(), "commit_latency", SECONDS, "Write and sync of one group";
    commit_errors: Counter = Counter::default(), "commit_errors", PLAIN, "Groups that could not be committed";
    producer_marks: Gauge = Gauge::default(), "producer_marks", PLAIN, "Numbers of producers remembered, one for each shard they write to, so that nothing is stored twice; 65,536 at most";
    producer_marks_forgotten: Counter = Counter::default(), "producer_marks_forgotten", PLAIN, "Numbers of producers forgotten to make room for others: what those producers send again is stored again";
    producer_numbers_forgotten: Counter = Counter::default(), "producer_numbers_forgotten", PLAIN, "Devices whose last number was forgotten to make room for others: they are not told it when they connect";
    folds: Counter = Counter::default(), "folds", PLAIN, "Folds of the journal into segments";
    fold_errors: Counter = Counter::default(), "fold_errors", PLAIN, "Folds that failed and are tried again";
    journal_written: Counter = Counter::default(), "journal_written", BYTES, "Bytes written to the journal";
    segments_written: Counter = Counter::default(), "segments_written", BYTES, "Bytes written to segments and state";
    blobs_written: Counter = Counter::default(), "blobs_written", BYTES, "Bytes written to blob files";
    window_size: Gauge = Gauge::default(), "window_size", BYTES, "Records in memory that are not folded yet";
    stream_size: Family<StreamLabel, Gauge> = Family::default(), "stream_size", BYTES, "Bytes a stream takes on disk";
    stream_records: Family<StreamLabel, Gauge> = Family::default(), "stream_records", PLAIN, "Records a stream holds";
    gap_records: Family<ReasonLabel, Counter> = Family::default(), "gap_records", PLAIN, "Records that went, delivered or not, and records refused, by reason: see the gap ledger";
    card_life: Family<NoLabel, Gauge<f64, std::sync::atomic::AtomicU64>> = Family::default(), "card_life_days", PLAIN, "Days a 32 GB card would last at the rate since start, if it takes 1,000 full writes; absent for the first 5 minutes";
    // Bytes out.
    sink_records: Family<SinkLabel, Counter> = Family::default(), "sink_records", PLAIN, "Records acknowledged by a sink";
    sink_payload: Family<SinkLabel, Counter> = Family::default(), "sink_payload", BYTES, "Payload bytes acknowledged by a sink";
    sink_retries: Family<SinkLabel, Counter> = Family::default(), "sink_retries", PLAIN, "Groups sent again after a failure";
    sink_dead: Family<SinkLabel, Counter> = Family::default(), "sink_dead", PLAIN, "Records a sink refused for good";
    sink_lost: Family<SinkLabel, Counter> = Family::default(), "sink_lost", PLAIN, "Records that went before a sink had acknowledged them";
    sink_backlog: Family<SinkLabel, Gauge> = Family::default(), "sink_backlog", PLAIN, "Records a sink has not acknowledged yet";
    sink_backlog_size: Family<SinkLabel, Gauge> = Family::default(), "sink_backlog_size", BYTES, "Bytes a sink has not acknowledged yet, estimated";
    sink_backlog_age: Family<SinkLabel, Gauge> = Family::default(), "sink_backlog_age", SECONDS, "Age of the oldest record a sink has not acknowledged";
}

impl Metrics {
    pub fn reject(&self, part: &'static str, reason: &'static str) {
        self.rejects.get_or_create(&ReasonLabel { part, reason }).inc();
    }

    /// The Prometheus text exposition of everything.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::new();
        metrics.reject("mqtt", "malformed");
        let text = metrics.render();
        assert!(text.contains(r#"headwater_rejects_total{part="mqtt",reason="malformed"} 1"#), "{text}");
    }

    /// Labels by the type that holds them.
    const LABELS: [(&str, &str); 4] = [
        ("StreamLabel", "`stream`"),
        ("SinkLabel", "`sink`, `stream`"),
        ("ReasonLabel", "`part`, `reason`"),
        ("OperationLabel", "`operation`, `status`"),
    ];

    /// The rows of the table in the docs: name as Prometheus sees it, kind, labels, help.
    fn rows() -> Vec<[String; 4]> {
        let row = |(name, kind, unit, help): (&str, &str, Option<Unit>, &str)| {
            let unit = unit.map_or(String::new(), |unit| format!("_{}", unit.as_str()));
            let (word, end) = match kind {
                kind if kind.contains("Counter") => ("counter", "_total"),
                kind if kind.contains("Histogram") => ("histogram", ""),
                _ => ("gauge", ""),
            };
            let labels = LABELS.iter().find(|(name, _)| kind.contains(name)).map_or("", |(_, labels)| labels);
            [format!("headwater_{name}{unit}{end}"), word.into(), labels.into(), help.into()]
        };
        Metrics::table().into_iter().map(row).collect()
    }

    #[test]
    fn the_table_in_the_docs_is_what_is_registered() {
        let mut table = "| metric | kind | labels | what |\n|---|---|---|---|\n".to_owned();
        for [name, kind, labels, help] in rows() {
            table.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once("<!-- metrics: generated -->\n").expect("the mark of the table's start");
        let (there, tail) = rest.split_once("<!-- metrics: end -->").expect("the mark of the table's end");
        if std::env::var_os("HEADWATER_BLESS").is_some() {
            let text = format!("{head}<!-- metrics: generated -->\n{table}<!-- metrics: end -->{tail}");
            std::fs::write(&path, text).unwrap();
            return;
        }
        assert_eq!(there, table, "run this test with HEADWATER_BLESS=1 to write docs/operations.md anew");
    }

    #[test]
    fn the_names_in_the_table_are_those_that_are_rendered() {
        let text = Metrics::new().render();
        let without_labels: Vec<String> =
            rows().into_iter().filter(|row| row[2].is_empty()).map(|[name, ..]| name).collect();
        assert!(without_labels.len() > 10);
        for name in without_labels.iter().filter(|name| !name.contains("card_life")) {
            assert!(text.contains(&format!("\n{name}")), "{name} is not in\n{text}");
        }
    }
}
