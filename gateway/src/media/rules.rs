//! Rules: a message on a topic marks what cameras show around it, with pre-roll.
//!
//! The mark goes into the batch of the message that made it, so PUBACK says that both are on disk. Messages that follow each
//! other make one mark that grows: an alarm that repeats a hundred times a second costs a row a second.

use super::Media;
use super::marks::{NewMark, SPAN_MS_MAX};
use crate::log::Batch;
use crate::problem::Problem;
use crate::record::StreamName;
use crate::units::Span;
use crate::wire::media::Mark;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A mark grows at most so often, and covers so much more than was asked for, in milliseconds.
const GROWS_EVERY_MS: i64 = 1_000;

/// A message to a topic marks the video around it: a sink with `only = "marked"` then sends it, and the player shows it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MarkConfig {
    /// Topic filter of the messages, such as "plant/door/+/open". What they say does not matter.
    pub topic: String,
    /// Streams of video to mark.
    pub streams: Vec<String>,
    /// How much from before the message is marked.
    #[serde(default = "pre_roll")]
    pub pre_roll: Span,
    /// And how much from behind it.
    #[serde(default = "post_roll")]
    pub post_roll: Span,
    /// What the marks are called; "{topic}" stands for the message's.
    #[serde(default = "name")]
    pub name: String,
}

fn pre_roll() -> Span {
    Span::secs(10)
}

fn post_roll() -> Span {
    Span::secs(20)
}

fn name() -> String {
    "{topic}".into()
}

impl MarkConfig {
    /// Mistakes, with what to write instead. What a topic filter is, MQTT knows.
    pub fn check_all(marks: &[MarkConfig], is_filter: impl Fn(&str) -> bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (at, mark) in marks.iter().enumerate() {
            let mut wrong = |key: &str, says: &str| problems.push(Problem::new(format!("mark[{at}].{key}"), says));
            if !is_filter(&mark.topic) {
                wrong("topic", "write a topic or a filter, such as \"plant/door/+/open\" or \"alarms/#\"");
            }
            if mark.streams.is_empty() || mark.streams.iter().any(|name| StreamName::new(name).is_err()) {
                wrong("streams", "name the streams of video to mark, such as [\"yard\"]");
            }
            if mark.pre_roll > Span::secs(3_600) || mark.post_roll > Span::secs(3_600) {
                wrong("pre_roll", "pre_roll and post_roll are \"0 s\" to \"1 h\"");
            }
            if mark.pre_roll.as_ms() + mark.post_roll.as_ms() < 1_000 {
                wrong("post_roll", "pre_roll and post_roll together are at least \"1 s\"");
            }
        }
        problems
    }
}

type Matches = fn(&str, &str) -> bool;

/// All rules, and the mark that each made last on each of its streams.
pub struct Rules {
    rules: Vec<MarkConfig>,
    /// Whether a filter matches a topic.
    matches: Matches,
    /// By rule and stream.
    last: Mutex<HashMap<(usize, usize), (Mark, i64)>>,
}

impl Rules {
    pub fn new(rules: &[MarkConfig], matches: Matches) -> Rules {
        Rules { rules: rules.to_vec(), matches, last: Mutex::default() }
    }

    fn of(&self, topic: &str) -> impl Iterator<Item = (usize, &MarkConfig)> {
        self.rules.iter().enumerate().filter(move |(_, rule)| (self.matches)(&rule.topic, topic))
    }

    /// The mark of a message, and whether it makes it, or makes it longer, or whether the one before covers it.
    fn mark(&self, rule: usize, stream: usize, topic: &str, now_ms: i64) -> Option<(Mark, bool)> {
        let config = self.rules.get(rule)?;
        let (pre_ms, post_ms) = (config.pre_roll.as_ms() as i64, config.post_roll.as_ms() as i64);
        let (from_ms, to_ms) = (now_ms.saturating_sub(pre_ms), now_ms.saturating_add(post_ms + GROWS_EVERY_MS));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.get(&(rule, stream));
        let covers = |(_, at_ms): &&(Mark, i64)| (0..GROWS_EVERY_MS).contains(&now_ms.saturating_sub(*at_ms));
        if let Some((mark, _)) = before.filter(covers) {
            return Some((mark.clone(), false));
        }
        let grows = |(mark, at_ms): &&(Mark, i64)| {
            *at_ms <= now_ms && mark.to_ms >= from_ms && to_ms.saturating_sub(mark.from_ms) <= SPAN_MS_MAX
        };
        let mark = match before.filter(grows) {
            Some((mark, _)) => Mark { to_ms, ..mark.clone() },
            None => NewMark::called(&config.name.replace("{topic}", topic)).named(from_ms, to_ms),
        };
        last.insert((rule, stream), (mark.clone(), now_ms));
        Some((mark, true))
    }
}

