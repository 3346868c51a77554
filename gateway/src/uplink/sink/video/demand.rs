//! On demand: a range of old fragments that somebody wants upstream, wherever the cursor stands. A row of the state says which;
//! it goes when all of them are stored, and begins anew after a restart.

use super::assemble::Assembler;
use super::window::Window;
use crate::log::{AppendError, Batch, Entry, Log, Position, ReadError, Reader, Stream, Table};
use crate::record::Number;
use crate::wire::media::Wanted;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// Read in one go, in records and bytes.
const READ_RECORDS: usize = 16;
const READ_BYTES: usize = 1 << 20;

pub struct Job {
    key: Bytes,
    runs: VecDeque<(Number, Number)>,
    reader: Option<Reader>,
    assembler: Assembler,
    pub window: Window,
}

impl Job {
    /// The oldest that waits.
    pub fn next(log: &Log, prefix: &str) -> Option<Job> {
        log.state_scan(Table::Media, prefix.as_bytes()).into_iter().find_map(|(key, row)| {
            let wanted: Wanted = serde_json::from_slice(&row).ok()?;
            let (runs, assembler, window) = (wanted.runs.into(), Assembler::default(), Window::new(0));
            Some(Job { key, runs, reader: None, assembler, window })
        })
    }

    /// Reads on while there is room.
    pub async fn fill(&mut self, log: &Log, stream: &Arc<Stream>, memory: usize) -> Result<(), ReadError> {
        let mut out = Vec::new();
        while self.window.has_room(memory) {
            let Some((from, to)) = self.runs.front().copied() else { return Ok(()) };
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => log.reader(stream, 0, Position::At(from))?,
            };
            let entries = reader.next(READ_RECORDS, READ_BYTES).await?;
            let is_over = entries.is_empty() || reader.position() > to;
            for entry in entries {
                match entry {
                    Entry::Record(record) if record.number <= to => self.assembler.push(record, &mut out),
                    _ => {}
                }
            }
            match is_over {
                true => {
                    self.runs.pop_front();
                    self.assembler.give_up(&mut out);
                }
                false => self.reader = Some(reader),
            }
            out.drain(..).for_each(|assembled| self.window.push(assembled));
        }
        Ok(())
    }

    /// Everything that is still there is stored. What is refused is told of where the cursor meets it.
    pub fn is_done(&mut self) -> bool {
        while self.window.dead().is_some() {
            self.window.buried();
        }
        self.window.settle();
        self.runs.is_empty() && self.window.is_empty()
    }

    pub async fn forget(self, log: &Log) -> Result<(), AppendError> {
        let mut batch = Batch::new();
        batch.put_state(Table::Media, self.key.to_vec(), None);
        log.appender().commit(&mut batch).await.map(drop)
    }
}
