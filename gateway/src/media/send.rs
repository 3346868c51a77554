//! "Send me 14:00 to 14:05": old fragments that a sink is to send upstream, though its cursor has passed them.
//!
//! What is wanted is a row of the state, with the records that hold it, so that the sink need not search; it takes the row away
//! when all of it is stored. What is not recorded yet is a mark's matter.

use super::Media;
use super::archive::Select;
use super::index::Entry;
use super::shape::{Kind, Refusal};
use crate::log::{Batch, Table};
use crate::record::Number;
use crate::wire::media::Wanted;
use serde::{Deserialize, Serialize};

/// Wishes that wait for one sink and stream.
const WAITING_MAX: usize = 100;
/// Runs of records of one wish; fragments in order are one.
const RUNS_MAX: usize = 200;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendRange {
    pub from_ms: i64,
    pub to_ms: i64,
    /// Which sink; left out: all that take this stream.
    pub sink: Option<String>,
}

/// What will be sent, and by whom.
#[derive(Debug, Serialize)]
pub struct Sending {
    pub sinks: Vec<String>,
    pub fragments: usize,
    pub bytes: u64,
}

impl Media {
    pub async fn send(&self, stream: &str, asked: &SendRange) -> Result<Sending, Refusal> {
        let camera = self.camera(stream)?;
        if asked.from_ms >= asked.to_ms {
            return Err(Refusal::invalid("to_ms is behind from_ms"));
        }
        let takes = |(name, streams): &&(String, Vec<String>)| {
            let is_meant = asked.sink.as_ref().is_none_or(|sink| sink == name);
            is_meant && (streams.is_empty() || streams.iter().any(|one| one == stream))
        };
        let senders = self.inner.senders.get().map_or(&[][..], Vec::as_slice);
        let sinks: Vec<String> = senders.iter().filter(takes).map(|(name, _)| name.clone()).collect();
        if sinks.is_empty() {
            let there: Vec<&str> = senders.iter().map(|(name, _)| name.as_str()).collect();
            let says = match (&asked.sink, &there[..]) {
                (_, []) => "No sink sends video upstream: configure a [[sink]] of type \"kinesis-video\"".to_owned(),
                (Some(sink), there) => format!("No sink {sink:?} takes this stream; there are {}", there.join(", ")),
                (None, there) => format!("No sink takes this stream; there are {}", there.join(", ")),
            };
            return Err(Refusal::new(Kind::NotFound, says));
        }
        let mut place = self.inner.readers.place_soon().await?;
        let found = camera.selected(Select::showing(asked.from_ms, asked.to_ms), 0, &mut place).await?;
        let (fragments, bytes) = (found.len(), found.iter().map(|(_, entry)| u64::from(entry.bytes)).sum());
        let runs = runs(found.iter().map(|(_, entry)| entry));
        if fragments == 0 {
            return Err(Refusal::new(Kind::NotFound, "Nothing is recorded of that time"));
        }
        if runs.len() > RUNS_MAX {
            return Err(Refusal::invalid("these fragments lie too far apart: ask for a shorter time"));
        }
        let wanted = Wanted { from_ms: asked.from_ms, to_ms: asked.to_ms, runs };
        let row = serde_json::to_vec(&wanted).map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
        let _one = self.inner.changing.lock().await;
        let mut batch = Batch::new();
        for sink in &sinks {
            let prefix = Wanted::prefix(sink, stream);
            if self.inner.log.state_scan(Table::Media, prefix.as_bytes()).len() >= WAITING_MAX {
                return Err(Refusal::new(Kind::ClientLimitExceeded, "Too many times wait to be sent: ask again later"));
            }
            // One that is being sent goes by its key when it is done: no other has the same.
            let key = format!("{prefix}{:020}-{:08x}", asked.from_ms.max(0), fastrand::u32(..)).into_bytes();
            batch.put_state(Table::Media, key, Some(row.clone().into()));
        }
        self.commit(&mut batch).await?;
        Ok(Sending { sinks, fragments, bytes })
    }
}

/// The records of fragments, as runs: first and last number.
fn runs<'a>(fragments: impl Iterator<Item = &'a Entry>) -> Vec<(Number, Number)> {
    let mut runs: Vec<(Number, Number)> = Vec::new();
    for entry in fragments {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == entry.number => *to = entry.next_number() - 1,
            _ => runs.push((entry.number, entry.next_number() - 1)),
        }
    }
    runs
}
