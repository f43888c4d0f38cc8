//! An answer that ends early: what it has said stands, and a status ends it when something happens.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

/// The answer `body`, up to its own end or to that which `end` says.
pub fn until(body: Body, end: impl Future<Output = Status> + Send + 'static) -> Body {
    Body::new(Until {
        body: Some(body),
        end: Box::pin(end),
    })
}

struct Until {
    /// Gone at the end.
    body: Option<Body>,
    end: Pin<Box<dyn Future<Output = Status> + Send>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let Poll::Ready(status) = self.end.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.body = None;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
