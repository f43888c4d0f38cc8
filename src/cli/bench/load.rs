//! A load from its first operation to its last: clients are let go, time passes, and what was measured is gathered.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Status};

use super::super::failed::Failed;
use super::super::output;
use super::caller::Exchange;
use super::connections::{Lane, Lanes, lock};
use super::fan_out::{self, FanOut};
use super::keys::Draw;
use super::measured::{Measured, Outcome};
use super::plan::{Plan, Work};
use super::processes::Usage;
use super::report::{Found, Second};
use super::schedule::Schedule;
use super::work::{Client, Shared};
use crate::client::ClientError;

/// Beyond the time that a call may take, for those under way at the end.
const GRACE: Duration = Duration::from_secs(1);
/// How often there is news.
const SECOND: Duration = Duration::from_secs(1);

/// A load under way.
pub struct Load<'a> {
    lanes: &'a Lanes,
    shared: Arc<Shared>,
    schedule: Arc<Schedule>,
    clients: JoinSet<()>,
    pacer: JoinHandle<()>,
}

impl<'a> Load<'a> {
    /// Prepares all clients, and lets them go.
    pub async fn begin(lanes: &'a Lanes, shared: Arc<Shared>) -> Result<Load<'a>, Failed> {
        let plan = &shared.plan;
        let ready = try_join_all((0..plan.clients).map(|number| client(lanes, &shared, number))).await?;
        let streams = watch_streams(lanes, &shared).await?;
        let schedule = Arc::new(Schedule::begin(plan.length, plan.rate));
        for (lane, stream) in streams {
            if let Some(fan_out) = shared.fan_out.clone() {
                let measured = lane.measured.clone();
                lane.spawn(fan_out.receive(stream, schedule.interval, measured));
            }
        }
        let mut clients = JoinSet::new();
        for (lane, client) in ready {
            // Of a watched write, the deliveries are the operations.
            let measured = match &shared.fan_out {
                Some(fan_out) => fan_out.writes.clone(),
                None => lane.measured.clone(),
            };
            lane.spawn_into(&mut clients, client.run(schedule.clone(), measured));
        }
        let pacer = schedule.clone();
        let count = clients.len();
        Ok(Load {
            lanes,
            clients,
            pacer: tokio::task::spawn_blocking(move || pacer.pace(count)),
            schedule,
            shared,
        })
    }

    /// Watches it to its end; a call may take `patience`.
    pub async fn finish(mut self, patience: Duration) -> Result<Found, Failed> {
        let plan = self.shared.plan.clone();
        let interval = self.schedule.interval;
        let mut news = News::new(&plan);
        news.tell("warming up");
        tokio::time::sleep_until(interval.from.into()).await;
        let own = [std::process::id()];
        let (own_before, before) = (Usage::of_all(&own)?, Usage::of_all(&plan.pids)?);
        self.pass(&mut news, patience).await;
        let elapsed = interval.until.unwrap_or_else(Instant::now) - interval.from;
        let own = used(&own, &own_before);
        let servers = used(&plan.pids, &before);
        self.await_stragglers(patience).await;
        let missing = match &self.shared.fan_out {
            Some(fan_out) => fan_out.settle(patience).await,
            None => 0,
        };
        let (measured, seconds) = news.end(self.lanes.take());
        let writes = self
            .shared
            .fan_out
            .as_ref()
            .map(|fan_out| lock(&fan_out.writes).take());
        Ok(Found {
            elapsed,
            measured,
            writes: writes.map(|writes| (writes, missing)),
            not_started: self.schedule.not_started(),
            own: own.first().map(|(_, usage)| *usage).unwrap_or_default(),
            servers,
            seconds,
        })
    }

    /// Lets the measured time pass, and takes what was measured each second.
    async fn pass(&mut self, news: &mut News, patience: Duration) {
        let interval = self.schedule.interval;
        let mut ticks = tokio::time::interval_at((interval.from + SECOND).into(), SECOND);
        let fan_out = self.shared.fan_out.as_deref();
        let mut end = pin!(end(&mut self.clients, interval.until, fan_out, patience));
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => news.add(self.lanes.take()),
                () = &mut end => return,
            }
        }
    }

    /// Operations that began in time may end later. Those that don't end at all are errors.
    async fn await_stragglers(&mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience + GRACE, join(&mut self.clients)).await;
        let (from, now) = (self.schedule.interval.from, Instant::now());
        for _ in 0..self.clients.len() {
            let lost = Outcome::Failed(Code::DeadlineExceeded);
            lock(&self.lanes.lanes[0].measured).record(&self.schedule.interval, from, now, lost);
        }
        self.clients.abort_all();
        let _ = (&mut self.pacer).await;
    }
}

