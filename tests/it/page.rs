//! The page of a member, in a real browser: a cluster is watched and broken by its buttons, and the page outlives the
//! member that served it. Where Chromium is not installed, that is said and left out.

use crate::support::browser::Browser;
use crate::support::cluster::{BINARY, Cluster, PATIENCE, machine};
use crate::support::http::{ask, get};
use crate::support::playground::Playground;
use crate::support::process::{free_port, spawn_logged, tail, wait_for};
use std::path::Path;
use std::process::Command;

/// A script: the card of a member.
fn card(name: &str) -> String {
    format!("document.querySelector('article[aria-label={name}]')")
}

/// A script: whether a member is shown as this.
fn is_shown_as(name: &str, role: &str) -> String {
    format!(
        "return {}?.querySelector('.role').textContent.includes('{role}')",
        card(name)
    )
}

fn button(name: &str, act: &str) -> String {
    format!("article[aria-label={name}] button[data-act={act}]")
}

/// Keeps a picture, if they are wanted.
async fn picture(browser: &Browser, name: &str) {
    if let Some(dir) = std::env::var_os("PONTOON_PICTURES") {
        browser.run("scrollTo(0, 0)").await;
        let file = Path::new(&dir).join(format!("{name}.png"));
        std::fs::write(file, browser.picture().await).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_killed_by_its_button_and_the_page_outlives_its_own_member() {
    let _machine = machine().await;
    let Some(browser) = Browser::open(1300, 1240).await else {
        return;
    };
    let playground = Playground::start();
    browser.go(playground.page()).await;
    browser
        .wait(
            "the page to show a leader",
            "return document.title.includes(' leads ')",
        )
        .await;
    browser
        .wait(
            "all members to be shown",
            "return document.querySelectorAll('.member:not(.gone)').length === 3",
        )
        .await;
    let address = browser.run("return location.href").await;
    assert_eq!(
        address,
        format!("{}/", playground.url(1)),
        "the token is not left in the address"
    );

    // Keys: written, with their history, found by prefix, watched.
    browser.fill("#prefix", "app/").await;
    browser.fill("#key", "app/colour").await;
    for (value, versions) in [("blue", 1), ("green", 2)] {
        browser.fill("#value", value).await;
        browser.click("#edit button[type=submit]").await;
        let script = format!(
            "return document.getElementById('edit-says').textContent.startsWith('put at revision') \
             && document.querySelectorAll('#history tbody tr').length === {versions}"
        );
        browser.wait("the key to be written", &script).await;
    }
    assert_eq!(playground.pontoon(&["get", "app/colour"]), "app/colour\ngreen\n");
    browser.click("#watch").await;
    let listed = |key: &str| {
        format!(
            "return [...document.querySelectorAll('#keys span')].some((one) => one.textContent === '{key}')"
        )
    };
    browser.wait("the keys to be listed", &listed("app/colour")).await;
    // Written anew until the watch has begun.
    wait_for(PATIENCE, "the watch to show what is written", || async {
        playground.pontoon(&["put", "app/by-another", "<b>bold</b>"]);
        (browser.run(&listed("app/by-another")).await == true).then_some(())
    })
    .await;
    assert_eq!(
        browser
            .run("return document.querySelectorAll('#keys b').length")
            .await,
        0,
        "text stays text"
    );
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // The member that serves the page leads, and dies.
    if browser.run(&is_shown_as("node1", "leader")).await != true {
        browser.click(&button("node1", "lead")).await;
    }
    browser
        .wait("node1 to lead", &is_shown_as("node1", "leader"))
        .await;
    browser
        .run("document.getElementById('explain').checked || document.getElementById('explain').click()")
        .await;
    // On a picture they should be seen.
    let writes = match std::env::var_os("PONTOON_PICTURES") {
        Some(_) => 100,
        None => 4,
    };
    let script =
        format!("return parseInt(document.getElementById('canary-says').textContent, 10) >= {writes}");
    browser.wait("canary writes", &script).await;
    browser.click(&button("node1", "kill")).await;
    browser
        .wait("the death to be shown", &is_shown_as("node1", "no answer"))
        .await;
    browser
        .wait(
            "another leader",
            "return /^node[23] leads/.test(document.title) && document.getElementById('banner').hidden",
        )
        .await;
    browser
        .wait(
            "another member to show it",
            "return /^node[23]$/.test(document.getElementById('through').selectedOptions[0].textContent)",
        )
        .await;
    browser
        .wait(
            "the stopwatch, and all acknowledged writes to be found",
            "const found = document.querySelector('#failover .good'); return found !== null && found.textContent === '0'",
        )
        .await;
    let said = browser
        .run("return document.getElementById('failover').textContent")
        .await;
    let said = said.as_str().unwrap_or_default();
    assert!(
        said.contains("first acknowledged write") && !said.contains("of 0 looked for"),
        "{said}"
    );
    for (dark, kind) in [(false, "light"), (true, "dark")] {
        browser.prefer_dark(dark).await;
        let seen = format!("return matchMedia('(prefers-color-scheme: dark)').matches === {dark}");
        browser.wait("the colours", &seen).await;
        picture(&browser, &format!("failover-{kind}")).await;
    }
    // Looked back at, the old leader still leads; and now it does not.
    let look_back = "const scrub = document.getElementById('scrub'); scrub.value = arguments_value; \
                     scrub.dispatchEvent(new Event('input')); return document.getElementById('head-leader').textContent";
    let leader_at = async |value: u32| {
        browser
            .run(&look_back.replace("arguments_value", &value.to_string()))
            .await
    };
    let mut led = false;
    for value in (0..1000).rev().step_by(20) {
        led |= leader_at(value).await == "node1";
    }
    assert!(led, "node1 led once");
    browser.click("#live").await;
    let leader = browser
        .run("return document.getElementById('head-leader').textContent")
        .await;
    assert!(leader == "node2" || leader == "node3", "{leader}");

    // The watch went on through another member, too.
    wait_for(PATIENCE, "the watch to go on", || async {
        playground.pontoon(&["put", "app/after", "1"]);
        (browser.run(&listed("app/after")).await == true).then_some(())
    })
    .await;

    // It comes back, without its disk.
    browser.click(&button("node1", "wipe")).await;
    browser
        .wait(
            "the disk to be gone",
            "return document.getElementById('announce').textContent.includes('lost its disk')",
        )
        .await;
    browser.click(&button("node1", "start")).await;
    browser
        .wait("node1 to be back", &is_shown_as("node1", "follower"))
        .await;
    // A way is cut, and who is at its ends says so.
    let whole = "return document.querySelectorAll('#ring .link.up').length === 3";
    browser.wait("all links to be up", whole).await;
    let cut = "const select = document.querySelector('#links-table select'); select.value = 'cut'; \
               select.dispatchEvent(new Event('change')); return true";
    browser.run(cut).await;
    let broken = "return document.querySelectorAll('#ring .link.down').length > 0";
    browser.wait("the cut to be noticed", broken).await;
    browser.resize(420, 1800).await;
    let drawn = "const lanes = document.getElementById('lanes'); return innerWidth === 420 && lanes.width === lanes.clientWidth";
    browser.wait("the narrow window to be drawn", drawn).await;
    picture(&browser, "narrow-dark").await;
    let wide = browser
        .run("return document.documentElement.scrollWidth > innerWidth")
        .await;
    assert_eq!(wide, false, "nothing sticks out of a narrow window");
    let heal = cut.replace("'cut'", "'up'");
    browser.run(&heal).await;
    browser
        .wait("a leader", "return document.title.includes(' leads ')")
        .await;
    browser.click(&button("node3", "pause")).await;
    browser
        .wait("node3 to stand still", &is_shown_as("node3", "no answer"))
        .await;
    browser.click(&button("node3", "resume")).await;
    browser
        .wait(
            "node3 to go on",
            &format!("return {}.classList.contains('gone') === false", card("node3")),
        )
        .await;
    // Without a majority there is no leader, and the page goes on.
    browser
        .run(&format!("{}.focus(); return true", card("node2")))
        .await;
    browser.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'k', bubbles: true})); return true").await;
    browser.click(&button("node3", "kill")).await;
    browser
        .wait("no leader", "return document.title.startsWith('no leader')")
        .await;
    browser
        .wait(
            "the page to go on through the last one",
            "return document.getElementById('through').selectedOptions[0].textContent === 'node1' \
             && document.getElementById('banner').hidden && document.querySelectorAll('.member').length === 3",
        )
        .await;
    for said in browser.complaints().await {
        // That the dead do not answer, and that without a leader writes are refused, is all that may go wrong.
        assert!(
            said.contains("Failed to load resource") || said.contains("net::ERR_"),
            "{said}"
        );
    }
}

