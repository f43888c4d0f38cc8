//! Every way a request can fail, named by what went wrong and grouped by what the caller does next.
//!
//! One table gives each error its gRPC code and etcd's exact text: clients in every language match on the text
//! (etcd-io/etcd `api/v3rpc/rpctypes/error.go` is the list that they know). The table is a macro so that a new
//! error cannot forget its row. Errors also travel between members, as their text: [`Error::parse`] reads it back.

use std::fmt;

/// gRPC status codes, by number as on the wire; here so that the inner rings need no gRPC crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

macro_rules! errors {
    ($( $(#[doc = $doc:literal])* $name:ident = $code:ident $text:literal, )*) => {
        /// What went wrong. See the module for how it reaches the client.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Error { $( $(#[doc = $doc])* $name, )* }

        impl Error {
            /// Every error, in the table's order.
            pub const ALL: &'static [Error] = &[$(Error::$name),*];

            /// The gRPC code that etcd answers with.
            pub fn code(self) -> Code { match self { $(Error::$name => Code::$code,)* } }

            /// As it is called here.
            pub fn name(self) -> &'static str { match self { $(Error::$name => stringify!($name),)* } }

            /// What it means, in a sentence or two.
            pub fn meaning(self) -> String {
                let doc = match self { $(Error::$name => concat!($($doc),*),)* };
                doc.trim().replace('`', "")
            }

            /// etcd's exact text.
            pub fn text(self) -> &'static str { match self { $(Error::$name => $text,)* } }
        }
    };
}

errors! {
    // The request is wrong: mend it. The same on every member.
    /// A key is required.
    EmptyKey = InvalidArgument "etcdserver: key is not provided",
    /// `ignore_value` or `ignore_lease` on a key that does not exist, or a transaction op with nothing in it.
    KeyNotFound = InvalidArgument "etcdserver: key not found",
    /// `ignore_value` with a value.
    ValueProvided = InvalidArgument "etcdserver: value is provided",
    /// `ignore_lease` with a lease.
    LeaseProvided = InvalidArgument "etcdserver: lease is provided",
    /// More operations than `--max-txn-ops`.
    TooManyOps = InvalidArgument "etcdserver: too many operations in txn request",
    /// One transaction puts a key twice, or puts a key that it deletes.
    DuplicateKey = InvalidArgument "etcdserver: duplicate key given in txn request",
    /// Unknown sort order or target.
    InvalidSortOption = InvalidArgument "etcdserver: invalid sort option",
    /// Larger than `--max-request-bytes`.
    RequestTooLarge = InvalidArgument "etcdserver: request is too large",
    /// A user's name is required; or access control is on, and nobody said who asks.
    UserEmpty = InvalidArgument "etcdserver: user name is empty",
    /// A role's name is required.
    RoleEmpty = InvalidArgument "etcdserver: role name is empty",
    /// A grant without a permission.
    PermissionNotGiven = InvalidArgument "etcdserver: permission not given",
    /// Wrong user or wrong password: which of them is not told.
    AuthFailed = InvalidArgument "etcdserver: authentication failed, invalid user ID or password",
    /// A permission on no keys, or a change that would leave nobody in charge.
    InvalidAuthManagement = InvalidArgument "etcdserver: invalid auth management",
    /// Users or roles changed since the token was made, or while the request was under way: log in again.
    AuthOldRevision = InvalidArgument "etcdserver: revision of auth store is old",
    /// Access control needs the user root.
    RootUserNotExist = FailedPrecondition "etcdserver: root user does not exist",
    /// Access control needs the user root to have the role root.
    RootRoleNotExist = FailedPrecondition "etcdserver: root user does not have root role",
    /// The name is taken.
    UserAlreadyExists = FailedPrecondition "etcdserver: user name already exists",
    /// No such user.
    UserNotFound = FailedPrecondition "etcdserver: user name not found",
    /// The name is taken.
    RoleAlreadyExists = FailedPrecondition "etcdserver: role name already exists",
    /// No such role.
    RoleNotFound = FailedPrecondition "etcdserver: role name not found",
    /// The user does not have the role.
    RoleNotGranted = FailedPrecondition "etcdserver: role is not granted to the user",
    /// The role does not have the permission.
    PermissionNotGranted = FailedPrecondition "etcdserver: permission is not granted to the role",
    /// Access control is off.
    AuthNotEnabled = FailedPrecondition "etcdserver: authentication is not enabled",
    /// The user may not do this.
    PermissionDenied = PermissionDenied "etcdserver: permission denied",
    /// The token is unknown, or was not used for too long: log in again.
    InvalidAuthToken = Unauthenticated "etcdserver: invalid auth token",
    /// The revision is below the compacted one.
    Compacted = OutOfRange "etcdserver: mvcc: required revision has been compacted",
    /// The revision does not exist yet.
    FutureRevision = OutOfRange "etcdserver: mvcc: required revision is a future revision",
    /// The id is in use.
    LeaseExists = FailedPrecondition "etcdserver: lease already exists",
    /// Longer than any clock should run.
    LeaseTtlTooLarge = OutOfRange "etcdserver: too large lease TTL",
    /// Peer URLs that are none.
    BadMemberUrls = InvalidArgument "etcdserver: given member URLs are invalid",
    /// No such lease.
    LeaseNotFound = NotFound "etcdserver: requested lease not found",
    /// No such member.
    MemberNotFound = NotFound "etcdserver: member not found",
    /// A member has this id already.
    MemberExists = FailedPrecondition "etcdserver: member ID already exist",
    /// Another member has one of these peer URLs.
    PeerUrlsExist = FailedPrecondition "etcdserver: Peer URLs already exists",
    /// As many learners as `--max-learners` allows.
    TooManyLearners = FailedPrecondition "etcdserver: too many learner members in cluster",
    /// Only a learner can be promoted.
    MemberNotLearner = FailedPrecondition "etcdserver: can only promote a learner member",
    /// The space quota is used up: compact and defragment, then disarm the alarm.
    NoSpace = ResourceExhausted "etcdserver: mvcc: database space exceeded",

    // Nothing is wrong with the request: try again, here or elsewhere.
    /// More requests under way than this member allows; certainly not executed.
    TooManyRequests = ResourceExhausted "etcdserver: too many requests",
    /// The members that have started would be no majority; certainly not executed.
    NotEnoughStarted = FailedPrecondition "etcdserver: re-configuration failed due to not enough started members",
    /// The learner lags too far behind the leader to be promoted.
    LearnerNotReady = FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader",
    /// Too many voters are not heard of to change the membership; certainly not executed.
    Unhealthy = Unavailable "etcdserver: unhealthy cluster",
    /// No leader is known; certainly not executed.
    NoLeader = Unavailable "etcdserver: no leader",
    /// The leader changed while the request was under way: its outcome is unknown.
    LeaderChanged = Unavailable "etcdserver: leader changed",
    /// Not answered in time: the outcome is unknown.
    Timeout = Unavailable "etcdserver: request timed out",
    /// Not answered in time while no leader could be reached: the outcome is unknown.
    TimeoutLeaderFailure = Unavailable "etcdserver: request timed out, possibly due to previous leader failure",
    /// The answer was lost with the connection to the leader: the outcome is unknown.
    TimeoutConnectionLost = Unavailable "etcdserver: request timed out, possibly due to connection lost",
    /// The state machine here did not catch up in time.
    TimeoutWaitAppliedIndex = Unavailable "etcdserver: request timed out, waiting for the applied index took too long",
    /// The member chosen to lead did not take over in time.
    TimeoutLeaderTransfer = Unavailable "etcdserver: request timed out, leader transfer took too long",
    /// The client ended its watch stream.
    WatchCanceled = Cancelled "etcdserver: watch canceled",
    /// This member is stopping: try another.
    Stopped = Unavailable "etcdserver: server stopped",

    // Give up here.
    /// This member is no voter: it answers serializable reads and status only.
    LearnerNotSupported = FailedPrecondition "etcdserver: rpc not supported for learner",
    /// Only the leader can do this.
    NotLeader = FailedPrecondition "etcdserver: not leader",
    /// Leadership goes to voters only.
    BadLeaderTransferee = FailedPrecondition "etcdserver: bad leader transferee",
    /// Corruption was found: nothing is served from it.
    Corrupt = DataLoss "etcdserver: corrupt cluster",
}

impl Error {
    /// The error with this text, if there is one: how an error crosses from one member to another.
    pub fn parse(text: &str) -> Option<Error> {
        Error::ALL.iter().copied().find(|error| error.text() == text)
    }

    /// Whether the request may have been executed: a caller must not take it for failed.
    pub fn outcome_unknown(self) -> bool {
        matches!(
            self,
            Error::LeaderChanged
                | Error::Timeout
                | Error::TimeoutLeaderFailure
                | Error::TimeoutConnectionLost
                | Error::TimeoutWaitAppliedIndex
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_read_back_from_its_text() {
        for error in Error::ALL {
            assert_eq!(Error::parse(error.text()), Some(*error));
            assert!(error.text().starts_with("etcdserver: "));
        }
    }
}
