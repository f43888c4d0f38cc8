//! Scripts: what is asked in turn, and what is answered.

use bytes::Bytes;

use super::Who;
use crate::error::Error;
use crate::pb::authpb::{Permission, UserAddOptions, permission::Type};
use crate::pb::etcdserverpb::*;
use crate::pb::pontoon::command::auth_change::Change;
use crate::pb::pontoon::command::reply::Response;
use crate::pb::pontoon::command::{AuthChange, Authenticate, Command, Header, command::Op};
use crate::state::{Options, Place, State};
use crate::storage::Memory;
use std::sync::Arc;

struct Script {
    state: State,
    index: u64,
}

impl Script {
    fn new() -> Script {
        let (state, _) = State::open(Arc::new(Memory::default()), Options::default()).expect("opened");
        Script { state, index: 0 }
    }

    fn apply(&mut self, header: Header, op: Op) -> Result<Response, Error> {
        self.index += 1;
        let command = Command {
            header: Some(header),
            op: Some(op),
        };
        let place = Place {
            term: 1,
            index: self.index,
        };
        let outcome = self.state.apply(place, &command).expect("nothing local fails");
        self.state.seal(Bytes::new());
        outcome.response
    }

    fn header(&self, user: &str) -> Header {
        Header {
            user: user.to_string(),
            auth_revision: self.state.reader().auth().revision(),
            ..Header::default()
        }
    }

    /// A change by root.
    fn change(&mut self, change: Change) -> Result<(), Error> {
        let op = Op::Auth(AuthChange { change: Some(change) });
        self.apply(self.header("root"), op).map(drop)
    }

    fn user(&mut self, name: &str) -> Result<(), Error> {
        self.change(Change::UserAdd(AuthUserAddRequest {
            name: name.to_string(),
            hashed_password: "hash".to_string(),
            ..Default::default()
        }))
    }

    fn role(&mut self, name: &str) -> Result<(), Error> {
        self.change(Change::RoleAdd(AuthRoleAddRequest {
            name: name.to_string(),
        }))
    }

    fn give(&mut self, user: &str, role: &str) -> Result<(), Error> {
        self.change(Change::UserGrantRole(AuthUserGrantRoleRequest {
            user: user.to_string(),
            role: role.to_string(),
        }))
    }

    fn allow(&mut self, role: &str, kind: Type, key: &'static str, end: &'static str) -> Result<(), Error> {
        let perm = Permission {
            perm_type: kind as i32,
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end.as_bytes()),
        };
        self.change(Change::RoleGrantPermission(AuthRoleGrantPermissionRequest {
            name: role.to_string(),
            perm: Some(perm),
        }))
    }

    fn enable(&mut self) -> Result<(), Error> {
        self.change(Change::Enable(AuthEnableRequest {}))
    }

    fn put(&mut self, user: &str, request: PutRequest) -> Result<(), Error> {
        self.apply(self.header(user), Op::Put(request)).map(drop)
    }
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..PutRequest::default()
    }
}

/// root, and alice who may read and write [a, c) by one role and read [c, e) by another.
fn guarded() -> Script {
    let mut script = Script::new();
    for name in ["root", "alice"] {
        script.user(name).expect("added");
    }
    for role in ["writer", "reader"] {
        script.role(role).expect("added");
        script.give("alice", role).expect("given");
    }
    script.give("root", "root").expect("given");
    script
        .allow("writer", Type::Readwrite, "a", "c")
        .expect("allowed");
    script.allow("reader", Type::Read, "c", "e").expect("allowed");
    script.enable().expect("enabled");
    script
}

