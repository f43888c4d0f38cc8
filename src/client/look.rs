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