impl Media {
    /// Which messages mark video. Once, before any comes. `matches` says whether a filter matches a topic.
    pub fn mark_by(&self, rules: &[MarkConfig], matches: Matches) {
        let _ = self.inner.rules.set(Rules::new(rules, matches));
    }

    pub fn has_rule_for(&self, topic: &str) -> bool {
        self.inner.rules.get().is_some_and(|rules| rules.of(topic).next().is_some())
    }

    /// Puts what the rules make of a message into its batch. A stream that is not there has nothing to mark.
    pub fn notice(&self, topic: &str, batch: &mut Batch) {
        let Some(rules) = self.inner.rules.get() else { return };
        let now_ms = self.inner.clock.now().wall_ms as i64;
        for (at, rule) in rules.of(topic) {
            for (place, stream) in rule.streams.iter().enumerate() {
                if self.camera(stream).is_err() {
                    continue;
                }
                let Some((mark, is_new)) = rules.mark(at, place, topic, now_ms) else { continue };
                // The message that made it may not be durable yet, or never: this one's PUBACK is for the mark too.
                if !is_new && self.has_row(stream, &mark) {
                    continue;
                }
                if let Err(refusal) = self.put_row(stream, &mark, batch) {
                    tracing::warn!(%stream, topic, says = refusal.says, "a message could not mark video");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(topic: &str) -> Rules {
        let rules = [MarkConfig {
            topic: topic.into(),
            streams: vec!["yard".into()],
            pre_roll: pre_roll(),
            post_roll: post_roll(),
            name: "{topic}!".into(),
        }];
        Rules::new(&rules, |filter, topic| filter == topic)
    }

    #[test]
    fn messages_that_follow_each_other_make_one_mark_that_grows() {
        let rules = rules("door/#");
        let mark = |at_ms| rules.mark(0, 0, "door/1", at_ms).unwrap();
        let (first, _) = mark(100_000);
        assert_eq!((first.from_ms, first.to_ms, &first.name[..]), (90_000, 121_000, "door/1!"));
        assert_eq!(mark(100_999), (first.clone(), false), "it is covered: until 121,000");
        assert_eq!(mark(101_000), (Mark { to_ms: 122_000, ..first.clone() }, true));
        let (apart, _) = mark(140_000);
        assert!(apart.id != first.id && apart.from_ms == 130_000);
        assert!(mark(100_000).0.id != apart.id, "a clock set back begins another");
    }

    #[test]
    fn an_alarm_that_never_ends_makes_marks_of_a_day() {
        let rules = rules("door/#");
        let ids: std::collections::HashSet<_> =
            (0..3 * 86_400).filter_map(|s| rules.mark(0, 0, "door/1", s * 1_000)).map(|(mark, _)| mark.id).collect();
        assert!((3..=4).contains(&ids.len()), "{}", ids.len());
    }

    #[test]
    fn mistakes_are_told() {
        let rule = |json| serde_json::from_value::<MarkConfig>(json).unwrap();
        let good = rule(serde_json::json!({ "topic": "a/+", "streams": ["yard"] }));
        let none = rule(serde_json::json!({ "topic": "a/+", "streams": [] }));
        let bad =
            rule(serde_json::json!({ "topic": "a/#/b", "streams": ["yard"], "pre_roll": "0 s", "post_roll": "0 s" }));
        let told: Vec<String> = MarkConfig::check_all(&[good, none, bad], |topic| topic == "a/+")
            .iter()
            .map(|problem| problem.to_string())
            .collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("mark[1].streams") && told[1].contains("mark[2].topic"), "{told:?}");
    }
}
