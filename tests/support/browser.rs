//! A real browser, headless, driven over WebDriver's JSON protocol; none where none is installed.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::http::{Answer, ask};
use super::process::{free_port, kill_and_reap, wait_for};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Names of the driver.
const DRIVERS: [&str; 2] = ["chromedriver", "/usr/lib/chromium/chromedriver"];

/// A window of Chromium.
pub struct Browser {
    driver: Child,
    endpoint: String,
    session: String,
}

impl Browser {
    /// Opens a window; none, with a line that says so, where Chromium and its driver are not installed.
    pub async fn open(width: u32, height: u32) -> Option<Browser> {
        let port = free_port();
        let start = |driver: &&str| {
            Command::new(driver)
                .arg(format!("--port={port}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .ok()
        };
        let Some(driver) = DRIVERS.iter().find_map(start) else {
            println!(
                "chromedriver is not installed (apt-get install chromium chromium-driver): the page is not driven"
            );
            return None;
        };
        let mut browser = Browser {
            driver,
            endpoint: format!("http://127.0.0.1:{port}"),
            session: String::new(),
        };
        wait_for(PATIENCE, "the driver", || async {
            let dialled = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            dialled.ok().map(drop)
        })
        .await;
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.post("/session", wanted).await;
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("a session"));
        browser.resize(width, height).await;
        Some(browser)
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let kind = [("content-type", "application/json")];
        let body = body.to_string();
        value(ask(&self.endpoint, "POST", path, &kind, body.as_bytes()).await)
    }

    async fn in_session(&self, path: &str, body: Value) -> Value {
        self.post(&format!("{}/{path}", self.session), body).await
    }

    async fn chromium(&self, command: &str, params: Value) {
        let body = json!({"cmd": command, "params": params});
        self.in_session("goog/cdp/execute", body).await;
    }

    /// The window's size, in pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.chromium("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// As somebody sees it who prefers dark colours, or light ones.
    pub async fn prefer_dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.chromium("Emulation.setEmulatedMedia", features).await;
    }

    /// Goes to an address.
    pub async fn go(&self, url: &str) {
        self.in_session("url", json!({"url": url})).await;
    }

    /// What a script returns.
    pub async fn run(&self, script: &str) -> Value {
        let body = json!({"script": script, "args": []});
        self.in_session("execute/sync", body).await
    }

    /// Waits until a script returns something that counts as true, and returns that.
    pub async fn wait(&self, what: &str, script: &str) -> Value {
        wait_for(PATIENCE, what, || async {
            let found = self.run(script).await;
            let is_so = !matches!(found, Value::Null | Value::Bool(false)) && found != "" && found != 0;
            is_so.then_some(found)
        })
        .await
    }

    async fn element(&self, selector: &str) -> String {
        let body = json!({"using": "css selector", "value": selector});
        let found = self.in_session("element", body).await;
        let id = found.as_object().and_then(|object| object.values().next());
        id.and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no {selector}: {found}"))
            .to_string()
    }

    /// Clicks, as a person does: where the element is, if nothing is in the way.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        let done = self
            .in_session(&format!("element/{element}/click"), json!({}))
            .await;
        assert!(done.is_null(), "{selector}: {done}");
    }

    /// Types into an element, in the place of what is there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.in_session(&format!("element/{element}/clear"), json!({}))
            .await;
        self.type_into(selector, text).await;
    }

    /// Types into an element; into one that takes a file, its path.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        let body = json!({"text": text});
        let done = self.in_session(&format!("element/{element}/value"), body).await;
        assert!(done.is_null(), "{selector}: {done}");
    }

    /// What the console was told since it was last asked: errors and warnings.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.in_session("se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let counts = |entry: &&Value| entry["level"] == "SEVERE" || entry["level"] == "WARNING";
        let said = |entry: &Value| entry["message"].as_str().unwrap_or_default().to_string();
        entries.iter().filter(counts).map(said).collect()
    }

    /// The window as a PNG.
    pub async fn picture(&self) -> Vec<u8> {
        let path = format!("{}/screenshot", self.session);
        let picture = value(ask(&self.endpoint, "GET", &path, &[], b"").await);
        let picture = picture.as_str().expect("a picture");
        BASE64_STANDARD.decode(picture).expect("base64")
    }
}

fn value(answer: Answer) -> Value {
    let mut value = answer.json();
    value["value"].take()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser only when the session is ended; without an answer nothing more can be done.
        let _ = self.end_session();
        kill_and_reap(&mut self.driver);
    }
}

impl Browser {
    fn end_session(&self) -> std::io::Result<()> {
        let mut stream = std::net::TcpStream::connect(self.endpoint.trim_start_matches("http://"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("DELETE {} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.session);
        stream.write_all(request.as_bytes())?;
        stream.read(&mut [0; 512]).map(drop)
    }
}
