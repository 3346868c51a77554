//! A record as an MQTT message. Pure.

use crate::record::{HeaderId, Record, ShardIndex};
use crate::uplink::sink::{Identity, Kind, Outgoing};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::PublishProperties;

/// User property that carries the record id.
pub const ID_PROPERTY: &str = "headwater-id";
/// And the partition key, where the topic does not say it.
pub const KEY_PROPERTY: &str = "headwater-key";
const TOPIC_BYTES_MAX: usize = 4096;

pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    pub properties: PublishProperties,
}

/// A topic with places for what the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Stream,
    Key,
    Shard,
}

impl Default for Template {
    fn default() -> Self {
        Template(vec![Part::Topic])
    }
}

impl std::str::FromStr for Template {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let open = rest.find('{').unwrap_or(rest.len());
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
                rest = &rest[open..];
                continue;
            }
            let close = rest.find('}').ok_or(())?;
            parts.push(match &rest[1..close] {
                "topic" => Part::Topic,
                "stream" => Part::Stream,
                "key" => Part::Key,
                "shard" => Part::Shard,
                _ => return Err(()),
            });
            rest = &rest[close + 1..];
        }
        let bad = |part: &Part| matches!(part, Part::Text(text) if text.contains(['+', '#', '\0', '}']));
        if parts.is_empty() || parts.iter().any(bad) { Err(()) } else { Ok(Template(parts)) }
    }
}

impl Template {
    fn fill(&self, record: &Record, shard: ShardIndex, stream: &str) -> String {
        let mut topic = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Stream => topic.push_str(stream),
                Part::Shard => topic.push_str(&shard.to_string()),
                Part::Key => topic.push_str(&level(&String::from_utf8_lossy(&record.key))),
                Part::Topic => match record.topic() {
                    Some(given) => topic.push_str(&level(given)),
                    // It came in over another door: its stream and key are its place.
                    None => {
                        topic.push_str(stream);
                        topic.push('/');
                        topic.push_str(&level(&String::from_utf8_lossy(&record.key)));
                    }
                },
            }
        }
        let mut end = topic.len().min(TOPIC_BYTES_MAX);
        while !topic.is_char_boundary(end) {
            end -= 1;
        }
        topic.truncate(end);
        // A broker may keep `$` for itself, and an empty topic is none.
        if topic.is_empty() || topic.starts_with('$') { format!("{stream}/{topic}") } else { topic }
    }
}

/// Text that may stand in a topic name.
fn level(text: &str) -> String {
    text.replace(['+', '#', '\0'], "_")
}

pub fn of(out: &Outgoing, shard: ShardIndex, prefix: &str, topic: &Template, who: &Identity) -> Message {
    let record = &out.record;
    let text = |id| record.header(id).and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned);
    let mut user_properties: Vec<(String, String)> = record
        .headers
        .iter()
        .filter_map(|header| header.as_user())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if out.kind == Kind::Record {
        user_properties.push((ID_PROPERTY.to_owned(), who.id_of(prefix, record).into_owned()));
    }
    user_properties.push((KEY_PROPERTY.to_owned(), String::from_utf8_lossy(&record.key).into_owned()));
    let properties = PublishProperties {
        payload_format_indicator: record.header(HeaderId::PayloadFormat).and_then(|value| value.first().copied()),
        response_topic: text(HeaderId::ResponseTopic),
        correlation_data: record.header(HeaderId::CorrelationData).cloned(),
        content_type: text(HeaderId::ContentType),
        user_properties,
        ..PublishProperties::default()
    };
    Message { topic: topic.fill(record, shard, who.stream.as_str()), payload: record.data.clone(), properties }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Header;

    fn record(topic: Option<&str>) -> Record {
        Record {
            number: 1,
            arrival_ms: 0,
            key: Bytes::from_static(b"dev+1"),
            explicit_hash: None,
            producer: None,
            headers: topic.map(|topic| Header::new(HeaderId::Topic, topic.to_owned())).into_iter().collect(),
            data: Bytes::new(),
        }
    }

    #[test]
    fn a_template_says_where_a_record_goes() {
        let fill = |template: &str, topic| template.parse::<Template>().unwrap().fill(&record(topic), 3, "s");
        assert_eq!(fill("{topic}", Some("a/b")), "a/b");
        assert_eq!(fill("{topic}", None), "s/dev_1");
        assert_eq!(fill("site/{stream}/{shard}/{key}", None), "site/s/3/dev_1");
        assert_eq!(fill("{topic}", Some("$SYS/x")), "s/$SYS/x");
    }

    #[test]
    fn a_template_with_a_wildcard_or_an_unknown_place_is_refused() {
        for bad in ["", "a/#", "+/a", "{nothing}", "{topic", "a}b"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }
}
