//! What the machine says of a process: CPU, memory, reads. What reached the disk is `metrics::Device`'s matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `USER_HZ` of Linux towards user space, on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

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

/// CPU seconds of the thread that asks.
pub fn thread_cpu_seconds() -> Option<f64> {
    Some(cpu_ticks("/proc/thread-self/stat")?.0 / TICKS_PER_SECOND)
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

/// The most resident memory of a process, to be asked after its end too.
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
                seen.fetch_max(resident_bytes_max(pid).unwrap_or(0), Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cpu_and_memory() {
        assert!(cpu_seconds(std::process::id()).is_some() && thread_cpu_seconds().is_some());
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
    }
}
