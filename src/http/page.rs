//! The page of a member: the cluster to be watched, at `/` of the client port.
//!
//! Written by hand, as browsers take it: no build, no framework, nothing from elsewhere. The files below `page/` are in
//! the binary. A strict policy holds: no script and no style but these, no connection but to the members that clients
//! know (the page goes on through another one when its own dies), and to `pontoon cluster` where that started them.
//!
//! The page itself is the same for everybody and shows what `/ui/events` tells ([`super::look`]). Keys it reads and
//! writes as any client does, by the JSON gateway, with the token of whoever logs in.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tonic::body::Body;

use super::plain;
use crate::server::Server;

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal, $file:literal, $kind:ident;)*) => {
        /// Path, kind and text of each file.
        const FILES: &[(&str, &str, &str)] = &[$(($path, $kind, include_str!(concat!("page/", $file)))),*];
    };
}

files! {
    "/", "index.html", HTML;
    "/ui/style.css", "style.css", STYLE;
    "/ui/icon.svg", "icon.svg", IMAGE;
    "/ui/app.js", "app.js", SCRIPT;
    "/ui/canary.js", "canary.js", SCRIPT;
    "/ui/dom.js", "dom.js", SCRIPT;
    "/ui/events.js", "events.js", SCRIPT;
    "/ui/failover.js", "failover.js", SCRIPT;
    "/ui/faults.js", "faults.js", SCRIPT;
    "/ui/feed.js", "feed.js", SCRIPT;
    "/ui/incident.js", "incident.js", SCRIPT;
    "/ui/keys.js", "keys.js", SCRIPT;
    "/ui/lanes.js", "lanes.js", SCRIPT;
    "/ui/log.js", "log.js", SCRIPT;
    "/ui/members.js", "members.js", SCRIPT;
    "/ui/model.js", "model.js", SCRIPT;
    "/ui/replay.js", "replay.js", SCRIPT;
}

/// Whether `path` is a part of the page.
pub fn is_path(path: &str) -> bool {
    FILES.iter().any(|(own, _, _)| *own == path)
}

/// A part of the page; `control`: where `pontoon cluster` makes faults.
pub fn answer(server: &Server, control: Option<&str>, path: &str) -> Response<Body> {
    let Some((_, kind, text)) = FILES.iter().find(|(own, _, _)| *own == path) else {
        return plain(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    let mut response = plain(StatusCode::OK, Bytes::from_static(text.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    protect(headers, &policy(&origins(server), control));
    response
}

fn protect(headers: &mut HeaderMap, policy: &str) {
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    let fixed = [
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Asked for again after an upgrade.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn policy(members: &[String], control: Option<&str>) -> String {
    let connect: Vec<&str> = members.iter().map(String::as_str).chain(control).collect();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {}; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        connect.join(" ")
    )
}

/// Where the members' pages are.
pub fn origins(server: &Server) -> Vec<String> {
    let members = server.reader().members();
    let urls = members.iter().flat_map(|member| &member.client_urls);
    urls.filter_map(|url| origin(url)).collect()
}

/// The origin of a URL that a member advertises; none if it is not one that can stand in a policy.
fn origin(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?.as_str());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let is_usable = ["http", "https"].contains(&scheme) && authority.chars().all(is_plain);
    is_usable.then(|| format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_asks_for_nothing_from_elsewhere() {
        let size: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(size < 100_000, "{size} bytes");
        for (path, _, text) in FILES.iter().filter(|(path, _, _)| *path != "/ui/icon.svg") {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
            // Data is set as text alone.
            for word in ["innerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(word), "{path}: {word}");
            }
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_served() {
        for (path, _, text) in FILES {
            let names = text
                .split(['"', '\''])
                .filter_map(|part| match part.strip_prefix("./") {
                    Some(name) if name.ends_with(".js") => Some(format!("/ui/{name}")),
                    _ => part.starts_with("/ui/").then(|| part.to_string()),
                });
            for name in names.filter(|name| name.contains('.')) {
                assert!(is_path(&name), "{path} names {name}");
            }
        }
    }

    #[test]
    fn only_plain_origins_get_into_the_policy() {
        assert_eq!(origin("http://a-b.c:1/x").as_deref(), Some("http://a-b.c:1"));
        assert_eq!(origin("https://[::1]:2").as_deref(), Some("https://[::1]:2"));
        for odd in ["ftp://a:1", "a:1", "http://a;script-src *", "http://u@a:1"] {
            assert_eq!(origin(odd), None, "{odd}");
        }
        let policy = policy(&["http://a:1".to_string()], Some("http://127.0.0.1:9"));
        assert!(
            policy.contains("connect-src 'self' http://a:1 http://127.0.0.1:9;"),
            "{policy}"
        );
    }
}
