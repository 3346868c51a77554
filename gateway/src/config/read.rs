//! TOML text to [`Config`], with the place of every mistake in it, not of the first alone.
//!
//! serde stops at the first error. So the text is parsed into a tree that knows its places; what does not fit is noted and
//! cut out of the tree, and the rest is tried again, a bounded number of times. Flags and environment variables are laid
//! over the tree before that, so that they go through the same checks as the file.

use super::Config;
use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// After this many mistakes we stop looking for more.
const MISTAKES_MAX: usize = 50;

/// A value from a flag or the environment that stands above the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Dotted path, such as `mqtt.listen`.
    pub key: &'static str,
    pub value: Value,
    /// As the user knows it: `--mqtt-listen or HEADWATER_MQTT_LISTEN`.
    pub source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Switch(bool),
}

impl Value {
    fn in_tree(&self) -> DeValue<'static> {
        match self {
            Value::Text(text) => DeValue::String(Cow::Owned(text.clone())),
            Value::Switch(on) => DeValue::Boolean(*on),
        }
    }
}

/// One mistake, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The file, or the flag that brought the value in.
    pub file: String,
    /// From 1; 0 if the mistake has no place in the file.
    pub line: usize,
    /// In characters, from 1; 0 if the mistake has no place in the file.
    pub column: usize,
    /// Dotted path as far as it is known.
    pub key: String,
    /// What is wrong and what to write instead.
    pub says: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            _ => write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?,
        }
        match self.key.is_empty() {
            true => f.write_str(&self.says),
            false => write!(f, "{}: {}", self.key, self.says),
        }
    }
}

/// All mistakes of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    pub(super) fn unreadable(file: &str, error: &std::io::Error) -> Self {
        let says = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file; name another with --config".to_owned(),
            std::io::ErrorKind::InvalidData => "the file is not UTF-8 text".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        Mistakes(vec![Mistake { file: file.into(), line: 0, column: 0, key: String::new(), says }])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

pub(super) fn parse(name: &str, text: &str, overrides: &[Override]) -> Result<Config, Mistakes> {
    let places = Places { name, text, overrides };
    let (mut tree, errors) = DeTable::parse_recoverable(text);
    let mut mistakes: Vec<Mistake> =
        errors.iter().take(MISTAKES_MAX).map(|e| places.mistake(e.span(), "", syntax(e.message()))).collect();
    for (at, over) in overrides.iter().enumerate() {
        lay_over(tree.get_mut(), over, places.of_override(at));
    }
    let whole = tree.clone();
    match typed(&places, tree, whole.get_ref(), &mut mistakes) {
        Some(config) => {
            let problems = config.check();
            mistakes.extend(problems.iter().map(|problem| places.problem(whole.get_ref(), problem)));
            if mistakes.is_empty() {
                return Ok(config);
            }
        }
        None => debug_assert!(!mistakes.is_empty(), "a tree that cannot be read has a mistake"),
    }
    mistakes.sort_by_key(|a| (a.line, a.column));
    mistakes.dedup();
    Err(Mistakes(mistakes))
}

/// Reads the tree, cutting out what does not fit until the rest does. `None` when nothing sensible is left.
fn typed(places: &Places, mut tree: Spanned<DeTable>, whole: &DeTable, mistakes: &mut Vec<Mistake>) -> Option<Config> {
    let mut cut: Vec<String> = Vec::new();
    while mistakes.len() < MISTAKES_MAX {
        let error = match Config::deserialize(Deserializer::from(tree.clone())) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let unknown = quoted(error.message(), "unknown field `");
        let path = error.span().and_then(|span| deepest(tree.get_ref(), &span, unknown.as_deref()));
        // Cutting an item moves those behind it, so the user's index comes from the tree as it was.
        let named = error.span().and_then(|span| deepest(whole, &span, unknown.as_deref()));
        let key = named.as_deref().map(dotted).unwrap_or_default();
        let caused_by_a_cut = quoted(error.message(), "missing field `")
            .is_some_and(|field| cut.iter().any(|gone| *gone == format!("{key}.{field}")));
        if !caused_by_a_cut {
            let place = named.as_deref().and_then(|path| span_of(whole, path)).or(error.span());
            mistakes.push(places.mistake(place, &key, sentence(error.message())));
        }
        cut.push(key);
        let path = path?;
        if !remove(tree.get_mut(), &path) {
            return None;
        }
    }
    None
}

