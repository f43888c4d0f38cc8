//! The cluster as this member sees it, for the page and for `pontoon events`.
//!
//! ```text
//! GET /ui/state     {"now":…,"members":[{"id":"…","name":"node1","here":true,"figures":{…}},…]}
//! GET /ui/journal   {"<member>":[{"seq":1,"at":…,"kind":"started",…},…],…}
//! GET /ui/events    the same for as long as one listens, as server-sent events:
//!
//! event: hello      data: {"member":"…","cluster":"…","auth":false,"control":null}
//! event: members    data: as of /ui/state, four times a second
//! event: journal    data: as of /ui/journal, but what is new
//! ```
//!
//! It needs no leader and no login: it holds no value, and a key only while there is no access control. Whoever may see
//! the metrics may see this. How many may listen at once is bounded; one that reads slowly is told less often.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::json;
use tonic::body::Body;

use super::health::json_answer;
use super::{Query, plain};
use crate::server::Server;
use crate::server::observatory::{EVERY, Look};

const TOO_MANY: &str =
    "Too many look at this member already: close a page, or look through another member.\n";
/// Records of each member that a listener is sent at the beginning, unless it asks for all.
const RECENT: usize = 400;

/// Whether `path` is answered here.
pub fn is_path(path: &str) -> bool {
    matches!(path, "/ui/state" | "/ui/journal" | "/ui/events")
}

/// Answers one of them.
pub async fn answer(server: &Server, control: Option<&str>, path: &str, query: &Query) -> Response<Body> {
    let Some(mut look) = server.observatory().look() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, TOO_MANY);
    };
    server.observatory().ask_everybody().await;
    match path {
        "/ui/state" => json_answer(StatusCode::OK, json!(server.observatory().sample())),
        "/ui/journal" => json_text(journal(&look.news(), usize::MAX)),
        _ => {
            let recent = match query.is_set("all") {
                true => usize::MAX,
                false => RECENT,
            };
            events(Listener {
                server: server.clone(),
                control: control.map(str::to_string),
                look,
                recent,
                begun: false,
            })
        }
    }
}

fn json_text(text: String) -> Response<Body> {
    let mut response = plain(StatusCode::OK, text);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Records by their members: what is JSON already is not made anew.
fn journal(news: &BTreeMap<u64, Vec<Bytes>>, most: usize) -> String {
    let members = news.iter().map(|(id, records)| {
        let records = &records[records.len().saturating_sub(most)..];
        let records: Vec<_> = records
            .iter()
            .map(|record| String::from_utf8_lossy(record))
            .collect();
        format!("\"{id:x}\":[{}]", records.join(","))
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// One message of the stream. What is JSON has no line end in it.
fn message(kind: &str, data: &str) -> String {
    format!("event: {kind}\ndata: {data}\n\n")
}

struct Listener {
    server: Server,
    /// Where `pontoon cluster` makes faults.
    control: Option<String>,
    look: Look,
    /// Records of each member to be sent at the beginning.
    recent: usize,
    begun: bool,
}

impl Listener {
    /// What is to be told next; none if the member stops.
    async fn next(&mut self) -> Option<String> {
        let mut said = String::new();
        if self.begun {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.server.observatory().closed() => return None,
            }
        } else {
            said += &message("hello", &self.hello().to_string());
        }
        said += &message("members", &json!(self.server.observatory().sample()).to_string());
        let news = self.look.news();
        if !news.is_empty() {
            let most = if self.begun { usize::MAX } else { self.recent };
            said += &message("journal", &journal(&news, most));
        }
        self.begun = true;
        Some(said)
    }

    fn hello(&self) -> serde_json::Value {
        json!({
            "member": format!("{:x}", self.server.member_id()),
            "cluster": format!("{:x}", self.server.cluster_id()),
            "version": env!("CARGO_PKG_VERSION"),
            "control": self.control,
            "auth": self.server.reader().auth().enabled(),
            "election_ms": self.server.replica().timing().election.as_millis() as u64,
        })
    }
}

fn events(listener: Listener) -> Response<Body> {
    let frames = stream::unfold(listener, |mut listener| async move {
        let said = listener.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(said))), listener))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_below_their_members_and_the_newest_are_kept() {
        let records = vec![
            Bytes::from_static(b"{\"seq\":1}"),
            Bytes::from_static(b"{\"seq\":2}"),
        ];
        let news = BTreeMap::from([(0xa1, records), (0xb2, vec![])]);
        let parsed = |most| serde_json::from_str::<serde_json::Value>(&journal(&news, most)).expect("JSON");
        assert_eq!(parsed(9), json!({"a1": [{"seq": 1}, {"seq": 2}], "b2": []}));
        assert_eq!(parsed(1), json!({"a1": [{"seq": 2}], "b2": []}));
    }

    #[test]
    fn a_message_is_one_event() {
        assert_eq!(message("hello", "{}"), "event: hello\ndata: {}\n\n");
    }
}
