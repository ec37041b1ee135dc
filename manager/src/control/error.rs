//! How failures of the store become answers.

use crate::allocator::AllocationError;
use crate::consensus::ProposeError;
use shoal_model::command::Rejection;
use shoal_model::rpc::{ErrorCode, RpcError};
use std::error::Error;

/// A failed attempt, with what is known of its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: RpcError,
    pub(crate) effect: Effect,
}

/// What is known of the effect of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing happened, and the same attempt would fail again.
    None,
    /// Nothing happened; the leader changes, and another attempt may succeed.
    NoneYet,
    /// It may have happened.
    Unknown,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        RpcError::new(code, message).into()
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::FailedPrecondition, message)
    }

    pub(crate) fn not_found(kind: &str, id: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("{kind} `{id}` does not exist"))
    }

    /// The object is newer than the one that the caller read.
    pub(crate) fn out_of_date(kind: &str, name: &str) -> Self {
        Self::new(
            ErrorCode::Conflict,
            format!(
                "update out of sequence: {kind} `{name}` has changed since it was read; read it again and retry"
            ),
        )
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        Self {
            error,
            effect: Effect::None,
        }
    }
}

impl From<AllocationError> for Failure {
    fn from(err: AllocationError) -> Self {
        rpc_error(err.code(), &err).into()
    }
}

impl From<ProposeError> for Failure {
    fn from(err: ProposeError) -> Self {
        let effect = match &err {
            ProposeError::NotLeader { .. } => Effect::NoneYet,
            ProposeError::Unknown { .. } => Effect::Unknown,
            ProposeError::Rejected(_)
            | ProposeError::NoQuorum { .. }
            | ProposeError::TooLarge { .. }
            | ProposeError::TooManyActions { .. }
            | ProposeError::FeatureLevel { .. }
            | ProposeError::Membership { .. }
            | ProposeError::Shutdown { .. } => Effect::None,
        };
        Self {
            error: rpc_error(propose_code(&err), &err),
            effect,
        }
    }
}

/// An answer that holds the whole chain of causes.
pub(crate) fn rpc_error(code: ErrorCode, err: &dyn Error) -> RpcError {
    let mut message = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let text = err.to_string();
        // Transparent variants say the same as their source.
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = err.source();
    }
    RpcError::new(code, message)
}

const fn propose_code(err: &ProposeError) -> ErrorCode {
    match err {
        ProposeError::Rejected(rejection) => rejection_code(rejection),
        ProposeError::NotLeader { .. } => ErrorCode::NotLeader,
        ProposeError::NoQuorum { .. }
        | ProposeError::Shutdown { .. }
        | ProposeError::Unknown { .. } => ErrorCode::Unavailable,
        ProposeError::TooLarge { .. } | ProposeError::TooManyActions { .. } => {
            ErrorCode::ResourceExhausted
        }
        ProposeError::FeatureLevel { .. } | ProposeError::Membership { .. } => {
            ErrorCode::FailedPrecondition
        }
    }
}

const fn rejection_code(rejection: &Rejection) -> ErrorCode {
    match rejection {
        Rejection::Stale { .. } | Rejection::DoesNotFit { .. } => ErrorCode::Conflict,
        Rejection::NotFound(_) => ErrorCode::NotFound,
        Rejection::Exists(_) | Rejection::NameTaken { .. } => ErrorCode::AlreadyExists,
        Rejection::TokenUsedUp => ErrorCode::PermissionDenied,
        Rejection::Invalid { .. } => ErrorCode::FailedPrecondition,
    }
}
