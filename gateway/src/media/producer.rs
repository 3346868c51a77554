//! One producer while it sends: its bytes through the intake, its fragments to the log, word back to it.
//!
//! Two halves, so that reading goes on while the disk syncs: this task reads, another keeps. Between them is a short queue;
//! when it is full the producer's socket is not read, and that is all the flow control there is.

use super::ack::Ack;
use super::intake::{Cutter, Intake, Ready, Step, dropped_id, error_id};
use super::keep::KeepError;
use super::stream::Camera;
use crate::clock::Clock;
use crate::http::Charge;
use crate::log::Ticket;
use crate::record::Number;
use headwater_video::fragment::FragmentError;
use headwater_video::matroska::{Event, ParseError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Fragments that wait for the disk; while they wait the producer waits.
const WAITING_MAX: usize = 4;
/// Fragments handed to the log that are not durable yet: a number and a time each, since their bytes are in a file already.
/// Commits of little wait for company (`data.thin_commits_per_s`), so it takes many to keep a disk busy.
const IN_FLIGHT_MAX: usize = 64;
/// Acknowledgements that wait for a producer which does not read them.
const ACKS_MAX: usize = 64;
/// How long a connection waits until what an earlier one handed in is on disk; what failed never is.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// A byte of a fragment costs itself and what is made of it for the log.
const COST: usize = 2;

/// What became of all a producer sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub fragments: u64,
    pub bytes: u64,
    pub dropped: u64,
    /// Why the last of those was.
    pub dropped_for: Option<FragmentError>,
    pub last: Option<Number>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("too much is being sent at once: see video.memory")]
    Memory,
    #[error("the fragments could not be kept: {0}")]
    Keep(String),
}

pub struct Producer {
    camera: Arc<Camera>,
    clock: Clock,
    preview: u64,
    ready: mpsc::Sender<(Ready, Charge)>,
    /// For the fragment that is being built.
    charge: Charge,
    acks: mpsc::Sender<Ack>,
    keeping: JoinHandle<Result<Kept, KeepError>>,
    steps: Vec<Step>,
    dropped: u64,
    dropped_for: Option<FragmentError>,
}

impl Producer {
    /// Acknowledgements come out of the receiver; who wants none drops it.
    pub fn begin(camera: Arc<Camera>, clock: Clock) -> (Producer, mpsc::Receiver<Ack>) {
        let (ready, waiting) = mpsc::channel(WAITING_MAX);
        let (acks, heard) = mpsc::channel(ACKS_MAX);
        let preview = camera.live.take_over();
        let keeping = tokio::spawn(keep(camera.clone(), waiting, acks.clone()));
        (
            Producer {
                camera,
                clock,
                preview,
                ready,
                acks,
                keeping,
                steps: Vec::new(),
                dropped: 0,
                dropped_for: None,
                charge: Charge::default(),
            },
            heard,
        )
    }

    /// Bytes of a container.
    pub async fn push(&mut self, intake: &mut Intake, bytes: &[u8]) -> Result<(), ProducerError> {
        let now_ms = self.clock.now().wall_ms;
        let parsed = intake.push(bytes);
        self.cut(intake, now_ms).await?;
        Ok(parsed?)
    }

    /// Frames that come without a container.
    pub async fn event(&mut self, cutter: &mut Cutter, event: Event) -> Result<(), ProducerError> {
        let now_ms = self.clock.now().wall_ms;
        cutter.push(event, now_ms, &mut self.steps);
        self.take_steps().await?;
        self.show_and_charge(cutter, 0, now_ms).await
    }

    /// The producer ended well: what it had begun is kept too.
    pub async fn finish(&mut self, intake: &mut Intake) -> Result<(), ProducerError> {
        let now_ms = self.clock.now().wall_ms;
        let parsed = intake.finish();
        self.cut(intake, now_ms).await?;
        parsed?;
        self.finish_frames(intake.cutter_mut()).await
    }

    async fn cut(&mut self, intake: &mut Intake, now_ms: u64) -> Result<(), ProducerError> {
        while intake.cut(now_ms, &mut self.steps) {
            self.take_steps().await?;
        }
        self.show_and_charge(intake.cutter(), intake.held_bytes(), now_ms).await
    }

    pub async fn finish_frames(&mut self, cutter: &mut Cutter) -> Result<(), ProducerError> {
        let now_ms = self.clock.now().wall_ms;
        cutter.finish(now_ms, &mut self.steps);
        self.take_steps().await?;
        self.show_and_charge(cutter, 0, now_ms).await
    }

    /// Waits until all that was handed in is on disk, and says what became of it.
    pub async fn end(self) -> Result<Kept, ProducerError> {
        let Producer { camera, preview, ready, acks, keeping, dropped, dropped_for, .. } = self;
        drop((ready, acks));
        let kept = keeping.await;
        camera.live.leave(preview);
        match kept {
            Ok(Ok(kept)) => Ok(Kept { dropped, dropped_for, ..kept }),
            Ok(Err(error)) => Err(ProducerError::Keep(error.to_string())),
            Err(error) => Err(ProducerError::Keep(error.to_string())),
        }
    }

