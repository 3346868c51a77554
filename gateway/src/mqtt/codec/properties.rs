//! Properties of MQTT 5 (2.2.2): checked once where the packet is decoded, walked again without an error where they
//! are used. The table says which may stand where.

use super::DecodeError;
use super::read::Reader;

/// A kind of packet, as a bit of a [`Rule`]'s `allowed`.
pub(super) type Place = u8;
pub(super) const IN_CONNECT: Place = 1;
pub(super) const IN_WILL: Place = 2;
pub(super) const IN_PUBLISH: Place = 4;
pub(super) const IN_ANSWER: Place = 8;
pub(super) const IN_SUBSCRIBE: Place = 16;
pub(super) const IN_UNSUBSCRIBE: Place = 32;
pub(super) const IN_DISCONNECT: Place = 64;
pub(super) const IN_AUTH: Place = 128;

const MESSAGE: Place = IN_PUBLISH | IN_WILL;
const EVERYWHERE: Place = 0xff;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Byte,
    Two,
    Four,
    Varint,
    Text,
    Binary,
    Pair,
}

macro_rules! table {
    ($( $name:ident = $id:literal, $kind:ident, $allowed:expr; )*) => {
        /// Properties that a client may send, and those the gateway answers with.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum PropertyId { $( $name = $id, )* }

        impl PropertyId {
            fn rule(id: u32) -> Option<(PropertyId, Kind, Place)> {
                match id {
                    $( $id => Some((PropertyId::$name, Kind::$kind, $allowed)), )*
                    _ => None,
                }
            }
        }
    };
}

table! {
    PayloadFormat           = 0x01, Byte,   MESSAGE;
    MessageExpiry           = 0x02, Four,   MESSAGE;
    ContentType             = 0x03, Text,   MESSAGE;
    ResponseTopic           = 0x08, Text,   MESSAGE;
    CorrelationData         = 0x09, Binary, MESSAGE;
    SubscriptionId          = 0x0B, Varint, IN_PUBLISH | IN_SUBSCRIBE;
    SessionExpiry           = 0x11, Four,   IN_CONNECT | IN_DISCONNECT;
    AssignedClientId        = 0x12, Text,   0;
    ServerKeepAlive         = 0x13, Two,    0;
    AuthenticationMethod    = 0x15, Text,   IN_CONNECT | IN_AUTH;
    AuthenticationData      = 0x16, Binary, IN_CONNECT | IN_AUTH;
    RequestProblemInfo      = 0x17, Byte,   IN_CONNECT;
    WillDelay               = 0x18, Four,   IN_WILL;
    RequestResponseInfo     = 0x19, Byte,   IN_CONNECT;
    ReasonString            = 0x1F, Text,   IN_ANSWER | IN_DISCONNECT | IN_AUTH;
    ReceiveMaximum          = 0x21, Two,    IN_CONNECT;
    TopicAliasMaximum       = 0x22, Two,    IN_CONNECT;
    TopicAlias              = 0x23, Two,    IN_PUBLISH;
    MaximumQos              = 0x24, Byte,   0;
    RetainAvailable         = 0x25, Byte,   0;
    UserProperty            = 0x26, Pair,   EVERYWHERE;
    MaximumPacketSize       = 0x27, Four,   IN_CONNECT;
    WildcardAvailable       = 0x28, Byte,   0;
    SubscriptionIdAvailable = 0x29, Byte,   0;
    SharedAvailable         = 0x2A, Byte,   0;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair(&'a str, &'a str),
}

