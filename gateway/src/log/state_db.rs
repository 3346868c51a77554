//! The `state` database on disk: the tables of `state.rs`, and where the journal goes on behind what they hold.
//!
//! Written by fold and by a start, in one transaction with the folded position. redb does not check what it reads, so the
//! rows have a sum of their own. A state that cannot be read, or is not what was written, is moved aside and rebuilt from
//! the segments (crash rule 5).

use super::disk::{Disk, DiskFile, Mode, Store as Backend, Written};
use super::frame::{Control, Link};
use super::schema::Table;
use super::segment::SegmentError;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::io;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

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
    /// Bytes of a file of the ring.
    pub ring_file: u64,
}

impl Position {
    fn sum(&self, rows: u64) -> u64 {
        let Position { group, tail, link, format, clean, ring_file } = *self;
        let all = [group, tail, link.pos, link.checksum, link.records, format, u64::from(clean), ring_file, rows];
        xxh3_64(all.map(u64::to_be_bytes).as_flattened())
    }
}

/// What a row adds to the sum of all, in whatever order they come.
fn sum_of(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key))
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
        let mut sum = 0u64;
        for entry in rows.iter()? {
            let (key, value) = entry?;
            sum = sum.wrapping_add(sum_of(key.value(), value.value()));
            let Some((table, key)) = key.value().split_first() else { continue };
            // A table of a later version: its part of the gateway is not here to ask for it.
            let Some(table) = Table::from_u8(*table) else { continue };
            row(table, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value.value()));
        }
        let position = Position {
            group: get("group")?,
            tail: get("tail")?,
            link: Link { pos: get("link_pos")?, checksum: get("link_checksum")?, records: get("link_records")? },
            format: get("format")?,
            clean: get("clean")? == 1,
            ring_file: get("ring_file")?,
        };
        // One of a later format may keep another sum; it is refused for its format.
        if position.format <= FORMAT && (get("rows")?, get("sum")?) != (sum, position.sum(sum)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its rows are not what was written").into());
        }
        Ok(Some(position))
    }

    /// Durable when it returns.
    pub fn write(&self, rows: &[Control], position: &Position) -> Result<(), SegmentError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS)?;
            let mut sum = match transaction.open_table(POSITION)?.get("rows")? {
                Some(sum) => sum.value(),
                None => 0,
            };
            let mut full_key = Vec::new();
            for (of, key, value) in rows {
                full_key.clear();
                full_key.push(*of as u8);
                full_key.extend_from_slice(key);
                let before = match value {
                    Some(value) => table.insert(&full_key[..], &value[..])?,
                    None => table.remove(&full_key[..])?,
                };
                let before = before.map_or(0, |before| sum_of(&full_key, before.value()));
                let now = value.as_ref().map_or(0, |value| sum_of(&full_key, value));
                sum = sum.wrapping_sub(before).wrapping_add(now);
            }
            let mut table = transaction.open_table(POSITION)?;
            table.insert("group", position.group)?;
            table.insert("tail", position.tail)?;
            table.insert("link_pos", position.link.pos)?;
            table.insert("link_checksum", position.link.checksum)?;
            table.insert("link_records", position.link.records)?;
            table.insert("format", position.format)?;
            table.insert("clean", u64::from(position.clean))?;
            table.insert("ring_file", position.ring_file)?;
            table.insert("rows", sum)?;
            table.insert("sum", position.sum(sum))?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub fn file_bytes(&self) -> u64 {
        self.file.len().unwrap_or(0)
    }
}
