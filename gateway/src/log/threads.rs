//! The log's threads: one commits, one folds and retains, one writes large values. All they do is call the engine's steps.

use super::committer::Waiting;
use super::engine::{Engine, Step, lock};
use super::fold::FoldError;
use super::frame;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A group that fits one page beside its header is thin.
const THIN_BYTES: usize = frame::PAGE - 256;
/// Records stay out of the segments this long at most.
const FOLD_AGE_MAX: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_secs(1);
/// Pause after a commit or a fold that failed.
const RETRY: Duration = Duration::from_millis(500);

/// How the committer treats commits of less than a page.
#[derive(Clone, Copy, Debug)]
pub struct ThinPolicy {
    pub per_s: u32,
    pub linger: Duration,
}

pub struct Threads {
    signal: Arc<Signal>,
    pulse: Arc<Pulse>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// Since when the committer is in the commit it is in: a disk that does not answer holds it there.
#[derive(Default)]
struct Pulse(Mutex<Option<Instant>>);

impl Pulse {
    fn during<T>(&self, commit: impl FnOnce() -> T) -> T {
        *lock(&self.0) = Some(Instant::now());
        let done = commit();
        *lock(&self.0) = None;
        done
    }
}

/// Between committer and folder.
#[derive(Default)]
struct Signal {
    asked: Mutex<bool>,
    changed: Condvar,
    folded: Condvar,
    stop: AtomicBool,
}

impl Signal {
    fn ask(&self) {
        *lock(&self.asked) = true;
        self.changed.notify_all();
    }

    /// Waits until asked or the tick; returns whether it was asked.
    fn wait(&self, bound: Duration) -> bool {
        let asked = lock(&self.asked);
        let stop = |asked: &mut bool| !*asked && !self.stop.load(Ordering::Relaxed);
        let (mut asked, _) =
            self.changed.wait_timeout_while(asked, bound, stop).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *asked)
    }

