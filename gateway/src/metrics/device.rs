//! The block device under a directory, and the bytes that really reached it.
//!
//! `/proc/PID/io` counts a small overwrite of a large page cache folio as the whole folio, so wear is read from
//! `/proc/diskstats`. That counts what anyone writes to the device, which is what wears it.

use rustix::fs::{major, minor, stat, syncfs};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

const SECTOR_BYTES: u64 = 512;

/// The block device under a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub name: String,
    #[serde(skip)]
    dir: PathBuf,
}

impl Device {
    /// `None` where no block device is underneath (a memory file system) or it cannot be told.
    pub fn under(dir: &Path) -> Option<Device> {
        let device = stat(dir).ok()?.st_dev;
        let stats = std::fs::read_to_string("/proc/diskstats").ok()?;
        let numbers = (major(device), minor(device));
        let name = name_of(&stats, numbers).or_else(|| {
            // Overlay and btrfs have a device of their own; the mount table knows the real one.
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
            let source = mount_source(&mounts, &dir.canonicalize().ok()?)?;
            let name = Path::new(&source).canonicalize().ok()?.file_name()?.to_str()?.to_owned();
            stats.lines().any(|line| line.split_whitespace().nth(2) == Some(&name)).then_some(name)
        })?;
        Some(Device { name, dir: dir.to_owned() })
    }

    /// Bytes written to the device so far, by anyone, once all that is dirty has been written back.
    pub fn synced_bytes(&self) -> Option<u64> {
        syncfs(File::open(&self.dir).ok()?).ok()?;
        self.written_bytes()
    }

    /// Bytes written to the device so far, by anyone. What is dirty stays where it is: asking costs the device nothing.
    pub fn written_bytes(&self) -> Option<u64> {
        let stats = std::fs::read_to_string("/proc/diskstats").ok()?;
        let line = stats.lines().find(|line| line.split_whitespace().nth(2) == Some(&self.name))?;
        // Field 10, counted from 1: sectors written.
        Some(line.split_whitespace().nth(9)?.parse::<u64>().ok()? * SECTOR_BYTES)
    }
}

fn name_of(stats: &str, numbers: (u32, u32)) -> Option<String> {
    stats.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let found = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (found == numbers).then(|| fields.next().map(str::to_owned))?
    })
}

/// The source of the mount that holds the path: the longest mount point in front of it.
fn mount_source(mounts: &str, path: &Path) -> Option<String> {
    let lines = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        Some((left.split_whitespace().nth(4)?, right.split_whitespace().nth(1)?))
    });
    lines.filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.len()).map(|(_, s)| s.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_found_by_number_and_by_mount() {
        let stats = " 254       0 vda 1 2 3 4 5 6 70 8 9\n 254       1 vda1 1 2 3 4 5 6 7 8 9\n";
        assert_eq!(name_of(stats, (254, 1)).as_deref(), Some("vda1"));
        assert_eq!(name_of(stats, (8, 0)), None);
        let mounts = "1 0 0:1 / / rw - overlay overlay rw\n2 1 8:1 / /data rw,x shared:1 - btrfs /dev/sda1 rw\n";
        assert_eq!(mount_source(mounts, Path::new("/data/x")).as_deref(), Some("/dev/sda1"));
        assert_eq!(mount_source(mounts, Path::new("/etc")).as_deref(), Some("overlay"));
    }
}
