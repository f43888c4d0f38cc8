//! `pontoon explain CODE`: what an error means, what usually leads to it, and what to do next.
//!
//! The errors are those of `error.rs`, which has their texts and meanings; the rest is here, in one match that the
//! compiler keeps complete. A code is the error's name in lower case: `NoSpace` is `no-space`. Errors that the command
//! line prints name theirs.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::args::{text, word};
use super::failed::Failed;
use super::output;
use crate::error::Error;

/// The verb.
pub fn command() -> Command {
    Command::new("explain")
        .about("What an error means, what usually leads to it, and what to do next")
        .long_about(
            "What an error means, what usually leads to it, and what to do next.\n\nCODE is one of those that errors are \
             printed with, or the error's text. Without it, all codes are listed.",
        )
        .arg(word("code", "Such as no-space, or \"etcdserver: mvcc: database space exceeded\""))
}

/// Explains one, or lists all.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Failed> {
    let wanted = text(matches, "code");
    if wanted.is_empty() {
        let width = all().iter().map(|it| it.code.len()).max().unwrap_or(0);
        for it in all() {
            output::line(format!("{:<width$}  {}", it.code, it.text))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = all().into_iter().find(|it| it.code == wanted.to_lowercase());
    let found =
        found.or_else(|| code_in(wanted).and_then(|code| all().into_iter().find(|it| it.code == code)));
    match found {
        Some(it) => output::write(it.lines().as_bytes()).map(|()| ExitCode::SUCCESS),
        None => Err(Failed::arguments(format!(
            "{wanted:?} is no code and no error's text; pontoon explain lists them all"
        ))),
    }
}

/// The code of the error that a message is about: the one with the longest text in it.
pub fn code_in(message: &str) -> Option<String> {
    let within = all().into_iter().filter(|it| message.contains(&it.text));
    within.max_by_key(|it| it.text.len()).map(|it| it.code)
}

/// All that is known of an error.
struct Explained {
    code: String,
    text: String,
    /// gRPC's.
    grpc: String,
    meaning: String,
    cause: &'static str,
    next: &'static str,
}

impl Explained {
    fn lines(&self) -> String {
        let Explained {
            code,
            text,
            grpc,
            meaning,
            cause,
            next,
        } = self;
        format!("{code}: {text} ({grpc})\n\nMeaning: {meaning}\nUsually: {cause}\nNext:    {next}\n")
    }
}

fn all() -> Vec<Explained> {
    let of_the_server = Error::ALL.iter().map(|error| {
        let (cause, next) = advice(*error);
        Explained {
            code: kebab(error.name()),
            text: error.text().to_string(),
            grpc: format!("{:?}", error.code()),
            meaning: error.meaning(),
            cause,
            next,
        }
    });
    of_the_server.chain(of_the_client()).collect()
}

/// What a client says itself, when no server did.
fn of_the_client() -> [Explained; 3] {
    [
        Explained {
            code: "unreachable".to_string(),
            text: "cannot reach".to_string(),
            grpc: "none".to_string(),
            meaning: "No connection to any of the endpoints could be made: nothing was sent.".to_string(),
            cause: "No member runs there, the address is wrong, a firewall is between, or one side speaks TLS alone.",
            next: "pontoon doctor tells what is there; check --endpoints, and --cacert if members are at https://.",
        },
        Explained {
            code: "not-grpc".to_string(),
            text: "h2 protocol error".to_string(),
            grpc: "none".to_string(),
            meaning: "Something listens there, and does not speak gRPC in plain.".to_string(),
            cause: "The member's port is encrypted, or another program has it.",
            next: "Give the endpoint as https://…, with --cacert; pontoon doctor tells what is there.",
        },
        Explained {
            code: "deadline-exceeded".to_string(),
            text: "context deadline exceeded".to_string(),
            grpc: "DeadlineExceeded".to_string(),
            meaning: "The answer did not come within --command-timeout: a write may have happened or not."
                .to_string(),
            cause: "There is no majority, a disk or a network is slow, or a range is very large.",
            next: "pontoon endpoint health --cluster; look whether a write happened before you repeat it.",
        },
    ]
}

fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            kebab.push('-');
        }
        kebab.extend(letter.to_lowercase());
    }
    kebab
}

