//! What the members' answers mean.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::Finding;
use super::look::{Cluster, Seen};
use super::machine::SLOW;
use crate::pb::etcdserverpb::StatusResponse;

/// Clocks that differ by more make certificates and logs hard to understand. The protocol does not depend on them.
const CLOCKS: i64 = 2;
/// Entries that a member may be behind while it is busy.
const LAG: u64 = 5000;
/// Of the files that may be open, a member should use no more.
const FILES_PERCENT: u64 = 80;

/// Everything; `read` is what a linearizable read came to.
pub fn all(cluster: &Cluster, read: &Result<(), String>) -> Vec<Finding> {
    let checks = [reach, leader, lag, alarms, versions, clocks, disks, files];
    let mut findings = vec![quorum(cluster, read)];
    findings.extend(checks.iter().filter_map(|check| check(cluster)));
    findings
}

fn answering(cluster: &Cluster) -> impl Iterator<Item = (&Seen, &StatusResponse)> {
    let members = cluster.members.iter();
    members.filter_map(|member| Some((member, member.status.as_ref().ok()?)))
}

/// Each `name: value`, comma-separated.
fn each<'a>(members: impl Iterator<Item = (&'a Seen, String)>) -> String {
    let each: Vec<String> = members
        .map(|(member, value)| format!("{}: {value}", member.name))
        .collect();
    each.join(", ")
}

fn quorum(cluster: &Cluster, read: &Result<(), String>) -> Finding {
    let voters = cluster.members.iter().filter(|member| member.is_voter).count();
    let answer = answering(cluster).filter(|(member, _)| member.is_voter).count();
    let majority = voters / 2 + 1;
    let found = format!("{answer} of {voters} voters answer");
    if let Err(error) = read {
        let next = match answer < majority {
            true => format!("start {} more: {majority} are needed; if their disks are lost for good: pontoon recover --help", majority - answer),
            false => "see the members' logs: they answer, but can't agree; they may not reach each other's peer URLs".to_string(),
        };
        return Finding::fail("quorum", format!("{found}, and none can read: {error}"), next);
    }
    if !cluster.is_listed {
        let next = "ask with --user of somebody who may see it";
        return Finding::warn(
            "quorum",
            format!("{found}; the list of members is not told"),
            next,
        );
    }
    match answer.saturating_sub(majority) {
        0 if voters == 1 => Finding::ok(
            "quorum",
            format!("{found}; a cluster of one has nobody to carry on without it"),
        ),
        0 => Finding::warn(
            "quorum",
            format!("{found}: none of them may be lost"),
            "bring the others back, or add members, to an odd number of at least three",
        ),
        spare => Finding::ok(
            "quorum",
            format!("{found}, reads are served; {spare} may be lost"),
        ),
    }
}

fn reach(cluster: &Cluster) -> Option<Finding> {
    let silent: Vec<&Seen> = cluster
        .members
        .iter()
        .filter(|member| member.status.is_err())
        .collect();
    if silent.is_empty() {
        return Some(Finding::ok(
            "reach",
            format!("all {} members answer", cluster.members.len()),
        ));
    }
    let why = |member: &&Seen| {
        let why = member.status.as_ref().err().cloned().unwrap_or_default();
        format!("{} ({}): {why}", member.name, member.urls.join(","))
    };
    Some(Finding::warn(
        "reach",
        silent.iter().map(why).collect::<Vec<_>>().join("; "),
        "start them, or look at their logs; if they run, --advertise-client-urls says addresses that do not lead there \
         from here; what is gone for good: pontoon member remove",
    ))
}

fn leader(cluster: &Cluster) -> Option<Finding> {
    let leaders: BTreeSet<u64> = answering(cluster).map(|(_, status)| status.leader).collect();
    let name = |id: u64| {
        if id == 0 {
            return "none".to_string();
        }
        let is_it = |status: &StatusResponse| {
            status
                .header
                .as_ref()
                .is_some_and(|header| header.member_id == id)
        };
        let found = answering(cluster).find(|(_, status)| is_it(status));
        found.map_or(format!("{id:x}"), |(member, _)| member.name.clone())
    };
    let each = || each(answering(cluster).map(|(member, status)| (member, name(status.leader))));
    match leaders.first() {
        Some(0) => Some(Finding::fail(
            "leader",
            format!("some members know no leader: {}", each()),
            "see whether a majority runs, and whether they reach each other's peer URLs (pontoon member list)",
        )),
        Some(only) if leaders.len() == 1 => {
            let term = answering(cluster)
                .map(|(_, status)| status.raft_term)
                .max()
                .unwrap_or(0);
            Some(Finding::ok(
                "leader",
                format!("{} leads in term {term}", name(*only)),
            ))
        }
        _ => Some(Finding::warn(
            "leader",
            format!("members name different leaders: {}", each()),
            "ask again in some seconds; if it stays so, they are parted: check the network between them",
        )),
    }
}

