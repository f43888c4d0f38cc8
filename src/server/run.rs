//! The life of a member: open, belong, serve, drain, close. Read [`run`] from top to bottom.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use super::auth::{Gate, Tokens};
use super::backup::Backups;
use super::bind::{Bound, Socket, bind};
use super::bootstrap::{self, Meeting, Waits};
use super::certificates::Certificates;
use super::data_dir::DataDir;
use super::disk::TimedFs;
use super::ending::{End, Ending, Removed, Signals};
use super::leader::Leadership;
use super::lessor::Lessor;
use super::lessor::leader::{Leader, Shared};
use super::members::{self, Members, Whereabouts};
use super::observatory::Observatory;
use super::parts::{self, Parts};
use super::propose::Proposer;
use super::read::Barrier;
use super::space::Space;
use super::{Server, Shown, compactor, corruption, discovery, listen, recover};
use crate::config::Config;
use crate::http::{Door, Port};
use crate::journal::Event;
use crate::metrics::Metrics;
use crate::pb::pontoon::command::{MemberRecord, SetMember, command::Op};
use crate::raft::peer::PeerService;
use crate::raft::replica::Replica;
use crate::raft::traffic::Incoming;

/// How long requests under way may take once the member is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Between attempts to publish this member's addresses.
const PUBLISH_RETRY: Duration = Duration::from_millis(200);
/// How soon a change of the leader is counted at the latest.
const LEADER_CHECK: Duration = Duration::from_secs(1);

