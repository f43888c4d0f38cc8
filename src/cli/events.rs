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
use crate::client::{Messages, Pages};

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
        journal: Journal::default(),
    };
    if !matches!(context.form, Form::Simple | Form::Json) {
        return Err(context.no_such_form());
    }
    if !matches.get_flag("follow") {
        let state = read(context.client.look("/ui/state").await?).await?;
        out.journal.learn(&state);
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
async fn follow(pages: Pages, out: &mut Out) -> Result<(), Failed> {
    let mut messages = Messages::of(pages);
    while let Ok(Some((kind, data))) = messages.next().await {
        match kind.as_str() {
            "members" => out.journal.learn(&parse(&data)?),
            "journal" => out.tell(&parse(&data)?)?,
            _ => {}
        }
    }
    Ok(())
}

/// An event, and whose it is.
pub struct Told {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The member's name, or its id.
    pub name: String,
    /// Its id.
    pub member: String,
    /// What its journal says.
    pub record: Value,
}

/// Which events were heard already, and how members are called.
#[derive(Default)]
pub struct Journal {
    names: BTreeMap<String, String>,
    /// The last one of each member and run.
    heard: BTreeMap<(String, u64), u64>,
}

impl Journal {
    /// How the members are called.
    pub fn learn(&mut self, state: &Value) {
        for member in state["members"].as_array().into_iter().flatten() {
            if let (Some(id), Some(name)) = (member["id"].as_str(), member["name"].as_str()) {
                self.names.insert(id.to_string(), name.to_string());
            }
        }
    }

    /// The new ones among these, in the order of their times.
    pub fn news(&mut self, journal: &Value) -> Vec<Told> {
        let mut news = Vec::new();
        for (member, records) in journal.as_object().into_iter().flatten() {
            let name = self.names.get(member).filter(|name| !name.is_empty());
            let name = name.unwrap_or(member).clone();
            for record in records.as_array().into_iter().flatten() {
                let number = |field: &str| record[field].as_u64().unwrap_or_default();
                let last = self.heard.entry((member.clone(), number("run"))).or_default();
                if number("seq") > *last {
                    *last = number("seq");
                    news.push(Told {
                        at: number("at"),
                        name: name.clone(),
                        member: member.clone(),
                        record: record.clone(),
                    });
                }
            }
        }
        news.sort_by_key(|told| (told.at, told.record["seq"].as_u64()));
        news
    }
}

/// The time of day, to milliseconds: the date is in the JSON, and people look for the time.
pub fn time_of_day(at: u64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_millis(at);
    let time = humantime::format_rfc3339_millis(time).to_string();
    time.get(11..23).unwrap_or(&time).to_string()
}

/// Where events go.
struct Out {
    json: bool,
    explain: bool,
    save: Option<File>,
    journal: Journal,
}

impl Out {
    fn tell(&mut self, journal: &Value) -> Result<(), Failed> {
        for told in self.journal.news(journal) {
            self.write(&told)?;
        }
        Ok(())
    }

    fn write(&mut self, told: &Told) -> Result<(), Failed> {
        let json = told.json();
        if let Some(file) = &mut self.save {
            let written = writeln!(file, "{json}");
            written.map_err(|error| Failed::new(exit::IO, format!("cannot write --save: {error}")))?;
        }
        if self.json {
            return output::line(json);
        }
        output::line(told.line())?;
        match told.record["explain"].as_str().filter(|_| self.explain) {
            Some(explain) => output::line(format!("{:24}{explain}", "")),
            None => Ok(()),
        }
    }
}

impl Told {
    /// The record, with the member before it.
    fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("member".to_string(), self.member.as_str().into());
        object.insert("name".to_string(), self.name.as_str().into());
        if let Some(record) = self.record.as_object() {
            object.extend(record.clone());
        }
        Value::Object(object).to_string()
    }

    fn line(&self) -> String {
        let says = self.record["says"].as_str().unwrap_or_default();
        format!("{}  {:<8}  {says}", time_of_day(self.at), self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_told_once_whoever_tells_it() {
        let mut journal = Journal::default();
        let records = json!({"a1": [{"run": 7, "seq": 1, "at": 1_700_000_000_123_u64, "says": "leads"}, {"run": 8, "seq": 1, "at": 2}]});
        let told: Vec<u64> = journal.news(&records).iter().map(|told| told.at).collect();
        assert_eq!(told, [2, 1_700_000_000_123]);
        assert!(journal.news(&records).is_empty());
        journal.learn(&json!({"members": [{"id": "a1", "name": "node1"}]}));
        let more = json!({"a1": [{"run": 7, "seq": 2, "at": 1_700_000_000_123_u64, "says": "leads"}]});
        let told = &journal.news(&more)[0];
        assert_eq!(told.line(), "22:13:20.123  node1     leads");
        assert!(
            told.json()
                .starts_with(r#"{"member":"a1","name":"node1","run":7,"seq":2,"at":"#)
        );
    }
}
