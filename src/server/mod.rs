//! One running member: open, belong, serve, drain, close.
//!
//! Owns the tasks and clocks. Read top to bottom, [`run`] is the life of a member.

pub mod auth;
pub mod backup;
mod bind;
pub mod bootstrap;
pub mod certificates;
mod compactor;
mod corruption;
pub mod data_dir;
mod discovery;
mod disk;
pub mod jwt;
pub mod leader;
pub mod lessor;
mod listen;
pub mod members;
pub mod observatory;
pub mod propose;
pub mod read;
pub mod recover;
pub mod restore;
pub mod space;
pub mod watches;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper_util::service::TowerToHyperService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::auth::{Caller, Credentials, Gate, Tokens};
use self::backup::Backups;
use self::bind::{Bound, Socket, bind};
use self::bootstrap::{Meeting, Waits};
use self::certificates::Certificates;
use self::data_dir::DataDir;
use self::disk::TimedFs;
use self::jwt::Jwt;
use self::leader::Leadership;
use self::lessor::Lessor;
use self::lessor::leader::{Leader, Shared};
use self::members::{Members, Rules, Whereabouts};
use self::observatory::Observatory;
use self::propose::{Limits, Proposer};
use self::read::Barrier;
use self::restore::Origin;
use self::space::{Room, Space};
use self::watches::Watches;
use crate::config::{self, Config};
use crate::error::Error;
use crate::http::{Door, Port};
use crate::journal::Event;
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::Member;
use crate::pb::pontoon::command::{MemberRecord, SetMember, command::Op, reply::Response};
use crate::raft::Timing;
use crate::raft::identity::Identity;
use crate::raft::peer::{Introduction, PeerService};
use crate::raft::replica::{Options, Replica};
use crate::raft::state_machine::LeaseSink;
use crate::raft::traffic::Incoming;
use crate::state::Reader;
use crate::state::auth::{Auth, Who};
use crate::storage::fs::Fs;
use crate::tls::{ClientTls, ServerTls};

/// How long requests under way may take once the member is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Between attempts to publish this member's addresses.
const PUBLISH_RETRY: Duration = Duration::from_millis(200);
/// What etcd adds to `--max-request-bytes` for the envelope.
pub const ENVELOPE: usize = 512 * 1024;
/// Memory for the engine's own cache.
const ENGINE_CACHE: u64 = 16 << 20;
/// How soon a change of the leader is counted at the latest.
const LEADER_CHECK: Duration = Duration::from_secs(1);
/// How often it is looked again who asks, while users and roles keep changing.
const CALLER_TRIES: usize = 5;

/// What the services see of a member. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    replica: Replica,
    proposer: Proposer,
    barrier: Barrier,
    leadership: Leadership,
    watches: Watches,
    gate: Gate,
    members: Members,
    backups: Backups,
    lessor: Lessor,
    space: Space,
    observatory: Observatory,
    metrics: Arc<Metrics>,
    certificates: Shown,
}