/// Saves the incident of a leader that was killed, and ends its cluster; the old leader's name and the new one's.
async fn save_an_incident(file: &Path) -> (String, String) {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let through = cluster.members[(old + 1) % 3].client_url.clone();
    cluster.kill(old);
    wait_for(PATIENCE, "the loss of its links to be told", || async {
        let told = get(&through, "/ui/journal").await.text();
        (told.matches("link-down").count() >= 2).then_some(())
    })
    .await;
    let new = cluster.leader().await;
    let names: Vec<String> = cluster.members.iter().map(|member| member.name.clone()).collect();
    let saved = events(&["--save", &file.display().to_string(), "--endpoints", &through]);
    let text = std::fs::read_to_string(file).expect("a file");
    assert!(text.starts_with(r#"{"format":1,"saved_at":"#), "{text}");
    drop(cluster);
    // Nobody is needed to look at it.
    assert_eq!(events(&["--from", &file.display().to_string()]), saved);
    (names[old].clone(), names[new].clone())
}

/// What `pontoon events` prints.
fn events(args: &[&str]) -> String {
    let output = Command::new(BINARY).arg("events").args(args).output();
    let output = output.expect("pontoon runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_incident_is_replayed_on_the_page_of_another_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("incident.jsonl");
    let path = file.display().to_string();
    let (old, new) = save_an_incident(&file).await;

    let cluster = Cluster::start(1).await;
    let Some(browser) = Browser::open(1300, 1240).await else {
        return;
    };
    browser.go(&cluster.members[0].client_url).await;
    let live = "return document.title.includes(' leads ') && document.getElementById('replay').hidden \
                && document.querySelectorAll('.member').length === 1";
    browser.wait("the cluster that lives", live).await;

    // What is no incident is refused, and says why.
    for (name, text, why) in [
        ("odd.txt", "hello", "Cannot open odd.txt: line 1 is no JSON"),
        (
            "later.jsonl",
            r#"{"format":9,"version":"7.0"}"#,
            "it has format 9, of version 7.0",
        ),
        ("empty.jsonl", "", "there is no event in it"),
        ("other.jsonl", r#"{"colour":"blue"}"#, "line 1 is no event"),
    ] {
        let odd = dir.path().join(name);
        std::fs::write(&odd, text).expect("written");
        browser.type_into("#open", &odd.display().to_string()).await;
        let said = format!("return document.getElementById('replay-says').textContent.includes('{why}')");
        browser.wait(why, &said).await;
        browser
            .wait(
                "the cluster behind it",
                "return document.title.includes(' leads ')",
            )
            .await;
    }
    let large = dir.path().join("large");
    let sparse = std::fs::File::create(&large).and_then(|file| file.set_len(40 << 20));
    sparse.expect("a large file");
    browser.type_into("#open", &large.display().to_string()).await;
    let said = "return document.getElementById('replay-says').textContent.includes('larger than 32 MB')";
    browser.wait("a refusal of what is too large", said).await;
    browser.click("#replay-end").await;
    browser.wait("the cluster that lives", live).await;

    // The end of the incident: the old leader is dead, another one leads, and how long that took is told.
    browser.type_into("#open", &path).await;
    let replaying = "return /^Replaying incident.jsonl, saved at .*[0-9] events of n1, n2, n3, from /\
                     .test(document.getElementById('replay-says').textContent)";
    browser.wait("the incident", replaying).await;
    browser.wait("the dead", &is_shown_as(&old, "no answer")).await;
    browser.wait("the new leader", &is_shown_as(&new, "leader")).await;
    let text = async |id: &str| {
        let text = browser
            .run(&format!("return document.getElementById('{id}').textContent"))
            .await;
        text.as_str().unwrap_or_default().to_string()
    };
    assert_eq!(text("head-leader").await, new);
    let failover = text("failover").await;
    assert!(
        failover.contains("from the last word to the new leader")
            && failover.contains(&format!("{old} (term")),
        "{failover}"
    );
    let told = text("events").await;
    assert!(
        told.contains("leads in term") && told.contains("A majority voted for it"),
        "{told}"
    );
    let buttons = "return document.querySelectorAll('.acts button').length";
    assert_eq!(browser.run(buttons).await, 0, "what is past can't be broken");
    for (dark, kind) in [(false, "light"), (true, "dark")] {
        browser.prefer_dark(dark).await;
        picture(&browser, &format!("replay-{kind}")).await;
    }
    browser.resize(420, 1800).await;
    browser
        .wait("the narrow window", "return innerWidth === 420")
        .await;
    let wide = "return document.documentElement.scrollWidth > innerWidth";
    assert_eq!(
        browser.run(wide).await,
        false,
        "nothing sticks out of a narrow window"
    );
    picture(&browser, "replay-narrow").await;
    browser.resize(1300, 1240).await;

    // Event by event back, by the keyboard: to the moment when the old one led, and had not been lost.
    let press = |key: &str| {
        format!(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}})); return true"
        )
    };
    let mut back = 0;
    while text("head-leader").await != old {
        browser.run(&press(",")).await;
        back += 1;
        assert!(back < 200, "the old leader never led");
    }
    browser
        .wait("the old leader alive", &is_shown_as(&old, "leader"))
        .await;
    assert_eq!(text("failover").await, "None up to this moment.");
    browser.click("#after").await;
    // And by the slider.
    let slide = "const scrub = document.getElementById('scrub'); scrub.value = 0; scrub.dispatchEvent(new Event('input')); return true";
    browser.run(slide).await;
    assert_eq!(text("head-leader").await, "none", "nobody leads at the beginning");

    // The live cluster went on meanwhile.
    browser.click("#replay-end").await;
    browser.wait("the cluster that lives", live).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_access_control_keys_are_for_those_who_log_in() {
    let _machine = machine().await;
    let Some(browser) = Browser::open(1100, 1200).await else {
        return;
    };
    let playground = Playground::start();
    playground.pontoon(&["put", "secret", "value"]);
    for verb in [
        &["user", "add", "root:word"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        playground.pontoon(verb);
    }
    // Without the token: to be looked at alone.
    browser.go(&playground.url(2)).await;
    browser
        .wait(
            "the page",
            "return document.title.includes(' leads ') && !document.getElementById('login-open').hidden",
        )
        .await;
    browser.click("#search button").await;
    browser
        .wait(
            "a refusal",
            "return document.getElementById('keys-says').textContent.includes('user name is empty')",
        )
        .await;
    let shown = browser.run("return document.body.textContent").await;
    assert!(!shown.as_str().expect("text").contains("secret"));
    assert_eq!(
        browser
            .run("return document.querySelectorAll('.acts button').length")
            .await,
        0
    );
    browser.click("#login-open").await;
    browser.fill("#user", "root").await;
    for (password, said) in [
        (
            "wrong",
            "return document.getElementById('login-says').textContent.includes('authentication failed')",
        ),
        ("word", "return !document.getElementById('login').open"),
    ] {
        browser.fill("#password", password).await;
        browser.click("#login button[value=ok]").await;
        browser.wait(said, said).await;
    }
    browser
        .wait(
            "the key",
            "return document.getElementById('keys').textContent.includes('secret')",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_for_whoever_has_the_token_and_comes_from_a_members_page() {
    let _machine = machine().await;
    let playground = Playground::start();
    let page = get(&playground.url(1), "/").await;
    let policy = page
        .header("content-security-policy")
        .expect("a policy")
        .to_string();
    let control = policy.split("connect-src 'self' ").nth(1).expect("connections");
    let control = control
        .split([' ', ';'])
        .find(|url| (1..=3).all(|member| **url != playground.url(member)));
    let control = control.expect("the control").to_string();
    let host = control.trim_start_matches("http://").to_string();
    let right = format!("Bearer {}", playground.token());
    // The test's own client always says that it asks localhost, so the connection is made by hand.
    let code = |host: &str, token: &str, origin: &str| {
        let (control, host, token, origin) = (
            host_of(&control),
            host.to_string(),
            token.to_string(),
            origin.to_string(),
        );
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(control).await.expect("connected");
            let request = format!(
                "GET /state HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse::<u16>().ok())
                .expect("a code")
        }
    };
    let origin = playground.url(2);
    assert_eq!(code(&host, &right, &origin).await, 200);
    assert_eq!(code(&host, "Bearer 00", &origin).await, 403);
    assert_eq!(code(&host, "", &origin).await, 403);
    assert_eq!(code(&host, &right, "http://evil.example").await, 403);
    assert_eq!(code(&host, &right, "http://127.0.0.1:1").await, 403);
    assert_eq!(code("evil.example", &right, &origin).await, 403);
    // A member knows neither the token nor anything that it could break by itself.
    let told = get(&playground.url(1), "/ui/state").await.text();
    assert!(!told.contains(playground.token()));
    for path in ["/do", "/ui/do", "/state"] {
        assert_eq!(
            ask(
                &playground.url(1),
                "POST",
                path,
                &[("authorization", &right)],
                b"{}"
            )
            .await
            .status,
            404
        );
    }
}

fn host_of(url: &str) -> String {
    url.trim_start_matches("http://").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_others_reach_refuses_to_be_a_playground() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    for (url, control) in [
        ("http://0.0.0.0", "http://127.0.0.1:1"),
        ("http://127.0.0.1", "http://10.0.0.1:1"),
    ] {
        let listen = format!("{url}:{}", free_port());
        let mut command = Command::new("env");
        let told = format!("PONTOON_PLAYGROUND={{\"control\":\"{control}\",\"detours\":{{}}}}");
        command
            .arg(told)
            .arg(BINARY)
            .args(["serve", "--listen-client-urls", &listen, "--data-dir"]);
        let mut child = spawn_logged(command.arg(dir.path().join("data")), &log);
        let ended = child.wait().expect("it ends");
        assert!(!ended.success());
        assert!(
            tail(&log).contains("to be broken, on this machine alone"),
            "{}",
            tail(&log)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_protected_can_be_left_out_and_may_ask_the_other_members() {
    let mut cluster = Cluster::start_with(2, &["--cors", "http://elsewhere.example"]).await;
    let (url, other) = (
        cluster.members[0].client_url.clone(),
        cluster.members[1].client_url.clone(),
    );
    let page = get(&url, "/").await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';"),
        "{policy}"
    );
    assert!(
        policy.contains(&other) && !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    assert_eq!(page.header("x-frame-options"), Some("DENY"));
    for part in page.text().split('"').filter(|part| part.starts_with("/ui/")) {
        assert_eq!(get(&url, part).await.status, 200, "{part}");
    }
    assert_eq!(get(&url, "/ui/nothing.js").await.status, 404);
    let allowed = async |origin: &str| {
        let answer = ask(&url, "GET", "/ui/state", &[("Origin", origin)], b"").await;
        answer.header("access-control-allow-origin").map(str::to_string)
    };
    assert_eq!(allowed(&other).await.as_deref(), Some(other.as_str()));
    assert_eq!(
        allowed("http://elsewhere.example").await.as_deref(),
        Some("http://elsewhere.example")
    );
    assert_eq!(allowed("http://evil.example").await, None);

    cluster.kill(0);
    cluster.set_flags(&["--enable-web-page=false"]);
    cluster.restart(0).await;
    assert_eq!(get(&url, "/").await.status, 404);
    assert_eq!(get(&url, "/ui/app.js").await.status, 404);
    assert_eq!(
        get(&url, "/ui/state").await.status,
        200,
        "what it shows is there for others"
    );
}
