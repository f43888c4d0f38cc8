//! A verb that failed: what to say, and etcdctl's exit code for it.

use crate::client::{ClientError, WatchError};

/// etcdctl's exit codes.
pub mod exit {
    /// The server's refusal, and whatever has no code of its own.
    pub const ERROR: u8 = 1;
    /// No connection, or no login.
    pub const BAD_CONNECTION: u8 = 2;
    /// What was read from stdin makes no sense.
    pub const INVALID_INPUT: u8 = 3;
    /// An option's value is not served.
    pub const BAD_FEATURE: u8 = 4;
    /// Ended from outside.
    pub const INTERRUPTED: u8 = 5;
    /// A file or a pipe.
    pub const IO: u8 = 6;
    /// Of `serve`: the member was removed from its cluster; to start it again is no use.
    pub const REMOVED: u8 = 6;
    /// Arguments are missing, too many or wrong.
    pub const BAD_ARGUMENTS: u8 = 128;
}

/// Why a verb ends early.
#[derive(Debug)]
pub struct Failed {
    /// Empty: there is nothing to say, or it has been said.
    pub message: String,
    /// The process's exit code.
    pub code: u8,
}

impl Failed {
    /// With a code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Failed {
            message: message.into(),
            code,
        }
    }

    /// Some error.
    pub fn error(message: impl Into<String>) -> Self {
        Failed::new(exit::ERROR, message)
    }

    /// Wrong input.
    pub fn input(message: impl Into<String>) -> Self {
        Failed::new(exit::INVALID_INPUT, message)
    }

    /// Wrong arguments.
    pub fn arguments(message: impl Into<String>) -> Self {
        Failed::new(exit::BAD_ARGUMENTS, message)
    }

    /// Not served.
    pub fn feature(message: impl Into<String>) -> Self {
        Failed::new(exit::BAD_FEATURE, message)
    }

    /// All is said, and only the code is left.
    pub fn silent(code: u8) -> Self {
        Failed::new(code, "")
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let code = match error {
            ClientError::Unreachable { .. } | ClientError::Login(_) => exit::BAD_CONNECTION,
            ClientError::Server(_) => exit::ERROR,
            ClientError::Address(_) => exit::BAD_ARGUMENTS,
        };
        Failed::new(code, error.to_string())
    }
}

impl From<WatchError> for Failed {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Client(error) => error.into(),
            ended => Failed::error(ended.to_string()),
        }
    }
}
