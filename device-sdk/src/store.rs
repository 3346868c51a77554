//! The way from the recorder into the outbox: what has to go into flash, and when.

use crate::link::later;
use crate::outbox::{self, Outbox};
use crate::recorder::Recorder;
use crate::trace::warning;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};
use embassy_futures::select::{Select, select};
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_time::{Duration, Instant, Timer};
use embedded_storage_async::nor_flash::NorFlash;

/// After the flash has failed, or the ring is full.
const STORE_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Ever,
    Empty(Instant),
}

/// The way from the recorder into the outbox.
pub(crate) struct Store<'d, M: RawMutex, F, const N: usize> {
    pub recorder: &'d Recorder<M, N>,
    pub outbox: &'d mut Outbox<F>,
    pub pause: &'d mut Option<Instant>,
}

impl<M: RawMutex, F: NorFlash, const N: usize> Store<'_, M, F, N> {
    /// Puts into flash whatever has to go there now.
    pub async fn all(&mut self, frame: &mut [u8]) {
        let now = Instant::now();
        if self.pause.is_some_and(|until| now < until) {
            return;
        }
        *self.pause = None;
        while let Some(taken) = self.recorder.take(frame, now) {
            match self.outbox.append(taken.kind, taken.count, frame, taken.length).await {
                Ok(_) => self.recorder.took(self.outbox.len(), self.outbox.next_number()),
                Err(outbox::Error::TooLong | outbox::Error::Geometry) => {
                    self.outbox.gave_up(taken.count);
                    self.recorder.took(self.outbox.len(), self.outbox.next_number());
                }
                Err(outbox::Error::Full) => {
                    *self.pause = Some(later(now, STORE_PAUSE));
                    break;
                }
                Err(outbox::Error::Flash(_)) => {
                    warning!("the flash does not write; {} records wait", taken.count);
                    *self.pause = Some(later(now, STORE_PAUSE));
                    break;
                }
            }
        }
        self.recorder.set_keep_every(self.outbox.keep_every());
    }

    /// Until something has to go into flash, it is so late, or the end has come.
    pub fn wait(&self, wake: Option<Instant>, until: Until) -> impl Future<Output = ()> + use<'_, M, F, N> {
        let recorder = self.recorder;
        let pause = *self.pause;
        let due = if pause.is_some() { pause } else { recorder.next_wake() };
        let end = match until {
            Until::Ever => None,
            Until::Empty(end) => Some(end),
        };
        let earliest = [wake, due, end].into_iter().flatten().min();
        poll_fn(move |context| {
            if pause.is_none() && recorder.poll_ready(context, Instant::now()).is_ready() {
                return Poll::Ready(());
            }
            poll_due(earliest, context)
        })
    }

    /// Whether it is so late, or nothing is left; `more` is what the application has beside its records.
    pub fn is_done(&self, until: Until, more: bool) -> bool {
        match until {
            Until::Ever => false,
            Until::Empty(end) => (!more && self.recorder.is_empty() && self.outbox.is_empty()) || Instant::now() >= end,
        }
    }
}

/// The work, unless it takes longer.
pub(crate) fn in_time<W: Future>(within: Duration, work: W) -> Select<W, impl Future<Output = ()>> {
    let end = later(Instant::now(), within);
    select(work, poll_fn(move |context| poll_due(Some(end), context)))
}

/// Whether it is so late; else the task is woken then.
#[inline(never)]
fn poll_due(at: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
    match at {
        Some(at) if Instant::now() >= at => Poll::Ready(()),
        // A timer that is polled once has told the clock whom to wake.
        Some(at) => pin!(Timer::at(at)).poll(context),
        None => Poll::Pending,
    }
}
