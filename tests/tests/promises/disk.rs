//! A small file system of its own, for the tests that fill a disk: ext4 in a file where the machine lets us mount one,
//! else tmpfs. Unmounted when dropped.

use headwater_tests::tools;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

pub struct SmallDisk {
    at: PathBuf,
    _home: TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount.
    pub fn mount(mib: u64) -> Option<SmallDisk> {
        let home = tempfile::tempdir().ok()?;
        let at = home.path().join("disk");
        std::fs::create_dir(&at).ok()?;
        if ext4(home.path(), &at, mib).is_none() {
            let size = format!("size={mib}m");
            quietly(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at))?;
        }
        Some(SmallDisk { at, _home: home })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |about| about.f_bavail * about.f_frsize)
    }

    /// Takes all space but `leave` bytes; drop the file's path to `std::fs::remove_file` to give it back.
    pub fn fill_but(&self, leave: u64) -> PathBuf {
        use std::io::Write;
        let ballast = self.at.join("ballast");
        let mut file = std::fs::File::create(&ballast).expect("a file on the small disk");
        let chunk = vec![0xa5; 64 << 10];
        while self.free_bytes() > leave + chunk.len() as u64 {
            if file.write_all(&chunk).is_err() {
                break;
            }
            let _ = file.sync_data();
        }
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = quietly(Command::new("umount").arg("--lazy").arg(&self.at));
    }
}

fn ext4(home: &Path, at: &Path, mib: u64) -> Option<()> {
    let image = home.join("disk.img");
    let file = std::fs::File::create(&image).ok()?;
    file.set_len(mib << 20).ok()?;
    let mkfs = tools::program("mkfs.ext4").or_else(|| Some(PathBuf::from("/sbin/mkfs.ext4")).filter(|p| p.exists()))?;
    quietly(Command::new(mkfs).args(["-q", "-m", "0", "-O", "^has_journal"]).arg(&image))?;
    quietly(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at))
}

fn quietly(command: &mut Command) -> Option<()> {
    tools::run(command, Duration::from_secs(20)).status.success().then_some(())
}
