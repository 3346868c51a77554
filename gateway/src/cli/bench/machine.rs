//! What the machine says of a process and of a disk: CPU, memory, and the bytes that really reached the device.
//!
//! `/proc/PID/io` counts a small overwrite of a large page cache folio as the whole folio, so wear is read from
//! `/proc/diskstats`, after everything was written back.

use rustix::fs::{major, minor, stat, syncfs};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `USER_HZ` of Linux towards user space, on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;
const SECTOR_BYTES: u64 = 512;

/// User and system CPU seconds of a process so far.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let (own, _) = cpu_ticks(&format!("/proc/{pid}/stat"))?;
    Some(own / TICKS_PER_SECOND)
}

/// CPU seconds of this process, and of its children that have ended.
pub fn own_cpu_seconds() -> (f64, f64) {
    let (own, children) = cpu_ticks("/proc/self/stat").unwrap_or_default();
    (own / TICKS_PER_SECOND, children / TICKS_PER_SECOND)
}

fn cpu_ticks(path: &str) -> Option<(f64, f64)> {
    let text = std::fs::read_to_string(path).ok()?;
    // The name in parentheses may hold blanks; utime is field 14, counted from 1.
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split_whitespace().collect();
    let ticks = |at: usize| fields.get(at - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?, ticks(16)? + ticks(17)?))
}

/// Resident memory of a process now, in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most resident memory a process ever had, in bytes.
pub fn resident_bytes_max(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, what: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(what))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Bytes a process has had read from a disk so far.
pub fn read_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes:"))?.trim().parse().ok()
}

/// Watches the largest resident memory of a process, several times a second.
pub struct MemoryWatch {
    stop: Arc<AtomicBool>,
    max: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    pub fn start(pid: u32) -> Self {
        let (stop, max) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (stop.clone(), max.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                seen.fetch_max(resident_bytes(pid).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        MemoryWatch { stop, max, thread: Some(thread) }
    }

    pub fn max_bytes(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

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
    pub fn written_bytes(&self) -> Option<u64> {
        syncfs(File::open(&self.dir).ok()?).ok()?;
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

    #[test]
    fn this_process_has_cpu_and_memory() {
        assert!(cpu_seconds(std::process::id()).is_some());
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
