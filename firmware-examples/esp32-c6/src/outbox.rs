//! Finds the outbox's place in the partition table, so that a flash of another size needs no other firmware.

use core::ops::Range;

use embassy_time::Timer;
use esp_bootloader_esp_idf::partitions::{PARTITION_TABLE_MAX_LEN, read_partition_table};
use esp_storage::FlashStorage;

const NAME: &str = "outbox";

/// Without the partition there is nowhere to keep a record safe, and the device says so instead of sending.
pub async fn find(flash: &mut FlashStorage<'_>) -> Range<u32> {
    loop {
        match look(flash) {
            Some(range) => return range,
            None => log::error!("no partition named {NAME}: flash with `--partition-table partitions.csv`"),
        }
        Timer::after_secs(5).await;
    }
}

fn look(flash: &mut FlashStorage<'_>) -> Option<Range<u32>> {
    let mut buffer = [0; PARTITION_TABLE_MAX_LEN];
    let table = read_partition_table(flash, &mut buffer).ok()?;
    let entry = table.iter().find(|entry| entry.label_as_str() == NAME)?;
    Some(entry.offset()..entry.offset() + entry.len())
}
