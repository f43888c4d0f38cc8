//! The network between the members of `pontoon cluster`: each dials each other one through here, so that a way can be cut
//! or slowed, in one direction or in both, without root.
//!
//! A *way* is from one member to another, for whatever goes there: what it asks on connections of its own, and what it
//! answers on the other's. One that is cut keeps its bytes back, as a network that loses packets does: nobody is told,
//! connections stay, and what was sent goes on when the way is there again.
//!
//! While a member does not run nothing listens for it here either: whoever dials it is refused, as without us.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Pieces on their way; a sender that is faster waits.
const UNDER_WAY: usize = 64;
/// The largest piece.
const PIECE: usize = 64 << 10;
/// Between attempts to listen again where somebody else may be for a moment.
const AGAIN: Duration = Duration::from_millis(20);

/// What happens to bytes on a way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They go on.
    #[default]
    Up,
    /// They are kept back.
    Cut,
    /// They go on later.
    Slow,
}

/// A way, as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// What happens.
    pub mode: Mode,
    /// How much later, if it is slow.
    pub delay: Duration,
}

type Ways = BTreeMap<(usize, usize), watch::Sender<Way>>;

/// All ways between some members.
pub struct Links {
    ways: Ways,
    /// Whether each member runs.
    running: Vec<watch::Sender<bool>>,
    /// Where each member dials each other one.
    doors: BTreeMap<(usize, usize), SocketAddr>,
}

impl Links {
    /// Between members whose peer ports are these. None of them runs yet.
    pub fn open(peer_ports: &[u16]) -> io::Result<Links> {
        let count = peer_ports.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let pairs: Vec<(usize, usize)> = pairs.filter(|(from, to)| from != to).collect();
        let ways: Ways = pairs
            .iter()
            .map(|pair| (*pair, watch::channel(Way::default()).0))
            .collect();
        let running: Vec<_> = peer_ports.iter().map(|_| watch::channel(false).0).collect();
        let mut doors = BTreeMap::new();
        for (from, to) in pairs {
            // Closed at once: it is known now where it will be.
            let door = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            doors.insert((from, to), door);
            let there = ways[&(from, to)].subscribe();
            let back = ways[&(to, from)].subscribe();
            tokio::spawn(serve(door, peer_ports[to], running[to].subscribe(), there, back));
        }
        Ok(Links { ways, running, doors })
    }

    /// Where `from` dials `to`.
    pub fn door(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.doors.get(&(from, to)).copied()
    }

    /// Whether `member` runs.
    pub fn set_running(&self, member: usize, runs: bool) {
        if let Some(running) = self.running.get(member) {
            running.send_replace(runs);
        }
    }

    /// Changes a way; whether there is such.
    pub fn set(&self, from: usize, to: usize, way: Way) -> bool {
        let known = self.ways.get(&(from, to));
        known.map(|known| known.send_replace(way)).is_some()
    }

    /// All ways.
    pub fn all(&self) -> impl Iterator<Item = ((usize, usize), Way)> + '_ {
        self.ways.iter().map(|(pair, way)| (*pair, *way.borrow()))
    }
}

/// Takes connections at `door` for a member, while it runs.
async fn serve(
    door: SocketAddr,
    port: u16,
    mut running: watch::Receiver<bool>,
    there: watch::Receiver<Way>,
    back: watch::Receiver<Way>,
) {
    while running.wait_for(|runs| *runs).await.is_ok() {
        let Ok(listener) = TcpListener::bind(door).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let mut stopped = running.clone();
        let taking = async {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(
                    client,
                    port,
                    running.clone(),
                    there.clone(),
                    back.clone(),
                ));
            }
        };
        tokio::select! {
            () = taking => {}
            _ = stopped.wait_for(|runs| !*runs) => {}
        }
    }
}

async fn pass_on(
    client: TcpStream,
    port: u16,
    mut running: watch::Receiver<bool>,
    there: watch::Receiver<Way>,
    back: watch::Receiver<Way>,
) {
    let Ok(member) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    // A socket that is gone takes no options, and needs none.
    let _ = client.set_nodelay(true);
    let _ = member.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_member, to_member) = member.into_split();
    tokio::select! {
        () = carry(from_client, to_member, there) => {}
        () = carry(from_member, to_client, back) => {}
        _ = running.wait_for(|runs| !*runs) => {}
    }
}

/// Carries bytes one way, until either end is gone.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut way: watch::Receiver<Way>,
) {
    let (pieces, mut queue) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
    let reading = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let piece = Bytes::copy_from_slice(&buffer[..length]);
            if pieces.send((Instant::now(), piece)).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some((came, piece)) = queue.recv().await {
            let Ok(now) = way.wait_for(|way| way.mode != Mode::Cut).await.map(|way| *way) else {
                return;
            };
            if now.mode == Mode::Slow {
                tokio::time::sleep_until(came + now.delay).await;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A member that answers each byte with the next one.
    async fn member() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        stream.write_u8(byte + 1).await.expect("written");
                    }
                });
            }
        });
        port
    }

    async fn dial(links: &Links, from: usize, to: usize) -> TcpStream {
        let door = links.door(from, to).expect("a door");
        let dialled = async {
            loop {
                if let Ok(stream) = TcpStream::connect(door).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, dialled)
            .await
            .expect("a connection")
    }

    async fn answer(stream: &mut TcpStream) -> u8 {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8());
        byte.await.expect("in time").expect("a byte")
    }

    #[tokio::test]
    async fn a_way_is_cut_for_what_is_asked_and_for_what_is_answered() {
        let ports = [member().await, member().await];
        let links = Links::open(&ports).expect("open");
        assert!(
            TcpStream::connect(links.door(0, 1).expect("a door"))
                .await
                .is_err(),
            "it does not run"
        );
        links.set_running(0, true);
        links.set_running(1, true);
        let (mut asks, mut answers) = (dial(&links, 0, 1).await, dial(&links, 1, 0).await);
        asks.write_u8(1).await.expect("sent");
        assert_eq!(answer(&mut asks).await, 2);

        let cut = Way {
            mode: Mode::Cut,
            ..Way::default()
        };
        assert!(links.set(0, 1, cut) && !links.set(0, 0, cut) && !links.set(0, 7, cut));
        asks.write_u8(10).await.expect("sent");
        answers.write_u8(20).await.expect("sent");
        let silent = |stream: &mut TcpStream| {
            let mut byte = [0];
            matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        // A question the other way does arrive, but its answer would come this way.
        let mut third = dial(&links, 1, 0).await;
        third.write_u8(30).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(silent(&mut asks) && silent(&mut answers) && silent(&mut third));
        links.set(0, 1, Way::default());
        assert_eq!(
            [
                answer(&mut asks).await,
                answer(&mut answers).await,
                answer(&mut third).await
            ],
            [11, 21, 31]
        );
    }

    #[tokio::test]
    async fn a_slow_way_takes_its_time_and_one_to_the_dead_is_closed() {
        let ports = [member().await, member().await];
        let links = Links::open(&ports).expect("open");
        links.set_running(1, true);
        let mut stream = dial(&links, 0, 1).await;
        let slow = Way {
            mode: Mode::Slow,
            delay: Duration::from_millis(80),
        };
        links.set(0, 1, slow);
        let began = Instant::now();
        stream.write_u8(1).await.expect("sent");
        assert_eq!(answer(&mut stream).await, 2);
        assert!(began.elapsed() >= slow.delay);
        links.set_running(1, false);
        let ended = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
        assert!(ended.expect("in time").is_err());
    }
}
