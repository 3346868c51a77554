//! The board's camera: a picture that somebody on the host has put into the upper half of the memory that survives resets,
//! where a camera's driver would put it. It goes to the gateway in parts, behind all records. What an operator asks of the
//! board comes here as well, and goes on to `operator.rs`.

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::signal::Signal;
use headwater_device::{Blob, Downlink};
use headwater_wire::crc32;

use crate::{flash, log, operator};

/// Raised when the gateway has the whole picture on its disk, or will not have it.
pub static ENDED: Signal<CriticalSectionRawMutex, bool> = Signal::new();

/// A picture that is not sent yet.
pub struct Camera {
    picture: Option<&'static [u8]>,
    id: u32,
}

impl Camera {
    /// The picture of so many bytes; with 0 there is none.
    pub fn new(length: u32) -> Self {
        let picture = flash::picture(length as usize);
        // The same picture has the same id after a reset, and another one another.
        Camera { id: crc32(0, picture), picture: (!picture.is_empty()).then_some(picture) }
    }
}

impl Downlink for Camera {
    fn config(&mut self, config: &[u8]) {
        operator::config(config);
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        operator::command(command, answer)
    }

    fn log_level(&mut self, level: &str) {
        operator::log_level(level);
    }

    fn blob(&mut self) -> Option<Blob> {
        self.picture.map(|picture| Blob { id: self.id, length: picture.len() as u64 })
    }

    async fn read_blob(&mut self, _id: u32, offset: u64, into: &mut [u8]) -> bool {
        let picture = self.picture.unwrap_or_default();
        let Some(bytes) = picture.get(offset as usize..).and_then(|rest| rest.get(..into.len())) else { return false };
        into.copy_from_slice(bytes);
        true
    }

    fn blob_ended(&mut self, _id: u32, delivered: bool) {
        log!("the picture is {}", if delivered { "on the gateway's disk" } else { "not taken" });
        self.picture = None;
        ENDED.signal(delivered);
    }
}
