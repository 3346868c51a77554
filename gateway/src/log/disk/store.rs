//! redb's storage on a [`DiskFile`]: the same file a test can tear, and the place where its writes are counted.

use super::DiskFile;
use redb::StorageBackend;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes written by one or more stores since it was made. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<AtomicU64>);

impl Written {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A redb database file: `redb::Builder::create_with_backend(Store::new(file, written))`.
pub struct Store {
    file: Arc<dyn DiskFile>,
    written: Written,
}

impl Store {
    pub fn new(file: Arc<dyn DiskFile>, written: Written) -> Self {
        Store { file, written }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("written", &self.written.bytes()).finish_non_exhaustive()
    }
}

impl StorageBackend for Store {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, Mode, RealDisk};
    use super::*;
    use redb::{ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("t");

    #[test]
    fn redb_keeps_its_data_in_a_disk_file_and_its_writes_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open_root(dir.path()).unwrap();
        let written = Written::default();
        let open = || {
            let store = Store::new(disk.open("state.redb", Mode::Create).unwrap(), written.clone());
            redb::Builder::new().create_with_backend(store).unwrap()
        };
        let database = open();
        let write = database.begin_write().unwrap();
        write.open_table(TABLE).unwrap().insert(1, b"one".as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        assert!(written.bytes() > 4096);
        let database = open();
        let read = database.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        assert_eq!(table.get(1).unwrap().unwrap().value(), b"one");
    }
}
