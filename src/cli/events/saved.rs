//! A saved incident: the file that `--save` writes, and that `--from` and the page open.
//!
//! ```text
//! {"format":1,"saved_at":1764021600000,"version":"0.1.0","cluster":"c1","through":"a1","members":[{"id":"a1",…},…]}
//! {"member":"a1","name":"node1","run":7,"seq":1,"at":1764021000000,"kind":"started",…,"says":"…","explain":"…"}
//! ```
//!
//! Lines of JSON: a head, then an event in each. The head tells how the members are called and who has a vote, which
//! the events alone may not; it is written anew when that changes, and the last one counts. A file without any is
//! taken too: that is what `-w json` prints. A last line that was cut off, as by a full disk, is left out.
//!
//! `page/replay.js` reads the same, with the same bound.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::Told;
use crate::cli::failed::{Failed, exit};

/// The newest form of the file that is known here.
const FORMAT: u64 = 1;
/// No larger file is opened: all records that the members of a large cluster keep are a third of it.
const MOST_BYTES: u64 = 32 << 20;

/// A file that is written.
pub struct Save {
    path: String,
    file: File,
    /// The member that tells, and its cluster.
    hello: Value,
    /// Who the members were, as they were written last.
    members: Value,
}

impl Save {
    /// Begins the file.
    pub fn create(path: &str) -> Result<Self, Failed> {
        let file = File::create(path);
        let file = file.map_err(|error| Failed::new(exit::IO, format!("cannot write {path}: {error}")))?;
        Ok(Save {
            path: path.to_string(),
            file,
            hello: Value::Null,
            members: Value::Null,
        })
    }

    /// Who tells what comes.
    pub fn hello(&mut self, hello: Value) {
        self.hello = hello;
    }

    /// Who the members are: a head, if they are others than before.
    pub fn members(&mut self, state: &Value) -> Result<(), Failed> {
        let all = state["members"].as_array().into_iter().flatten();
        let members: Vec<Value> = all
            .map(|member| json!({"id": member["id"], "name": member["name"], "voter": member["voter"]}))
            .collect();
        let members = Value::from(members);
        if self.members == members {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let head = json!({
            "format": FORMAT,
            "saved_at": now.map_or(0, |now| now.as_millis() as u64),
            "version": self.hello["version"],
            "cluster": self.hello["cluster"],
            "through": self.hello["member"],
            "members": members,
        });
        self.members = members;
        self.line(&head.to_string())
    }

    /// An event.
    pub fn event(&mut self, told: &Told) -> Result<(), Failed> {
        self.line(&told.json())
    }

    fn line(&mut self, line: &str) -> Result<(), Failed> {
        let path = &self.path;
        let written = writeln!(self.file, "{line}");
        written.map_err(|error| Failed::new(exit::IO, format!("cannot write {path}: {error}")))
    }
}

impl Told {
    /// The record, with the member before it.
    pub fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("member".to_string(), self.member.as_str().into());
        object.insert("name".to_string(), self.name.as_str().into());
        if let Some(record) = self.record.as_object() {
            object.extend(record.clone());
        }
        Value::Object(object).to_string()
    }

    /// See [`Told::json`]; none if it is no event.
    fn parse(json: Value) -> Option<Told> {
        let text = |field: &str| json[field].as_str().map(str::to_string);
        let (member, name) = (text("member")?, text("name")?);
        let at = json["at"].as_u64()?;
        text("says")?;
        Some(Told {
            at,
            name,
            member,
            record: json,
        })
    }
}

/// The events of a file, in the order of their times.
pub fn open(path: &str) -> Result<Vec<Told>, Failed> {
    let cannot = |error: std::io::Error| Failed::new(exit::IO, format!("cannot read {path}: {error}"));
    let mut text = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > MOST_BYTES {
        let most = MOST_BYTES >> 20;
        return Err(Failed::input(format!(
            "{path} is larger than {most} MiB: no saved incident is"
        )));
    }
    parse(&text).map_err(|why| Failed::input(format!("{path}: {why}")))
}

fn parse(text: &[u8]) -> Result<Vec<Told>, String> {
    let ends_whole = text.ends_with(b"\n");
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let mut events = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let json = match serde_json::from_slice::<Value>(line) {
            Ok(json) => json,
            _ if line.trim_ascii().is_empty() => continue,
            _ if at > 0 && at + 1 == lines.len() && !ends_whole => continue,
            Err(error) => return Err(wrong(at, &format!("no JSON ({error})"))),
        };
        match json["format"].as_u64() {
            Some(format) if format > FORMAT => {
                return Err(format!(
                    "written in format {format}, by version {}; this program knows formats up to {FORMAT}",
                    json["version"].as_str().unwrap_or("?")
                ));
            }
            Some(_) => {}
            None => events.push(Told::parse(json).ok_or_else(|| wrong(at, "no event"))?),
        }
    }
    if events.is_empty() {
        return Err("there is no event in it".to_string());
    }
    events.sort_by_key(|told| (told.at, told.record["seq"].as_u64()));
    Ok(events)
}

fn wrong(at: usize, what: &str) -> String {
    let line = at + 1;
    format!("line {line} is {what}: it should be a file of `pontoon events --save`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64) -> String {
        format!(
            r#"{{"member":"a1","name":"node1","run":7,"seq":1,"at":{at},"kind":"serving","says":"serves"}}"#
        )
    }

    fn error_of(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(_) => panic!("{text} is taken"),
            Err(why) => why,
        }
    }

    #[test]
    fn what_is_saved_is_read_again_in_the_order_of_times() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("incident").display().to_string();
        let mut save = Save::create(&path).expect("a file");
        save.hello(json!({"cluster": "c1", "version": "9"}));
        let state = json!({"members": [{"id": "a1", "name": "node1", "voter": true, "age_ms": 3}]});
        let later = json!({"members": [{"id": "a1", "name": "node1", "voter": true, "age_ms": 9}]});
        save.members(&state).expect("written");
        save.members(&later).expect("nothing new");
        for at in [5, 3] {
            let json = serde_json::from_str(&event(at)).expect("JSON");
            let told = Told::parse(json).expect("an event");
            assert_eq!(told.json(), event(at));
            save.event(&told).expect("written");
        }
        let text = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(text.lines().count(), 3, "one head: {text}");
        assert!(text.starts_with(r#"{"format":1,"saved_at":"#), "{text}");
        let events = open(&path).expect("it opens");
        let times: Vec<u64> = events.iter().map(|told| told.at).collect();
        assert_eq!(times, [3, 5]);
        assert_eq!((&*events[0].name, &*events[0].member), ("node1", "a1"));
    }

    #[test]
    fn a_file_without_a_head_is_taken_and_so_is_one_that_was_cut_off() {
        let text = format!("{}\n\n{}\n{}", event(1), event(2), &event(3)[..20]);
        assert_eq!(parse(text.as_bytes()).map(|events| events.len()), Ok(2));
    }

    #[test]
    fn a_file_that_is_none_is_refused_with_the_reason() {
        assert_eq!(error_of(""), "there is no event in it");
        assert!(error_of("hello").starts_with("line 1 is no JSON"));
        assert!(error_of(&format!("{}\n{{\"a\":1}}\n", event(1))).starts_with("line 2 is no event"));
        let later = error_of(r#"{"format":2,"version":"7.0"}"#);
        assert!(later.contains("format 2, by version 7.0"), "{later}");
    }
}