fn lag(cluster: &Cluster) -> Option<Finding> {
    let applied = |status: &StatusResponse| status.raft_applied_index;
    let most = answering(cluster).map(|(_, status)| applied(status)).max()?;
    let behind: Vec<(&Seen, String)> = answering(cluster)
        .map(|(member, status)| (member, most - applied(status)))
        .filter(|(_, behind)| *behind > LAG)
        .map(|(member, behind)| (member, format!("{behind} entries behind")))
        .collect();
    Some(match behind.is_empty() {
        true => Finding::ok("lag", format!("no member is more than {LAG} entries behind")),
        false => Finding::warn(
            "lag",
            each(behind.into_iter()),
            "it may be catching up: ask again; if it stays behind, its disk or its network is too slow",
        ),
    })
}

fn alarms(cluster: &Cluster) -> Option<Finding> {
    let errors: BTreeSet<&String> = answering(cluster)
        .flat_map(|(_, status)| &status.errors)
        .collect();
    if errors.is_empty() {
        return Some(Finding::ok("alarms", "none"));
    }
    let found = errors
        .iter()
        .map(|error| error.as_str())
        .collect::<Vec<_>>()
        .join("; ");
    let next = if found.contains("NOSPACE") {
        "writes are refused: compact, pontoon defrag, then pontoon alarm disarm; see pontoon explain no-space"
    } else if found.contains("CORRUPT") {
        "members differ: see pontoon endpoint hashkv --cluster, and pontoon explain corrupt"
    } else {
        "see the members' logs"
    };
    Some(Finding::fail("alarms", found, next))
}

fn versions(cluster: &Cluster) -> Option<Finding> {
    let version = |member: &Seen, status: &StatusResponse| match &member.pages.version {
        Some(version) => format!("pontoon {version}"),
        None => format!("etcd {}", status.version),
    };
    let all: BTreeMap<String, usize> =
        answering(cluster).fold(BTreeMap::new(), |mut all, (member, status)| {
            *all.entry(version(member, status)).or_default() += 1;
            all
        });
    let only = all.keys().next()?;
    Some(match all.len() {
        1 => Finding::ok("versions", format!("all run {only}")),
        _ => Finding::warn(
            "versions",
            each(answering(cluster).map(|(member, status)| (member, version(member, status)))),
            "go on with the upgrade, one member at a time: mixed versions are for the time of it only",
        ),
    })
}

/// By the dates of answers, which have whole seconds.
fn clocks(cluster: &Cluster) -> Option<Finding> {
    let ahead = || answering(cluster).filter_map(|(member, _)| Some((member, member.pages.ahead?)));
    let (most, least) = (
        ahead().map(|(_, ahead)| ahead).max()?,
        ahead().map(|(_, ahead)| ahead).min()?,
    );
    Some(match most - least > CLOCKS || most > CLOCKS || least < -CLOCKS {
        false => Finding::ok(
            "clocks",
            format!("within {CLOCKS} seconds of each other and of this machine's"),
        ),
        true => Finding::warn(
            "clocks",
            each(ahead().map(|(member, ahead)| (member, format!("{ahead:+} s from here")))),
            "run chrony or ntpd on each: data is not in danger, but certificates and tokens go by the clock",
        ),
    })
}

fn disks(cluster: &Cluster) -> Option<Finding> {
    let syncs = || answering(cluster).filter_map(|(member, _)| Some((member, member.pages.sync?)));
    let slowest = syncs()
        .map(|(_, sync)| sync)
        .fold(None, |most: Option<f64>, sync| {
            Some(most.map_or(sync, |most| most.max(sync)))
        })?;
    let said = each(syncs().map(|(member, sync)| (member, format!("up to {} ms", sync * 1e3))));
    let found = format!("99 of 100 syncs of the log took, {said}");
    Some(match slowest > SLOW.as_secs_f64() {
        false => Finding::ok("syncs", found),
        true => Finding::warn(
            "syncs",
            found,
            "every write waits for them: run pontoon doctor --data-dir DIR there to see the disk alone",
        ),
    })
}

