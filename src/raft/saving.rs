//! The thread behind apply: it saves what is sealed, reclaims what compaction freed, and defragments when asked.
//!
//! All that changes an engine happens here, in turns: a save, a slice of reclaiming, a slice of copying. So a
//! defragmentation needs no lock against the others, and holds up neither reads nor apply.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::replica::Failure;
use super::restraint::Restraint;
use crate::metrics::Metrics;
use crate::state::{Defragmented, Saver};
use crate::storage::Engine;
use crate::storage::fs::free_bytes;

/// How long the saver gathers what is applied, so that one batch serves many entries.
const SAVE_INTERVAL: Duration = Duration::from_millis(200);
/// Compacted versions looked at in one slice of reclaiming.
const SWEEP_SLICE: usize = 1024;
/// Free space that a defragmentation leaves alone, beside what it needs itself.
const SPARE_BYTES: u64 = 64 << 20;

/// The thread that saves behind apply.
pub struct Saving {
    saver: Arc<Saver>,
    wake: Arc<(Mutex<()>, Condvar)>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Saving {
    /// Starts the thread.
    pub fn start(saver: Saver, defragmenter: Defragmenter, failure: Failure, metrics: Arc<Metrics>) -> Self {
        let saver = Arc::new(saver);
        let wake = Arc::new((Mutex::new(()), Condvar::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = {
            let (saver, wake, stopping) = (saver.clone(), wake.clone(), stopping.clone());
            std::thread::Builder::new()
                .name("save".to_string())
                .spawn(move || {
                    if let Err(error) = save_until(&saver, &defragmenter, &metrics, &wake, &stopping) {
                        failure.report(format!("cannot save the applied state: {error}"));
                    }
                })
                .expect("the system has room for one more thread at start")
        };
        Saving {
            saver,
            wake,
            stopping,
            thread: Some(thread),
        }
    }

    /// Waits while more than `limit` bytes are not saved yet.
    pub async fn wait_below(&self, limit: usize) {
        while self.saver.unsaved_bytes() > limit && !self.stopping.load(Ordering::Relaxed) {
            self.wake.1.notify_all();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Saves what is left, and ends the thread.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        self.stop();
    }
}

fn save_until(
    saver: &Saver,
    defragmenter: &Defragmenter,
    metrics: &Metrics,
    wake: &(Mutex<()>, Condvar),
    stopping: &AtomicBool,
) -> Result<(), crate::storage::Error> {
    let mut restraint = Restraint::new();
    loop {
        let last = stopping.load(Ordering::Relaxed);
        let began = Instant::now();
        if saver.save()? {
            metrics.saves.observe(began.elapsed());
        }
        if last {
            return Ok(());
        }
        // For a defragmentation somebody waits.
        if defragmenter.step(saver)? {
            continue;
        }
        if restraint.left().is_zero() && reclaim(saver, metrics, &mut restraint)? {
            continue;
        }
        let pause = match restraint.left() {
            Duration::ZERO => SAVE_INTERVAL,
            left => left.min(SAVE_INTERVAL),
        };
        let guard = wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Woken early or late makes no difference: the loop looks for itself.
        drop(wake.1.wait_timeout(guard, pause));
    }
}

/// One slice of reclaiming; whether there is more.
fn reclaim(
    saver: &Saver,
    metrics: &Metrics,
    restraint: &mut Restraint,
) -> Result<bool, crate::storage::Error> {
    let began = Instant::now();
    let more = saver.sweep(SWEEP_SLICE)? || saver.tidy()?;
    metrics.versions_reclaimed.add(saver.take_reclaimed());
    match more {
        true => restraint.worked(began.elapsed(), saver.take_hurried()),
        false => restraint.done(),
    }
    Ok(more)
}

/// Why a defragmentation did not happen; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DefragmentError {
    /// The copy would fill the disk.
    #[error("defragmenting needs {needed} bytes of free space, the disk of --data-dir has {free}")]
    NoRoom {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The member stops.
    #[error("this member is stopping")]
    Stopped,
}

type Answer = Result<Defragmented, DefragmentError>;

/// Opens an empty engine, for a state that is installed or copied.
pub type FreshEngine = Arc<dyn Fn() -> io::Result<Arc<dyn Engine>> + Send + Sync>;

/// Where engines live, and who waits for a defragmentation. Cheap to clone.
#[derive(Clone)]
pub struct Defragmenter {
    /// On the disk that must have room.
    state_dir: Arc<Path>,
    fresh_engine: FreshEngine,
    /// Whoever comes while one is under way waits for the same. Each belongs to a request.
    waiting: Arc<Mutex<Vec<oneshot::Sender<Answer>>>>,
}

impl Defragmenter {
    /// Opens engines as told; they are kept below `state_dir`.
    pub fn new(state_dir: &Path, fresh_engine: FreshEngine) -> Defragmenter {
        Defragmenter {
            state_dir: state_dir.into(),
            fresh_engine,
            waiting: Arc::default(),
        }
    }

    /// An empty engine.
    pub fn fresh_engine(&self) -> io::Result<Arc<dyn Engine>> {
        (self.fresh_engine)()
    }

    /// Copies the state into a fresh engine, and gives the old one's space back to the disk.
    pub async fn defragment(&self) -> Answer {
        let (tell, answer) = oneshot::channel();
        self.waiting().push(tell);
        answer.await.unwrap_or(Err(DefragmentError::Stopped))
    }

    /// Whether anybody waits for a defragmentation.
    pub fn is_wanted(&self) -> bool {
        !self.waiting().is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One slice, if anybody waits; whether there is more to do.
    fn step(&self, saver: &Saver) -> Result<bool, crate::storage::Error> {
        if saver.is_defragmenting() {
            if let Some(done) = saver.defragment_step()? {
                tracing::info!(
                    bytes_before = done.before,
                    bytes_after = done.after,
                    "defragmented the applied state"
                );
                self.answer(Ok(done));
                return Ok(false);
            }
            return Ok(true);
        }
        if self.waiting().is_empty() {
            return Ok(false);
        }
        if let Some(refusal) = self.refusal(saver) {
            self.answer(Err(refusal));
            return Ok(false);
        }
        let engine = self
            .fresh_engine()
            .map_err(|error| crate::storage::Error::Engine(error.to_string()))?;
        tracing::info!("defragmenting the applied state");
        saver.defragment(engine)?;
        Ok(true)
    }

    /// sled does not survive a full disk, so it must not come to that.
    fn refusal(&self, saver: &Saver) -> Option<DefragmentError> {
        // The copy may be larger than its contents, by what an engine adds.
        let needed = 2 * saver.logical_bytes() + SPARE_BYTES;
        let free = free_bytes(&self.state_dir).ok()?;
        (free < needed).then_some(DefragmentError::NoRoom { needed, free })
    }

    fn answer(&self, answer: Answer) {
        for waiting in self.waiting().drain(..) {
            // A requester that gave up is no concern of the others.
            let _ = waiting.send(answer);
        }
    }
}

/// Engine directories are numbered; a state that is loaded or copied goes into the next number.
pub fn engine_dirs(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut numbers = Vec::new();
    for dir in std::fs::read_dir(state_dir)? {
        if let Some(number) = dir?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u64>().ok())
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers
        .into_iter()
        .map(|number| state_dir.join(number.to_string()))
        .collect())
}

/// Opens engines in the next numbered directory, each with so many bytes of cache.
pub fn numbered_engines(state_dir: &Path, cache: u64) -> FreshEngine {
    let state_dir = state_dir.to_path_buf();
    Arc::new(move || {
        let last = engine_dirs(&state_dir)?.pop();
        let last = last
            .and_then(|dir| dir.file_name()?.to_str()?.parse::<u64>().ok())
            .unwrap_or(0);
        let dir = state_dir.join((last + 1).to_string());
        crate::storage::open_engine(&dir, cache).map_err(io::Error::other)
    })
}
