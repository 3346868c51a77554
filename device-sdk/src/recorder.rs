//! The queue in front of the outbox: where an application leaves its records, from any task, in a const-sized piece of RAM.
//!
//! Records gather in a batch, already in the form in which they lie in flash and travel: one batch becomes one frame and
//! one PUBLISH. It goes on when it is full, when `linger` is over, or when somebody asks. A second batch takes what comes
//! while the first waits for the flash.

use crate::config::{Counts, Failure};
use crate::link::later;
use crate::outbox::{Counters, HEAD_ROOM};
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll};
use embassy_sync::blocking_mutex::Mutex;
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_sync::waitqueue::WakerRegistration;
use embassy_time::{Duration, Instant};
use headwater_wire::{Column, Kind, RECORDS_MAX, TableError, TableWriter, Value, plain};

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RecordError {
    /// There is no room now. The device cannot keep up, or its outbox is full and refuses.
    Full,
    /// It is larger than a whole batch, or has more text than a row may have.
    TooLong,
    /// Not one value a column, or one of another type.
    Shape,
}

/// What is taken with [`Recorder::take`]: a body of this kind, length and count of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub kind: Kind,
    pub count: u16,
    pub length: usize,
}

/// Two batches of at most `N` bytes. Put it into a `static`: sensors record, the device takes.
pub struct Recorder<M: RawMutex, const N: usize> {
    inner: Mutex<M, RefCell<Inner<N>>>,
}

struct Inner<const N: usize> {
    /// What is being filled.
    open: Batch<N>,
    /// What waits for the device, if anything.
    sealed: Batch<N>,
    flush: bool,
    linger: Duration,
    device: WakerRegistration,
    sensors: WakerRegistration,
    watcher: WakerRegistration,
    /// Only every n-th record is taken.
    keep_every: Option<u16>,
    seen: u16,
    thinned: u64,
    /// Milliseconds since 1970 at the start of the board's clock.
    clock: Option<u64>,
    status: Status,
}

/// How the device is doing, for whoever records: a light, a display, a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Status {
    /// Whether a gateway has taken the connection.
    pub is_connected: bool,
    /// Why the last try to connect came to nothing; none once one has not.
    pub failure: Option<Failure>,
    /// The number that the next record gets when it goes into the outbox. Numbers begin at 1 and go on over resets.
    pub next_number: u64,
    /// Records in the outbox: the gateway does not have them yet, or has not said so.
    pub pending: u64,
    /// What the device has done.
    pub counts: Counts,
    /// What the outbox has lost and cost.
    pub outbox: Counters,
}

struct Batch<const N: usize> {
    body: [u8; N],
    length: usize,
    count: u16,
    table: Option<TableWriter>,
    since: Option<Instant>,
}

impl<const N: usize> Batch<N> {
    const fn new() -> Self {
        Batch { body: [0; N], length: 0, count: 0, table: None, since: None }
    }

    fn clear(&mut self) {
        (self.length, self.count, self.table, self.since) = (0, 0, None, None);
    }

    fn plain(&mut self, record: &[u8]) -> Result<(), RecordError> {
        if self.table.is_some() || u32::from(self.count) >= RECORDS_MAX {
            return Err(RecordError::Full);
        }
        let room = self.body.get_mut(self.length..).ok_or(RecordError::Full)?;
        self.length += plain(record, room).ok_or(RecordError::Full)?;
        self.count += 1;
        Ok(())
    }

    fn reading(&mut self, columns: &'static [Column<'static>], values: &[Value<'_>]) -> Result<(), RecordError> {
        if u32::from(self.count) >= RECORDS_MAX {
            return Err(RecordError::Full);
        }
        if self.count == 0 {
            let (table, length) = TableWriter::begin(columns, &mut self.body)?;
            (self.table, self.length) = (Some(table), length);
        }
        let table = self.table.as_mut().ok_or(RecordError::Full)?;
        if !core::ptr::eq(table.columns(), columns) {
            return Err(RecordError::Full);
        }
        self.length = table.row(values, &mut self.body, self.length)?;
        self.count += 1;
        Ok(())
    }
}

impl From<TableError> for RecordError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Full => RecordError::Full,
            TableError::Limit => RecordError::TooLong,
            TableError::Shape => RecordError::Shape,
        }
    }
}