/// Runs a member until it is told to stop (then all is well) or has to (then the error says why).
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    let clients = bind(&config.listen_client_urls, "--listen-client-urls").await?;
    let metrics_only = bind(&config.listen_metrics_urls, "--listen-metrics-urls").await?;
    let peers = bind(&config.listen_peer_urls, "--listen-peer-urls").await?;
    let jwt = parts::jwt(&config)?;
    let data_dir = DataDir::open(&config.data_dir, &config.name)?;
    let removed = Removed {
        name: config.name.clone(),
        id: data_dir.member_id()?,
        data_dir: config.data_dir.clone(),
    };
    if data_dir.is_removed() {
        return Err(removed.into());
    }
    recover::at_start(&data_dir, config.force_new_cluster)?;
    let certificates = Certificates::open(&config, &config.data_dir)?;
    let waits = Waits::default();
    let listeners = Listeners {
        clients: Bound::encrypt(clients, certificates.clients.as_ref())?,
        metrics: Early::serve(
            Bound::encrypt(metrics_only, certificates.clients.as_ref())?,
            &config,
            waits.clone(),
        ),
    };
    let peers = Bound::encrypt(peers, certificates.peers.as_ref())?;
    let shown = [("client", certificates.clients), ("peer", certificates.peers)];
    let shown: Shown = shown
        .into_iter()
        .filter_map(|(port, tls)| Some((port, tls?)))
        .collect();
    let to_peers = certificates.to_peers;
    let mut signals = Signals::new()?;
    if let Some(discovery) = &config.discovery {
        tokio::select! {
            members = discovery::members(discovery, data_dir.cluster_id()? != 0, &waits) => config.initial_cluster = members,
            () = signals.stop() => return Ok(()),
        }
    }
    let meeting = parts::meeting(&config, &data_dir, waits)?;
    tokio::select! {
        entered = bootstrap::enter(&data_dir, &meeting, parts::timing(&config), to_peers.clone()) => entered?,
        () = signals.stop() => return Ok(()),
    }
    let tokens = Arc::new(Tokens::new(config.auth_token_ttl));
    let leases = Arc::new(Shared::default());
    let metrics = Arc::new(Metrics::new(config.metrics_extensive));
    metrics
        .journal
        .call([(data_dir.member_id()?, config.name.clone())]);
    metrics.journal.record(Event::Started {
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        left: data_dir.left(),
    });
    let fs = Arc::new(TimedFs::new(data_dir.join("wal"), metrics.clone()));
    let given = Parts {
        fs,
        tokens: tokens.clone(),
        lease_sink: leases.sink(),
        peer_tls: to_peers,
        metrics: metrics.clone(),
    };
    let replica = parts::open(&config, &data_dir, given).await?;
    data_dir.mark_opened()?;
    let lease_leader = Arc::new(Leader::new(
        replica.clone(),
        leases,
        config.lease_checkpoint_interval,
    ));
    let lease_clock = tokio::spawn(lease_leader.clone().run());
    let (stop, stopping) = watch::channel(false);
    let timeout = Duration::from_secs(5) + 2 * config.election_timeout;
    let barrier = Barrier::new(replica.clone(), timeout, metrics.clone());
    let (wishes, queue) = Members::queue();
    Members::start(
        replica.clone(),
        barrier.clone(),
        parts::rules(&config, timeout),
        queue,
    );
    let proposer = Proposer::new(replica.clone(), parts::limits(&config, timeout), metrics.clone());
    let server = Server {
        replica: replica.clone(),
        lessor: Lessor::new(replica.clone(), lease_leader.clone(), timeout),
        space: Space::new(replica.clone(), proposer.clone(), parts::room(&config)),
        proposer,
        barrier,
        gate: Gate::new(
            replica.reader().clone(),
            tokens,
            jwt,
            replica.applied(),
            config.bcrypt_cost,
            timeout,
        ),
        members: Members::new(replica.clone(), wishes.clone(), timeout),
        backups: Backups::new(data_dir.join("spool")).context("cannot empty the directory for backups")?,
        leadership: Leadership::follow(replica.clone()),
        watches: parts::watches(&config, &replica),
        observatory: Observatory::start(replica.clone()),
        metrics,
        certificates: shown,
    };

    let peer_service = PeerService::server(
        replica.clone(),
        meeting.introduction.clone(),
        wishes,
        lease_leader,
    );
    let peer_routes = tonic::service::Routes::new(peer_service)
        .prepare()
        .into_axum_router();
    let peer_service = Incoming::new(peer_routes, replica.metrics().clone());
    let peer_tasks = listen::serve(
        peers,
        listen::BETWEEN_MEMBERS,
        TowerToHyperService::new(peer_service),
        &stopping,
    );

    let ending = Ending {
        signals,
        removed: follow(replica.clone(), &meeting),
    };
    let outcome = tokio::select! {
        outcome = serve_clients(&config, &data_dir, server, meeting, listeners, ending) => outcome,
        reason = replica.failure().wait() => {
            replica.metrics().journal.record(Event::Failed { why: reason.clone() });
            Err(anyhow::anyhow!(reason))
        }
    };
    // If the disk or the log failed nothing can be saved, and `running` stays, so that the next start looks closely.
    let end = outcome?;
    stop.send_replace(true);
    lease_clock.abort();
    replica.close().await.context("cannot close the log")?;
    drop(peer_tasks);
    if end == End::Removed {
        data_dir
            .mark_removed()
            .context("cannot mark --data-dir as removed")?;
    }
    data_dir
        .mark_clean()
        .context("cannot mark --data-dir as closed")?;
    tracing::info!("stopped");
    match end {
        End::Told => Ok(()),
        End::Removed => Err(Removed {
            id: replica.identity().member_id(),
            ..removed
        }
        .into()),
    }
}

/// Follows where the others are, for as long as the process runs; tells when this member was removed.
fn follow(replica: Replica, meeting: &Meeting) -> watch::Receiver<bool> {
    let whereabouts = Whereabouts {
        introduction: meeting.introduction.clone(),
        peer_urls: meeting.peer_urls.clone(),
        hints: meeting.hints(),
    };
    let (tell, removed) = watch::channel(false);
    tokio::spawn(async move {
        members::follow(&replica, &whereabouts).await;
        tell.send_replace(true);
    });
    removed
}

/// What clients, and those who look after the member, connect to.
struct Listeners {
    clients: Vec<Socket>,
    metrics: Early,
}

/// The metrics ports, which answer from the start.
struct Early {
    door: Door,
    tasks: listen::Tasks,
    stop: watch::Sender<bool>,
}

impl Early {
    fn serve(sockets: Vec<Socket>, config: &Config, waits: Waits) -> Self {
        let door = Door::new(config.http.clone(), waits);
        let (stop, stopping) = watch::channel(false);
        Early {
            tasks: listen::serve(sockets, config.connections, door.clone(), &stopping),
            door,
            stop,
        }
    }
}