#[test]
fn access_control_needs_somebody_in_charge() {
    let mut script = Script::new();
    assert_eq!(script.enable(), Err(Error::RootUserNotExist));
    script.user("root").expect("added");
    assert_eq!(script.enable(), Err(Error::RootRoleNotExist));
    script
        .give("root", "root")
        .expect("the role root needs no record");
    script.enable().expect("enabled");
    script.enable().expect("again is fine");
    let root = || "root".to_string();
    let refused = Err(Error::InvalidAuthManagement);
    assert_eq!(
        script.change(Change::UserDelete(AuthUserDeleteRequest { name: root() })),
        refused
    );
    assert_eq!(
        script.change(Change::RoleDelete(AuthRoleDeleteRequest { role: root() })),
        refused
    );
    let revoke = AuthUserRevokeRoleRequest {
        name: root(),
        role: root(),
    };
    assert_eq!(script.change(Change::UserRevokeRole(revoke)), refused);
}

#[test]
fn names_are_needed_and_taken_once() {
    let mut script = Script::new();
    assert_eq!(script.user(""), Err(Error::UserEmpty));
    assert_eq!(script.role(""), Err(Error::RoleEmpty));
    script.user("a").expect("added");
    assert_eq!(script.user("a"), Err(Error::UserAlreadyExists));
    script.role("r").expect("added");
    assert_eq!(script.role("r"), Err(Error::RoleAlreadyExists));
    assert_eq!(script.give("b", "r"), Err(Error::UserNotFound));
    assert_eq!(script.give("a", "s"), Err(Error::RoleNotFound));
    assert_eq!(
        script.allow("r", Type::Read, "b", "a"),
        Err(Error::InvalidAuthManagement)
    );
    assert_eq!(
        script.allow("r", Type::Read, "", "\0"),
        Err(Error::InvalidAuthManagement)
    );
    assert_eq!(script.allow("s", Type::Read, "a", ""), Err(Error::RoleNotFound));
}

#[test]
fn every_change_raises_the_revision_and_nothing_else_does() {
    let mut script = Script::new();
    let revision = |script: &Script| script.state.reader().auth().revision();
    assert_eq!(revision(&script), 1);
    script.user("a").expect("added");
    script.role("r").expect("added");
    script.give("a", "r").expect("given");
    script.allow("r", Type::Read, "a", "").expect("allowed");
    assert_eq!(revision(&script), 5);
    script.give("a", "r").expect("twice is fine");
    script.allow("r", Type::Read, "a", "").expect("twice is fine");
    assert_eq!(script.user("a"), Err(Error::UserAlreadyExists));
    assert_eq!(revision(&script), 5);
}

#[test]
fn a_user_may_do_what_its_roles_add_up_to() {
    let mut script = guarded();
    assert_eq!(script.put("alice", put("b")), Ok(()));
    assert_eq!(script.put("alice", put("d")), Err(Error::PermissionDenied));
    assert_eq!(script.put("root", put("d")), Ok(()));
    assert_eq!(script.put("", put("b")), Err(Error::UserEmpty));
    assert_eq!(script.put("bob", put("b")), Err(Error::PermissionDenied));
    let auth = script.state.reader().auth();
    let who = Who {
        user: "alice",
        revision: auth.revision(),
        system: false,
    };
    let range = |from: &'static str, to: &'static str| RangeRequest {
        key: Bytes::from_static(from.as_bytes()),
        range_end: Bytes::from_static(to.as_bytes()),
        ..RangeRequest::default()
    };
    assert_eq!(
        auth.permit_range(&who, &range("b", "d")),
        Ok(()),
        "across two roles"
    );
    assert_eq!(
        auth.permit_range(&who, &range("d", "f")),
        Err(Error::PermissionDenied)
    );
    assert_eq!(auth.permit_root(&who), Err(Error::PermissionDenied));
}

