//! SRV records: at which hosts and ports DNS says that a service of a domain is.
//!
//! The system's resolver knows addresses only, so name servers are asked directly: those of `/etc/resolv.conf`, or those
//! that are given (as an agent's on this machine, which knows what the system's do not). Names are asked for as they
//! are, without the search list: a domain that is discovered by is a whole one. The hosts that records name are looked
//! up by the system, as any other.
//!
//! etcd's names, for a cluster of `example.com`, with `-NAME` behind the service if several share the domain:
//!
//! ```text
//! _etcd-server-ssl._tcp.example.com   _etcd-server._tcp.example.com   members, encrypted and not
//! _etcd-client-ssl._tcp.example.com   _etcd-client._tcp.example.com   the same for clients
//! ```
//!
//! Nothing is cached: who asks does so once, at its start.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Where name servers listen.
const PORT: u16 = 53;
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often all of them are asked: datagrams get lost.
const ROUNDS: usize = 2;
/// Where the system's name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why DNS says nothing.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The name can't stand in a question.
    #[error("{0:?} is not a domain's name")]
    Name(String),
    /// No name server gave an answer; what the last one did instead.
    #[error("no name server tells of {name}: {server}: {cause}")]
    NoAnswer {
        /// What was asked for.
        name: String,
        /// Who was asked last.
        server: SocketAddr,
        /// What came of it.
        cause: String,
    },
}

/// One place of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Lower ones are to be tried first.
    pub priority: u16,
    /// Among equals, bigger ones are to be taken more often.
    pub weight: u16,
    /// The host's name.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Asks name servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
}

impl Resolver {
    /// Asks these; if there are none, those of the system.
    pub fn new(servers: &[SocketAddr]) -> Resolver {
        let servers = match servers {
            [] => of_the_system(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
            given => given.to_vec(),
        };
        Resolver { servers }
    }

    /// The URLs of one of etcd's services: the encrypted places, then the others, in the order of trying them. No error
    /// is taken for "there are none": half of a cluster would be taken for all of it.
    pub async fn urls(&self, service: &str, name: &str, domain: &str) -> Result<Vec<String>, DnsError> {
        let suffix = match name {
            "" => String::new(),
            name => format!("-{name}"),
        };
        let mut urls = Vec::new();
        for (scheme, service) in [("https", format!("{service}-ssl")), ("http", service.to_string())] {
            let places = self.places(&format!("_{service}{suffix}._tcp.{domain}")).await?;
            urls.extend(places.iter().map(|place| place.url(scheme)));
        }
        Ok(urls)
    }

    /// Where the service is; nowhere if there is no such name.
    pub async fn places(&self, name: &str) -> Result<Vec<Place>, DnsError> {
        let id = rand::random();
        let question = question(id, name)?;
        let mut failed = None;
        for _ in 0..ROUNDS {
            for server in &self.servers {
                match ask(*server, &question, id).await {
                    Ok(places) => return Ok(places),
                    Err(cause) => failed = Some((*server, cause)),
                }
            }
        }
        let (server, cause) = failed.unwrap_or_else(|| (unspecified(), io::Error::other("there is none")));
        Err(DnsError::NoAnswer {
            name: name.to_string(),
            server,
            cause: cause.to_string(),
        })
    }
}

impl Place {
    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

fn unspecified() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, PORT).into()
}

/// The name servers that a `resolv.conf` names; without any, the one on this machine, as the system has it.
fn of_the_system(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        let address: IpAddr = address.split('%').next()?.parse().ok()?;
        Some((address, PORT).into())
    };
    let named: Vec<SocketAddr> = resolv_conf.lines().filter_map(address).collect();
    match named.is_empty() {
        true => vec![(Ipv4Addr::LOCALHOST, PORT).into()],
        false => named,
    }
}

