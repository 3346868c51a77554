//! What is wrong with a packet, and the reason codes of MQTT 5 that the gateway uses, all on one screen.

/// Why a packet was refused. Each maps to one reason code; 3.1.1 has none and closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    #[error("the packet is larger than the maximum packet size")]
    TooLarge,
    #[error("a topic name must not be empty or hold '+' or '#'")]
    TopicName,
    #[error("'#' stands last and alone in its level, '+' alone in its level")]
    TopicFilter,
    #[error("a topic alias of 0")]
    TopicAlias,
    /// CONNECT of another protocol level; 3.1.1 wants CONNACK 0x01 for it [MQTT-3.1.2-2].
    #[error("neither MQTT 3.1.1 nor MQTT 5")]
    Version,
}

impl DecodeError {
    pub fn reason(self) -> Reason {
        match self {
            DecodeError::Malformed(_) => Reason::MalformedPacket,
            DecodeError::Protocol(_) => Reason::ProtocolError,
            DecodeError::TooLarge => Reason::PacketTooLarge,
            DecodeError::TopicName => Reason::TopicNameInvalid,
            DecodeError::TopicFilter => Reason::TopicFilterInvalid,
            DecodeError::TopicAlias => Reason::TopicAliasInvalid,
            DecodeError::Version => Reason::UnsupportedProtocolVersion,
        }
    }
}

/// Reason codes (MQTT 5, 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    Unspecified = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecific = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9A,
    SharedSubscriptionsNotSupported = 0x9E,
}

impl Reason {
    /// The label in `headwater_rejects_total{part="mqtt"}` and in the log.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Success => "success",
            Reason::NoSubscriptionExisted => "no_subscription",
            Reason::Unspecified => "unspecified",
            Reason::MalformedPacket => "malformed",
            Reason::ProtocolError => "protocol_error",
            Reason::ImplementationSpecific => "not_taken",
            Reason::UnsupportedProtocolVersion => "protocol_version",
            Reason::ClientIdentifierNotValid => "client_id",
            Reason::BadUserNameOrPassword => "bad_password",
            Reason::NotAuthorized => "not_authorized",
            Reason::ServerUnavailable => "unavailable",
            Reason::ServerBusy => "busy",
            Reason::ServerShuttingDown => "stopping",
            Reason::BadAuthenticationMethod => "authentication_method",
            Reason::KeepAliveTimeout => "keep_alive",
            Reason::SessionTakenOver => "taken_over",
            Reason::TopicFilterInvalid => "topic_filter",
            Reason::TopicNameInvalid => "topic_name",
            Reason::PacketIdentifierNotFound => "packet_id",
            Reason::ReceiveMaximumExceeded => "receive_maximum",
            Reason::TopicAliasInvalid => "topic_alias",
            Reason::PacketTooLarge => "too_large",
            Reason::QuotaExceeded => "quota",
            Reason::PayloadFormatInvalid => "envelope",
            Reason::RetainNotSupported => "retain",
            Reason::SharedSubscriptionsNotSupported => "shared_subscription",
        }
    }

    /// CONNACK return code of 3.1.1 (3.2.2.3); `None`: there is none that fits, the connection is closed without.
    pub fn connack_v4(self) -> Option<u8> {
        match self {
            Reason::Success => Some(0),
            Reason::UnsupportedProtocolVersion => Some(1),
            Reason::ClientIdentifierNotValid => Some(2),
            Reason::ServerUnavailable | Reason::ServerBusy | Reason::ServerShuttingDown | Reason::QuotaExceeded => {
                Some(3)
            }
            Reason::BadUserNameOrPassword => Some(4),
            // The topic of a will that no route takes: the nearest that 3.1.1 has.
            Reason::NotAuthorized | Reason::TopicNameInvalid => Some(5),
            _ => None,
        }
    }
}
