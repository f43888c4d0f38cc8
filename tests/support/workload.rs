//! Clients at work: a few keys, every value written once, everything recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pontoon::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon::pb::etcdserverpb::request_op::Request as Op;
use pontoon::pb::etcdserverpb::response_op::Response as OpAnswer;
use pontoon::pb::etcdserverpb::{Compare, DeleteRangeRequest, RangeRequest, TxnRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

use super::history::Recorder;
use super::rpc::{Client, Request, Response, everything, op, put_request};

/// How long a client waits for an answer: longer than an election, so that most writes outlive one.
const CALL_LIMIT: Duration = Duration::from_secs(4);

/// Keys that all clients share: few, so that they meet.
const KEYS: usize = 8;

/// Reads one key.
pub fn get(key: &str, serializable: bool) -> Request {
    Request::Range(RangeRequest {
        key: key.as_bytes().to_vec().into(),
        serializable,
        ..Default::default()
    })
}

/// Reads every key.
pub fn get_all() -> Request {
    Request::Range(everything())
}

/// Deletes one key.
pub fn delete(key: &str) -> Request {
    Request::Delete(DeleteRangeRequest {
        key: key.as_bytes().to_vec().into(),
        ..Default::default()
    })
}

/// Puts `new` if the key has the value `old`; else reads it.
pub fn compare_and_swap(key: &str, old: &[u8], new: &str) -> Request {
    let Request::Range(read) = get(key, false) else {
        unreachable!("a get is a range")
    };
    let compare = Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Value as i32,
        key: key.as_bytes().to_vec().into(),
        target_union: Some(TargetUnion::Value(old.to_vec().into())),
        ..Default::default()
    };
    Request::Txn(TxnRequest {
        compare: vec![compare],
        success: vec![op(Op::RequestPut(put_request(key.as_bytes(), new.as_bytes())))],
        failure: vec![op(Op::RequestRange(read))],
    })
}

/// The key of a swap, and the value it asks for.
pub fn swapped(txn: &TxnRequest) -> (&[u8], &str) {
    let compare = &txn.compare[0];
    let Some(TargetUnion::Value(old)) = &compare.target_union else {
        panic!("a swap compares a value")
    };
    (&compare.key, std::str::from_utf8(old).expect("values are text"))
}

/// Puts one value to two keys at once.
pub fn both(first: &str, second: &str, value: &str) -> Request {
    let put = |key: &str| op(Op::RequestPut(put_request(key.as_bytes(), value.as_bytes())));
    Request::Txn(TxnRequest {
        success: vec![put(first), put(second)],
        ..Default::default()
    })
}

/// Clients that work until they are told to stop.
pub struct Workload {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    pub recorder: Recorder,
}

impl Workload {
    /// Starts `each` clients on every endpoint.
    pub fn start(endpoints: &[String], each: usize, seed: u64) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let recorder = Recorder::new();
        let mut clients = Vec::new();
        for number in 0..endpoints.len() * each {
            let worker = Worker {
                name: format!("c{number}"),
                client: Client::new(&endpoints[number % endpoints.len()]),
                recorder: recorder.clone(),
                rng: StdRng::seed_from_u64(seed + number as u64),
                seen: vec![Vec::new(); KEYS],
                written: 0,
            };
            clients.push(tokio::spawn(worker.work(stop.clone())));
        }
        Workload {
            stop,
            clients,
            recorder,
        }
    }

    /// Lets the clients finish what they have begun; returns what they recorded.
    pub async fn finish(self) -> Recorder {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client doesn't panic");
        }
        self.recorder
    }
}

struct Worker {
    name: String,
    client: Client,
    recorder: Recorder,
    rng: StdRng,
    /// The last value seen of each key: what a swap asks for.
    seen: Vec<Vec<u8>>,
    written: usize,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let key = self.rng.random_range(0..KEYS);
            let request = self.request(key);
            match self.recorder.call(&mut self.client, CALL_LIMIT, request).await {
                Ok(response) => self.look(key, &response),
                // The member is down or knows no leader: don't spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn request(&mut self, key: usize) -> Request {
        self.written += 1;
        let value = format!("{}-{}", self.name, self.written);
        let name = format!("k{key}");
        match self.rng.random_range(0..100) {
            0..30 => Request::Put(put_request(name.as_bytes(), value.as_bytes())),
            30..55 => get(&name, false),
            55..75 => compare_and_swap(&name, &self.seen[key], &value),
            75..82 => delete(&name),
            82..88 => get_all(),
            88..94 => both(&name, &format!("k{}", (key + 1) % KEYS), &value),
            _ => get(&name, true),
        }
    }

    /// Remembers what a key holds, for the next swap.
    fn look(&mut self, key: usize, response: &Response) {
        let range = match response {
            Response::Range(range) => range,
            Response::Txn(txn) => match txn.responses.first().and_then(|first| first.response.as_ref()) {
                Some(OpAnswer::ResponseRange(range)) => range,
                _ => return,
            },
            _ => return,
        };
        let name = format!("k{key}");
        if let Some(kv) = range.kvs.iter().find(|kv| kv.key == name.as_bytes()) {
            self.seen[key] = kv.value.to_vec();
        }
    }
}