fn question(id: u16, name: &str) -> Result<Vec<u8>, DnsError> {
    let wrong = |_| DnsError::Name(name.to_string());
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(
        Name::new(name.trim_end_matches('.')).map_err(wrong)?,
        TYPE::SRV.into(),
        CLASS::IN.into(),
        false,
    ));
    packet.build_bytes_vec().map_err(wrong)
}

/// By a datagram; if the answer does not fit into one, by a connection.
async fn ask(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Vec<Place>> {
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER:?}"));
    let told = tokio::time::timeout(ANSWER, by_datagram(server, question, id)).await;
    if let Told::Places(places) = told.map_err(silent)?? {
        return Ok(places);
    }
    let told = tokio::time::timeout(ANSWER, by_connection(server, question, id)).await;
    match told.map_err(silent)?? {
        Told::Places(places) => Ok(places),
        Told::NotAll => Err(io::Error::other("the answer is cut short")),
    }
}

/// What an answer says.
enum Told {
    Places(Vec<Place>),
    /// There is more than a datagram holds.
    NotAll,
}

async fn by_datagram(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Told> {
    let own: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    // From now on only this server's datagrams come in.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // An answer to something else is somebody's guess, or late.
        if let Some(told) = read(&buffer[..length], id)? {
            return Ok(told);
        }
    }
}

async fn by_connection(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Told> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], question].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    read(&answer, id)?.ok_or_else(|| io::Error::other("it answers something else"))
}

/// What a message says, if it is the answer to the question of this id.
fn read(message: &[u8], id: u16) -> io::Result<Option<Told>> {
    let Ok(packet) = Packet::parse(message) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its answer is no DNS message",
        ));
    };
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return Ok(None);
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(Some(Told::NotAll));
    }
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => Ok(Some(Told::Places(places(&packet)))),
        refusal => Err(io::Error::other(format!("it answers {refusal:?}"))),
    }
}