fn files(cluster: &Cluster) -> Option<Finding> {
    let files = || answering(cluster).filter_map(|(member, _)| Some((member, member.pages.files?)));
    files().next()?;
    let near: Vec<(&Seen, String)> = files()
        .filter(|(_, (used, most))| used * 100 > most * FILES_PERCENT)
        .map(|(member, (used, most))| (member, format!("{used} of {most}")))
        .collect();
    Some(match near.is_empty() {
        true => Finding::ok(
            "open",
            format!("no member uses more than {FILES_PERCENT} % of the files that it may open"),
        ),
        false => Finding::warn(
            "open",
            format!(
                "nearly all files that may be open are: {}",
                each(near.into_iter())
            ),
            "raise the limit where they are started (LimitNOFILE=65536), or find out who keeps connections open",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::super::look::Pages;
    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;

    fn member(name: &str, id: u64) -> Seen {
        Seen {
            name: name.to_string(),
            is_voter: true,
            urls: vec![format!("http://{name}:2379")],
            status: Ok(StatusResponse {
                header: Some(ResponseHeader {
                    member_id: id,
                    ..ResponseHeader::default()
                }),
                version: "3.5.21".to_string(),
                leader: 1,
                raft_term: 4,
                raft_applied_index: 9000,
                ..StatusResponse::default()
            }),
            pages: Pages {
                ahead: Some(0),
                version: Some("0.1.0".to_string()),
                files: Some((100, 1000)),
                sync: Some(0.002),
            },
        }
    }

    fn three() -> Cluster {
        Cluster {
            members: vec![member("a", 1), member("b", 2), member("c", 3)],
            is_listed: true,
        }
    }

    /// The findings that are not ok: check, verdict, and what was found.
    fn wrong(cluster: &Cluster, read: Result<(), &str>) -> Vec<(&'static str, Verdict, String)> {
        let findings = all(cluster, &read.map_err(str::to_string));
        let wrong = findings
            .into_iter()
            .filter(|finding| finding.verdict != Verdict::Ok);
        wrong
            .map(|finding| {
                assert!(!finding.next.is_empty(), "{finding:?}");
                (finding.check, finding.verdict, finding.found)
            })
            .collect()
    }

    fn status(cluster: &mut Cluster, member: usize) -> &mut StatusResponse {
        cluster.members[member].status.as_mut().expect("it answers")
    }

    #[test]
    fn a_cluster_that_is_well_gets_no_advice() {
        assert_eq!(wrong(&three(), Ok(())), []);
    }

    #[test]
    fn each_thing_that_is_wrong_is_found_alone() {
        type Spoil = fn(&mut Cluster);
        let cases: [(&str, Verdict, &str, Spoil); 8] = [
            ("leader", Verdict::Fail, "c: none", |cluster| {
                status(cluster, 2).leader = 0
            }),
            ("leader", Verdict::Warn, "b: b", |cluster| {
                status(cluster, 1).leader = 2
            }),
            ("lag", Verdict::Warn, "c: 8999 entries behind", |cluster| {
                status(cluster, 2).raft_applied_index = 1
            }),
            ("alarms", Verdict::Fail, "NOSPACE", |cluster| {
                status(cluster, 0).errors = vec!["memberID:1 alarm:NOSPACE ".to_string()];
            }),
            ("versions", Verdict::Warn, "b: pontoon 0.2.0", |cluster| {
                cluster.members[1].pages.version = Some("0.2.0".to_string());
            }),
            ("clocks", Verdict::Warn, "c: -9 s from here", |cluster| {
                cluster.members[2].pages.ahead = Some(-9)
            }),
            ("syncs", Verdict::Warn, "a: up to 512 ms", |cluster| {
                cluster.members[0].pages.sync = Some(0.512)
            }),
            ("open", Verdict::Warn, "a: 990 of 1000", |cluster| {
                cluster.members[0].pages.files = Some((990, 1000))
            }),
        ];
        for (check, verdict, said, spoil) in cases {
            let mut cluster = three();
            spoil(&mut cluster);
            let wrong = wrong(&cluster, Ok(()));
            assert_eq!(wrong.len(), 1, "{check}: {wrong:?}");
            assert_eq!((wrong[0].0, wrong[0].1), (check, verdict), "{wrong:?}");
            assert!(wrong[0].2.contains(said), "{wrong:?}");
        }
    }

    #[test]
    fn members_that_are_silent_are_named_and_counted() {
        let mut cluster = three();
        cluster.members[2].status = Err("refused".to_string());
        let found = wrong(&cluster, Ok(()));
        assert_eq!(
            found[0],
            (
                "quorum",
                Verdict::Warn,
                "2 of 3 voters answer: none of them may be lost".to_string()
            )
        );
        assert_eq!(
            found[1],
            ("reach", Verdict::Warn, "c (http://c:2379): refused".to_string())
        );
        cluster.members[1].status = Err("refused".to_string());
        let found = wrong(&cluster, Err("no leader"));
        assert_eq!((found[0].0, found[0].1), ("quorum", Verdict::Fail));
        // A learner's silence costs no quorum.
        let mut cluster = three();
        cluster.members[2].is_voter = false;
        cluster.members[2].status = Err("refused".to_string());
        assert!(
            wrong(&cluster, Ok(()))
                .iter()
                .any(|(check, ..)| *check == "reach")
        );
    }
}
