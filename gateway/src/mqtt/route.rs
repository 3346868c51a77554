//! Routes: which stream a topic goes to, and the partition key of its messages (pure).
//!
//! First matching route wins; a topic that matches none is refused. A template is parsed once at start; what of it
//! depends on the topic alone is worked out once per topic, the rest (`{property:..}`, `{json:..}`) per message.

use super::access::Who;
use super::codec::Properties;
use super::config::RouteConfig;
use super::{json, topic};
use crate::problem::Problem;
use crate::record::StreamName;

/// A partition key template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    ClientId,
    Identity,
    Topic,
    /// One level of the topic, counted from 0.
    Level(usize),
    /// The first user property of that name.
    Property(String),
    /// A JSON pointer into the payload.
    Json(json::Pointer),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("a partition key template must not be empty; \"{{client_id}}\" is the usual one")]
    Empty,
    #[error("a '{{' without its '}}', or the other way round, in {0:?}")]
    Brace(String),
    #[error(
        "{0:?} is not known; there are {{client_id}}, {{identity}}, {{topic}}, {{topic[2]}}, {{property:name}} and {{json:/a/b}}"
    )]
    Unknown(String),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        if text.is_empty() {
            return Err(BadTemplate::Empty);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let Some(open) = rest.find(['{', '}']) else {
                pieces.push(Piece::Text(rest.to_owned()));
                break;
            };
            if open > 0 {
                pieces.push(Piece::Text(rest[..open].to_owned()));
            }
            let inner = rest[open..].strip_prefix('{').and_then(|r| r.split_once('}'));
            let (name, behind) = inner.ok_or_else(|| BadTemplate::Brace(text.to_owned()))?;
            pieces.push(Piece::parse(name)?);
            rest = behind;
        }
        Ok(Template(pieces))
    }

    /// Whether the key is the same for all messages of one client on one topic.
    pub fn is_fixed(&self) -> bool {
        !self.0.iter().any(|piece| matches!(piece, Piece::Property(_) | Piece::Json(_)))
    }

    /// Writes the key of one message. What a message lacks is replaced by the client id.
    pub fn write(&self, key: &mut Vec<u8>, who: &Who, topic: &str, properties: Properties<'_>, payload: &[u8]) {
        key.clear();
        for piece in &self.0 {
            let start = key.len();
            match piece {
                Piece::Text(text) => key.extend_from_slice(text.as_bytes()),
                Piece::ClientId => {}
                Piece::Identity => key.extend_from_slice(who.identity.as_deref().unwrap_or("").as_bytes()),
                Piece::Topic => key.extend_from_slice(topic.as_bytes()),
                Piece::Level(level) => key.extend_from_slice(topic.split('/').nth(*level).unwrap_or("").as_bytes()),
                Piece::Property(name) => key.extend_from_slice(properties.user(name).unwrap_or("").as_bytes()),
                Piece::Json(pointer) => {
                    if let Some(text) = pointer.find(payload) {
                        key.extend_from_slice(text.as_bytes());
                    }
                }
            }
            if key.len() == start {
                key.extend_from_slice(who.client_id.as_bytes());
            }
        }
    }
}

impl Piece {
    fn parse(name: &str) -> Result<Piece, BadTemplate> {
        let unknown = || BadTemplate::Unknown(format!("{{{name}}}"));
        match name {
            "client_id" => Ok(Piece::ClientId),
            "identity" => Ok(Piece::Identity),
            "topic" => Ok(Piece::Topic),
            _ => {
                if let Some(property) = name.strip_prefix("property:").filter(|p| !p.is_empty()) {
                    return Ok(Piece::Property(property.to_owned()));
                }
                if let Some(pointer) = name.strip_prefix("json:") {
                    return json::Pointer::parse(pointer).map(Piece::Json).ok_or_else(unknown);
                }
                let level = name.strip_prefix("topic[").and_then(|r| r.strip_suffix(']')).ok_or_else(unknown)?;
                level.parse().map(Piece::Level).map_err(|_| unknown())
            }
        }
    }
}

/// Where the messages of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stream(StreamName),
    /// `store = false`: to whoever listens now, and nowhere else.
    Live,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub filters: Vec<String>,
    pub target: Target,
    pub key: Template,
}

/// All routes, in the order of the configuration.
#[derive(Clone, Debug)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Without a `[[route]]` everything goes to stream `default`, keyed by client id.
    pub fn new(configs: &[RouteConfig]) -> Result<Self, Vec<Problem>> {
        let default = [RouteConfig::default()];
        let configs = if configs.is_empty() { &default[..] } else { configs };
        let mut routes = Vec::new();
        let mut problems = Vec::new();
        for (at, config) in configs.iter().enumerate() {
            match parse(at, config) {
                Ok(route) => routes.push(route),
                Err(mistakes) => problems.extend(mistakes),
            }
        }
        if problems.is_empty() { Ok(Routes(routes)) } else { Err(problems) }
    }

    pub fn find(&self, topic_name: &str) -> Option<&Route> {
        self.0.iter().find(|route| route.filters.iter().any(|filter| topic::matches(filter, topic_name)))
    }

    /// Streams that may hold a topic the filter matches.
    pub fn streams_for(&self, filter: &str) -> Vec<&StreamName> {
        let mut names: Vec<_> = self.overlapping(filter).filter_map(Route::stream).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether the filter reaches messages that are not stored.
    pub fn reaches_live(&self, filter: &str) -> bool {
        self.overlapping(filter).any(|route| route.target == Target::Live)
    }

    pub fn streams(&self) -> impl Iterator<Item = &StreamName> {
        self.0.iter().filter_map(Route::stream)
    }

    fn overlapping<'a>(&'a self, filter: &str) -> impl Iterator<Item = &'a Route> {
        self.0.iter().filter(move |route| route.filters.iter().any(|own| topic::overlap(own, filter)))
    }
}