    fn wait_for_fold(&self, bound: Duration) {
        let asked = lock(&self.asked);
        drop(self.folded.wait_timeout(asked, bound).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Threads {
    pub fn start(
        engine: &Arc<Engine>,
        thin: ThinPolicy,
        blobs: tokio::sync::mpsc::Receiver<super::blob::Job>,
    ) -> io::Result<Threads> {
        let (signal, pulse) = (Arc::new(Signal::default()), Arc::new(Pulse::default()));
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 20).spawn(run)
        };
        let handles = vec![
            spawn("commit", {
                let (engine, signal, pulse) = (engine.clone(), signal.clone(), pulse.clone());
                Box::new(move || commit(&engine, &signal, &pulse, thin))
            })?,
            spawn("fold", {
                let (engine, signal) = (engine.clone(), signal.clone());
                Box::new(move || fold_and_retain(&engine, &signal))
            })?,
            spawn("blobs", {
                let files = engine.blobs.clone();
                Box::new(move || super::blob::run(&files, blobs))
            })?,
        ];
        Ok(Threads { signal, pulse, handles: Mutex::new(handles) })
    }

    /// How long the committer has been in one commit; for ever if it is gone. `None` while it works or has nothing to do.
    pub fn commit_hangs_for(&self) -> Option<Duration> {
        let gone = lock(&self.handles).first().is_some_and(JoinHandle::is_finished);
        if gone { Some(Duration::MAX) } else { lock(&self.pulse.0).map(|since| since.elapsed()) }
    }

    /// Waits until everything handed in is committed and folded, `bound` at most. The door is closed already.
    pub fn stop(&self, bound: Duration) {
        let until = Instant::now() + bound;
        let mut handles = std::mem::take(&mut *lock(&self.handles)).into_iter();
        if let Some(commit) = handles.next() {
            join_until(commit, until);
        }
        self.signal.stop.store(true, Ordering::Relaxed);
        self.signal.changed.notify_all();
        if let Some(fold) = handles.next() {
            join_until(fold, until);
        }
        // The blob thread ends when the last door does; it holds nothing.
    }
}

fn join_until(handle: JoinHandle<()>, until: Instant) {
    while !handle.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    if handle.is_finished() {
        // A thread that panicked has said so itself.
        let _ = handle.join();
    }
}

fn commit(engine: &Engine, signal: &Signal, pulse: &Pulse, thin: ThinPolicy) {
    let mut tokens = Tokens::new(thin.per_s);
    let began = Instant::now();
    loop {
        match engine.door.wait(TICK) {
            Waiting::Nothing => continue,
            Waiting::Closed => return,
            Waiting::Group { bytes } if bytes <= THIN_BYTES && !tokens.take() => {
                engine.door.wait_for_company(THIN_BYTES, thin.linger);
                tokens.take();
            }
            Waiting::Group { .. } => {}
        }
        match pulse.during(|| engine.commit_step(|| began.elapsed().as_secs_f64())) {
            Step::NoRoom => {
                signal.ask();
                signal.wait_for_fold(RETRY);
                if signal.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            Step::Failed => std::thread::sleep(RETRY),
            Step::Committed | Step::Idle => {
                if is_fold_due(engine) {
                    signal.ask();
                }
            }
        }
    }
}

fn is_fold_due(engine: &Engine) -> bool {
    let fill = lock(&engine.journal).fill();
    engine.window_bytes.load(Ordering::Relaxed) >= engine.sizes.fold_at
        || fill.used * 2 > fill.capacity
        || engine.blobs.is_fold_due()
}

fn fold_and_retain(engine: &Engine, signal: &Signal) {
    let mut last_fold = Instant::now();
    let mut saving = None;
    loop {
        let asked = signal.wait(TICK);
        if signal.stop.load(Ordering::Relaxed) {
            finish(engine);
            return;
        }
        engine.heal_step();
        engine.save_cursors(&mut saving);
        engine.retain_step();
        let has_new_stream = engine.has_new_stream.swap(false, Ordering::Relaxed);
        let aged = last_fold.elapsed() > FOLD_AGE_MAX || has_new_stream;
        if !(asked || aged || is_fold_due(engine)) {
            continue;
        }
        // What one fold leaves, because it fills no block, is bounded: many shards may each hold a little.
        let mut folded = engine.fold_step(aged, false);
        if folded.is_ok() && is_fold_due(engine) {
            folded = engine.fold_step(true, false);
        }
        match folded {
            Ok(_) => {
                last_fold = Instant::now();
                engine.set_trouble("fold", None);
            }
            Err(error) => {
                engine.has_new_stream.fetch_or(has_new_stream, Ordering::Relaxed);
                report(engine, &error);
                engine.retain_step();
                std::thread::sleep(RETRY);
            }
        }
        signal.folded.notify_all();
    }
}

fn report(engine: &Engine, error: &FoldError) {
    engine.metrics.fold_errors.inc();
    if is_full(error) {
        engine.set_disk_full(true);
        return;
    }
    tracing::error!(%error, "a fold failed; the journal keeps its records and it is tried again");
    engine.set_trouble("fold", Some(format!("folding the journal failed: {error}")));
}

pub fn is_full(error: &FoldError) -> bool {
    matches!(error, FoldError::Segment(error) if error.is_full())
}

fn finish(engine: &Engine) {
    engine.retain_step();
    // A segment that cannot be written is left by the first try, and the second begins a new one.
    match engine.fold_step(true, true).or_else(|_| engine.fold_step(true, true)) {
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the last fold failed; the next start does it"),
    }
    engine.store.close_all();
}

/// Thin commits that may go at once: a bucket of one second's worth.
struct Tokens {
    per_s: f64,
    left: f64,
    at: Instant,
}

impl Tokens {
    fn new(per_s: u32) -> Self {
        Tokens { per_s: f64::from(per_s), left: f64::from(per_s), at: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * self.per_s).min(self.per_s);
        self.at = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}