/// By priority, then by weight. A record that names the root says that the service is decidedly nowhere.
fn places(packet: &Packet<'_>) -> Vec<Place> {
    let place = |record: &simple_dns::ResourceRecord<'_>| match &record.rdata {
        RData::SRV(srv) => Some(Place {
            priority: srv.priority,
            weight: srv.weight,
            host: srv.target.to_string(),
            port: srv.port,
        }),
        _ => None,
    };
    let mut places: Vec<Place> = packet.answers.iter().filter_map(place).collect();
    places.retain(|place| !place.host.is_empty());
    places.sort_by(|a, b| {
        let order = |place: &Place| {
            (
                place.priority,
                u16::MAX - place.weight,
                place.host.clone(),
                place.port,
            )
        };
        order(a).cmp(&order(b))
    });
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::SRV;
    use tokio::net::TcpListener;

    use super::*;

    /// Records of one name, each with priority, weight, port and host.
    type Records = &'static [(u16, u16, u16, &'static str)];

    fn answer(question: &[u8], records: Records, is_cut: bool) -> Vec<u8> {
        let mut packet = Packet::parse(question).expect("a question").into_reply();
        let name = packet.questions[0].qname.clone();
        match (name.to_string().as_str(), is_cut) {
            (_, true) => packet.set_flags(PacketFlag::TRUNCATION),
            ("_etcd-server._tcp.example.com", _) => {
                for (priority, weight, port, host) in records {
                    let srv = SRV {
                        priority: *priority,
                        weight: *weight,
                        port: *port,
                        target: Name::new_unchecked(host),
                    };
                    let record = ResourceRecord::new(name.clone(), CLASS::IN, 60, RData::SRV(srv));
                    packet.answers.push(record);
                }
            }
            ("_etcd-server-sick._tcp.example.com", _) => *packet.rcode_mut() = RCODE::ServerFailure,
            _ => *packet.rcode_mut() = RCODE::NameError,
        }
        packet.build_bytes_vec_compressed().expect("a message")
    }

    /// A name server on loopback: over UDP it has room for nothing if `is_cut`.
    async fn name_server(records: Records, is_cut: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let socket = UdpSocket::bind(address).await.expect("the same port");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                // Somebody else's answer comes first.
                let mut other = answer(&buffer[..length], &[(0, 0, 1, "wrong")], false);
                other[0] ^= 0xff;
                socket.send_to(&other, from).await.expect("sent");
                let answer = answer(&buffer[..length], records, is_cut);
                socket.send_to(&answer, from).await.expect("sent");
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u16().await.expect("a length");
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.expect("a question");
                let answer = answer(&question, records, false);
                let length = u16::try_from(answer.len()).expect("short");
                let message = [&length.to_be_bytes()[..], &answer].concat();
                stream.write_all(&message).await.expect("sent");
            }
        });
        address
    }

    const RECORDS: Records = &[
        (20, 0, 1, "c.example.com"),
        (10, 1, 2, "b.example.com"),
        (10, 9, 3, "a.example.com"),
    ];
    const URLS: [&str; 3] = [
        "http://a.example.com:3",
        "http://b.example.com:2",
        "http://c.example.com:1",
    ];

    #[tokio::test]
    async fn places_come_in_the_order_of_trying_them_also_if_they_do_not_fit_into_a_datagram() {
        for is_cut in [false, true] {
            let resolver = Resolver::new(&[name_server(RECORDS, is_cut).await]);
            let urls = resolver
                .urls("etcd-server", "", "example.com")
                .await
                .expect("found");
            assert_eq!(urls, URLS, "cut: {is_cut}");
            let none = resolver
                .urls("etcd-server", "blue", "example.com")
                .await
                .expect("an answer");
            assert_eq!(none, Vec::<String>::new());
        }
    }

    #[tokio::test]
    async fn the_next_name_server_is_asked_and_failure_is_not_taken_for_nothing() {
        let nobody = {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            socket.local_addr().expect("an address")
        };
        let resolver = Resolver::new(&[nobody, name_server(RECORDS, false).await]);
        let urls = resolver
            .urls("etcd-server", "", "example.com.")
            .await
            .expect("found");
        assert_eq!(urls, URLS);
        let sick = resolver
            .urls("etcd-server", "sick", "example.com")
            .await
            .expect_err("it failed");
        let said = sick.to_string();
        assert!(
            said.contains("_etcd-server") && said.contains("127.0.0.1:"),
            "{said}"
        );
        let long = "x".repeat(64) + ".com";
        let wrong = resolver.places(&long).await.expect_err("a label is too long");
        assert!(matches!(wrong, DnsError::Name(_)), "{wrong}");
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_told_from_one() {
        let sent = question(7, "_etcd-server._tcp.example.com").expect("a question");
        assert!(matches!(read(&sent, 7), Ok(None)), "a question is no answer");
        let good = answer(&sent, RECORDS, false);
        assert!(matches!(read(&good, 8), Ok(None)), "of another question");
        let Ok(Some(Told::Places(places))) = read(&good, 7) else {
            panic!("it is the answer");
        };
        assert_eq!(places.len(), 3);
        // However it is cut, nothing is made of it.
        for length in 0..good.len() {
            assert!(
                !matches!(read(&good[..length], 7), Ok(Some(Told::Places(_)))),
                "{length}"
            );
        }
        let nowhere = answer(&sent, &[(0, 0, 0, "")], false);
        assert!(matches!(read(&nowhere, 7), Ok(Some(Told::Places(places))) if places.is_empty()));
    }

    #[test]
    fn the_systems_name_servers_are_those_of_its_file() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.1\nnameserver\tfe80::1%eth0 \noptions ndots:5\n";
        let servers: Vec<String> = of_the_system(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fe80::1]:53"]);
        assert_eq!(
            of_the_system("search a\n"),
            ["127.0.0.1:53".parse().expect("an address")]
        );
    }
}
