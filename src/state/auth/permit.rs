//! What each request needs: the keys that it reads and writes, or the role root.

use bytes::Bytes;

use super::intervals::interval;
use super::{Auth, Granted};
use crate::error::Error;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::pontoon::command::command::Op;

/// Who asks. `system`: the cluster itself, for what no client asked for (a lease that ran out).
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The user's name; empty if nobody said who asks.
    pub user: &'a str,
    /// The auth revision at which the user was known.
    pub revision: u64,
    /// Not a client.
    pub system: bool,
}

/// What is done with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Range, watch, compare, previous pairs.
    Read,
    /// Put, delete.
    Write,
}

/// The keys attached to a lease.
pub type Leased<'a> = &'a dyn Fn(i64) -> Vec<Bytes>;

impl Auth {
    /// Refuses a command that its user may not give.
    pub fn permit(&self, who: &Who<'_>, op: Option<&Op>, leased: Leased<'_>) -> Result<(), Error> {
        if !self.enabled || who.system {
            return Ok(());
        }
        match op {
            Some(Op::Put(request)) => self.permit_put(who, request, leased),
            Some(Op::DeleteRange(request)) => self.permit_delete_range(who, request),
            Some(Op::Txn(request)) => self.permit_txn(who, request, leased),
            // It checks itself: nobody has a token yet.
            Some(Op::Authenticate(_)) => Ok(()),
            Some(Op::LeaseGrant(_)) => self.permit_user(who),
            Some(Op::LeaseRevoke(request)) => self.permit_lease(who, request.id, leased),
            // The lease clock's commands are the system's own.
            Some(
                Op::Compact(_)
                | Op::Alarm(_)
                | Op::Auth(_)
                | Op::SetMember(_)
                | Op::UpdateMember(_)
                | Op::ClaimMember(_)
                | Op::LeaseExpire(_)
                | Op::LeaseCheckpoint(_),
            )
            | None => self.permit_root(who),
        }
    }

    /// Refuses whoever is not known, and known as of now.
    pub fn permit_user(&self, who: &Who<'_>) -> Result<(), Error> {
        if !self.enabled || who.system {
            return Ok(());
        }
        if who.user.is_empty() {
            return Err(Error::UserEmpty);
        }
        if who.revision != self.revision {
            return Err(Error::AuthOldRevision);
        }
        if !self.users.contains_key(who.user) {
            return Err(Error::PermissionDenied);
        }
        Ok(())
    }

    /// Refuses whoever does not have the role root.
    pub fn permit_root(&self, who: &Who<'_>) -> Result<(), Error> {
        self.permit_user(who)?;
        match !self.enabled || who.system || self.is_root(who.user) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Refuses whoever may not do this with all of these keys.
    pub fn permit_keys(
        &self,
        who: &Who<'_>,
        access: Access,
        key: &Bytes,
        range_end: &Bytes,
    ) -> Result<(), Error> {
        self.permit_user(who)?;
        if !self.enabled || who.system {
            return Ok(());
        }
        let granted = self.granted.get(who.user).ok_or(Error::PermissionDenied)?;
        match granted.allows(access, key, range_end) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// A range.
    pub fn permit_range(&self, who: &Who<'_>, request: &RangeRequest) -> Result<(), Error> {
        self.permit_keys(who, Access::Read, &request.key, &request.range_end)
    }

    /// A transaction: every compare, and the ops of both branches, whichever will be taken.
    pub fn permit_txn(&self, who: &Who<'_>, request: &TxnRequest, leased: Leased<'_>) -> Result<(), Error> {
        self.permit_user(who)?;
        for compare in &request.compare {
            self.permit_keys(who, Access::Read, &compare.key, &compare.range_end)?;
        }
        let mut ops = request.success.iter().chain(&request.failure);
        ops.try_for_each(|op| self.permit_op(who, op, leased))
    }

    fn permit_op(&self, who: &Who<'_>, op: &RequestOp, leased: Leased<'_>) -> Result<(), Error> {
        match &op.request {
            Some(Request::RequestRange(request)) => self.permit_range(who, request),
            Some(Request::RequestPut(request)) => self.permit_put(who, request, leased),
            Some(Request::RequestDeleteRange(request)) => self.permit_delete_range(who, request),
            Some(Request::RequestTxn(request)) => self.permit_txn(who, request, leased),
            None => Ok(()),
        }
    }

    /// A lease takes its keys with it when it ends, so attaching to it needs the right to write them all.
    fn permit_put(&self, who: &Who<'_>, request: &PutRequest, leased: Leased<'_>) -> Result<(), Error> {
        let key = |access, key| self.permit_keys(who, access, key, &Bytes::new());
        key(Access::Write, &request.key)?;
        if request.prev_kv {
            key(Access::Read, &request.key)?;
        }
        if request.lease != 0 {
            self.permit_lease(who, request.lease, leased)?;
        }
        Ok(())
    }

    /// What ends a lease, or prolongs the life of its keys.
    pub fn permit_lease(&self, who: &Who<'_>, lease: i64, leased: Leased<'_>) -> Result<(), Error> {
        self.permit_user(who)?;
        leased(lease)
            .iter()
            .try_for_each(|key| self.permit_keys(who, Access::Write, key, &Bytes::new()))
    }

    fn permit_delete_range(&self, who: &Who<'_>, request: &DeleteRangeRequest) -> Result<(), Error> {
        let (key, end) = (&request.key, &request.range_end);
        self.permit_keys(who, Access::Write, key, end)?;
        match request.prev_kv {
            true => self.permit_keys(who, Access::Read, key, end),
            false => Ok(()),
        }
    }
}

impl Granted {
    fn allows(&self, access: Access, key: &Bytes, range_end: &Bytes) -> bool {
        let keys = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        self.everything || keys.covers(&interval(key, range_end))
    }
}