/// From belonging to a cluster to having left it.
async fn serve_clients(
    config: &Config,
    data_dir: &DataDir,
    server: Server,
    meeting: Meeting,
    listeners: Listeners,
    mut ending: Ending,
) -> anyhow::Result<End> {
    tokio::select! {
        belongs = bootstrap::belong(&server.replica, &meeting) => belongs?,
        end = ending.comes() => return Ok(end),
    }
    data_dir
        .forget_restored()
        .context("cannot remove the restored state, which is not needed any more")?;
    let own = parts::own_record(config, server.member_id());
    let records = server.reader().members();
    let is_known = |record: &MemberRecord| record.id == own.id && !record.told_peer_urls.is_empty();
    if !records.iter().any(is_known) {
        // The first time: whoever can reach this member finds it in the list of members.
        tokio::select! {
            () = publish(server.clone(), own.clone()) => {}
            end = ending.comes() => return Ok(end),
        }
    }
    if config.initial_corrupt_check {
        tokio::select! {
            checked = corruption::check_own(&server) => checked?,
            end = ending.comes() => return Ok(end),
        }
    }
    let mut background = vec![
        tokio::spawn(publish(server.clone(), own)),
        tokio::spawn(server.space().clone().watch()),
        tokio::spawn(count_leaders(server.clone())),
    ];
    background.extend(
        config
            .auto_compaction
            .map(|retention| tokio::spawn(compactor::run(server.clone(), retention))),
    );
    background.extend(
        config
            .corrupt_check_time
            .map(|every| tokio::spawn(corruption::watch(server.clone(), every))),
    );
    let addresses: Vec<String> = listeners
        .clients
        .iter()
        .filter_map(|socket| socket.listener.local_addr().ok())
        .map(|a| a.to_string())
        .collect();
    let (stop, stopping) = watch::channel(false);
    let port = Port::for_clients(&server, config.http.clone())?;
    let mut tasks = listen::serve(listeners.clients, config.connections, port, &stopping);
    let metrics = listeners.metrics;
    metrics.door.open(Port::for_metrics(&server, config.http.clone()));
    tasks.extend(metrics.tasks);
    tracing::info!(name = %config.name, addresses = addresses.join(","), "ready to serve client requests");
    server.metrics.journal.record(Event::Serving {});
    let end = ending.comes().await;
    if end == End::Removed {
        tracing::warn!("this member was removed from the cluster");
    }
    server.metrics.journal.record(Event::Stopping {});
    background.iter().for_each(tokio::task::JoinHandle::abort);
    server.replica.hand_over().await;
    // Streams that would never end by themselves.
    server.lessor.close();
    server.watches.close();
    server.observatory.close();
    stop.send_replace(true);
    metrics.stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN, futures::future::join_all(tasks)).await;
    if drained.is_err() {
        tracing::warn!("requests still under way are cut off");
    }
    Ok(end)
}

/// Counts the leaders that this member sees after the first.
async fn count_leaders(server: Server) {
    let mut last = None;
    loop {
        let now = server.replica.status().leader;
        if let (Some(last), Some(now)) = (last, now)
            && last != now
        {
            server.metrics.leader_changes.increment();
        }
        last = now.or(last);
        // A change that falls between the two lines is seen at the latest after this time.
        let _ = tokio::time::timeout(LEADER_CHECK, server.replica.changed()).await;
    }
}

/// Tells the cluster this member's name and addresses, if it does not know them already.
async fn publish(server: Server, own: SetMember) {
    loop {
        let is_known = |record: &MemberRecord| {
            record.id == own.id
                && record.name == own.name
                && record.told_peer_urls == own.peer_urls
                && record.client_urls == own.client_urls
        };
        if server.barrier.pass().await.is_ok() && server.reader().members().iter().any(is_known) {
            return;
        }
        if let Err(error) = server.propose(Op::SetMember(own.clone())).await {
            tracing::debug!(%error, "cannot publish this member's addresses yet");
            tokio::time::sleep(PUBLISH_RETRY).await;
        }
    }
}