impl Route {
    fn stream(&self) -> Option<&StreamName> {
        match &self.target {
            Target::Stream(name) => Some(name),
            Target::Live => None,
        }
    }
}

fn parse(at: usize, config: &RouteConfig) -> Result<Route, Vec<Problem>> {
    let mut problems = Vec::new();
    if config.topics.is_empty() {
        let says = "name at least one topic filter, such as [\"site/+/dev/+/t\"]";
        problems.push(Problem::new(format!("route[{at}].topics"), says));
    }
    for (nth, filter) in config.topics.iter().enumerate() {
        if !topic::is_topic_filter(filter) {
            problems.push(Problem::new(
                format!("route[{at}].topics[{nth}]"),
                format!("{filter:?} is not a topic filter; '#' stands last and '+' or '#' alone in a level"),
            ));
        }
    }
    let target = match (config.store, StreamName::new(&config.stream)) {
        (false, _) => Some(Target::Live),
        (true, Ok(name)) => Some(Target::Stream(name)),
        (true, Err(bad)) => {
            problems.push(Problem::new(format!("route[{at}].stream"), bad.to_string()));
            None
        }
    };
    let key = match Template::parse(&config.key) {
        Ok(key) => Some(key),
        Err(bad) => {
            problems.push(Problem::new(format!("route[{at}].key"), bad.to_string()));
            None
        }
    };
    match (target, key) {
        (Some(target), Some(key)) if problems.is_empty() => Ok(Route { filters: config.topics.clone(), target, key }),
        _ => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(topics: &[&str], stream: &str, key: &str) -> RouteConfig {
        RouteConfig {
            topics: topics.iter().map(|t| t.to_string()).collect(),
            stream: stream.into(),
            key: key.into(),
            store: true,
        }
    }

    fn key(template: &str, topic: &str, payload: &[u8]) -> String {
        let who = Who { identity: Some("pump".into()), client_id: "c-7".into() };
        let mut key = Vec::new();
        Template::parse(template).unwrap().write(&mut key, &who, topic, Properties::NONE, payload);
        String::from_utf8(key).unwrap()
    }

    #[test]
    fn templates_give_the_keys_of_the_contract() {
        assert_eq!(key("{client_id}", "a/b", b""), "c-7");
        assert_eq!(key("{topic}", "a/b", b""), "a/b");
        assert_eq!(key("{topic[1]}", "a/b", b""), "b");
        assert_eq!(key("{identity}-{topic[0]}", "a/b", b""), "pump-a");
        assert_eq!(key("{json:/dev/id}", "a", br#"{"dev":{"id":"x9"}}"#), "x9");
        assert_eq!(key("{json:/n}", "a", br#"{"n":12}"#), "12");
    }

    #[test]
    fn what_a_message_lacks_falls_back_to_the_client_id() {
        assert_eq!(key("{json:/dev/id}", "a", b"not json"), "c-7");
        assert_eq!(key("{json:/dev/id}", "a", b"{}"), "c-7");
        assert_eq!(key("{property:unit}", "a", b""), "c-7");
        assert_eq!(key("k-{topic[4]}", "a", b""), "k-c-7");
    }

    #[test]
    fn a_template_that_makes_no_sense_is_refused_with_what_there_is() {
        for bad in ["", "{", "}", "a}b", "{clientid}", "{topic[x]}", "{json:a}", "{property:}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn first_matching_route_wins() {
        let routes = Routes::new(&[
            route(&["site/+/t"], "telemetry", "{topic[1]}"),
            route(&["site/#", "other"], "rest", "{client_id}"),
        ])
        .unwrap();
        let stream = |topic: &str| routes.find(topic).map(|r| r.target.clone());
        let target = |name: &str| Some(Target::Stream(StreamName::new(name).unwrap()));
        assert_eq!(stream("site/1/t"), target("telemetry"));
        assert_eq!(stream("site/1/x"), target("rest"));
        assert_eq!(stream("other"), target("rest"));
        assert_eq!(stream("nowhere"), None);
        assert_eq!(routes.streams_for("site/+/t").len(), 2);
        assert_eq!(routes.streams_for("other").len(), 1);
    }

    #[test]
    fn without_a_route_all_but_dollar_topics_go_to_default() {
        let routes = Routes::new(&[]).unwrap();
        assert!(routes.find("a/b").is_some());
        assert!(routes.find("$SYS/x").is_none());
        assert!(routes.find("$aws/x").is_none());
    }

    #[test]
    fn mistakes_are_all_told_with_their_key() {
        let problems = Routes::new(&[route(&["a#"], "bad name", "{nope}")]).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["route[0].topics[0]", "route[0].stream", "route[0].key"]);
    }
}
