//! TOML text to [`Config`], with the place of every mistake in it, not of the first alone.
//!
//! serde stops at the first error. So the text is parsed into a tree that knows its places; what does not fit is noted and
//! cut out of the tree, and the rest is tried again, a bounded number of times. Flags and environment variables are laid
//! over the tree before that, so that they go through the same checks as the file.

use super::Config;
use super::tree::{NAMING, Step, deepest, dotted, keys_of, lay_over, remove, span_of, undotted};
use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

type Tree<'i> = Spanned<DeTable<'i>>;

/// After this many mistakes we stop looking for more.
const MISTAKES_MAX: usize = 50;

/// A value from a flag or the environment that stands above the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Dotted path, such as `mqtt.listen`.
    pub key: &'static str,
    pub value: String,
    /// As the user knows it: `--mqtt-listen or HEADWATER_MQTT_LISTEN`.
    pub source: &'static str,
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
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
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
        lay_over(tree.get_mut(), over.key, DeValue::String(Cow::Owned(over.value.clone())), places.of_override(at));
    }
    let whole = tree.clone();
    match typed(&places, &mut tree, whole.get_ref(), &mut mistakes) {
        Some(config) => {
            let problems = config.check();
            mistakes.extend(problems.iter().map(|problem| places.problem(tree.get_ref(), whole.get_ref(), problem)));
            if mistakes.is_empty() {
                return Ok(config);
            }
        }
        None => debug_assert!(!mistakes.is_empty(), "a tree that cannot be read has a mistake"),
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    mistakes.dedup();
    Err(Mistakes(mistakes))
}

/// Reads the tree, cutting out what does not fit until the rest does. `None` when nothing sensible is left.
fn typed(places: &Places, tree: &mut Tree, whole: &DeTable, mistakes: &mut Vec<Mistake>) -> Option<Config> {
    let mut cut: Vec<String> = Vec::new();
    while mistakes.len() < MISTAKES_MAX {
        let error = match read(tree) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let path = error.span().and_then(|span| deepest(tree.get_ref(), &span));
        let path = path.map(|path| narrow(tree, path, error.message()));
        let place = path.as_deref().and_then(|path| span_of(tree.get_ref(), path)).or(error.span());
        // Cutting an item moves those behind it, so the user's index comes from the tree as it was.
        let key = place.as_ref().and_then(|place| deepest(whole, place)).as_deref().map(dotted).unwrap_or_default();
        let caused_by_a_cut = quoted(error.message(), "missing field `")
            .is_some_and(|field| cut.iter().any(|gone| *gone == format!("{key}.{field}")));
        let path = path.filter(|path| remove(tree.get_mut(), path));
        if !caused_by_a_cut {
            let beside = path.as_deref().map(|path| beside(tree, path)).unwrap_or_default();
            let usual = path.as_deref().and_then(|path| beside.get(last_key(path)?));
            mistakes.push(places.mistake(place, &key, sentence(&key, error.message(), &beside, usual)));
        }
        cut.push(key);
        path?;
    }
    None
}

fn read(tree: &Tree) -> Result<Config, toml::de::Error> {
    Config::deserialize(Deserializer::from(tree.clone()))
}

/// The entry that really is at fault, where the error points at a table or a list of tables as a whole: sections with a
/// `type` are read through a buffer that forgets places. An item is at fault if it fails alone in the same words, a key
/// if the item does not without it.
fn narrow(tree: &Tree, path: Vec<Step>, message: &str) -> Vec<Step> {
    let fails_alike = |tree: &Tree| read(tree).is_err_and(|error| error.message() == message);
    let Some(Step::Key(section)) = path.first() else { return path };
    let (alone, at) = match tree.get_ref().get(section.as_str()).map(Spanned::get_ref) {
        Some(DeValue::Array(items)) if path.len() <= 2 => {
            let guilty = (0..items.len()).map(|at| (only(tree, section, at), at)).find(|(alone, _)| fails_alike(alone));
            let Some((alone, at)) = guilty else { return path };
            (alone, vec![Step::Key(section.clone()), Step::Item(at)])
        }
        _ => (tree.clone(), path),
    };
    // In the tree with that item alone it is the first.
    let mut inside = as_first(&at);
    for key in keys_of(alone.get_ref(), &inside) {
        inside.push(Step::Key(key.clone()));
        let mut without = alone.clone();
        remove(without.get_mut(), &inside);
        inside.pop();
        if !fails_alike(&without) {
            return at.into_iter().chain([Step::Key(key)]).collect();
        }
    }
    at
}

/// The tree with one item of a list of tables and without the others.
fn only<'i>(tree: &Tree<'i>, section: &str, at: usize) -> Tree<'i> {
    let mut alone = tree.clone();
    let count = match tree.get_ref().get(section).map(Spanned::get_ref) {
        Some(DeValue::Array(items)) => items.len(),
        _ => 0,
    };
    for other in (0..count).rev().filter(|other| *other != at) {
        remove(alone.get_mut(), &[Step::Key(section.to_owned()), Step::Item(other)]);
    }
    alone
}