    async fn take_steps(&mut self) -> Result<(), ProducerError> {
        let live = &self.camera.live;
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Begun { timecode_ms } => self.tell(Ack::Buffering { timecode_ms }),
                Step::Dropped { timecode_ms, error } => {
                    self.dropped += 1;
                    self.dropped_for = Some(error);
                    // Its frames are gone, and what comes next may be small.
                    self.charge = Charge::default();
                    live.drop_building(self.preview);
                    let (id, code) = dropped_id(&error);
                    tracing::warn!(stream = %self.camera.name(), %error, "a fragment was dropped");
                    self.tell(Ack::Error { timecode_ms, id, code });
                }
                Step::Done(mut ready) => {
                    let frames = std::mem::take(&mut ready.frames);
                    let offset_ms = ready.media.start_ms.saturating_sub(ready.timecode_ms);
                    ready.preview = live.end(self.preview, &frames, offset_ms);
                    drop(frames);
                    let mut charge = std::mem::take(&mut self.charge);
                    let charged = self.camera.shared.memory.raise(&mut charge, COST * ready.bytes.len()).await;
                    charged.map_err(|_| ProducerError::Memory)?;
                    let taken = self.ready.send((*ready, charge)).await;
                    taken.map_err(|_| ProducerError::Keep("the log does not take them".into()))?;
                }
            }
        }
        Ok(())
    }

    /// Shows those who watch what is being built, and charges it; `held` are bytes that came and are in no frame yet.
    async fn show_and_charge(&mut self, cutter: &Cutter, held: usize, now_ms: u64) -> Result<(), ProducerError> {
        let live = &self.camera.live;
        // Before a fragment of these tracks was whole nobody knows how its parts are timed: see `Cutter::delay_ms`.
        if let Some(delay_ms) = cutter.delay_ms().filter(|_| live.is_watched(self.clock.now().mono_ms)) {
            let (tracks, frames, offset_ms) = cutter.building(now_ms);
            live.feed(self.preview, tracks, frames, offset_ms, delay_ms);
        }
        let cost = COST * cutter.building_bytes() + held;
        let charged = self.camera.shared.memory.raise(&mut self.charge, cost).await;
        charged.map_err(|_| ProducerError::Memory)
    }

    /// A producer that does not read its acknowledgements hears less of them.
    pub fn tell(&self, ack: Ack) {
        let _ = self.acks.try_send(ack);
    }

    /// The end of a producer whose bytes were wrong.
    pub fn tell_of(&self, error: &ParseError) {
        let (id, code) = error_id(error);
        self.tell(Ack::Error { timecode_ms: None, id, code });
    }
}

fn failed(acks: &mpsc::Sender<Ack>) {
    let _ = acks.try_send(Ack::Error { timecode_ms: None, id: 5001, code: "ARCHIVAL_ERROR" });
}

/// Keeps what comes, in order; ends when the producer does and all is durable.
async fn keep(
    camera: Arc<Camera>,
    mut waiting: mpsc::Receiver<(Ready, Charge)>,
    acks: mpsc::Sender<Ack>,
) -> Result<Kept, KeepError> {
    let (mut keeper, mut thin_keeper) = (camera.keeper(), camera.thin_keeper());
    // What an earlier connection handed in may come again on this one, and only what is durable is known again.
    let handed_in = keeper.handed_in().await;
    if handed_in > camera.stream().shard(0).map_or(0, |shard| shard.newest()) {
        let _ = timeout(SETTLES_WITHIN, camera.archive.changed(handed_in - 1)).await;
    }
    let mut in_flight: VecDeque<(Ticket, i64, Number)> = VecDeque::new();
    let (mut kept, mut durable, mut open) = (Kept::default(), Ticket::NONE, true);
    while open || !in_flight.is_empty() {
        tokio::select! {
            biased;
            now = keeper.progress(durable), if !in_flight.is_empty() => {
                durable = now.inspect_err(|_| failed(&acks))?;
                while let Some((_, timecode_ms, number)) = in_flight.front().copied().filter(|(ticket, ..)| *ticket <= durable) {
                    in_flight.pop_front();
                    // A persisted fragment that its producer does not hear of is sent again; it waits for the producer.
                    let _ = acks.send(Ack::Persisted { timecode_ms, number }).await;
                    kept.fragments += 1;
                    kept.last = Some(number);
                }
                camera.archive.follow().await;
                camera.live.tell();
            }
            first = waiting.recv(), if open && in_flight.len() < IN_FLIGHT_MAX => {
                let Some((first, charge)) = first else { open = false; continue };
                let (mut fragments, mut charges) = (Vec::new(), vec![charge]);
                let mut next = Some(first);
                while let Some(ready) = next.take() {
                    // Sent again, because its acknowledgement was lost: it is kept once.
                    match camera.archive.twin(&ready).await {
                        Some(number) => {
                            kept.last = kept.last.max(Some(number));
                            camera.live.discard(ready.preview);
                            let _ = acks.send(Ack::Persisted { timecode_ms: ready.timecode_ms, number }).await;
                        }
                        None => fragments.push(ready),
                    }
                    // A bound, or a quick producer would fill one batch for ever.
                    if fragments.len() < WAITING_MAX && let Ok((more, charge)) = waiting.try_recv() {
                        next = Some(more);
                        charges.push(charge);
                    }
                }
                if fragments.is_empty() {
                    continue;
                }
                let (ticket, numbers) = keeper.put(&fragments).await.inspect_err(|_| failed(&acks))?;
                for (ready, number) in fragments.iter().zip(numbers) {
                    kept.bytes += u64::from(ready.media.bytes);
                    camera.live.number(ready.preview, number);
                    let _ = acks.try_send(Ack::Received { timecode_ms: ready.timecode_ms, number });
                    in_flight.push_back((ticket, ready.timecode_ms, number));
                }
                // Their bytes are in the blob files, or in the log's own bounds.
                drop(charges);
                let thin: Vec<Ready> = fragments.into_iter().filter_map(|ready| ready.thin).map(|thin| *thin).collect();
                if let Some(thin_keeper) = thin_keeper.as_mut().filter(|_| !thin.is_empty())
                    && let Err(error) = thin_keeper.put(&thin).await
                {
                    tracing::warn!(stream = camera.name(), %error, "a thinned out picture could not be kept");
                }
            }
        }
    }
    Ok(kept)
}
