//! top: the cluster in a terminal, as the page shows it: who leads, how far each log is, what happens. Where `pontoon
//! cluster` runs it, keys do to members what the page's buttons do.
//!
//! It hears one member, as the page does, and goes on through another when that is gone or says nothing.

mod keys;
mod screen;
mod text;

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Command};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::keys::{Key, Raw};
use self::screen::View;
use super::args::{text, value};
use super::cluster::remote::Control;
use super::ctl::Context;
use super::events::Journal;
use super::failed::{Failed, exit};
use crate::client::Messages;

/// A member that says nothing for so long is left.
const SILENCE: Duration = Duration::from_millis(2500);
/// Between attempts to find a member that answers.
const AGAIN: Duration = Duration::from_millis(200);
/// Events that are kept.
const EVENTS: usize = 200;

const HELP: &str = "\
Keys: up and down choose a member, e explains, q ends. With --cluster, the directory of a running \
`pontoon cluster`: k kill, p pause or resume, s stop or start, w wipe its disk, l make it lead, and \
c cuts the chosen member off from all others, or puts that right.

  pontoon top
  pontoon top --cluster pontoon-cluster

Where there is no terminal: pontoon events --follow";

/// The verb.
pub fn command() -> Command {
    Command::new("top")
        .about("Watch the members in the terminal: who leads, how far each is, what happens")
        .arg(value("cluster", "Directory of a `pontoon cluster`, to break it by keys").value_name("DIR"))
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failed::arguments(
            "top wants a terminal; there is: pontoon events --follow",
        ));
    }
    let control = match text(matches, "cluster") {
        "" => None,
        dir => Some(
            Control::of(dir.as_ref()).map_err(|error| Failed::arguments(format!("--cluster: {error:#}")))?,
        ),
    };
    // The first one has to answer; later ones are waited for.
    let first = context.client.look("/ui/events").await?;
    let (_raw, mut typed) = Raw::start().map_err(|error| Failed::new(exit::IO, error.to_string()))?;
    let mut top = Top {
        context,
        control,
        journal: Journal::default(),
        view: View::default(),
        events: VecDeque::new(),
    };
    top.hear(Messages::of(first), &mut typed).await?;
    Ok(ExitCode::SUCCESS)
}

struct Top<'a> {
    context: &'a Context,
    control: Option<Control>,
    journal: Journal,
    view: View,
    events: VecDeque<screen::Line>,
}

impl Top<'_> {
    /// Draws what is heard and does what is typed, until that is q.
    async fn hear(&mut self, mut messages: Messages, typed: &mut mpsc::Receiver<Key>) -> Result<(), Failed> {
        loop {
            tokio::select! {
                heard = tokio::time::timeout(SILENCE, messages.next()) => match heard {
                    Ok(Ok(Some((kind, data)))) => self.take(&kind, &data),
                    _ => {
                        self.view.notice = "that member is gone: looking for another one".to_string();
                        self.draw()?;
                        let Some(next) = self.another(typed).await else { return Ok(()) };
                        messages = next;
                    }
                },
                key = typed.recv() => {
                    let Some(key) = key.filter(|key| *key != Key::Quit) else { return Ok(()) };
                    self.act(key).await;
                }
            }
            self.draw()?;
        }
    }

    /// The next member that answers; none if q was typed before.
    async fn another(&mut self, typed: &mut mpsc::Receiver<Key>) -> Option<Messages> {
        let mut looked = Instant::now();
        loop {
            self.context.client.leave_endpoint();
            tokio::select! {
                pages = self.context.client.look("/ui/events") => match pages {
                    Ok(pages) => {
                        self.view.notice.clear();
                        return Some(Messages::of(pages));
                    }
                    Err(error) => {
                        self.view.nobody(looked.elapsed());
                        self.view.notice = format!("trying again: {error}");
                        looked = Instant::now();
                        self.draw().ok()?;
                    }
                },
                key = typed.recv() => if matches!(key, None | Some(Key::Quit)) {
                    return None;
                },
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn take(&mut self, kind: &str, data: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(data) else {
            return;
        };
        match kind {
            "members" => {
                self.journal.learn(&value);
                self.view.members(&value);
            }
            "journal" => {
                for event in self.journal.news(&value) {
                    self.events.push_back(screen::Line::of(&event));
                }
                self.events.drain(..self.events.len().saturating_sub(EVENTS));
            }
            _ => {}
        }
    }

    async fn act(&mut self, key: Key) {
        let chosen = self.view.chosen();
        match key {
            Key::Up => self.view.choose(-1),
            Key::Down => self.view.choose(1),
            Key::Explain => self.view.explain = !self.view.explain,
            Key::Act(act) => {
                let (Some(control), Some(name)) = (&self.control, chosen) else {
                    self.view.notice = "to break members: pontoon top --cluster DIR".to_string();
                    return;
                };
                self.view.notice = match do_to(control, act, &name).await {
                    Ok(done) => done,
                    Err(error) => format!("{error:#}"),
                };
            }
            Key::Quit => {}
        }
    }

    fn draw(&self) -> Result<(), Failed> {
        let (width, height) = keys::size();
        let screen = self
            .view
            .draw(&self.events, self.control.is_some(), width, height);
        let mut out = std::io::stdout().lock();
        let drawn = out.write_all(screen.as_bytes()).and_then(|()| out.flush());
        drawn.map_err(|error| Failed::new(exit::IO, format!("cannot write: {error}")))
    }
}

/// Does to a member what a key says; some keys have two meanings, by what the member does.
async fn do_to(control: &Control, act: char, name: &str) -> anyhow::Result<String> {
    let act = match act {
        'k' => "kill",
        'w' => "wipe",
        'l' => "lead",
        'p' if control.does(name).await? == "paused" => "resume",
        'p' => "pause",
        's' if control.does(name).await? == "stopped" => "start",
        's' => "stop",
        _ => return cut(control, name).await,
    };
    control.act(&json!({"act": act, "member": name})).await
}

/// Cuts a member off from all others, both ways; or mends what is cut.
async fn cut(control: &Control, name: &str) -> anyhow::Result<String> {
    let state = control.state().await?;
    let mut links = state["links"].as_array().into_iter().flatten();
    let is_own = |link: &Value| link["from"] == name || link["to"] == name;
    match links.any(|link| is_own(link) && link["mode"] != "up") {
        true => control.link(name, "up").await?,
        false => {
            control.link(name, "cut").await?;
            return Ok(format!("{name} is cut off"));
        }
    }
    Ok(format!("{name} reaches the others again"))
}
