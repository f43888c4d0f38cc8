//! HTTP/1.1 by hand: what is sent and received is what the test says, byte for byte and chunk by chunk.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long anything may take: machines may be busy.
// Longer than the server keeps a silent connection: 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// An answer's head and what is known of its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = self.headers.iter().find(|(own, _)| own == name);
        named.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// One connection.
pub struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    /// Connects to an endpoint such as `http://127.0.0.1:1`.
    pub async fn connect(endpoint: &str) -> Http {
        let address = endpoint.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.expect("a connection");
        Http {
            stream: BufReader::new(stream),
        }
    }

    /// Sends bytes; whether the other side takes them is told by what comes back.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Sends a request with a body of known length.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.send([head.as_bytes(), body].concat()).await;
    }

    /// The head of an answer; its body is still to be read.
    pub async fn head(&mut self) -> Option<Answer> {
        let first = self.line().await?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut answer = Answer {
            status: status.unwrap_or_else(|| panic!("no status: {first:?}")),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line().await?;
            match line.split_once(':') {
                Some((name, value)) => {
                    let value = value.trim_start().to_string();
                    answer.headers.push((name.to_lowercase(), value));
                }
                None => return Some(answer),
            }
        }
    }

    /// A whole answer; none if the connection is closed.
    pub async fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head().await?;
        match answer.header("content-length") {
            Some(length) => {
                answer.body = vec![0; length.parse().expect("a length")];
                let read = timeout(PATIENCE, self.stream.read_exact(&mut answer.body)).await;
                read.expect("the body comes in time").ok()?;
            }
            None => {
                while let Some(chunk) = self.chunk().await {
                    answer.body.extend(chunk);
                }
            }
        }
        Some(answer)
    }

    /// One chunk of a chunked body; none after the last.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line().await?, 16).expect("a chunk's length");
        let mut chunk = vec![0; length + 2];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut chunk)).await;
        read.expect("the chunk comes in time").ok()?;
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// A chunk that holds exactly one line of JSON.
    pub async fn json_chunk(&mut self) -> Option<Value> {
        let chunk = String::from_utf8(self.chunk().await?).expect("text");
        assert!(
            chunk.ends_with('\n') && chunk.matches('\n').count() == 1,
            "a chunk is a line: {chunk:?}"
        );
        Some(serde_json::from_str(&chunk).expect("JSON"))
    }

    /// Whether nothing more comes and the connection is closed.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end too.
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        read.is_ok()
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
        match read.expect("an answer in time") {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_string()),
        }
    }
}

/// One request on a connection of its own.
pub async fn ask(endpoint: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut http = Http::connect(endpoint).await;
    http.ask(method, path, headers, body).await;
    http.answer()
        .await
        .unwrap_or_else(|| panic!("{method} {path}: no answer"))
}

/// GET.
pub async fn get(endpoint: &str, path: &str) -> Answer {
    ask(endpoint, "GET", path, &[], b"").await
}

/// POST.
pub async fn post(endpoint: &str, path: &str, body: &str) -> Answer {
    ask(endpoint, "POST", path, &[], body.as_bytes()).await
}
