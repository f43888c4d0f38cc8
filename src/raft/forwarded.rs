//! The way back of forwarded commands: what the leader answers to the member that handed them over.
//!
//! An answer is one of three: the *reply* that apply gave, a refusal as its text; *not proposed*, after which the command
//! may be proposed again; or *unknown*, after which it may not. What can't be read is unknown: it may well be made.

use bytes::Bytes;
use prost::Message;

use super::Reply;
use super::replica::ProposeError;
use crate::error::Error;
use crate::pb::pontoon::command::{self, reply};
use crate::pb::pontoon::peer;

/// What became of a command that another member forwarded.
pub(super) struct Forwarded(pub Result<Reply, ProposeError>);

impl Forwarded {
    /// For the wire.
    pub fn into_wire(self) -> peer::Forwarded {
        use peer::forwarded::Result as Wire;
        let result = match self.0 {
            Ok(reply) => Wire::Reply(reply_to_wire(reply)),
            Err(ProposeError::NotProposed(why)) => Wire::NotProposed(why),
            Err(ProposeError::Unknown(why)) => Wire::Unknown(why),
        };
        peer::Forwarded { result: Some(result) }
    }

    /// From the wire.
    pub fn from_wire(wire: peer::Forwarded) -> Result<Reply, ProposeError> {
        use peer::forwarded::Result as Wire;
        match wire.result {
            Some(Wire::Reply(bytes)) => reply_from_wire(bytes),
            Some(Wire::NotProposed(why)) => Err(ProposeError::NotProposed(why)),
            Some(Wire::Unknown(why)) => Err(ProposeError::Unknown(why)),
            None => Err(ProposeError::Unknown("the leader's answer is empty".to_string())),
        }
    }
}

fn reply_to_wire(reply: Reply) -> Bytes {
    let response = match reply.0 {
        Ok(response) => response,
        Err(error) => reply::Response::Error(error.text().to_string()),
    };
    command::Reply {
        response: Some(response),
    }
    .encode_to_vec()
    .into()
}

fn reply_from_wire(bytes: Bytes) -> Result<Reply, ProposeError> {
    let unreadable = |why: String| ProposeError::Unknown(format!("the leader's answer can't be read: {why}"));
    let reply = command::Reply::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
    match reply.response {
        Some(reply::Response::Error(text)) => Error::parse(&text)
            .map(|error| Reply(Err(error)))
            .ok_or(unreadable(text)),
        Some(response) => Ok(Reply(Ok(response))),
        None => Err(unreadable("it is empty".to_string())),
    }
}