/// Turns offsets into lines, and offsets beyond the text into overrides.
struct Places<'a> {
    name: &'a str,
    text: &'a str,
    overrides: &'a [Override],
}

impl Places<'_> {
    /// A place of its own behind the text for each override.
    fn of_override(&self, at: usize) -> Range<usize> {
        let start = self.text.len() + 1 + at;
        start..start
    }

    fn mistake(&self, span: Option<Range<usize>>, key: &str, says: String) -> Mistake {
        let here = |file: &str, line, column| Mistake { file: file.into(), line, column, key: key.into(), says };
        match span {
            None => here(self.name, 0, 0),
            Some(span) => match span.start.checked_sub(self.text.len() + 1).and_then(|at| self.overrides.get(at)) {
                Some(over) => here(over.source, 0, 0),
                None => {
                    let before = self.text.get(..span.start).unwrap_or(self.text);
                    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
                    here(self.name, before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
                }
            },
        }
    }

    fn problem(&self, tree: &DeTable, problem: &Problem) -> Mistake {
        let path = undotted(&problem.key);
        let place = (1..=path.len()).rev().find_map(|length| span_of(tree, &path[..length]));
        self.mistake(place, &problem.key, problem.says.clone())
    }
}

/// A step of a path through the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Item(at) => text.push_str(&format!("[{at}]")),
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
        }
    }
    text
}

fn undotted(key: &str) -> Vec<Step> {
    let mut path = Vec::new();
    for part in key.split('.') {
        let mut pieces = part.split('[');
        path.push(Step::Key(pieces.next().unwrap_or_default().to_owned()));
        path.extend(pieces.filter_map(|piece| piece.strip_suffix(']')?.parse().ok()).map(Step::Item));
    }
    path
}

/// The innermost item whose key or value the span is or lies in; of a table, the entry `named` if it has one.
fn deepest(table: &DeTable, span: &Range<usize>, named: Option<&str>) -> Option<Vec<Step>> {
    let mut best: Option<(usize, Vec<Step>)> = None;
    walk(table, &mut Vec::new(), &mut |path, key, value| {
        let fits = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
        let size = match (key.filter(|key| fits(key)), fits(&value.span())) {
            (Some(key), _) => key.len(),
            (None, true) => value.span().len(),
            (None, false) => return,
        };
        if best.as_ref().is_none_or(|(smallest, _)| size <= *smallest) {
            let mut path = path.to_vec();
            if let (Some(name), DeValue::Table(inner)) = (named, value.get_ref())
                && inner.contains_key(name)
                && *span == value.span()
            {
                path.push(Step::Key(name.to_owned()));
            }
            best = Some((size, path));
        }
    });
    best.map(|(_, path)| path)
}

type Visit<'v> = dyn FnMut(&[Step], Option<Range<usize>>, &Spanned<DeValue>) + 'v;

fn walk(table: &DeTable, path: &mut Vec<Step>, visit: &mut Visit) {
    for (key, value) in table.iter() {
        path.push(Step::Key(key.get_ref().to_string()));
        visit(path, Some(key.span()), value);
        walk_value(value, path, visit);
        path.pop();
    }
}

