//! `--discovery-srv`: members and clients that find a cluster by DNS, of which a name server on loopback tells.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use simple_dns::rdata::{RData, SRV};
use simple_dns::{CLASS, Name, Packet, RCODE, ResourceRecord};
use tokio::net::UdpSocket;

use crate::support::cluster::{BINARY, Cluster, PATIENCE};
use crate::support::process::{tail, wait_for};

/// A name server: the ports on `localhost` that each name stands for.
struct NameServer {
    address: SocketAddr,
    records: Arc<Mutex<BTreeMap<String, Vec<u16>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl NameServer {
    async fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let records = Arc::<Mutex<BTreeMap<String, Vec<u16>>>>::default();
        let known = records.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let answer = answer(&buffer[..length], &known.lock().expect("not poisoned"));
                socket.send_to(&answer, from).await.expect("sent");
            }
        });
        NameServer {
            address,
            records,
            task,
        }
    }

    fn set(&self, name: &str, urls: impl Iterator<Item = String>) {
        let port = |url: String| url.rsplit(':').next().and_then(|port| port.parse().ok());
        let ports = urls.map(|url| port(url).expect("a port")).collect();
        self.records
            .lock()
            .expect("not poisoned")
            .insert(name.to_string(), ports);
    }
}

fn answer(question: &[u8], records: &BTreeMap<String, Vec<u16>>) -> Vec<u8> {
    let mut packet = Packet::parse(question).expect("a question").into_reply();
    let name = packet.questions[0].qname.clone();
    match records.get(&name.to_string()) {
        None => *packet.rcode_mut() = RCODE::NameError,
        Some(ports) => packet.answers.extend(ports.iter().map(|port| {
            let srv = SRV {
                priority: 0,
                weight: 0,
                port: *port,
                target: Name::new_unchecked("localhost"),
            };
            ResourceRecord::new(name.clone(), CLASS::IN, 60, RData::SRV(srv))
        })),
    }
    packet.build_bytes_vec_compressed().expect("a message")
}

/// `pontoon` as a client that knows the domain alone.
fn pontoon(dns: &NameServer, args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(["--discovery-srv", "example.test", "--discovery-srv-name", "blue"])
        .args(["--discovery-nameserver", &dns.address.to_string()])
        .args(args)
        .env_remove("ETCDCTL_ENDPOINTS")
        .output()
        .expect("pontoon runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_found_and_come_back_to_by_dns() {
    let dns = NameServer::start().await;
    let server = dns.address.to_string();
    let finds = [
        "--discovery-srv",
        "example.test",
        "--discovery-srv-name",
        "blue",
        "--discovery-nameserver",
        &server,
    ];
    let mut cluster = Cluster::prepare(3, &[]).await;
    for member in 0..3 {
        cluster.set_finds(member, &finds);
        cluster.spawn(member);
    }
    // They wait for records, and say so.
    let log = cluster.members[0].log_file();
    wait_for(PATIENCE, "a member that says what it waits for", || async {
        let said = "DNS has no SRV record of _etcd-server-ssl-blue._tcp.example.test";
        tail(&log).contains(said).then_some(())
    })
    .await;
    let output = tokio::task::block_in_place(|| pontoon(&dns, &["get", "a"]));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("DNS names no endpoint of example.test"),
        "{}",
        stderr(&output)
    );

    let members = cluster.members.iter();
    dns.set(
        "_etcd-server-blue._tcp.example.test",
        members.clone().map(|member| member.peer_url.clone()),
    );
    dns.set(
        "_etcd-client-blue._tcp.example.test",
        members.map(|member| member.client_url.clone()),
    );
    cluster.await_ready().await;
    let list = cluster.member_list(0).await.expect("a list").members;
    let mut names: Vec<&str> = list.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n2", "n3"]);

    // A client needs nothing but the domain.
    let output = tokio::task::block_in_place(|| pontoon(&dns, &["put", "colour", "green"]));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "OK\n",
        "{}",
        stderr(&output)
    );
    let health = tokio::task::block_in_place(|| pontoon(&dns, &["endpoint", "health"]));
    let healthy = String::from_utf8_lossy(&health.stdout)
        .matches("is healthy")
        .count();
    assert_eq!(healthy, 3, "{}", stderr(&health));
    let output = tokio::task::block_in_place(|| pontoon(&dns, &["get", "a", "--insecure-discovery=false"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("without TLS only"),
        "{}",
        stderr(&output)
    );

    // A disk that was lost comes back by the same records, under the same name.
    cluster.kill(1);
    cluster.wipe(1);
    cluster.restart(1).await;
    wait_for(PATIENCE, "the old n2 to be gone", || async {
        let list = cluster.member_list(0).await.ok()?.members;
        (list.len() == 3).then_some(())
    })
    .await;

    // Without a name server, who has a place goes on.
    dns.task.abort();
    cluster.kill(2);
    cluster.restart(2).await;
    let value = cluster
        .client(2)
        .get("colour")
        .await
        .expect("served")
        .expect("a pair");
    assert_eq!(value, "green");
    let log = tail(&cluster.members[2].log_file());
    assert!(log.contains("goes on without --discovery-srv"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_no_record_names_founds_nothing() {
    let dns = NameServer::start().await;
    let mut cluster = Cluster::prepare(2, &[]).await;
    let server = dns.address.to_string();
    for member in 0..2 {
        cluster.set_finds(
            member,
            &[
                "--discovery-srv",
                "example.test",
                "--discovery-nameserver",
                &server,
            ],
        );
    }
    let named = cluster
        .members
        .iter()
        .take(1)
        .map(|member| member.peer_url.clone());
    dns.set("_etcd-server._tcp.example.test", named);
    // The first is not there yet: the other one waits for it.
    cluster.spawn(1);
    let log = cluster.members[1].log_file();
    wait_for(PATIENCE, "it to wait", || async {
        tail(&log).contains("waiting for http://localhost:").then_some(())
    })
    .await;
    cluster.spawn(0);
    cluster.await_serving(0).await;
    wait_for(PATIENCE, "a refusal", || async {
        tail(&log).contains("for a place:").then_some(())
    })
    .await;
    let list = cluster.member_list(0).await.expect("a list").members;
    assert_eq!(list.len(), 1, "{list:?}");
}
