//! What members tell over plain HTTP beside gRPC, on the same connection.

use bytes::Bytes;
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;

use super::{Client, ClientError};

/// An answer that is read as it comes.
pub struct Pages {
    body: Body,
}

impl Pages {
    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(status)) => return Err(status.into()),
            }
        }
    }

    /// All of it.
    pub async fn all(mut self) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// Server-sent events, one by one.
pub struct Messages {
    pages: Pages,
    buffer: Vec<u8>,
}

impl Messages {
    /// Those of an answer.
    pub fn of(pages: Pages) -> Self {
        Messages {
            pages,
            buffer: Vec::new(),
        }
    }

    /// The kind and the data of the next one; none at the end. What was read is kept if this is dropped halfway.
    pub async fn next(&mut self) -> Result<Option<(String, Vec<u8>)>, ClientError> {
        loop {
            if let Some(end) = end_of_message(&self.buffer) {
                let message: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Some(parts(&message)));
            }
            match self.pages.next().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

fn end_of_message(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|two| two == b"\n\n")
}

fn parts(message: &[u8]) -> (String, Vec<u8>) {
    let (mut kind, mut data) = (String::new(), Vec::new());
    for line in message.split(|byte| *byte == b'\n') {
        if let Some(name) = line.strip_prefix(b"event: ") {
            kind = String::from_utf8_lossy(name).into_owned();
        } else if let Some(json) = line.strip_prefix(b"data: ") {
            data.extend_from_slice(json);
        }
    }
    (kind, data)
}

impl Client {
    /// GET of `path`, at the first endpoint that can be reached; where that fails the next call goes to the next one.
    pub async fn look(&self, path: &str) -> Result<Pages, ClientError> {
        let (at, channel) = self.connect().await?;
        let request = http::Request::get(path)
            .body(Body::empty())
            .map_err(|error| Status::internal(error.to_string()))?;
        let answer = channel.oneshot(request).await.map_err(|error| {
            self.leave(at);
            Status::unavailable(error.to_string())
        })?;
        if answer.status() == http::StatusCode::OK {
            return Ok(Pages {
                body: answer.into_body(),
            });
        }
        self.leave(at);
        let status = answer.status();
        let said = Pages {
            body: answer.into_body(),
        };
        let said = String::from_utf8_lossy(&said.all().await?).trim().to_string();
        let why = match status {
            http::StatusCode::NOT_FOUND => {
                "it does not tell its events: is it a member of pontoon?".to_string()
            }
            status => format!("{status}: {said}"),
        };
        Err(Status::unavailable(format!("{}: {why}", self.endpoints()[at])).into())
    }

    /// The endpoint in use can't serve: the next call begins with the one after it.
    pub fn leave_endpoint(&self) {
        let at = super::lock(&self.connected).at;
        self.leave(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_with_an_empty_line() {
        let text = b"event: hello\ndata: {}\n\nevent: mem";
        assert_eq!(end_of_message(text), Some(22 - 1));
        assert_eq!(end_of_message(b"event\n"), None);
        assert_eq!(parts(&text[..23]), ("hello".to_string(), b"{}".to_vec()));
    }
}
