//! The `state` database on disk: the tables of `state.rs`, and where the journal goes on behind what they hold.
//!
//! Written by fold alone, in one transaction with the folded position. A state that cannot be read is moved aside and
//! rebuilt from the segments (crash rule 5).

use super::disk::{Disk, DiskFile, Mode, Store as Backend, Written};
use super::frame::{Control, Link};
use super::schema::Table;
use super::segment::SegmentError;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::sync::Arc;

pub const PATH: &str = "state.redb";
/// All tables in one: the key begins with the table's id.
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
const POSITION: TableDefinition<&str, u64> = TableDefinition::new("position");
/// Version of the directory's format.
pub const FORMAT: u64 = 1;
const CACHE_BYTES: usize = 1 << 20;

/// Where the journal stands behind the last fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// All groups up to here are folded.
    pub group: u64,
    /// Where the next frame is looked for, and what it chains to.
    pub tail: u64,
    pub link: Link,
    pub format: u64,
    /// The journal ended here and everything was folded: a clean stop.
    pub clean: bool,
}

pub struct StateDb {
    database: Database,
    file: Arc<dyn DiskFile>,
}

impl StateDb {
    pub fn open(disk: &dyn Disk, written: Written) -> Result<StateDb, SegmentError> {
        let file = disk.open(PATH, Mode::Create)?;
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(Backend::new(file.clone(), written))?;
        disk.sync_dir("")?;
        Ok(StateDb { database, file })
    }

    /// The position, and every row through `row`. `None`: the database is new.
    pub fn load(&self, mut row: impl FnMut(Table, Bytes, Bytes)) -> Result<Option<Position>, SegmentError> {
        let read = self.database.begin_read()?;
        let position = match read.open_table(POSITION) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let get = |name| -> Result<u64, SegmentError> { Ok(position.get(name)?.map_or(0, |value| value.value())) };
        let rows = read.open_table(ROWS)?;
        for entry in rows.iter()? {
            let (key, value) = entry?;
            let Some((table, key)) = key.value().split_first() else { continue };
            // A table of a later version: its part of the gateway is not here to ask for it.
            let Some(table) = Table::from_u8(*table) else { continue };
            row(table, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value.value()));
        }
        Ok(Some(Position {
            group: get("group")?,
            tail: get("tail")?,
            link: Link { pos: get("link_pos")?, checksum: get("link_checksum")? },
            format: get("format")?,
            clean: get("clean")? == 1,
        }))
    }

    /// Durable when it returns.
    pub fn write(&self, rows: &[Control], position: &Position) -> Result<(), SegmentError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS)?;
            let mut full_key = Vec::new();
            for (of, key, value) in rows {
                full_key.clear();
                full_key.push(*of as u8);
                full_key.extend_from_slice(key);
                match value {
                    Some(value) => _ = table.insert(&full_key[..], &value[..])?,
                    None => _ = table.remove(&full_key[..])?,
                }
            }
            let mut table = transaction.open_table(POSITION)?;
            table.insert("group", position.group)?;
            table.insert("tail", position.tail)?;
            table.insert("link_pos", position.link.pos)?;
            table.insert("link_checksum", position.link.checksum)?;
            table.insert("format", position.format)?;
            table.insert("clean", u64::from(position.clean))?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub fn file_bytes(&self) -> u64 {
        self.file.len().unwrap_or(0)
    }
}