#[test]
fn a_transaction_needs_what_both_its_branches_need() {
    let mut script = guarded();
    let op = |request| RequestOp {
        request: Some(request),
    };
    let allowed = op(request_op::Request::RequestPut(put("b")));
    let refused = op(request_op::Request::RequestPut(put("x")));
    let nested = op(request_op::Request::RequestTxn(TxnRequest {
        failure: vec![refused.clone()],
        ..TxnRequest::default()
    }));
    let compare = |key: &'static str| Compare {
        key: Bytes::from_static(key.as_bytes()),
        ..Compare::default()
    };
    for (request, answer) in [
        ((vec![], vec![allowed.clone()], vec![]), Ok(())),
        (
            (vec![], vec![allowed.clone()], vec![refused.clone()]),
            Err(Error::PermissionDenied),
        ),
        (
            (vec![], vec![allowed.clone(), nested], vec![]),
            Err(Error::PermissionDenied),
        ),
        ((vec![compare("c")], vec![allowed.clone()], vec![]), Ok(())),
        (
            (vec![compare("x")], vec![allowed], vec![]),
            Err(Error::PermissionDenied),
        ),
    ] {
        let (compare, success, failure) = request;
        let request = TxnRequest {
            compare,
            success,
            failure,
        };
        let header = script.header("alice");
        assert_eq!(script.apply(header, Op::Txn(request)).map(drop), answer);
    }
}

#[test]
fn what_a_user_was_allowed_before_a_change_is_asked_again() {
    let mut script = guarded();
    let old = script.header("alice");
    script.user("bob").expect("added");
    assert_eq!(
        script.apply(old, Op::Put(put("b"))).map(drop),
        Err(Error::AuthOldRevision)
    );
    let of_the_cluster = Header {
        system: true,
        ..Header::default()
    };
    assert_eq!(script.apply(of_the_cluster, Op::Put(put("z"))).map(drop), Ok(()));
}

#[test]
fn a_deleted_role_is_taken_from_all_its_users() {
    let mut script = guarded();
    script
        .change(Change::RoleDelete(AuthRoleDeleteRequest {
            role: "writer".to_string(),
        }))
        .expect("deleted");
    let auth = script.state.reader().auth();
    assert_eq!(auth.user("alice"), Ok(&["reader".to_string()][..]));
    assert_eq!(script.put("alice", put("b")), Err(Error::PermissionDenied));
}

#[test]
fn a_token_names_the_entry_that_made_it() {
    let mut script = guarded();
    let ask = |name: &str| {
        Op::Authenticate(Authenticate {
            name: name.to_string(),
            secret: "abc".to_string(),
        })
    };
    let header = script.header("");
    let Ok(Response::Authenticated(granted)) = script.apply(header, ask("alice")) else {
        panic!("refused");
    };
    assert_eq!(granted.token, format!("abc.{}", script.index));
    let header = script.header("");
    assert_eq!(script.apply(header, ask("bob")).map(drop), Err(Error::AuthFailed));
    let late = Header {
        auth_revision: 3,
        ..Header::default()
    };
    assert_eq!(
        script.apply(late, ask("alice")).map(drop),
        Err(Error::AuthOldRevision),
        "the password may have changed since it was looked at"
    );
}

#[test]
fn users_and_roles_are_read_back_from_the_engine() {
    let engine = Arc::new(Memory::default());
    let (state, _) = State::open(engine.clone(), Options::default()).expect("opened");
    let mut script = Script { state, index: 0 };
    script.user("root").expect("added");
    script.give("root", "root").expect("given");
    script
        .change(Change::UserAdd(AuthUserAddRequest {
            name: "cert".to_string(),
            options: Some(UserAddOptions { no_password: true }),
            ..Default::default()
        }))
        .expect("added");
    script.enable().expect("enabled");
    script.state.saver().save().expect("saved");
    let before = script.state.reader().auth();
    let (state, _) = State::open(engine, Options::default()).expect("opened");
    let after = state.reader().auth();
    assert_eq!(
        (after.enabled(), after.revision()),
        (before.enabled(), before.revision())
    );
    assert_eq!(
        after.users().collect::<Vec<_>>(),
        before.users().collect::<Vec<_>>()
    );
    assert_eq!(after.password_hash("root"), Some(&b"hash"[..]));
    assert_eq!(after.password_hash("cert"), None);
}
