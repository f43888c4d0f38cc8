//! `pontoon recover`: for a cluster that lost its majority for good.

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::server::recover::{self, Report};

/// The subcommand.
pub fn command() -> Command {
    Command::new("recover")
        .about("Make a surviving member a cluster of its own, when the majority is lost for good")
        .long_about(
            "Make a surviving member a cluster of its own, when the majority is lost for good.\n\nStop the member \
             first. It keeps its data and gets a new cluster id; start it with its usual command, then add members. \
             Whatever its disk never received is lost: with --dry-run on each disk that is left, find the one whose \
             last entry has the highest term, then the highest index, and recover that one alone. The other old \
             members must not run again: remove their data directories.",
        )
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .required(true)
                .help("The member's data directory"),
        )
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Say what would be done and lost; change nothing"),
        )
}

/// Does it, and says what was found.
pub fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let dir = matches.get_one::<String>("data-dir").cloned().unwrap_or_default();
    let dry_run = matches.get_flag("dry-run");
    let report = recover::recover(Path::new(&dir), dry_run)?;
    print!("{}", describe(&report));
    Ok(())
}

fn describe(report: &Report) -> String {
    let found = &report.findings;
    let others = found.members.iter().filter(|(id, _)| **id != report.member_id);
    let mut others: Vec<String> = others
        .map(|(id, (node, votes))| {
            // One that was added before it had a name.
            let name = match node.name.is_empty() {
                true => node.peer_urls.join(","),
                false => node.name.clone(),
            };
            let learner = if *votes { "" } else { ", no vote" };
            format!("{name} ({id:x}{learner})")
        })
        .collect();
    others.sort();
    let others = match others.is_empty() {
        true => "nobody".to_string(),
        false => others.join(", "),
    };
    let (term, index) = found.last.unwrap_or_default();
    let mut lines = vec![
        format!(
            "member:       {} ({:x}) of cluster {:x}",
            report.name, report.member_id, report.old_cluster_id
        ),
        format!("left behind:  {others}"),
        format!("last entry:   term {term}, index {index}"),
        format!(
            "committed:    up to index {}, as far as this member heard",
            found.committed
        ),
        format!(
            "uncertain:    {} entries after that; each may have been acknowledged, so all are kept",
            found.uncertain()
        ),
        "lost:         what this disk never received; a disk with a later last entry (term first, then index) has more"
            .to_string(),
    ];
    if report.was_removed {
        lines.push(
            "warning:      it was removed from its cluster, or was about to be: if that one still serves, this is a copy of \
             old data"
                .to_string(),
        );
    }
    lines.push(match report.new_cluster_id {
        None => "nothing was changed".to_string(),
        Some(id) => format!(
            "cluster {id:x} now consists of this member alone: start it with its usual command, then add members; \
             remove the data directories of the others"
        ),
    });
    lines.join("\n") + "\n"
}