/// The end of what is measured: a moment, or that of the last operation.
async fn end(
    clients: &mut JoinSet<()>,
    until: Option<Instant>,
    fan_out: Option<&FanOut>,
    patience: Duration,
) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => {
            join(clients).await;
            if let Some(fan_out) = fan_out {
                fan_out.settle(patience).await;
            }
        }
    }
}

async fn join(clients: &mut JoinSet<()>) {
    while clients.join_next().await.is_some() {}
}

/// A client on one of the lanes, ready to begin.
async fn client<'a>(
    lanes: &'a Lanes,
    shared: &Arc<Shared>,
    number: u64,
) -> Result<(&'a Lane, Client), Failed> {
    let plan = &shared.plan;
    let draw = Draw::new(
        plan.distribution,
        plan.drawn_from(),
        plan.seed,
        number,
        plan.clients,
    );
    let draw = draw.ok_or_else(|| Failed::arguments("--distribution: keys can't be drawn so"))?;
    let lane = lanes.of(number);
    // Clients of one lane begin with different connections.
    let first = number as usize / lanes.lanes.len();
    let (shared, callers) = (shared.clone(), lane.callers.clone());
    let ready = async move {
        let client = Client::new(shared, &callers, first, draw).await;
        client.prepared().await.map_err(failed)
    };
    Ok((lane, lane.run(ready).await?))
}

/// The streams of all watchers, each on one of the lanes.
async fn watch_streams<'a>(
    lanes: &'a Lanes,
    shared: &Arc<Shared>,
) -> Result<Vec<(&'a Lane, Exchange)>, Failed> {
    let Work::Watch { watchers, streams } = shared.plan.work else {
        return Ok(Vec::new());
    };
    let open = async |number: u64| {
        let lane = lanes.of(number);
        let turn = number as usize / lanes.lanes.len();
        let line = lane.callers[turn % lane.callers.len()].line().await;
        // What is left over goes to the first.
        let share = watchers / streams + u64::from(number < watchers % streams);
        let stream = fan_out::open(shared.clone(), line, share);
        let stream = lane.run(async { stream.await.map_err(failed) }).await?;
        Ok((lane, stream))
    };
    try_join_all((0..streams).map(open)).await
}

fn failed(status: Status) -> Failed {
    ClientError::Server(status).into()
}

/// What processes used since; one that has ended is left out.
fn used(pids: &[u32], before: &[Usage]) -> Vec<(u32, Usage)> {
    let mut used = Vec::new();
    for (pid, before) in pids.iter().zip(before) {
        match Usage::of(*pid) {
            Ok(now) => used.push((*pid, now.since(before))),
            Err(failed) => output::say(&failed.message),
        }
    }
    used
}

/// Adds up what was measured, and tells it as it comes: each second if that was asked for, or one line on a terminal that
/// changes.
struct News {
    name: String,
    each_second: bool,
    on_terminal: bool,
    all: Measured,
    seconds: Vec<Second>,
    at: u64,
}

impl News {
    fn new(plan: &Plan) -> News {
        News {
            name: plan.name.clone(),
            each_second: plan.seconds,
            on_terminal: !plan.seconds && std::io::stderr().is_terminal(),
            all: Measured::default(),
            seconds: Vec::new(),
            at: 0,
        }
    }

    fn add(&mut self, measured: Measured) {
        self.all.add(&measured);
        self.at += 1;
        let second = Second::of(self.at, &measured);
        if self.each_second {
            output::say(second.line());
            self.seconds.push(second);
        } else {
            self.tell(&second.line());
        }
    }

    /// Replaces the line on the terminal.
    fn tell(&self, line: &str) {
        if self.on_terminal {
            let _ = write!(std::io::stderr(), "\r{}: {line}\x1b[K", self.name);
        }
    }

    fn end(mut self, rest: Measured) -> (Measured, Vec<Second>) {
        self.all.add(&rest);
        if self.on_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        (self.all, self.seconds)
    }
}
