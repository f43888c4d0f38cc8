//! Members and alarms.

use prost::Message;
use serde_json::{Value, json};

use super::{Answer, Fields, comma_lines, json_header, object, only_header, table};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, DefragmentResponse, Member, MemberAddResponse, MemberListResponse,
    MemberPromoteResponse, MemberRemoveResponse, MemberUpdateResponse, MoveLeaderResponse,
};

/// The members, one a line.
pub fn member_lines(response: &MemberListResponse) -> Vec<u8> {
    comma_lines(member_rows(response))
}

fn member_rows(response: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &Member| {
        let status = if member.name.is_empty() {
            "unstarted"
        } else {
            "started"
        };
        vec![
            format!("{:x}", member.id),
            status.to_string(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    response.members.iter().map(row).collect()
}

fn json_member(member: &Member) -> Value {
    object(vec![
        ("ID", json!(member.id)),
        ("name", json!(member.name)),
        ("peerURLs", json!(member.peer_ur_ls)),
        ("clientURLs", json!(member.client_ur_ls)),
        ("isLearner", json!(member.is_learner)),
    ])
}

impl Answer for MemberListResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("members", self.members.iter().map(json_member).collect()),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.all(&self.members, |fields, member| {
            fields
                .value("ID", member.id)
                .text("Name", &member.name)
                .all(&member.peer_ur_ls, |fields, url| fields.text("PeerURL", url))
                .all(&member.client_ur_ls, |fields, url| fields.text("ClientURL", url))
                .value("IsLearner", member.is_learner)
                .blank()
        }))
    }

    fn table(&self) -> Option<String> {
        let head = ["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];
        Some(table(&head, member_rows(self)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for MemberAddResponse {
    fn json(&self) -> Value {
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("member", self.member.as_ref().map_or(Value::Null, json_member)),
            ("members", self.members.iter().map(json_member).collect()),
        ])
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// A change that answers with the members.
macro_rules! changed_members {
    ($($response:ty),*) => {
        $(
            impl Answer for $response {
                fn json(&self) -> Value {
                    object(vec![
                        ("header", json_header(self.header.as_ref())),
                        ("members", self.members.iter().map(json_member).collect()),
                    ])
                }
                fn protobuf(&self) -> Option<Vec<u8>> {
                    Some(self.encode_to_vec())
                }
            }
        )*
    };
}
changed_members!(MemberRemoveResponse, MemberUpdateResponse, MemberPromoteResponse);
only_header!(MoveLeaderResponse, DefragmentResponse);

/// The kind of an alarm, as etcd names it.
pub fn alarm_name(alarm: &AlarmMember) -> &'static str {
    match alarm.alarm() {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    }
}

/// The alarms, one a line, with the blank at its end that etcd has.
pub fn alarm_lines(response: &AlarmResponse) -> Vec<u8> {
    let line = |alarm: &AlarmMember| format!("memberID:{} alarm:{} \n", alarm.member_id, alarm_name(alarm));
    response.alarms.iter().map(line).collect::<String>().into_bytes()
}

impl Answer for AlarmResponse {
    fn json(&self) -> Value {
        let alarm = |alarm: &AlarmMember| {
            object(vec![
                ("memberID", json!(alarm.member_id)),
                ("alarm", json!(alarm.alarm)),
            ])
        };
        object(vec![
            ("header", json_header(self.header.as_ref())),
            ("alarms", self.alarms.iter().map(alarm).collect()),
        ])
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.all(&self.alarms, |fields, alarm| {
            fields
                .value("MemberID", alarm.member_id)
                .value("AlarmType", alarm_name(alarm))
                .blank()
        }))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}
