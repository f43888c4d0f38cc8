//! events: what happened to the members, as their journals have it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};
use serde_json::{Map, Value};

use super::args::{flag, text, value};
use super::ctl::Context;
use super::failed::{Failed, exit};
use super::format::Form;
use super::output;
use crate::client::Pages;

/// Between attempts to find a member that answers.
const AGAIN: Duration = Duration::from_millis(200);

const HELP: &str = "\
Prints elections, leaders, members, links, snapshots, slow disks, starts and stops, of all members \
that the one that is asked can reach, by their own clocks. Nothing of it is a key or a value.

  pontoon events                     what happened so far
  pontoon events --follow --explain  and what happens, with a sentence about each
  pontoon events -w json             a line of JSON for each event
  pontoon events --save incident     the same, into a file

With --follow, another endpoint takes over when one is lost.";

/// The verb.
pub fn command() -> Command {
    Command::new("events")
        .about("Print what happened to the members: elections, leaders, links, disks")
        .arg(flag("follow", "Go on with what happens").short('f'))
        .arg(flag("explain", "Add a plain sentence to each event"))
        .arg(value("save", "Write the events to this file, a line of JSON for each").value_name("FILE"))
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let mut out = Out {
        json: context.form == Form::Json,
        explain: matches.get_flag("explain"),
        save: save(text(matches, "save"))?,
        names: BTreeMap::new(),
        told: BTreeMap::new(),
    };
    if !matches!(context.form, Form::Simple | Form::Json) {
        return Err(context.no_such_form());
    }
    if !matches.get_flag("follow") {
        let state = read(context.client.look("/ui/state").await?).await?;
        out.learn(&state);
        let journal = read(context.client.look("/ui/journal").await?).await?;
        out.tell(&journal)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The first one has to answer; later ones are waited for.
    let mut pages = context.client.look("/ui/events?all").await?;
    loop {
        follow(pages, &mut out).await?;
        context.client.leave_endpoint();
        pages = loop {
            match context.client.look("/ui/events?all").await {
                Ok(pages) => break pages,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
    }
}

fn save(path: &str) -> Result<Option<File>, Failed> {
    if path.is_empty() {
        return Ok(None);
    }
    let file = File::create(path);
    let file = file.map_err(|error| Failed::new(exit::IO, format!("cannot write {path}: {error}")))?;
    Ok(Some(file))
}

async fn read(pages: Pages) -> Result<Value, Failed> {
    parse(&pages.all().await?)
}

fn parse(json: &[u8]) -> Result<Value, Failed> {
    serde_json::from_slice(json).map_err(|error| Failed::error(format!("the member's answer: {error}")))
}

/// Tells what comes, until the member is lost.
async fn follow(mut pages: Pages, out: &mut Out) -> Result<(), Failed> {
    let mut buffer = Vec::new();
    while let Ok(Some(piece)) = pages.next().await {
        buffer.extend_from_slice(&piece);
        while let Some(end) = find(&buffer, b"\n\n") {
            let message: Vec<u8> = buffer.drain(..end + 2).collect();
            hear(&message, out)?;
        }
    }
    Ok(())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One server-sent event.
fn hear(message: &[u8], out: &mut Out) -> Result<(), Failed> {
    let (mut kind, mut data) = (String::new(), Vec::new());
    for line in message.split(|byte| *byte == b'\n') {
        if let Some(name) = line.strip_prefix(b"event: ") {
            kind = String::from_utf8_lossy(name).into_owned();
        } else if let Some(json) = line.strip_prefix(b"data: ") {
            data.extend_from_slice(json);
        }
    }
    match kind.as_str() {
        "members" => out.learn(&parse(&data)?),
        "journal" => out.tell(&parse(&data)?)?,
        _ => {}
    }
    Ok(())
}

/// Where events go, and which went.
struct Out {
    json: bool,
    explain: bool,
    save: Option<File>,
    names: BTreeMap<String, String>,
    /// The last one of each member and run.
    told: BTreeMap<(String, u64), u64>,
}

impl Out {
    /// How the members are called.
    fn learn(&mut self, state: &Value) {
        for member in state["members"].as_array().into_iter().flatten() {
            if let (Some(id), Some(name)) = (member["id"].as_str(), member["name"].as_str()) {
                self.names.insert(id.to_string(), name.to_string());
            }
        }
    }

    /// Tells the new ones among these, in the order of their times.
    fn tell(&mut self, journal: &Value) -> Result<(), Failed> {
        let mut news = Vec::new();
        for (member, records) in journal.as_object().into_iter().flatten() {
            for record in records.as_array().into_iter().flatten() {
                let number = |name: &str| record[name].as_u64().unwrap_or_default();
                let last = self.told.entry((member.clone(), number("run"))).or_default();
                if number("seq") > *last {
                    *last = number("seq");
                    news.push((number("at"), member, record));
                }
            }
        }
        news.sort_by_key(|(at, _, record)| (*at, record["seq"].as_u64()));
        for (at, member, record) in news {
            self.write(at, member, record)?;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, member: &str, record: &Value) -> Result<(), Failed> {
        let name = self.names.get(member).filter(|name| !name.is_empty());
        let name = name.cloned().unwrap_or_else(|| member.to_string());
        let json = self.json(member, &name, record);
        if let Some(file) = &mut self.save {
            let written = writeln!(file, "{json}");
            written.map_err(|error| Failed::new(exit::IO, format!("cannot write --save: {error}")))?;
        }
        if self.json {
            return output::line(json);
        }
        output::line(line(at, &name, record["says"].as_str().unwrap_or_default()))?;
        match record["explain"].as_str().filter(|_| self.explain) {
            Some(explain) => output::line(format!("{:24}{explain}", "")),
            None => Ok(()),
        }
    }

    /// The record, with the member before it.
    fn json(&self, member: &str, name: &str, record: &Value) -> String {
        let mut object = Map::new();
        object.insert("member".to_string(), member.into());
        object.insert("name".to_string(), name.into());
        if let Some(record) = record.as_object() {
            object.extend(record.clone());
        }
        Value::Object(object).to_string()
    }
}

fn line(at: u64, name: &str, says: &str) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(at);
    let time = humantime::format_rfc3339_millis(time).to_string();
    // The date is in the JSON; people look for the time.
    let time = time.get(11..23).unwrap_or(&time);
    format!("{time}  {name:<8}  {says}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_time_name_and_what_happened() {
        assert_eq!(
            line(1_700_000_000_123, "node1", "leads"),
            "22:13:20.123  node1     leads"
        );
    }

    #[test]
    fn an_event_is_told_once_whoever_tells_it() {
        let mut out = Out {
            json: true,
            explain: false,
            save: None,
            names: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        let journal = json!({"a1": [{"run": 7, "seq": 1, "at": 1}, {"run": 8, "seq": 1, "at": 2}]});
        out.tell(&journal).expect("told");
        out.tell(&journal).expect("told");
        assert_eq!(out.told.len(), 2);
        out.learn(&json!({"members": [{"id": "a1", "name": "node1"}]}));
        let text = out.json("a1", "node1", &journal["a1"][0]);
        assert_eq!(text, r#"{"member":"a1","name":"node1","run":7,"seq":1,"at":1}"#);
    }

    #[test]
    fn a_message_may_come_in_pieces() {
        let text = b"event: hello\ndata: {}\n\nevent: mem";
        assert_eq!(find(text, b"\n\n"), Some(21));
        assert_eq!(find(b"event", b"\n\n"), None);
    }
}
