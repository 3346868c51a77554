//! One value out of a JSON payload by its pointer (RFC 6901), without building a tree: the payload is a stranger's.
//!
//! Reading stops at the value; nesting is bounded by serde_json. Of an object that names a member twice, the first counts.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// Deepest pointer, in levels.
const LEVELS_MAX: usize = 32;

impl Pointer {
    /// `/a/b`, with `~1` for `/` and `~0` for `~`.
    pub fn parse(text: &str) -> Option<Self> {
        let levels: Vec<_> =
            text.strip_prefix('/')?.split('/').map(|level| level.replace("~1", "/").replace("~0", "~")).collect();
        (levels.len() <= LEVELS_MAX).then_some(Pointer(levels))
    }

    /// The text of a string, number or boolean at the pointer; `None` for anything else.
    pub fn find(&self, payload: &[u8]) -> Option<String> {
        let mut found = None;
        let mut reader = serde_json::Deserializer::from_slice(payload);
        // Whatever comes behind the value is not our business: the search ends by an error of its own.
        let _ = Search { levels: &self.0, found: &mut found }.deserialize(&mut reader);
        found
    }
}

struct Search<'a> {
    levels: &'a [String],
    found: &'a mut Option<String>,
}

impl Search<'_> {
    fn leaf<E: Error>(self, text: String) -> Result<(), E> {
        if self.levels.is_empty() {
            *self.found = Some(text);
        }
        Ok(())
    }
}

fn done<E: Error>() -> E {
    E::custom("found or not there")
}

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.leaf(value.to_string())
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.leaf(value.to_string())
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.leaf(value.to_string())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.leaf(value.to_string())
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.leaf(value.to_owned())
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.levels.split_first() else { return Err(done()) };
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if name == *first {
                map.next_value_seed(Search { levels: rest, found: self.found })?;
                return Err(done());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.levels.split_first() else { return Err(done()) };
        let Ok(wanted) = first.parse::<usize>() else { return Err(done()) };
        for _ in 0..wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Search { levels: rest, found: self.found })?;
        Err(done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(pointer: &str, json: &str) -> Option<String> {
        Pointer::parse(pointer).unwrap().find(json.as_bytes())
    }

    #[test]
    fn a_pointer_finds_text_numbers_and_booleans() {
        let json = r#"{"a":{"b":["x",-1,2.5,true,null,{"c/d":"e\n"}]},"z":1"#;
        assert_eq!(find("/a/b/0", json).as_deref(), Some("x"));
        assert_eq!(find("/a/b/1", json).as_deref(), Some("-1"));
        assert_eq!(find("/a/b/2", json).as_deref(), Some("2.5"));
        assert_eq!(find("/a/b/3", json).as_deref(), Some("true"));
        assert_eq!(find("/a/b/5/c~1d", json).as_deref(), Some("e\n"));
        for nothing in ["/a/b/4", "/a/b/9", "/a/b", "/a/x", "/a/b/0/0", "/z/0", "/a/b/x"] {
            assert_eq!(find(nothing, json), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn noise_finds_nothing_or_something_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Pointer::parse("/a/0").unwrap().find(&noise);
        }

        #[test]
        fn it_agrees_with_a_whole_parse(a in "[a-z]{0,6}", n in any::<i64>()) {
            let json = serde_json::json!({ "x": [n, { "y": a }] }).to_string();
            prop_assert_eq!(find("/x/0", &json), Some(n.to_string()));
            prop_assert_eq!(find("/x/1/y", &json), Some(a));
        }
    }
}
