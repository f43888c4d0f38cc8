//! Looking for members whose data differs, though it must not.
//!
//! Members apply the same log by the same rules, so at one revision and one compacted revision their checksums are
//! equal. If they are not, a disk, a memory cell or a bug has changed something, and whoever reads there reads what was
//! never written. Now and then (`--corrupt-check-time`, off by default) the leader compares; a member that differs
//! from a majority gets the CORRUPT alarm, which stops reads and writes until somebody has looked. If there is no
//! majority nobody can say who is wrong: then the alarm names no member (0).
//!
//! With `--initial-corrupt-check` a member compares itself with the others before it serves, and does not serve if it
//! is the one that differs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;

use super::Server;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};
use crate::pb::pontoon::command::command::Op;
use crate::raft::replica::Checksum;

/// How long one member may take for its checksum: it reads all its data.
const ANSWER: Duration = Duration::from_secs(120);

/// What the comparison says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Nobody differs, of those that could be compared.
    Alike,
    /// These differ from what a majority has.
    Differ(Vec<u64>),
    /// There are differences, and no majority for anything.
    Unclear,
}

/// Judges checksums by member. Only those at the same compacted revision as `own` can be compared; `members` is how
/// many there are in all, so that those that did not answer are no majority's help.
fn judge(own: &Checksum, others: &BTreeMap<u64, Checksum>, own_id: u64, members: usize) -> Verdict {
    let comparable = others
        .iter()
        .filter(|(_, other)| other.compacted == own.compacted && other.revision == own.revision);
    let all: Vec<(u64, u32)> = comparable
        .map(|(id, other)| (*id, other.hash))
        .chain([(own_id, own.hash)])
        .collect();
    if all.iter().all(|(_, hash)| *hash == own.hash) {
        return Verdict::Alike;
    }
    let votes = |wanted: u32| all.iter().filter(|(_, hash)| *hash == wanted).count();
    match all.iter().find(|(_, hash)| votes(*hash) > members / 2) {
        Some((_, right)) => {
            let wrong = all.iter().filter(|(_, hash)| hash != right);
            Verdict::Differ(wrong.map(|(id, _)| *id).collect())
        }
        None => Verdict::Unclear,
    }
}

/// This member's checksum now, those of the others at the same revision, and how many members there are.
async fn compare(server: &Server) -> anyhow::Result<(Checksum, BTreeMap<u64, Checksum>, usize)> {
    let own = server.replica().checksum(0).await.map_err(anyhow::Error::msg)?;
    let nodes = server.replica().standing().nodes;
    let members = nodes.len();
    let others = nodes.into_iter().filter(|(id, _)| *id != server.member_id());
    let ask = others.map(|(id, node)| async move {
        let answer = server
            .replica()
            .ask_checksum(id, &node, own.revision, ANSWER)
            .await;
        match answer {
            Ok(checksum) => Some((id, checksum)),
            Err(error) => {
                // Behind, compacted further, or away: it is compared another time.
                tracing::debug!(member = %node, %error, "no checksum to compare with");
                None
            }
        }
    });
    let answers = futures::future::join_all(ask).await;
    Ok((own, answers.into_iter().flatten().collect(), members))
}

/// Compares now and then, while this member leads. Ends with the server.
pub async fn watch(server: Server, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if !server.replica().leads() || server.reader().has_alarm(AlarmType::Corrupt) {
            continue;
        }
        let verdict = match compare(&server).await {
            Ok((own, others, members)) => judge(&own, &others, server.member_id(), members),
            Err(error) => {
                tracing::warn!(%error, "cannot look for corruption");
                continue;
            }
        };
        match verdict {
            Verdict::Alike => tracing::debug!("no member differs"),
            Verdict::Differ(wrong) => raise(&server, wrong).await,
            Verdict::Unclear => raise(&server, vec![0]).await,
        }
    }
}

async fn raise(server: &Server, wrong: Vec<u64>) {
    for member_id in wrong {
        tracing::error!(
            member = format!("{member_id:x}"),
            "data differs from that of other members: raising CORRUPT; replace the member by one with an empty data \
             directory, then disarm the alarm"
        );
        let alarm = AlarmMember {
            member_id,
            alarm: AlarmType::Corrupt as i32,
        };
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        if let Err(error) = server.propose(Op::Alarm(request)).await {
            tracing::warn!(%error, "cannot raise the alarm yet");
        }
    }
}

/// Before serving: an error if this member is the one that differs.
pub async fn check_own(server: &Server) -> anyhow::Result<()> {
    let (own, others, members) = compare(server).await?;
    let me = server.member_id();
    match judge(&own, &others, me, members) {
        Verdict::Differ(wrong) if wrong.contains(&me) => bail!(
            "--initial-corrupt-check: this member's data at revision {} differs from that of the majority: do not serve \
             from it; remove --data-dir, and it comes back with a copy of theirs",
            own.revision
        ),
        verdict => {
            tracing::info!(
                ?verdict,
                compared_with = others.len(),
                "compared the data with that of other members"
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(hash: u32, compacted: i64) -> Checksum {
        Checksum {
            hash,
            compacted,
            revision: 9,
        }
    }

    /// Members are numbered from 1; the first asks. Of those without a checksum nothing is known.
    fn verdict(checksums: &[Option<(u32, i64)>]) -> Verdict {
        let known = |(at, found): (usize, &Option<(u32, i64)>)| {
            found.map(|(hash, compacted)| (at as u64 + 1, checksum(hash, compacted)))
        };
        let mut others: BTreeMap<u64, Checksum> = checksums.iter().enumerate().filter_map(known).collect();
        let own = others.remove(&1).expect("its own");
        judge(&own, &others, 1, checksums.len())
    }

    #[test]
    fn who_differs_from_a_majority_is_found_be_it_the_one_that_asks() {
        let (a, b, c) = (Some((1, -1)), Some((2, -1)), Some((3, -1)));
        assert_eq!(verdict(&[a, a, a]), Verdict::Alike);
        assert_eq!(verdict(&[a]), Verdict::Alike);
        assert_eq!(verdict(&[a, a, b]), Verdict::Differ(vec![3]));
        assert_eq!(verdict(&[b, a, a]), Verdict::Differ(vec![1]));
        assert_eq!(verdict(&[a, b, a, c, a]), Verdict::Differ(vec![2, 4]));
    }

    #[test]
    fn without_a_majority_nobody_is_named() {
        let (a, b, c) = (Some((1, -1)), Some((2, -1)), Some((3, -1)));
        assert_eq!(verdict(&[a, b]), Verdict::Unclear);
        assert_eq!(verdict(&[a, b, c]), Verdict::Unclear);
        // One is away: the two that differ are no majority for either.
        assert_eq!(verdict(&[a, b, None]), Verdict::Unclear);
        assert_eq!(verdict(&[a, a, b, None, None]), Verdict::Unclear);
    }

    #[test]
    fn members_at_another_compacted_revision_are_not_compared() {
        let (a, later) = (Some((1, -1)), Some((2, 5)));
        assert_eq!(verdict(&[a, later, later]), Verdict::Alike);
        assert_eq!(verdict(&[a, a, later]), Verdict::Alike);
    }
}