impl Status {
    const NONE: Self = Status {
        is_connected: false,
        failure: None,
        // Until a device says; all zeroes, so that a recorder in a `static` costs no flash.
        next_number: 0,
        pending: 0,
        counts: Counts { connections: 0, publishes: 0, refused: 0, rejected: 0 },
        outbox: Counters {
            dropped_oldest: 0,
            dropped_newest: 0,
            damaged: 0,
            unwritten: 0,
            programmed_bytes: 0,
            erases: 0,
        },
    };
}

impl<M: RawMutex, const N: usize> Default for Recorder<M, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: RawMutex, const N: usize> Recorder<M, N> {
    /// An empty one.
    pub const fn new() -> Self {
        let inner = Inner {
            open: Batch::new(),
            sealed: Batch::new(),
            flush: false,
            linger: Duration::from_ticks(0),
            device: WakerRegistration::new(),
            sensors: WakerRegistration::new(),
            watcher: WakerRegistration::new(),
            keep_every: None,
            seen: 0,
            thinned: 0,
            clock: None,
            status: Status::NONE,
        };
        Recorder { inner: Mutex::new(RefCell::new(inner)) }
    }

    /// Records bytes as they stand: JSON, or whatever those who read the stream expect.
    ///
    /// # Errors
    /// [`RecordError`]: [`RecordError::Full`] if there is no room now.
    pub fn try_record(&self, record: &[u8]) -> Result<(), RecordError> {
        self.put(|batch| batch.plain(record))
    }

    /// Records a reading: a JSON object for those who read the stream, a few bytes on the way. Readings of the same
    /// `columns`, the same `static`, share a batch.
    ///
    /// # Errors
    /// [`RecordError`]: [`RecordError::Full`] if there is no room now.
    pub fn try_reading(&self, columns: &'static [Column<'static>], values: &[Value<'_>]) -> Result<(), RecordError> {
        self.put(|batch| batch.reading(columns, values))
    }

    /// As [`Recorder::try_record`], and waits for room.
    ///
    /// # Errors
    /// [`RecordError`], but never [`RecordError::Full`].
    pub async fn record(&self, record: &[u8]) -> Result<(), RecordError> {
        poll_fn(|context| self.when_room(context, |batch| batch.plain(record))).await
    }

    /// As [`Recorder::try_reading`], and waits for room.
    ///
    /// # Errors
    /// [`RecordError`], but never [`RecordError::Full`].
    pub async fn reading(&self, columns: &'static [Column<'static>], values: &[Value<'_>]) -> Result<(), RecordError> {
        poll_fn(|context| self.when_room(context, |batch| batch.reading(columns, values))).await
    }

    /// What was recorded goes on now.
    pub fn flush(&self) {
        self.with(|inner| {
            inner.flush = true;
            inner.device.wake();
        });
    }

    /// Records left out because the outbox keeps only every n-th.
    pub fn thinned(&self) -> u64 {
        self.with(|inner| inner.thinned).unwrap_or(0)
    }

    /// Milliseconds since 1970, once the gateway has said.
    pub fn unix_ms(&self) -> Option<u64> {
        self.with(|inner| inner.clock).flatten().map(|start| start.saturating_add(Instant::now().as_millis()))
    }

    /// How the device is doing.
    pub fn status(&self) -> Status {
        self.with(|inner| inner.status).unwrap_or_default()
    }

