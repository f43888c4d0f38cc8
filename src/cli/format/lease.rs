//! Leases. etcdctl's client puts the header's fields beside the others.

use prost::Message;
use serde_json::{Value, json};

use super::{Answer, Fields, base64, header_values, only_header, whole};
use crate::pb::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, ResponseHeader,
};

/// The header's fields and these; of the header what is not empty, of these all.
fn flat(header: Option<&ResponseHeader>, fields: Vec<(&'static str, Value)>) -> Value {
    let header = header.map(header_values).unwrap_or_default();
    let header = header.into_iter().filter(|(_, value)| *value != json!(0));
    whole(header.chain(fields))
}

impl Answer for LeaseGrantResponse {
    fn json(&self) -> Value {
        let fields = vec![
            ("ID", json!(self.id)),
            ("TTL", json!(self.ttl)),
            ("Error", json!(self.error)),
        ];
        flat(self.header.as_ref(), fields)
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.value("ID", self.id).value("TTL", self.ttl))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for LeaseKeepAliveResponse {
    fn json(&self) -> Value {
        let fields = vec![("ID", json!(self.id)), ("TTL", json!(self.ttl))];
        flat(self.header.as_ref(), fields)
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.value("ID", self.id).value("TTL", self.ttl))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for LeaseTimeToLiveResponse {
    fn json(&self) -> Value {
        let keys = match self.keys.is_empty() {
            true => Value::Null,
            false => self.keys.iter().map(|key| base64(key)).collect(),
        };
        let fields = vec![
            ("id", json!(self.id)),
            ("ttl", json!(self.ttl)),
            ("granted-ttl", json!(self.granted_ttl)),
            ("keys", keys),
        ];
        flat(self.header.as_ref(), fields)
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref())
            .value("ID", self.id)
            .value("TTL", self.ttl)
            .value("GrantedTTL", self.granted_ttl);
        Some(fields.all(&self.keys, |fields, key| fields.text("Key", key)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for LeaseLeasesResponse {
    fn json(&self) -> Value {
        let leases = self.leases.iter().map(|lease| json!({"id": lease.id}));
        flat(self.header.as_ref(), vec![("leases", leases.collect())])
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(self.header.as_ref());
        Some(fields.all(&self.leases, |fields, lease| fields.value("ID", lease.id)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

only_header!(LeaseRevokeResponse);
