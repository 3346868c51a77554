//! Marks: a person, a rule or a device says that something happened, and which time of a stream shows it.
//!
//! A mark is a row of the state, beside the fragments and not in them: they are written once. A sink that is told `only =
//! "marked"` sends what a mark covers. Marks go with the fragments they cover.

use super::shape::{Kind, Refusal};
use super::{Media, StreamError};
use crate::log::{Batch, Table};
use crate::wire::media::Mark;
use serde::Deserialize;

/// Most marks of a stream; a further one takes the place of the oldest.
const MARKS_MAX: usize = 2_000;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Longest time that one mark may cover, in milliseconds: a day.
pub const SPAN_MS_MAX: i64 = 86_400_000;

/// As it is asked for: a range, or a moment and what was before and after it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMark {
    pub from_ms: Option<i64>,
    pub to_ms: Option<i64>,
    /// The moment; without it, now.
    pub at_ms: Option<i64>,
    /// Seconds before it and after it.
    #[serde(default = "pre_roll_s")]
    pub pre_roll_s: f64,
    #[serde(default = "post_roll_s")]
    pub post_roll_s: f64,
    #[serde(default)]
    pub name: String,
}

fn pre_roll_s() -> f64 {
    10.0
}

fn post_roll_s() -> f64 {
    20.0
}

impl NewMark {
    pub fn called(name: &str) -> NewMark {
        let (from_ms, to_ms, at_ms) = (None, None, None);
        NewMark { from_ms, to_ms, at_ms, pre_roll_s: pre_roll_s(), post_roll_s: post_roll_s(), name: name.to_owned() }
    }

    fn range(&self, now_ms: i64) -> Result<(i64, i64), Refusal> {
        let roll = |seconds: f64| (seconds.clamp(0.0, 86_400.0) * 1000.0) as i64;
        let at = self.at_ms.unwrap_or(now_ms);
        let (from, to) = match (self.from_ms, self.to_ms) {
            (Some(from), Some(to)) => (from, to),
            (None, None) => (at.saturating_sub(roll(self.pre_roll_s)), at.saturating_add(roll(self.post_roll_s))),
            _ => {
                return Err(Refusal::invalid("a mark has from_ms and to_ms, or at_ms with pre_roll_s and post_roll_s"));
            }
        };
        match to.checked_sub(from) {
            Some(1..=SPAN_MS_MAX) => Ok((from, to)),
            _ => Err(Refusal::invalid("a mark ends after it begins, and covers a day at the most")),
        }
    }

    pub fn named(&self, from_ms: i64, to_ms: i64) -> Mark {
        let name: String = self.name.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX / 4).collect();
        Mark { id: format!("{:020}-{:08x}", from_ms.max(0), fastrand::u32(..)), from_ms, to_ms, name }
    }
}

impl Media {
    /// The same within a batch of others: the oldest surplus goes, and what has outlived its fragments waits for the next.
    pub fn put_mark(&self, stream: &str, new: &NewMark, batch: &mut Batch) -> Result<(), Refusal> {
        self.camera(stream)?;
        let (from_ms, to_ms) = new.range(self.inner.clock.now().wall_ms as i64)?;
        self.put_row(stream, &new.named(from_ms, to_ms), batch)
    }

    /// One that is there already under its id changes.
    pub fn put_row(&self, stream: &str, mark: &Mark, batch: &mut Batch) -> Result<(), Refusal> {
        let rows = self.inner.log.state_scan(Table::Media, Mark::prefix(stream).as_bytes());
        let surplus = (rows.len() + 1).saturating_sub(MARKS_MAX);
        for (key, _) in &rows[..surplus] {
            batch.put_state(Table::Media, key.clone(), None);
        }
        let row = serde_json::to_vec(mark).map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
        batch.put_state(Table::Media, (Mark::prefix(stream) + &mark.id).into_bytes(), Some(row.into()));
        Ok(())
    }

    /// Whether the mark is durable as it is.
    pub fn has_row(&self, stream: &str, mark: &Mark) -> bool {
        let row = self.inner.log.state(Table::Media, (Mark::prefix(stream) + &mark.id).as_bytes());
        row.and_then(|row| serde_json::from_slice::<Mark>(&row).ok()).is_some_and(|durable| durable == *mark)
    }

    pub async fn mark(&self, stream: &str, new: &NewMark) -> Result<Mark, Refusal> {
        let camera = self.camera(stream)?;
        let (from_ms, to_ms) = new.range(self.inner.clock.now().wall_ms as i64)?;
        let _one = self.inner.changing.lock().await;
        let mark = new.named(from_ms, to_ms);
        let mut batch = Batch::new();
        let rows = self.inner.log.state_scan(Table::Media, Mark::prefix(stream).as_bytes());
        let surplus = (rows.len() + 1).saturating_sub(MARKS_MAX);
        // Where the index is cut, what is before it may be there still.
        let oldest_ms = {
            let index = camera.archive.index().await?;
            index.first().filter(|_| !index.is_cut()).map(|entry| entry.start_ms)
        };
        for (at, (key, row)) in rows.iter().enumerate() {
            let ended =
                serde_json::from_slice::<Mark>(row).is_ok_and(|old| oldest_ms.is_some_and(|oldest| old.to_ms < oldest));
            if at < surplus || ended {
                batch.put_state(Table::Media, key.clone(), None);
            }
        }
        let row = serde_json::to_vec(&mark).map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
        batch.put_state(Table::Media, (Mark::prefix(stream) + &mark.id).into_bytes(), Some(row.into()));
        self.commit(&mut batch).await?;
        Ok(mark)
    }

    pub async fn unmark(&self, stream: &str, id: &str) -> Result<(), Refusal> {
        self.camera(stream)?;
        let key = (Mark::prefix(stream) + id).into_bytes();
        if self.inner.log.state(Table::Media, &key).is_none() {
            return Err(Refusal::new(Kind::NotFound, "There is no such mark"));
        }
        let mut batch = Batch::new();
        batch.put_state(Table::Media, key, None);
        Ok(self.commit(&mut batch).await?)
    }

    /// Marks that cover something of a range of time, by their beginning.
    pub fn marks(&self, stream: &str, from_ms: i64, to_ms: i64) -> Result<Vec<Mark>, StreamError> {
        self.camera(stream)?;
        let rows = self.inner.log.state_scan(Table::Media, Mark::prefix(stream).as_bytes());
        let marks = rows.iter().filter_map(|(_, row)| serde_json::from_slice::<Mark>(row).ok());
        Ok(marks.filter(|mark| mark.from_ms < to_ms && mark.to_ms > from_ms).collect())
    }
}
