//! What the AWS door refuses, and how AWS words it: one table from kind to wire. Pure.

use super::sequence::NotASequence;
use crate::http::{BodyError, OverBudget};
use crate::log::{AppendError, CreateError, DeleteError, ReadError};

/// Whose fault it is and what a client will make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Validation,
    InvalidArgument,
    ResourceNotFound,
    ResourceInUse,
    LimitExceeded,
    ProvisionedThroughputExceeded,
    ExpiredIterator,
    ExpiredNextToken,
    DryRunOperation,
    // Refused before an operation saw it.
    Serialization,
    UnknownOperation,
    MissingAuthenticationToken,
    IncompleteSignature,
    InvalidSignature,
    UnrecognizedClient,
    AccessDenied,
    RequestEntityTooLarge,
    RequestTimeout,
    // Ours.
    ServiceUnavailable,
    InternalFailure,
}

impl Kind {
    /// `__type`, HTTP status, reason label of the metrics.
    pub fn wire(self) -> (&'static str, u16, &'static str) {
        match self {
            Kind::Validation => ("ValidationException", 400, "validation"),
            Kind::InvalidArgument => ("InvalidArgumentException", 400, "invalid_argument"),
            Kind::ResourceNotFound => ("ResourceNotFoundException", 400, "not_found"),
            Kind::ResourceInUse => ("ResourceInUseException", 400, "in_use"),
            Kind::LimitExceeded => ("LimitExceededException", 400, "limit"),
            Kind::ProvisionedThroughputExceeded => ("ProvisionedThroughputExceededException", 400, "stream_full"),
            Kind::ExpiredIterator => ("ExpiredIteratorException", 400, "expired_iterator"),
            Kind::ExpiredNextToken => ("ExpiredNextTokenException", 400, "expired_token"),
            Kind::DryRunOperation => ("DryRunOperationException", 400, "dry_run"),
            Kind::Serialization => ("SerializationException", 400, "malformed"),
            Kind::UnknownOperation => ("UnknownOperationException", 400, "unknown_operation"),
            Kind::MissingAuthenticationToken => ("MissingAuthenticationTokenException", 400, "no_signature"),
            Kind::IncompleteSignature => ("IncompleteSignatureException", 400, "bad_signature"),
            Kind::InvalidSignature => ("InvalidSignatureException", 400, "bad_signature"),
            Kind::UnrecognizedClient => ("UnrecognizedClientException", 400, "unknown_key"),
            Kind::AccessDenied => ("AccessDeniedException", 400, "web_page"),
            Kind::RequestEntityTooLarge => ("RequestEntityTooLargeException", 413, "too_large"),
            Kind::RequestTimeout => ("RequestTimeoutException", 408, "slow"),
            Kind::ServiceUnavailable => ("ServiceUnavailable", 503, "busy"),
            Kind::InternalFailure => ("InternalFailure", 500, "internal"),
        }
    }

    /// The framework in front of AWS's services spells the member `Message`, the services `message`.
    pub fn message_member(self) -> &'static str {
        use Kind::*;
        match self {
            Serialization
            | UnknownOperation
            | MissingAuthenticationToken
            | IncompleteSignature
            | InvalidSignature
            | UnrecognizedClient
            | AccessDenied
            | RequestEntityTooLarge
            | RequestTimeout => "Message",
            _ => "message",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {says}", kind.wire().0)]
pub struct ApiError {
    pub kind: Kind,
    pub says: String,
}

impl ApiError {
    pub fn new(kind: Kind, says: impl Into<String>) -> Self {
        ApiError { kind, says: says.into() }
    }

    pub fn invalid(says: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, says)
    }

    pub fn not_found(says: impl Into<String>) -> Self {
        Self::new(Kind::ResourceNotFound, says)
    }

    pub fn validation(says: impl Into<String>) -> Self {
        Self::new(Kind::Validation, says)
    }

    pub fn dry_run() -> Self {
        Self::new(Kind::DryRunOperation, "Request would have succeeded, but DryRun flag is set.")
    }

    /// An error of the log that is not the client's: it may come again.
    pub fn internal(says: impl ToString) -> Self {
        Self::new(Kind::InternalFailure, says.to_string())
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Failed(_) => Self::internal(error),
            AppendError::Closed => Self::new(Kind::ServiceUnavailable, error.to_string()),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoShard(_) | ReadError::Deleted => Self::not_found(error.to_string()),
            ReadError::Store(_) => Self::internal(error),
        }
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::TooLarge(_) => Kind::RequestEntityTooLarge,
            BodyError::Slow => Kind::RequestTimeout,
            BodyError::OverBudget(_) => Kind::ServiceUnavailable,
            BodyError::Broken => Kind::Serialization,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<OverBudget> for ApiError {
    fn from(error: OverBudget) -> Self {
        Self::new(Kind::ServiceUnavailable, error.to_string())
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let kind = match error {
            CreateError::Exists(_) => Kind::ResourceInUse,
            CreateError::NotFound(_) => Kind::ResourceNotFound,
            CreateError::Shards(_) | CreateError::TooMany(_) => Kind::LimitExceeded,
            CreateError::Append(error) => return error.into(),
        };
        Self::new(kind, error.to_string())
    }
}

impl From<DeleteError> for ApiError {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::NotFound(_) => Self::not_found(error.to_string()),
            DeleteError::Append(error) => error.into(),
        }
    }
}

impl From<NotASequence> for ApiError {
    fn from(error: NotASequence) -> Self {
        Self::invalid(error.to_string())
    }
}