/// The certificates that a member shows, by the port that it shows them on.
type Shown = Arc<[(&'static str, Arc<ServerTls>)]>;

impl Server {
    /// The replica underneath.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Reads of the applied state here.
    pub fn reader(&self) -> &Reader {
        self.replica.reader()
    }

    /// What a linearizable read waits for.
    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Whether this member has a leader.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Watches of what is applied here.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Changes of the membership.
    pub fn membership(&self) -> &Members {
        &self.members
    }

    /// Where backups come from.
    pub fn backups(&self) -> &Backups {
        &self.backups
    }

    /// The room that this member has.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The cluster, to be looked at.
    pub fn observatory(&self) -> &Observatory {
        &self.observatory
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.proposer.limits()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.replica.identity().cluster_id()
    }

    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.replica.identity().member_id()
    }

    /// Raft's term as this member knows it.
    pub fn term(&self) -> u64 {
        self.replica.term()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The certificates that it shows, by the port: `client` or `peer`.
    pub fn certificates(&self) -> &[(&'static str, Arc<ServerTls>)] {
        &self.certificates
    }

    /// Proposals under way from this member.
    pub fn in_flight(&self) -> usize {
        self.proposer.in_flight()
    }

    /// Who asks.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Changes the state, through the log, for the cluster itself: not subject to permissions.
    pub async fn propose(&self, op: Op) -> Result<Response, Error> {
        self.space.admit(&op).await?;
        self.proposer.propose(op).await
    }

    /// Changes the state, through the log, for a client. If users change meanwhile it is looked again who asks.
    pub async fn propose_as(&self, credentials: &Credentials, op: Op) -> Result<Response, Error> {
        self.space.admit(&op).await?;
        if !self.reader().auth().enabled() {
            return self.proposer.propose_for(&Caller::default(), op).await;
        }
        for _ in 0..CALLER_TRIES {
            let caller = self.gate.caller(credentials).await?;
            match self.proposer.propose_for(&caller, op.clone()).await {
                // The state here may lag behind the one that refused.
                Err(Error::AuthOldRevision) => self.barrier.pass().await?,
                answer => return answer,
            }
        }
        Err(Error::AuthOldRevision)
    }

    /// Reads the state here, if the caller may. If users or roles change meanwhile it is looked and read again, so that
    /// nobody sees what was written after the right to see it was taken away.
    pub async fn read_as<T, E: From<Error>>(
        &self,
        credentials: &Credentials,
        permit: impl Fn(&Auth, &Who<'_>) -> Result<(), Error>,
        read: impl Fn(&Reader) -> Result<T, E>,
    ) -> Result<T, E> {
        let reader = self.reader();
        for _ in 0..CALLER_TRIES {
            let auth = reader.auth();
            let caller = self.gate.caller(credentials).await?;
            match permit(&auth, &caller.who()) {
                Err(Error::AuthOldRevision) => continue,
                permitted => permitted?,
            }
            let answer = read(reader);
            if Arc::ptr_eq(&auth, &reader.auth()) {
                return answer;
            }
        }
        Err(Error::AuthOldRevision.into())
    }

    /// Refuses whoever is not known, while access control is on.
    pub async fn permit_user(&self, credentials: &Credentials) -> Result<(), Error> {
        self.read_as(credentials, Auth::permit_user, |_| Ok(())).await
    }

    /// Refuses whoever does not have the role root, while access control is on.
    pub async fn permit_root(&self, credentials: &Credentials) -> Result<(), Error> {
        self.read_as(credentials, Auth::permit_root, |_| Ok(())).await
    }

    /// A token for a name and a password.
    pub async fn log_in(&self, name: &str, password: &str) -> Result<String, Error> {
        self.gate.log_in(&self.proposer, name, password).await
    }

    /// Something local failed: this member stops.
    pub fn fail(&self, reason: String) {
        self.replica.failure().report(reason);
    }

    /// The members, as clients see them, by id.
    pub fn members(&self) -> Vec<Member> {
        let member = |record: MemberRecord| Member {
            id: record.id,
            name: record.name,
            peer_ur_ls: record.peer_urls,
            client_ur_ls: record.client_urls,
            is_learner: record.is_learner,
        };
        self.reader().members().into_iter().map(member).collect()
    }
}

/// The cluster removed this member.
#[derive(Debug)]
pub struct Removed {
    name: String,
    id: u64,
    data_dir: PathBuf,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "member {:?} ({:x}) was removed from its cluster and can't come back under this id: to make it a member \
             again remove --data-dir {} and add it anew",
            self.name,
            self.id,
            self.data_dir.display()
        )
    }
}

impl std::error::Error for Removed {}

/// Why a member ends, when all is well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was told to stop.
    Told,
    /// The cluster removed it.
    Removed,
}

/// What ends a member: a signal, or its removal.
struct Ending {
    signals: Signals,
    removed: watch::Receiver<bool>,
}

impl Ending {
    async fn comes(&mut self) -> End {
        tokio::select! {
            () = self.signals.stop() => End::Told,
            // The task that tells runs as long as the process.
            _ = self.removed.wait_for(|removed| *removed) => End::Removed,
        }
    }
}

/// Runs a member until it is told to stop (then all is well) or has to (then the error says why).
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    let clients = bind(&config.listen_client_urls, "--listen-client-urls").await?;
    let metrics_only = bind(&config.listen_metrics_urls, "--listen-metrics-urls").await?;
    let peers = bind(&config.listen_peer_urls, "--listen-peer-urls").await?;
    let jwt = jwt(&config)?;
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
    let meeting = meeting(&config, &data_dir, waits)?;
    tokio::select! {
        entered = bootstrap::enter(&data_dir, &meeting, timing(&config), to_peers.clone()) => entered?,
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
    let parts = Parts {
        fs,
        tokens: tokens.clone(),
        lease_sink: leases.sink(),
        peer_tls: to_peers,
        metrics: metrics.clone(),
    };
    let replica = open(&config, &data_dir, parts).await?;
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
    Members::start(replica.clone(), barrier.clone(), rules(&config, timeout), queue);
    let proposer = Proposer::new(replica.clone(), limits(&config, timeout), metrics.clone());
    let server = Server {
        replica: replica.clone(),
        lessor: Lessor::new(replica.clone(), lease_leader.clone(), timeout),
        space: Space::new(replica.clone(), proposer.clone(), room(&config)),
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
        watches: watches(&config, &replica),
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
    tasks: Tasks,
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
    let own = own_record(config, server.member_id());
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

fn rules(config: &Config, timeout: Duration) -> Rules {
    Rules {
        strict: config.strict_reconfig_check,
        max_learners: config.max_learners,
        timeout,
    }
}

fn timing(config: &Config) -> Timing {
    Timing {
        heartbeat: config.heartbeat_interval,
        election: config.election_timeout,
    }
}

fn meeting(config: &Config, data_dir: &DataDir, waits: Waits) -> anyhow::Result<Meeting> {
    let introduction = introduction(config, data_dir);
    let restored = data_dir.restored();
    let existing_only = config.initial_cluster_existing || !config.join.is_empty();
    if let Some(origin) = data_dir
        .origin()
        .filter(|_| data_dir.cluster_id().ok() == Some(0))
    {
        check_restored(&origin, &introduction, existing_only, restored.is_some())?;
    }
    Ok(Meeting {
        introduction,
        members: config.initial_cluster.clone(),
        is_discovered: config.discovery.is_some(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
        existing_only,
        founding_wait: config.founding_wait,
        join: config.join.clone(),
        restored,
        waits,
    })
}

/// A restored member founds the cluster that it was restored for, or none.
fn check_restored(
    origin: &Origin,
    me: &Introduction,
    existing_only: bool,
    is_there: bool,
) -> anyhow::Result<()> {
    if !is_there {
        bail!("--data-dir was restored from a backup, but restored.snapshot is gone: restore it again");
    }
    if existing_only {
        bail!(
            "--data-dir was restored for a new cluster: start it without --join and --initial-cluster-state existing, \
             or join with an empty directory"
        );
    }
    let is_for = |restored: &str, given: &str| restored.is_empty() || restored == given;
    if !is_for(&origin.initial_cluster, &me.initial_cluster) || !is_for(&origin.token, &me.token) {
        bail!(
            "--data-dir was restored with --initial-cluster {:?} and --initial-cluster-token {:?}: start it with the \
             same, or restore it again",
            origin.initial_cluster,
            origin.token
        );
    }
    Ok(())
}

fn watches(config: &Config, replica: &Replica) -> Watches {
    let options = watches::hub::Options {
        progress_interval: config.watch_progress_notify_interval,
        fragment_bytes: config.max_request_bytes + ENVELOPE,
    };
    Watches::start(
        replica.reader().clone(),
        replica.feed().clone(),
        replica.failure().clone(),
        replica.metrics().clone(),
        options,
    )
}

fn limits(config: &Config, timeout: Duration) -> Limits {
    Limits {
        request_bytes: config.max_request_bytes,
        txn_ops: config.max_txn_ops,
        in_flight: config.max_in_flight,
        timeout,
    }
}

fn room(config: &Config) -> Room {
    Room {
        quota: config.quota_bytes,
        reserve: config.disk_reserve_bytes,
        data_dir: config.data_dir.clone(),
    }
}

/// What a replica is given of the server's.
struct Parts {
    fs: Arc<dyn Fs>,
    tokens: Arc<Tokens>,
    lease_sink: LeaseSink,
    peer_tls: Option<Arc<ClientTls>>,
    metrics: Arc<Metrics>,
}

async fn open(config: &Config, data_dir: &DataDir, parts: Parts) -> anyhow::Result<Replica> {
    let identity = Identity::new(
        data_dir.member_id()?,
        data_dir.cluster_id()?,
        Box::new(data_dir.persist_cluster_id()),
    );
    let options = Options {
        wal_dir: data_dir.join("wal"),
        has_log: data_dir.has_log(),
        snapshot_dir: data_dir.join("snapshots"),
        state_dir: data_dir.join("state"),
        fs: parts.fs,
        trust_state: data_dir.trust_state(),
        timing: timing(config),
        peer_tls: parts.peer_tls,
        detours: config.detours.clone(),
        snapshot_count: config.snapshot_count,
        engine_cache: ENGINE_CACHE,
        identity: Arc::new(identity),
        lease_sink: parts.lease_sink,
        token_sink: Arc::new(move |change| parts.tokens.take(change)),
        metrics: parts.metrics,
    };
    Replica::open(options)
        .await
        .with_context(|| format!("cannot open --data-dir {}", config.data_dir.display()))
}

/// `--auth-token`: simple tokens need nothing.
fn jwt(config: &Config) -> anyhow::Result<Option<Arc<Jwt>>> {
    let options = config.auth_token.strip_prefix("jwt,");
    let jwt = options.map(Jwt::new).transpose();
    Ok(jwt.context("--auth-token")?.map(Arc::new))
}

fn introduction(config: &Config, data_dir: &DataDir) -> Introduction {
    Introduction {
        name: config.name.clone(),
        token: config.initial_cluster_token.clone(),
        initial_cluster: config::initial_cluster_text(&config.initial_cluster),
        restored: data_dir.origin().map(|origin| origin.hash).unwrap_or_default(),
    }
}

fn own_record(config: &Config, id: u64) -> SetMember {
    SetMember {
        id,
        name: config.name.clone(),
        peer_urls: config.initial_advertise_peer_urls.clone(),
        client_urls: config.advertise_client_urls.clone(),
    }
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

type Tasks = Vec<tokio::task::JoinHandle<()>>;

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns at the first one; a second one ends the process at once.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tokio::spawn(async {
            if let Ok(mut again) = Signals::new() {
                tokio::select! {
                    _ = again.terminate.recv() => {}
                    _ = again.interrupt.recv() => {}
                }
                std::process::exit(1);
            }
        });
    }
}
