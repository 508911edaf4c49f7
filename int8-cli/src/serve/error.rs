//! Errors as OpenAI's API has them.

use hyper::StatusCode;
use int8_nn::engine::Rejection;
use serde_json::{Value, json};

/// An error response: `{"error": {"message", "type", "param", "code"}}` with a status.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub(super) message: String,
    /// Seconds after which the request may be tried again.
    pub(super) retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            500.. => "server_error",
            429 => "rate_limit_error",
            401 => "authentication_error",
            _ => "invalid_request_error",
        };
        Self { status, kind, code: Some(code), param: None, message: message.into(), retry_after: None }
    }

    /// Status 400 about the field `param`.
    pub(super) fn field(param: &str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(param.to_owned()), ..error }
    }

    /// Status 400 about a field that OpenAI has and this server has not.
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    pub(super) fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::TooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            Rejection::Full { .. } => Self {
                retry_after: Some(1),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
            },
            Rejection::Stopped => Self {
                retry_after: Some(5),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            },
            _ => Self::new(StatusCode::BAD_REQUEST, "invalid_value", message),
        }
    }
}

/// Errors of a tokenizer or a chat template are about the request's texts.
impl From<int8_nn::Error> for ApiError {
    fn from(error: int8_nn::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", error.to_string())
    }
}
