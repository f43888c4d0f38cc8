//! events: what happened to the members, as their journals have it, now or in a file that was saved.

mod saved;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};
use serde_json::Value;

use self::saved::Save;
use super::args::{flag, text, value};
use super::ctl::Context;
use super::failed::Failed;
use super::format::Form;
use super::output;
use crate::client::Messages;

/// Between attempts to find a member that answers.
const AGAIN: Duration = Duration::from_millis(200);

const HELP: &str = "\
Prints elections, leaders, members, links, snapshots, slow disks, starts and stops, of all members \
that the one that is asked can reach, by their own clocks. Nothing of it is a key or a value.

  pontoon events                     what happened so far
  pontoon events --follow --explain  and what happens, with a sentence about each
  pontoon events -w json             a line of JSON for each event
  pontoon events --save incident     the same, into a file
  pontoon events --from incident     what is in such a file; nobody is asked

The page of any member, also of another cluster, opens such a file too, to be looked at moment by moment. \
With --follow, another endpoint takes over when one is lost.";

/// The verb.
pub fn command() -> Command {
    Command::new("events")
        .about("Print what happened to the members: elections, leaders, links, disks")
        .arg(flag("follow", "Go on with what happens").short('f'))
        .arg(flag("explain", "Add a plain sentence to each event"))
        .arg(value("save", "Write the events to this file, a line of JSON for each").value_name("FILE"))
        .arg(
            value(
                "from",
                "Print what is in a file that --save wrote; nobody is asked",
            )
            .value_name("FILE")
            .conflicts_with_all(["follow", "save"]),
        )
        .after_help(HELP)
}

/// Runs it.
pub async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode, Failed> {
    if !matches!(context.form, Form::Simple | Form::Json) {
        return Err(context.no_such_form());
    }
    let mut out = Out {
        json: context.form == Form::Json,
        explain: matches.get_flag("explain"),
        save: None,
        journal: Journal::default(),
    };
    match text(matches, "from") {
        "" => ask(context, matches, &mut out).await?,
        path => {
            for told in saved::open(path)? {
                out.print(&told)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells what the members tell.
async fn ask(context: &Context, matches: &ArgMatches, out: &mut Out) -> Result<(), Failed> {
    // The first one has to answer; later ones are waited for.
    let mut messages = Messages::of(context.client.look("/ui/events?all").await?);
    out.save = match text(matches, "save") {
        "" => None,
        path => Some(Save::create(path)?),
    };
    if !matches.get_flag("follow") {
        // All that is known comes at once, at the beginning.
        while out.journal.heard.is_empty() {
            match messages.next().await? {
                Some((kind, data)) => out.take(&kind, &data)?,
                None => return Err(Failed::error("the member stopped before it told anything")),
            }
        }
        return Ok(());
    }
    loop {
        while let Ok(Some((kind, data))) = messages.next().await {
            out.take(&kind, &data)?;
        }
        context.client.leave_endpoint();
        messages = loop {
            match context.client.look("/ui/events?all").await {
                Ok(pages) => break Messages::of(pages),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
    }
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
            for record in records.as_array().into_iter().flatten() {
                // So that one that is no member any more has its name, too.
                if let (Some("started"), Some(name)) = (record["kind"].as_str(), record["name"].as_str()) {
                    self.names.insert(member.clone(), name.to_string());
                }
                let number = |field: &str| record[field].as_u64().unwrap_or_default();
                let last = self.heard.entry((member.clone(), number("run"))).or_default();
                if number("seq") > *last {
                    *last = number("seq");
                    let name = self.names.get(member).filter(|name| !name.is_empty());
                    news.push(Told {
                        at: number("at"),
                        name: name.unwrap_or(member).clone(),
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
    save: Option<Save>,
    journal: Journal,
}

impl Out {
    /// A message of the members.
    fn take(&mut self, kind: &str, data: &[u8]) -> Result<(), Failed> {
        let message: Value = serde_json::from_slice(data)
            .map_err(|error| Failed::error(format!("the member's answer: {error}")))?;
        match (kind, &mut self.save) {
            ("hello", Some(save)) => save.hello(message),
            ("members", save) => {
                self.journal.learn(&message);
                if let Some(save) = save {
                    save.members(&message)?;
                }
            }
            ("journal", _) => {
                for told in self.journal.news(&message) {
                    if let Some(save) = &mut self.save {
                        save.event(&told)?;
                    }
                    self.print(&told)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn print(&self, told: &Told) -> Result<(), Failed> {
        if self.json {
            return output::line(told.json());
        }
        output::line(told.line())?;
        match told.record["explain"].as_str().filter(|_| self.explain) {
            Some(explain) => output::line(format!("{:24}{explain}", "")),
            None => Ok(()),
        }
    }
}

impl Told {
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
