//! The other end of [`super::control`], for the terminal: found by a file in the cluster's directory, which only its owner
//! may read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tonic::body::Body;
use tower::ServiceExt;

use crate::client::Options;

/// How long an answer may take: a leader may have to move.
const ANSWER: Duration = Duration::from_secs(10);

fn file(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// Leaves address and token for whoever owns the directory.
pub fn leave(dir: &Path, address: &str, token: &str) -> std::io::Result<()> {
    forget(dir);
    let mut options = OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(file(dir))?;
    writeln!(file, "{address} {token}")
}

/// The cluster ends.
pub fn forget(dir: &Path) {
    // It may not be there.
    let _ = std::fs::remove_file(file(dir));
}

/// Where faults are asked for.
pub struct Control {
    address: String,
    token: String,
}

impl Control {
    /// That of the cluster in `dir`.
    pub fn of(dir: &Path) -> anyhow::Result<Control> {
        let path = file(dir);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no `pontoon cluster` runs in {}", dir.display()))?;
        let (address, token) = text
            .trim()
            .split_once(' ')
            .with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Control {
            address: address.to_string(),
            token: token.to_string(),
        })
    }

    /// What members and links are doing.
    pub async fn state(&self) -> anyhow::Result<Value> {
        let said = self.ask("GET", "/state", Bytes::new()).await?;
        serde_json::from_str(&said).context("pontoon cluster's answer")
    }

    /// Has something done; what was.
    pub async fn act(&self, what: &Value) -> anyhow::Result<String> {
        self.ask("POST", "/do", what.to_string().into()).await
    }

    /// What a member's process does: running, paused or stopped.
    pub async fn does(&self, name: &str) -> anyhow::Result<String> {
        let state = self.state().await?;
        let members = state["members"].as_array().into_iter().flatten();
        let mut states = members.filter(|member| member["name"] == name);
        let does = states.next().and_then(|member| member["state"].as_str());
        does.map(str::to_string)
            .with_context(|| format!("there is no member {name:?}"))
    }

    /// Changes all ways between a member and the others, both ways: `up` or `cut`.
    pub async fn link(&self, name: &str, mode: &str) -> anyhow::Result<()> {
        let state = self.state().await?;
        let links = state["links"].as_array().into_iter().flatten();
        for link in links.filter(|link| link["from"] == name || link["to"] == name) {
            let asked = json!({"act": "link", "from": link["from"], "to": link["to"], "mode": mode});
            self.act(&asked).await?;
        }
        Ok(())
    }

    async fn ask(&self, method: &str, path: &str, body: Bytes) -> anyhow::Result<String> {
        let channel = Options::default().connect(&self.address, Some(ANSWER)).await?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .body(Body::new(Full::new(body)))?;
        let answer = channel.oneshot(request).await?;
        let is_ok = answer.status().is_success();
        let said = answer.into_body().collect().await?.to_bytes();
        let said = String::from_utf8_lossy(&said).trim().to_string();
        match is_ok {
            true => Ok(said),
            false => bail!("{said}"),
        }
    }
}