    /// Waits until the status is another than this one. For one task: of two, only the last to ask is woken.
    pub async fn status_change(&self, from: &Status) -> Status {
        poll_fn(|context| {
            let changed = self.with(|inner| {
                inner.watcher.register(context.waker());
                (inner.status != *from).then_some(inner.status)
            });
            changed.flatten().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Sets the clock from one that the board has kept over a sleep; the gateway's hello sets it again.
    pub fn set_unix_ms(&self, unix_ms: u64) {
        self.set_clock(unix_ms, Instant::now());
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.with(|inner| {
            inner.status = status;
            inner.watcher.wake();
        });
    }

    pub(crate) fn set_clock(&self, unix_ms: u64, now: Instant) {
        self.with(|inner| inner.clock = unix_ms.checked_sub(now.as_millis()));
    }

    pub(crate) fn set_linger(&self, linger: Duration) {
        self.with(|inner| inner.linger = linger);
    }

    pub(crate) fn set_keep_every(&self, every: Option<u16>) {
        self.with(|inner| inner.keep_every = every);
    }

    /// Whether nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.with(|inner| inner.open.count == 0 && inner.sealed.count == 0).unwrap_or(true)
    }

    /// Copies a batch that has to go on behind [`HEAD_ROOM`] bytes of `buffer`. It stays here until [`Recorder::took`].
    pub(crate) fn take(&self, buffer: &mut [u8], now: Instant) -> Option<Taken> {
        self.with(|inner| {
            let Inner { open, sealed, flush, linger, .. } = inner;
            if sealed.count == 0 {
                if open.count == 0 || !(*flush || open.since.is_none_or(|since| now >= later(since, *linger))) {
                    *flush &= open.count > 0;
                    return None;
                }
                // Sensors go on while the flash writes.
                core::mem::swap(open, sealed);
                open.clear();
                inner.sensors.wake();
            }
            let Inner { sealed, .. } = inner;
            let body = sealed.body.get(..sealed.length)?;
            buffer.get_mut(HEAD_ROOM..HEAD_ROOM + body.len())?.copy_from_slice(body);
            let kind = if sealed.table.is_some() { Kind::Readings } else { Kind::Plain };
            Some(Taken { kind, count: sealed.count, length: sealed.length })
        })
        .flatten()
    }

    /// What was taken last is in the outbox now, which has so many records and gives this number next. Both at once, or
    /// somebody could see the records nowhere.
    pub(crate) fn took(&self, pending: u64, next_number: u64) {
        self.with(|inner| {
            (inner.status.pending, inner.status.next_number) = (pending, next_number);
            inner.sealed.clear();
            inner.sensors.wake();
            inner.watcher.wake();
        });
    }

    /// Whether a batch has to go on; the device is woken when that changes. Time alone does not wake it:
    /// [`Recorder::next_wake`].
    pub(crate) fn poll_ready(&self, context: &mut Context<'_>, now: Instant) -> Poll<()> {
        let is_ready = self.with(|inner| {
            inner.device.register(context.waker());
            let open = &inner.open;
            let is_due = inner.flush || open.since.is_none_or(|since| now >= later(since, inner.linger));
            inner.sealed.count > 0 || (open.count > 0 && is_due)
        });
        if is_ready == Some(true) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// When the batch that is being filled has lingered long enough.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.with(|inner| inner.open.since.map(|since| later(since, inner.linger))).flatten()
    }

    fn when_room(
        &self,
        context: &mut Context<'_>,
        put: impl Fn(&mut Batch<N>) -> Result<(), RecordError>,
    ) -> Poll<Result<(), RecordError>> {
        match self.put(put) {
            Err(RecordError::Full) => {
                self.with(|inner| inner.sensors.register(context.waker()));
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }

    fn put(&self, put: impl Fn(&mut Batch<N>) -> Result<(), RecordError>) -> Result<(), RecordError> {
        let now = Instant::now();
        self.with(|inner| {
            if let Some(every) = inner.keep_every {
                let takes = inner.seen == 0;
                inner.seen = if inner.seen.saturating_add(1) >= every { 0 } else { inner.seen + 1 };
                if !takes {
                    inner.thinned += 1;
                    return Ok(());
                }
            }
            let mut outcome = put(&mut inner.open);
            if outcome == Err(RecordError::Full) {
                if inner.open.count == 0 {
                    inner.open.clear();
                    return Err(RecordError::TooLong);
                }
                if inner.sealed.count == 0 {
                    core::mem::swap(&mut inner.open, &mut inner.sealed);
                    inner.open.clear();
                    inner.device.wake();
                    outcome = put(&mut inner.open);
                    if outcome == Err(RecordError::Full) {
                        outcome = Err(RecordError::TooLong);
                    }
                }
            }
            if inner.open.count == 0 {
                inner.open.clear();
            } else if inner.open.since.is_none() {
                inner.open.since = Some(now);
                // The device has to know when the batch is due.
                inner.device.wake();
            }
            outcome
        })
        // Whoever has it now will be gone in a moment; it cannot be, as nobody holds it over an await.
        .unwrap_or(Err(RecordError::Full))
    }

    fn with<R>(&self, with: impl FnOnce(&mut Inner<N>) -> R) -> Option<R> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| with(&mut inner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use embassy_sync::blocking_mutex::raw::NoopRawMutex;
    use headwater_wire::{ColumnType, Envelope};
    use std::vec::Vec;

    const COLUMNS: &[Column<'static>] = &[Column::new("n", ColumnType::Counter)];

    fn records(taken: Taken, buffer: &[u8]) -> Vec<Vec<u8>> {
        let body = &buffer[HEAD_ROOM..HEAD_ROOM + taken.length];
        let envelope = Envelope { kind: taken.kind, epoch: 1, first: 1, count: taken.count.into(), body };
        match taken.kind {
            Kind::Plain => envelope.plain().unwrap().map(<[u8]>::to_vec).collect(),
            _ => {
                let (table, mut all) = (envelope.readings().unwrap(), Vec::new());
                let mut rows = table.rows();
                while let Some(row) = rows.next_row() {
                    all.push(std::format!("{}", row.as_json()).into_bytes());
                }
                all
            }
        }
    }

    fn take<const N: usize>(recorder: &Recorder<NoopRawMutex, N>, buffer: &mut [u8], now: Instant) -> Option<Taken> {
        let taken = recorder.take(buffer, now);
        assert_eq!(recorder.take(buffer, now), taken, "it stays until it is safe elsewhere");
        recorder.took(0, 1);
        taken
    }

    #[test]
    fn records_come_out_as_they_went_in_and_a_batch_has_one_kind() {
        let recorder = Recorder::<NoopRawMutex, 64>::new();
        let mut buffer = [0; 128];
        let now = Instant::MAX;
        recorder.try_record(b"one").unwrap();
        recorder.try_record(b"two").unwrap();
        recorder.try_reading(COLUMNS, &[7.into()]).unwrap();
        assert_eq!(recorder.try_record(b"three"), Err(RecordError::Full), "both batches hold something");
        let taken = take(&recorder, &mut buffer, now).unwrap();
        assert_eq!(records(taken, &buffer), [b"one".to_vec(), b"two".to_vec()]);
        recorder.try_record(b"three").unwrap();
        let taken = take(&recorder, &mut buffer, now).unwrap();
        assert_eq!(records(taken, &buffer), [br#"{"n":7}"#.to_vec()]);
        let taken = take(&recorder, &mut buffer, now).unwrap();
        assert_eq!(records(taken, &buffer), [b"three".to_vec()]);
        assert_eq!(take(&recorder, &mut buffer, now), None);
        assert!(recorder.is_empty());
        assert_eq!(recorder.try_record(&[0; 64]), Err(RecordError::TooLong));
        recorder.try_record(b"x").unwrap();
        assert_eq!(recorder.try_record(&[0; 64]), Err(RecordError::TooLong));
    }

    #[test]
    fn a_batch_lingers_unless_it_is_full_or_asked_for() {
        let recorder = Recorder::<NoopRawMutex, 64>::new();
        let mut buffer = [0; 128];
        recorder.set_linger(Duration::from_secs(3));
        let start = Instant::now();
        recorder.try_record(&[1; 40]).unwrap();
        let due = recorder.next_wake().unwrap() - start;
        assert!(due >= Duration::from_secs(3) && due < Duration::from_secs(10), "{due:?}");
        assert_eq!(take(&recorder, &mut buffer, start), None);
        recorder.flush();
        assert_eq!(take(&recorder, &mut buffer, start).unwrap().count, 1);
        recorder.try_record(&[2; 40]).unwrap();
        recorder.try_record(&[3; 40]).unwrap();
        assert_eq!(
            take(&recorder, &mut buffer, start).map(|taken| taken.count),
            Some(1),
            "the sealed one does not linger"
        );
    }

    #[test]
    fn thinning_keeps_every_nth() {
        let recorder = Recorder::<NoopRawMutex, 64>::new();
        recorder.set_keep_every(Some(4));
        for n in 0..20 {
            recorder.try_record(&[n]).unwrap();
        }
        let mut buffer = [0; 128];
        recorder.flush();
        let taken = take(&recorder, &mut buffer, Instant::MAX).unwrap();
        assert_eq!(records(taken, &buffer).concat(), [0, 4, 8, 12, 16]);
        assert_eq!(recorder.thinned(), 15);
    }
}
