//! Every key space of the engine's one tree: the whole disk layout of the applied state in one place.
//!
//! | prefix | key | value | example key |
//! |---|---|---|---|
//! | `a` | kind u8, member id, big-endian | `etcdserverpb.AlarmMember` | `a 01 00000000000000a7` |
//! | `b` | main u64, sub u32 of the block's first version, big-endian | a block of versions (`mvcc/block.rs`) | `b 0000000000000002 00000000` |
//! | `A` | nothing | `pontoon.command.AuthStatus` | `A` |
//! | `R` | role name | `authpb.Role` | `R admin` |
//! | `U` | user name | `authpb.User` | `U alice` |
//! | `l` | lease id, big-endian | `pontoon.command.LeaseRecord` | `l 000000000000002a` |
//! | `m` | member id, big-endian | `pontoon.command.MemberRecord` | `m 00000000000000a7` |
//! | `r` | id of a removed member, big-endian | nothing | `r 00000000000000a7` |
//! | `s` | nothing | the state's own mark: revision, compacted revision | `s` |
//! | `z` | nothing | the shell's mark: applied log id and membership | `z` |
//!
//! Numbers are big-endian so that byte order is number order.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

const ALARM: u8 = b'a';
const BLOCK: u8 = b'b';
const LEASE: u8 = b'l';
const MEMBER: u8 = b'm';
const AUTH_STATUS: u8 = b'A';
const ROLE: u8 = b'R';
const USER: u8 = b'U';
const REMOVED: u8 = b'r';

/// The state's own mark.
pub const STATE_MARK: &[u8] = b"s";
/// The shell's mark.
pub const SHELL_MARK: &[u8] = b"z";

/// Behind every key.
pub const END: Bytes = Bytes::from_static(b"\xff");

/// The block whose first version is at `main`, `sub`.
pub fn block(main: i64, sub: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(13);
    key.put_u8(BLOCK);
    key.put_i64(main);
    key.put_u32(sub);
    key.freeze()
}

/// Reads what [`block`] wrote.
pub fn parse_block(key: &[u8]) -> Option<(i64, u32)> {
    let (main, sub) = key.strip_prefix(&[BLOCK])?.split_at_checked(8)?;
    Some((
        i64::from_be_bytes(main.try_into().ok()?),
        u32::from_be_bytes(sub.try_into().ok()?),
    ))
}

/// All blocks.
pub fn blocks() -> Range<Bytes> {
    space(BLOCK)
}

/// Those whose first version is at `main`, `sub` or before.
pub fn blocks_until(main: i64, sub: u32) -> Range<Bytes> {
    // Nothing lies between a key and the same with a zero behind it.
    let behind = [&block(main, sub)[..], &[0]].concat();
    blocks().start..behind.into()
}

/// A member's record.
pub fn member(id: u64) -> Bytes {
    numbered(MEMBER, id)
}

/// All members' records.
pub fn members() -> Range<Bytes> {
    space(MEMBER)
}

/// Whether users are asked for.
pub fn auth_status() -> Bytes {
    Bytes::from_static(&[AUTH_STATUS])
}

/// A role's record.
pub fn role(name: &str) -> Bytes {
    named(ROLE, name)
}

/// All roles' records.
pub fn roles() -> Range<Bytes> {
    space(ROLE)
}

/// A user's record.
pub fn user(name: &str) -> Bytes {
    named(USER, name)
}

/// All users' records.
pub fn users() -> Range<Bytes> {
    space(USER)
}

fn named(prefix: u8, name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + name.len());
    key.put_u8(prefix);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// A lease's record.
pub fn lease(id: i64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(LEASE);
    key.put_i64(id);
    key.freeze()
}

/// Reads what [`lease`] wrote.
pub fn parse_lease(key: &[u8]) -> Option<i64> {
    let id = key.strip_prefix(&[LEASE])?;
    Some(i64::from_be_bytes(id.try_into().ok()?))
}

/// All leases' records.
pub fn leases() -> Range<Bytes> {
    space(LEASE)
}

/// The mark of a removed member, whose id never comes back.
pub fn removed(id: u64) -> Bytes {
    numbered(REMOVED, id)
}

/// The marks of all removed members.
pub fn removed_members() -> Range<Bytes> {
    space(REMOVED)
}

/// An alarm of a kind (etcd's number) for a member.
pub fn alarm(kind: u8, member: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(10);
    key.put_u8(ALARM);
    key.put_u8(kind);
    key.put_u64(member);
    key.freeze()
}

/// All alarms of a kind.
pub fn alarms_of(kind: u8) -> Range<Bytes> {
    Bytes::from(vec![ALARM, kind])..Bytes::from(vec![ALARM, kind + 1])
}

/// All alarms.
pub fn alarms() -> Range<Bytes> {
    space(ALARM)
}

/// The key spaces of small records: kept in memory as a whole, without revisions. A new one is added here, or it is
/// not read back at open.
pub fn records() -> [Range<Bytes>; 7] {
    [
        alarms(),
        leases(),
        members(),
        removed_members(),
        space(AUTH_STATUS),
        roles(),
        users(),
    ]
}

fn numbered(prefix: u8, number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(prefix);
    key.put_u64(number);
    key.freeze()
}

/// The next key in byte order: `key..after(key)` is `key` alone.
pub fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::from(&key[..]);
    next.put_u8(0);
    next.freeze()
}

fn space(prefix: u8) -> Range<Bytes> {
    Bytes::from(vec![prefix])..Bytes::from(vec![prefix + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_sort_as_their_numbers() {
        assert_eq!(parse_block(&block(2, 7)), Some((2, 7)));
        assert_eq!(parse_block(b"b123"), None);
        let ordered = [block(1, 9), block(2, 0), block(2, 1), block(256, 0)];
        assert!(ordered.is_sorted());
        assert!(
            ordered
                .iter()
                .all(|key| blocks().contains(key) && !members().contains(key))
        );
        let until = blocks_until(2, 0);
        let within = ordered.each_ref().map(|key| until.contains(key));
        assert_eq!(within, [true, true, false, false]);
        assert!(members().contains(&member(u64::MAX)));
        for id in [i64::MIN, -1, 1, i64::MAX] {
            assert_eq!(parse_lease(&lease(id)), Some(id));
            assert!(leases().contains(&lease(id)));
        }
        assert!(alarms_of(1).contains(&alarm(1, u64::MAX)) && alarms().contains(&alarm(2, 0)));
        assert!(!alarms_of(1).contains(&alarm(2, 0)));
    }

    #[test]
    fn examples_of_the_table() {
        assert_eq!(&block(2, 0)[..], b"b\0\0\0\0\0\0\0\x02\0\0\0\0");
        assert_eq!(&lease(0x2a)[..], b"l\0\0\0\0\0\0\0\x2a");
        assert_eq!(&member(0xa7)[..], b"m\0\0\0\0\0\0\0\xa7");
        assert_eq!(&role("admin")[..], b"Radmin");
        assert_eq!(&user("alice")[..], b"Ualice");
        assert_eq!(&auth_status()[..], b"A");
        assert_eq!(&alarm(1, 0xa7)[..], b"a\x01\0\0\0\0\0\0\0\xa7");
    }
}
