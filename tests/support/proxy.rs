//! A TCP proxy that can fail: it stands in front of a member's peer port.
//!
//! It sees what the peers send to this member and the answers, not what this member sends by itself: cutting it makes
//! the member deaf, not mute, which is the asymmetric partition that elections suffer from most.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::process::free_listener;

/// What the proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Passes them on.
    Up,
    /// Closes every connection and lets none through.
    Cut,
    /// Keeps connections, passes nothing on: as a network that drops packets.
    Hold,
}

/// A running proxy; ends when dropped.
pub struct Proxy {
    port: u16,
    link: watch::Sender<Link>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port for connections to `target`, a port on loopback.
    pub async fn start(target: u16) -> Proxy {
        let listener = free_listener();
        let port = listener.local_addr().expect("it is bound").port();
        listener.set_nonblocking(true).expect("a socket of ours");
        let listener = TcpListener::from_std(listener).expect("within a runtime");
        let (link, state) = watch::channel(Link::Up);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *state.borrow() != Link::Cut {
                    tokio::spawn(pass_on(client, target, state.clone()));
                }
            }
        });
        Proxy { port, link, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what happens to present and future connections.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection until either side closes it, or the link is cut.
async fn pass_on(client: TcpStream, target: u16, mut state: watch::Receiver<Link>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, state.clone()) => {}
        () = pump(from_server, to_client, state.clone()) => {}
        _ = state.wait_for(|link| *link == Link::Cut) => {}
    }
}

/// Copies one direction, standing still while the link is held.
async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<Link>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if state.wait_for(|link| *link == Link::Up).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
