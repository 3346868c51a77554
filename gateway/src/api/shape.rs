//! Member types of requests, as AWS's own front end reads them: a wrong type is a SerializationException in its words. Pure.
//!
//! They are serde types, so the operations do not know which text or binary form a request came in: JSON now, CBOR later.
//! Texts borrow from the body; lists keep no more members than their bound and count the rest.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

const NUMBER: &str = "class com.amazon.coral.value.json.numbers.TruncatingBigNumber";
const LIST_HERE: &str = "Start of list found where not expected";
const MAP_HERE: &str = "Start of structure or map found where not expected.";

/// Refuses what the type is not, as AWS words it: `$what` is its Java name with its article.
macro_rules! refuse {
    (bool $what:literal) => {
        fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
            Err(E::custom(concat!("class java.lang.Boolean can not be converted to ", $what)))
        }
    };
    (number $what:literal) => {
        fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
            Err(E::custom(format_args!("{NUMBER} can not be converted to {}", $what)))
        }
        fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
            self.visit_u64(0)
        }
        fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
            self.visit_u64(0)
        }
    };
    (string $what:literal) => {
        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom(concat!("class java.lang.String can not be converted to ", $what)))
        }
    };
    (compound) => {
        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(A::Error::custom(LIST_HERE))
        }
        fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(A::Error::custom(MAP_HERE))
        }
    };
    (expecting $what:literal) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($what)
        }
    };
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for V<'a> {
            type Value = Text<'a>;
            refuse!(expecting "a string");
            refuse!(bool "an String");
            refuse!(number "an String");
            refuse!(compound);
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        d.deserialize_any(V(PhantomData))
    }
}

/// A 32-bit integer; a larger one counts as the largest, a fraction is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Integer(pub i32);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Integer;
            refuse!(expecting "an integer");
            refuse!(bool "an Integer");
            refuse!(string "an Integer");
            refuse!(compound);
            fn visit_u64<E: Error>(self, value: u64) -> Result<Integer, E> {
                Ok(Integer(value.min(i32::MAX as u64) as i32))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Integer, E> {
                Ok(Integer(value.floor() as i32))
            }
        }
        d.deserialize_any(V)
    }
}

/// A whole number that is not negative: for members that AWS does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole(pub u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Whole;
            refuse!(expecting "a whole number");
            // What is refused in serde's words is echoed, and a text may be as long as the request.
            refuse!(string "a whole number");
            fn visit_u64<E: Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }
        }
        d.deserialize_any(V)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Flag;
            refuse!(expecting "a boolean");
            refuse!(number "an Boolean");
            refuse!(compound);
            fn visit_bool<E: Error>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Flag, E> {
                let text: String = text.chars().take(64).collect();
                Err(E::custom(format_args!("'{}' can not be converted to an Boolean", text.to_uppercase())))
            }
        }
        d.deserialize_any(V)
    }
}

/// A moment: seconds since 1970 with a fraction on the wire, milliseconds here. Before 1970 is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub i64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Moment;
            refuse!(expecting "a timestamp");
            refuse!(bool "milliseconds since epoch");
            refuse!(string "milliseconds since epoch");
            refuse!(compound);
            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Moment, E> {
                Ok(Moment(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000)))
            }
            fn visit_i64<E: Error>(self, seconds: i64) -> Result<Moment, E> {
                Ok(Moment(seconds.saturating_mul(1000)))
            }
            fn visit_f64<E: Error>(self, seconds: f64) -> Result<Moment, E> {
                Ok(Moment((seconds * 1000.0).round() as i64))
            }
        }
        d.deserialize_any(V)
    }
}

/// Bytes: base64 in text forms, plain in binary ones. Decoded when the record is placed, not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob<'a> {
    Base64(Cow<'a, str>),
    Plain(Cow<'a, [u8]>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBase64 {
    #[error(
        "'{0}' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: {1}"
    )]
    Length(String, usize),
    #[error("'{0}' can not be converted to a Blob: Invalid Base64 character: '{1}'")]
    Character(String, char),
    // Spelt as AWS spells it.
    #[error("'{0}' can not be converted to a Blob: Invalid last non-pad Base64 character dectected")]
    LastCharacter(String),
}

impl Blob<'_> {
    /// Length when decoded, exact for what decodes at all.
    pub fn len(&self) -> usize {
        match self {
            Blob::Plain(bytes) => bytes.len(),
            Blob::Base64(text) => {
                let padding = text.bytes().rev().take(2).take_while(|b| *b == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            }
        }
    }

    /// Replaces `into` by the bytes.
    pub fn decode(&self, into: &mut Vec<u8>) -> Result<(), BadBase64> {
        into.clear();
        match self {
            Blob::Plain(bytes) => into.extend_from_slice(bytes),
            Blob::Base64(text) => STANDARD.decode_vec(text.as_bytes(), into).map_err(|_| why(text))?,
        }
        Ok(())
    }
}

fn why(text: &str) -> BadBase64 {
    let shown: String = text.chars().take(100).collect();
    if !text.len().is_multiple_of(4) {
        return BadBase64::Length(shown, text.len());
    }
    let body = text.strip_suffix('=').map_or(text, |cut| cut.strip_suffix('=').unwrap_or(cut));
    match body.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '+' && *c != '/') {
        Some(c) => BadBase64::Character(shown, c),
        None => BadBase64::LastCharacter(shown),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for V<'a> {
            type Value = Blob<'a>;
            refuse!(expecting "a blob");
            refuse!(bool "a Blob");
            refuse!(number "a Blob");
            refuse!(compound);
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Blob<'a>, E> {
                Ok(Blob::Base64(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Blob<'a>, E> {
                Ok(Blob::Base64(Cow::Owned(text.to_owned())))
            }
            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Blob<'a>, E> {
                Ok(Blob::Plain(Cow::Borrowed(bytes)))
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob<'a>, E> {
                Ok(Blob::Plain(Cow::Owned(bytes.to_owned())))
            }
        }
        d.deserialize_any(V(PhantomData))
    }
}

/// A list that keeps its first `MAX` members and knows how many there were.
#[derive(Clone, Debug)]
pub struct List<T, const MAX: usize> {
    pub members: Vec<T>,
    pub count: usize,
}

impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default, const MAX: usize> Visitor<'de> for V<T, MAX> {
            type Value = List<T, MAX>;
            refuse!(expecting "a list");
            fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
                Err(E::custom("Expected list or null"))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
                Err(A::Error::custom(MAP_HERE))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while members.len() < MAX {
                    match list.next_element::<Option<T>>()? {
                        Some(member) => members.push(member.unwrap_or_default()),
                        None => return Ok(List { count: members.len(), members }),
                    }
                }
                let mut count = members.len();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(List { members, count })
            }
        }
        d.deserialize_any(V::<T, MAX>(PhantomData))
    }
}

/// A structure; in front of a derived one it words the refusals.
#[derive(Clone, Debug, Default)]
pub struct Shape<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shape<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Shape<T>;
            refuse!(expecting "a structure");
            fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
                Err(E::custom("Expected null"))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
                self.visit_bool(false)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
                Err(A::Error::custom(LIST_HERE))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Shape)
            }
        }
        d.deserialize_any(V(PhantomData))
    }
}