/// What usually leads to an error, and what to do next.
fn advice(error: Error) -> (&'static str, &'static str) {
    match error {
        Error::EmptyKey => (
            "A key is read from a variable that is empty.",
            "Give a key; for all keys, the range from \"\\0\" to \"\\0\" (get \"\" --prefix).",
        ),
        Error::KeyNotFound => (
            "A put that keeps the value or the lease (--ignore-value, --ignore-lease) of a key that does not exist.",
            "Put the key with a value first, or compare its version with 0 in a transaction.",
        ),
        Error::ValueProvided => (
            "--ignore-value together with a value.",
            "Leave out one of the two.",
        ),
        Error::LeaseProvided => (
            "--ignore-lease together with a lease.",
            "Leave out one of the two.",
        ),
        Error::TooManyOps => (
            "A batch of writes in one transaction.",
            "Split it, or raise --max-txn-ops on all members.",
        ),
        Error::DuplicateKey => (
            "A transaction puts a key twice, or deletes a range that has a key which it puts.",
            "Keep the last of the puts only; do the delete in a transaction of its own.",
        ),
        Error::InvalidSortOption => (
            "A client of a newer API, or a number that is no sort order.",
            "Use one of the orders and targets of the API; pontoon get --help lists them.",
        ),
        Error::RequestTooLarge => (
            "A value, or a transaction, above 1.5 MiB.",
            "Split it, or keep large values elsewhere; --max-request-bytes raises the limit on each member.",
        ),
        Error::UserEmpty => (
            "Access control is on, and the call has no token; or a user is to be added without a name.",
            "Say who asks: --user NAME:PASSWORD, or a certificate with a common name.",
        ),
        Error::RoleEmpty => ("A role's name is left out.", "Name the role."),
        Error::PermissionNotGiven => (
            "RoleGrantPermission without a permission.",
            "Say read, write or readwrite, and for which keys.",
        ),
        Error::AuthFailed => (
            "A wrong password, or a user that does not exist: which of them is not told.",
            "Check --user and --password; root can see users by pontoon user list, and set a password.",
        ),
        Error::InvalidAuthManagement => (
            "A permission on an empty range, or taking root's role or root itself away while access control is on.",
            "Check the range's ends; disable access control before root goes.",
        ),
        Error::AuthOldRevision => (
            "Users or roles changed while the call was under way, or since the token was made.",
            "Log in again and repeat the call: etcd's clients do so by themselves.",
        ),
        Error::RootUserNotExist => (
            "Access control is to be enabled before there is a root.",
            "pontoon user add root, then pontoon user grant-role root root.",
        ),
        Error::RootRoleNotExist => (
            "The user root does not have the role root.",
            "pontoon user grant-role root root.",
        ),
        Error::UserAlreadyExists => (
            "The user was added before.",
            "Go on with it; pontoon user passwd changes its password.",
        ),
        Error::UserNotFound => (
            "A misspelled name, or a user that was deleted.",
            "pontoon user list shows them.",
        ),
        Error::RoleAlreadyExists => (
            "The role was added before.",
            "Go on with it; pontoon role get shows what it may.",
        ),
        Error::RoleNotFound => (
            "A misspelled name, or a role that was deleted.",
            "pontoon role list shows them.",
        ),
        Error::RoleNotGranted => (
            "The role was revoked before, or never granted.",
            "pontoon user get NAME shows the user's roles.",
        ),
        Error::PermissionNotGranted => (
            "The permission's range is another one: both ends must be the same as when it was granted.",
            "pontoon role get NAME shows its permissions.",
        ),
        Error::AuthNotEnabled => (
            "A client logs in, and access control is off.",
            "Leave out --user; or pontoon auth enable.",
        ),
        Error::PermissionDenied => (
            "No role of the user has these keys, whole; or only root may do this.",
            "pontoon user get NAME and pontoon role get ROLE; pontoon role grant-permission ROLE readwrite KEY.",
        ),
        Error::InvalidAuthToken => (
            "A token that was not used for --auth-token-ttl, or was given before the member was started again.",
            "Log in again: etcd's clients do so by themselves.",
        ),
        Error::Compacted => (
            "A read or a watch of a revision that a compaction has removed since, as by --auto-compaction-retention.",
            "Read the present state, and watch from its revision on; keep more of the past if that happens often.",
        ),
        Error::FutureRevision => (
            "A revision of another cluster, or of one from before a backup was restored.",
            "Read without a revision, and go on from the one in the answer's header.",
        ),
        Error::LeaseExists => (
            "A lease with an id that the client chose is granted twice.",
            "Take id 0, and the server chooses; or keep the lease that there is alive.",
        ),
        Error::LeaseTtlTooLarge => (
            "A TTL in milliseconds or nanoseconds.",
            "A TTL is in seconds, at most 9,000,000,000.",
        ),
        Error::BadMemberUrls => (
            "Peer URLs without http:// or https://, or without a port.",
            "Write them as http://10.0.0.1:2380.",
        ),
        Error::LeaseNotFound => (
            "The lease ended, as nobody kept it alive in time; or it was revoked.",
            "Grant a new one and put its keys again; keep it alive three times within its TTL.",
        ),
        Error::MemberNotFound => (
            "A member that was removed, or an id in decimal.",
            "pontoon member list shows the ids, which are hexadecimal.",
        ),
        Error::MemberExists => ("The member is there already.", "pontoon member list shows it."),
        Error::PeerUrlsExist => (
            "A member was added twice, or one that was replaced is still in the list.",
            "pontoon member list; remove the old one first.",
        ),
        Error::TooManyLearners => (
            "A learner that was added before was not promoted yet.",
            "Promote or remove it first, or raise --max-learners.",
        ),
        Error::MemberNotLearner => (
            "The member has its vote already.",
            "Nothing is left to do; pontoon member list shows it.",
        ),
        Error::NoSpace => (
            "--quota-backend-bytes is reached, or the disk is nearly full: nothing was compacted, or not defragmented.",
            "pontoon compaction REVISION, pontoon defrag --cluster, then pontoon alarm disarm; then set \
             --auto-compaction-retention, or raise the quota.",
        ),
        Error::TooManyRequests => (
            "Clients write faster than the disks of a majority take it, or a majority is down and writes pile up.",
            "Repeat it later, with pauses that grow; pontoon doctor looks at the disks.",
        ),
        Error::NotEnoughStarted => (
            "A member was added and is not started yet; one more change could cost the majority.",
            "Start the members that pontoon member list shows as unstarted, or remove them.",
        ),
        Error::LearnerNotReady => (
            "The learner still gets the data, or it is not running.",
            "Wait until its index in pontoon endpoint status is near the leader's, then promote it again.",
        ),
        Error::Unhealthy => (
            "Members are down, or were started seconds ago.",
            "pontoon endpoint health --cluster; bring them back before the membership changes.",
        ),
        Error::NoLeader => (
            "A majority of the members is down, or they don't reach each other.",
            "pontoon doctor; start the members that are missing. If their disks are lost for good: pontoon recover.",
        ),
        Error::LeaderChanged => (
            "A leader died or stood still while the call was under way.",
            "Look whether it happened before you repeat it; if it comes often, pontoon doctor looks at disks.",
        ),
        Error::Timeout => (
            "There is no majority, or a disk or the network is slow.",
            "Look whether it happened before you repeat it; pontoon doctor.",
        ),
        Error::TimeoutLeaderFailure => (
            "The leader was lost and no new one took over in time.",
            "Look whether it happened before you repeat it; pontoon endpoint status --cluster shows who leads.",
        ),
        Error::TimeoutConnectionLost => (
            "The member that was asked lost its connection to the leader.",
            "Look whether it happened before you repeat it; check the network between the members.",
        ),
        Error::TimeoutWaitAppliedIndex => (
            "The member that was asked is behind: it has just started, or its disk is slow.",
            "Ask another member; pontoon endpoint status --cluster shows who is behind.",
        ),
        Error::TimeoutLeaderTransfer => (
            "The member that was to lead is down, or behind.",
            "pontoon endpoint status --cluster; move the lead to a member that keeps up.",
        ),
        Error::WatchCanceled => (
            "The client ended it.",
            "Nothing is wrong; watch again from the last revision that was seen.",
        ),
        Error::Stopped => (
            "The member is being stopped or updated.",
            "Ask another one: clients with several endpoints do so by themselves.",
        ),
        Error::LearnerNotSupported => (
            "An endpoint is a learner, which answers Status and serializable reads alone.",
            "Ask a voter, or promote it: pontoon member promote ID.",
        ),
        Error::NotLeader => (
            "A follower was asked for what the leader alone does.",
            "pontoon endpoint status --cluster shows who leads: ask there.",
        ),
        Error::BadLeaderTransferee => (
            "The lead was to go to a learner, or to nobody of this cluster.",
            "pontoon member list; choose a voter.",
        ),
        Error::Corrupt => (
            "Members at one revision have different data: a disk or memory failed, or files were changed by hand.",
            "pontoon endpoint hashkv --cluster tells who differs; stop it, empty its data directory and start it again, \
             then pontoon alarm disarm. Without a majority that agrees, restore a backup.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_error_is_explained_under_a_code_of_its_own() {
        let mut codes = BTreeSet::new();
        for it in all() {
            let lines = it.lines();
            for part in [&it.meaning, it.cause, it.next] {
                assert!(
                    part.len() > 10 && part.ends_with('.') && !part.contains("  "),
                    "{lines}"
                );
            }
            assert!(codes.insert(it.code.clone()), "{} is there twice", it.code);
        }
        assert!(codes.len() > Error::ALL.len(), "{codes:?}");
    }

    #[test]
    fn an_error_is_known_by_its_text_also_within_a_message() {
        for error in Error::ALL {
            let message = format!("cannot do it: {} (and more)", error.text());
            assert_eq!(code_in(&message), Some(kebab(error.name())), "{message}");
        }
        assert_eq!(
            code_in("cannot reach 127.0.0.1:1 (refused)").as_deref(),
            Some("unreachable")
        );
        assert_eq!(code_in("no such file"), None);
        assert_eq!(kebab("TimeoutWaitAppliedIndex"), "timeout-wait-applied-index");
    }
}
