//! A parsed TOML tree and the paths through it: where an entry stands, and how it is cut out or laid over. Pure.

use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A step of a path through the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
}

pub fn dotted(path: &[Step]) -> String {
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

pub fn undotted(key: &str) -> Vec<Step> {
    let mut path = Vec::new();
    for part in key.split('.') {
        let mut pieces = part.split('[');
        path.push(Step::Key(pieces.next().unwrap_or_default().to_owned()));
        path.extend(pieces.filter_map(|piece| piece.strip_suffix(']')?.parse().ok()).map(Step::Item));
    }
    path
}

/// The innermost item whose key or value the span is or lies in.
pub fn deepest(table: &DeTable, span: &Range<usize>) -> Option<Vec<Step>> {
    let mut best: Option<(usize, Vec<Step>)> = None;
    walk(table, &mut Vec::new(), &mut |path, key, value| {
        let fits = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
        let size = match (key.filter(|key| fits(key)), fits(&value.span())) {
            (Some(key), _) => key.len(),
            (None, true) => value.span().len(),
            (None, false) => return,
        };
        if best.as_ref().is_none_or(|(smallest, _)| size <= *smallest) {
            best = Some((size, path.to_vec()));
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
pub fn span_of(table: &DeTable, path: &[Step]) -> Option<Range<usize>> {
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

/// What says which type of thing a table is, and its name.
pub const NAMING: [&str; 2] = ["type", "name"];

/// The keys of the table at the end of the path; those of [`NAMING`] come last.
pub fn keys_of(table: &DeTable, path: &[Step]) -> Vec<String> {
    if path.is_empty() {
        return table.keys().map(|key| key.get_ref().to_string()).collect();
    }
    let mut at: Option<&DeValue> = None;
    for step in path {
        let next = match (step, at) {
            (Step::Key(key), None) => table.get(key.as_str()),
            (Step::Key(key), Some(DeValue::Table(inner))) => inner.get(key.as_str()),
            (Step::Item(at), Some(DeValue::Array(items))) => items.get(*at),
            _ => None,
        };
        let Some(value) = next else { return Vec::new() };
        at = Some(value.get_ref());
    }
    let Some(DeValue::Table(inner)) = at else { return Vec::new() };
    let mut keys: Vec<String> = inner.keys().map(|key| key.get_ref().to_string()).collect();
    keys.sort_by_key(|key| NAMING.contains(&key.as_str()));
    keys
}

/// Takes an entry out; whether it was there.
pub fn remove(table: &mut DeTable, path: &[Step]) -> bool {
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

/// Puts a value at a dotted path, over what the file says.
pub fn lay_over(table: &mut DeTable, path: &'static str, over: DeValue<'static>, span: Range<usize>) {
    let mut at = table;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        let entry = Spanned::new(span.clone(), Cow::Borrowed(key));
        if keys.peek().is_none() {
            // The old key would keep its old place.
            at.remove(key);
            at.insert(Spanned::new(span.clone(), Cow::Owned(key.to_owned())), Spanned::new(span, over));
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