fn walk_value(value: &Spanned<DeValue>, path: &mut Vec<Step>, visit: &mut Visit) {
    match value.get_ref() {
        DeValue::Table(inner) => walk(inner, path, visit),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                path.push(Step::Item(at));
                visit(path, None, item);
                walk_value(item, path, visit);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Where an entry stands: its key if it has one.
fn span_of(table: &DeTable, path: &[Step]) -> Option<Range<usize>> {
    let (Step::Key(first), rest) = path.split_first()? else { return None };
    let (key, mut value) = table.get_key_value(first.as_str())?;
    let mut span = key.span();
    for step in rest {
        (span, value) = match (step, value.get_ref()) {
            (Step::Key(name), DeValue::Table(inner)) => {
                let (key, value) = inner.get_key_value(name.as_str())?;
                (key.span(), value)
            }
            (Step::Item(at), DeValue::Array(items)) => {
                let item = items.get(*at)?;
                (item.span(), item)
            }
            _ => return None,
        };
    }
    Some(span)
}

fn remove(table: &mut DeTable, path: &[Step]) -> bool {
    let Some((Step::Key(first), rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return table.remove(first.as_str()).is_some();
    }
    let Some(mut value) = table.get_mut(first.as_str()) else { return false };
    for (at, step) in rest.iter().enumerate() {
        let last = at + 1 == rest.len();
        value = match (step, value.get_mut()) {
            (Step::Key(name), DeValue::Table(inner)) if last => return inner.remove(name.as_str()).is_some(),
            (Step::Key(name), DeValue::Table(inner)) => match inner.get_mut(name.as_str()) {
                Some(value) => value,
                None => return false,
            },
            (Step::Item(index), DeValue::Array(items)) if last => {
                let there = *index < items.len();
                let kept = items.iter().enumerate().filter(|(at, _)| at != index).map(|(_, item)| item.clone());
                *items = kept.collect();
                return there;
            }
            (Step::Item(index), DeValue::Array(items)) => match items.get_mut(*index) {
                Some(value) => value,
                None => return false,
            },
            _ => return false,
        };
    }
    false
}

fn lay_over(table: &mut DeTable, over: &Override, span: Range<usize>) {
    let mut at = table;
    let mut keys = over.key.split('.').peekable();
    while let Some(key) = keys.next() {
        let entry = Spanned::new(span.clone(), Cow::Borrowed(key));
        if keys.peek().is_none() {
            // The old key would keep its old place.
            at.remove(key);
            at.insert(Spanned::new(span.clone(), Cow::Owned(key.to_owned())), Spanned::new(span, over.value.in_tree()));
            return;
        }
        let value = at
            .entry(Spanned::new(entry.span(), Cow::Owned(key.to_owned())))
            .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        match value.get_mut() {
            DeValue::Table(inner) => at = inner,
            // The file has something else there; its own mistake will say so.
            _ => return,
        }
    }
}

/// The name behind `lead` and in front of the next backtick.
fn quoted(message: &str, lead: &str) -> Option<String> {
    let rest = &message[message.find(lead)? + lead.len()..];
    Some(rest[..rest.find('`')?].to_owned())
}

/// serde's message as advice: what to write instead, and the name that was probably meant.
fn sentence(message: &str) -> String {
    if let Some(field) = quoted(message, "missing field `") {
        return format!("`{field}` is missing; add `{field} = ...`");
    }
    for lead in ["unknown field `", "unknown variant `"] {
        let Some(given) = quoted(message, lead) else { continue };
        let known: Vec<&str> =
            message[message.find("expected").unwrap_or(message.len())..].split('`').skip(1).step_by(2).collect();
        let what = if lead.contains("field") { "there is no key" } else { "there is no" };
        return match nearest(&given, &known) {
            Some(meant) => format!("{what} `{given}` here; did you mean `{meant}`?"),
            None if known.is_empty() => format!("{what} `{given}` here; take it out"),
            None => format!("{what} `{given}` here; write one of {}", known.join(", ")),
        };
    }
    message.replace('\n', "; ")
}

fn syntax(message: &str) -> String {
    format!("not TOML: {}", message.replace('\n', "; "))
}

/// The known name that is two edits away, or a third of its length if that is more.
fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let (far, name) = known.iter().map(|name| (distance(given, name), *name)).min()?;
    (far <= 2.max(name.len() / 3) && far < name.len()).then_some(name)
}

/// Edits (insert, delete, replace) between two short names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
