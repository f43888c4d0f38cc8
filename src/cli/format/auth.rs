//! Users, roles, permissions.

use prost::Message;
use serde_json::{Value, json};

use super::{Answer, Fields, base64, json_header, object, only_header};
use crate::cli::args::prefix_end;
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;
use crate::pb::etcdserverpb::*;

only_header!(
    AuthUserAddResponse,
    AuthUserDeleteResponse,
    AuthUserChangePasswordResponse,
    AuthUserGrantRoleResponse,
    AuthUserRevokeRoleResponse,
    AuthRoleAddResponse,
    AuthRoleDeleteResponse,
    AuthRoleGrantPermissionResponse,
    AuthRoleRevokePermissionResponse,
);

/// A range as etcdctl writes it.
pub fn range_name(key: &[u8], range_end: &[u8]) -> Vec<u8> {
    match range_end {
        b"" => key.to_vec(),
        b"\0" => [b"[", key, b", <open ended>"].concat(),
        end => [b"[", key, b", ", end, b")"].concat(),
    }
}

/// A role's permissions: what can be read, then what can be written.
pub fn role_lines(role: &str, response: &AuthRoleGetResponse) -> Vec<u8> {
    let mut out = format!("Role {role}\n").into_bytes();
    for (head, kind) in [("KV Read:\n", Type::Read), ("KV Write:\n", Type::Write)] {
        out.extend_from_slice(head.as_bytes());
        let fits = |perm: &&Permission| perm.perm_type() == kind || perm.perm_type() == Type::Readwrite;
        for perm in response.perm.iter().filter(fits) {
            out.push(b'\t');
            out.extend(range_name(&perm.key, &perm.range_end));
            let is_prefix = perm.range_end != b"\0"[..]
                && !perm.range_end.is_empty()
                && prefix_end(&perm.key) == perm.range_end;
            if is_prefix {
                out.extend([b" (prefix ", &perm.key[..], b")"].concat());
            }
            out.push(b'\n');
        }
    }
    out
}

impl Answer for AuthRoleGetResponse {
    fn json(&self) -> Value {
        let perm = |perm: &Permission| {
            object(vec![
                ("permType", json!(perm.perm_type)),
                ("key", base64(&perm.key)),
                ("range_end", base64(&perm.range_end)),
            ])
        };
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("perm", self.perm.iter().map(perm).collect()),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.all(&self.perm, |fields, perm| {
            // Two blanks, as etcdctl has them.
            let kind = match perm.perm_type() {
                Type::Read => " READ",
                Type::Write => " WRITE",
                Type::Readwrite => " READWRITE",
            };
            fields
                .value("PermType", kind)
                .text("Key", &perm.key)
                .text("RangeEnd", &perm.range_end)
        }))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for AuthRoleListResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("roles", json!(self.roles)),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        let roles: Vec<String> = self
            .roles
            .iter()
            .map(|role| super::quote(role.as_bytes()))
            .collect();
        Some(Fields::of(self.header.as_ref()).value("Roles", roles.join(" ")))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for AuthUserListResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("users", json!(self.users)),
        ])
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for AuthUserGetResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("roles", json!(self.roles)),
        ])
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for AuthStatusResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("enabled", json!(self.enabled)),
            ("authRevision", json!(self.auth_revision)),
        ])
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_as_etcdctl_prints_it() {
        let perm = |kind: Type, key: &'static [u8], end: &'static [u8]| Permission {
            perm_type: kind as i32,
            key: key.into(),
            range_end: end.into(),
        };
        let response = AuthRoleGetResponse {
            perm: vec![
                perm(Type::Read, b"a", b"b"),
                perm(Type::Read, b"a", b"c"),
                perm(Type::Readwrite, b"k", b""),
                perm(Type::Write, b"k", b"\0"),
            ],
            ..Default::default()
        };
        let lines =
            "Role r\nKV Read:\n\t[a, b) (prefix a)\n\t[a, c)\n\tk\nKV Write:\n\tk\n\t[k, <open ended>\n";
        assert_eq!(String::from_utf8_lossy(&role_lines("r", &response)), lines);
    }
}