/// A property list that has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    pub const NONE: Properties<'static> = Properties(&[]);

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes length and properties off the front of a reader and checks them all.
    /// The bytes of the list, to be kept.
    pub(in crate::mqtt) fn raw(self) -> &'a [u8] {
        self.0
    }

    /// A list that was kept: its bytes have been checked before.
    pub(in crate::mqtt) fn again(raw: &'a [u8]) -> Self {
        Properties(raw)
    }

    pub(super) fn take(reader: &mut Reader<'a>, place: Place) -> Result<Self, DecodeError> {
        let length = reader.varint()?;
        let raw = reader.take(length as usize)?;
        if !raw.is_empty() {
            check(raw, place)?;
        }
        Ok(Properties(raw))
    }

    pub fn iter(self) -> impl Iterator<Item = (PropertyId, Value<'a>)> {
        let mut reader = Reader::new(self.0);
        // The list was checked when it was taken, so the error that ends the walk cannot happen.
        std::iter::from_fn(move || if reader.is_empty() { None } else { one(&mut reader).ok() })
            .map(|(id, value, _)| (id, value))
    }

    pub fn number(self, wanted: PropertyId) -> Option<u32> {
        self.iter().find_map(|(id, value)| match value {
            Value::Number(number) if id == wanted => Some(number),
            _ => None,
        })
    }

    pub fn text(self, wanted: PropertyId) -> Option<&'a str> {
        self.iter().find_map(|(id, value)| match value {
            Value::Text(text) if id == wanted => Some(text),
            _ => None,
        })
    }

    /// The first user property of that name.
    pub fn user(self, name: &str) -> Option<&'a str> {
        self.iter().find_map(|(_, value)| match value {
            Value::Pair(found, text) if found == name => Some(text),
            _ => None,
        })
    }
}

fn check(raw: &[u8], place: Place) -> Result<(), DecodeError> {
    let mut reader = Reader::new(raw);
    let mut seen = 0u64;
    while !reader.is_empty() {
        let (id, value, allowed) = one(&mut reader)?;
        if allowed & place == 0 {
            // [MQTT-3.3.4-6] a client must not send a subscription identifier; the rest is 2.2.2.2.
            return Err(DecodeError::Malformed("a property that is not valid in this packet"));
        }
        if id == PropertyId::SubscriptionId && place == IN_PUBLISH {
            return Err(DecodeError::Protocol("a client's PUBLISH holds a subscription identifier"));
        }
        let bit = 1u64 << (id as u8);
        if seen & bit != 0 && id != PropertyId::UserProperty {
            return Err(DecodeError::Protocol("a property stands twice"));
        }
        seen |= bit;
        check_value(id, value)?;
    }
    Ok(())
}

fn one<'a>(reader: &mut Reader<'a>) -> Result<(PropertyId, Value<'a>, Place), DecodeError> {
    let id = reader.varint()?;
    let (id, kind, allowed) = PropertyId::rule(id).ok_or(DecodeError::Malformed("an unknown property"))?;
    let value = match kind {
        Kind::Byte => Value::Number(u32::from(reader.u8()?)),
        Kind::Two => Value::Number(u32::from(reader.u16()?)),
        Kind::Four => Value::Number(reader.u32()?),
        Kind::Varint => Value::Number(reader.varint()?),
        Kind::Text => Value::Text(reader.text()?),
        Kind::Binary => Value::Binary(reader.binary()?),
        Kind::Pair => Value::Pair(reader.text()?, reader.text()?),
    };
    Ok((id, value, allowed))
}

fn check_value(id: PropertyId, value: Value<'_>) -> Result<(), DecodeError> {
    use PropertyId::*;
    match (id, value) {
        (PayloadFormat | RequestProblemInfo | RequestResponseInfo, Value::Number(2..)) => {
            Err(DecodeError::Protocol("a property that is 0 or 1 has another value"))
        }
        (ReceiveMaximum | MaximumPacketSize | SubscriptionId, Value::Number(0)) => {
            Err(DecodeError::Protocol("a property that must not be 0 is 0"))
        }
        // [MQTT-3.3.2-8]
        (TopicAlias, Value::Number(0)) => Err(DecodeError::TopicAlias),
        // [MQTT-3.3.2-14]
        (ResponseTopic, Value::Text(topic)) if !super::publish::is_topic_name(topic) => Err(DecodeError::TopicName),
        _ => Ok(()),
    }
}