/// The path in a tree where its item is the only one.
fn as_first(path: &[Step]) -> Vec<Step> {
    path.iter().map(|step| if let Step::Item(_) = step { Step::Item(0) } else { step.clone() }).collect()
}

/// The name of the entry itself.
fn last_key(path: &[Step]) -> Option<&str> {
    match path.last()? {
        Step::Key(key) => Some(key),
        Step::Item(_) => None,
    }
}

/// The keys that may stand where `path` was cut out, as the type writes them, with their defaults. Other mistakes do not
/// hide them: of the tree only that one item is read, and of that only what says which type it is.
fn beside(tree: &Tree, path: &[Step]) -> Map<String, Value> {
    let Some((Step::Key(_), table)) = path.split_last() else { return Map::new() };
    let Some(Step::Key(section)) = table.first() else { return Map::new() };
    let mut alone = match table.get(1) {
        Some(Step::Item(at)) => only(tree, section, *at),
        _ => tree.clone(),
    };
    for other in keys_of(alone.get_ref(), &[]).into_iter().filter(|other| other != section) {
        remove(alone.get_mut(), &[Step::Key(other)]);
    }
    let mut inside = as_first(table);
    for key in keys_of(alone.get_ref(), &inside).into_iter().filter(|key| !NAMING.contains(&key.as_str())) {
        inside.push(Step::Key(key));
        remove(alone.get_mut(), &inside);
        inside.pop();
    }
    let config = read(&alone).ok().and_then(|config| serde_json::to_value(config).ok());
    let Some(mut value) = config else { return Map::new() };
    for step in as_first(table) {
        value = match step {
            Step::Key(key) => value[key.as_str()].take(),
            Step::Item(at) => value[at].take(),
        };
    }
    match value {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
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

    /// A part names its keys by the tree that was read; the user's are those of the tree as it was.
    fn problem(&self, read: &DeTable, whole: &DeTable, problem: &Problem) -> Mistake {
        let path = undotted(&problem.key);
        let found = (1..=path.len()).rev().find_map(|length| Some((span_of(read, &path[..length])?, length)));
        let Some((place, length)) = found else { return self.mistake(None, &problem.key, problem.says.clone()) };
        let key = match deepest(whole, &place) {
            Some(there) => dotted(&there.into_iter().chain(path[length..].iter().cloned()).collect::<Vec<_>>()),
            None => problem.key.clone(),
        };
        self.mistake(Some(place), &key, problem.says.clone())
    }
}

/// The name behind `lead` and in front of the next backtick.
fn quoted(message: &str, lead: &str) -> Option<String> {
    let rest = &message[message.find(lead)? + lead.len()..];
    Some(rest[..rest.find('`')?].to_owned())
}

/// serde's message as advice: what to write instead, and the name that was probably meant. `beside` are the keys that may
/// stand there, `usual` the default of this one.
fn sentence(key: &str, message: &str, beside: &Map<String, Value>, usual: Option<&Value>) -> String {
    if let Some(field) = quoted(message, "missing field `") {
        return format!("`{field}` is missing; add `{field} = ...`");
    }
    for lead in ["unknown field `", "unknown variant `"] {
        let Some(given) = quoted(message, lead) else { continue };
        let listed = &message[message.find("expected").unwrap_or(message.len())..];
        let mut known: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
        if known.is_empty() {
            known = beside.keys().map(String::as_str).collect();
        }
        let what = if lead.contains("field") { "there is no key" } else { "there is no" };
        return match nearest(&given, &known) {
            Some(meant) => format!("{what} `{given}` here; did you mean `{meant}`?"),
            None if known.is_empty() => format!("{what} `{given}` here; take it out"),
            None => format!("{what} `{given}` here; write one of {}", known.join(", ")),
        };
    }
    other_type(key, message, usual).unwrap_or_else(|| message.replace('\n', "; "))
}

/// "write this, not that", where a value is of another type than its key's.
fn other_type(key: &str, message: &str, usual: Option<&Value>) -> Option<String> {
    let rest = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "))?;
    let (given, expected) = rest.split_once(", expected ")?;
    let such_as = usual.filter(|usual| usual.as_str().is_none_or(|text| !text.is_empty()));
    let such_as = such_as.map(|usual| format!(", such as {usual}")).unwrap_or_default();
    // `integer `5``, `string "x"`: the value as it was written; of a table or a list only that it is one.
    let text = given.strip_prefix("string ");
    let given = match given {
        "map" => "a table",
        "sequence" => "a list",
        _ => text.or_else(|| given.split('`').nth(1)).unwrap_or(given),
    };
    let wanted = match (expected, given) {
        ("a sequence", "a table") => format!("[[{key}]], in two brackets: there may be several"),
        ("a sequence", _) => match text {
            Some(text) => format!("a list, such as [{text}]"),
            None => "a list in brackets".to_owned(),
        },
        ("a string", _) => format!("a text in quotes{such_as}"),
        ("path string", _) => format!("a path in quotes{such_as}"),
        ("a boolean", _) => "true or false".to_owned(),
        ("u16" | "u32" | "u64" | "usize", _) => format!("a whole number{such_as}"),
        _ => expected.to_owned(),
    };
    Some(format!("write {wanted}, not {given}"))
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
