//! The last words: a panic is kept over a reset and logged by the next start.
//!
//! USB needs a running executor, which a panic does not leave. So the message goes into memory that the start-up code
//! does not clear, the chip starts again, and the log has it as soon as somebody listens. The outbox is in flash and
//! loses nothing.

use core::cell::UnsafeCell;
use core::fmt::{self, Write as _};
use core::mem::MaybeUninit;
use core::panic::PanicInfo;

use embassy_rp::peripherals::WATCHDOG;
use embassy_rp::watchdog::Watchdog;

/// Says that there is a message; memory after power-on has it by chance once in four billion times.
const MAGIC: u32 = 0x6c61_7374;
const BYTES: usize = 256;

struct LastWords {
    magic: u32,
    length: usize,
    text: [u8; BYTES],
}

struct Kept(UnsafeCell<MaybeUninit<LastWords>>);
// SAFETY: it is touched at two moments only, before the first task and after the last, on one core.
unsafe impl Sync for Kept {}

#[unsafe(link_section = ".uninit.last_words")]
static KEPT: Kept = Kept(UnsafeCell::new(MaybeUninit::uninit()));

/// Once, as soon as the log is there.
pub fn report_last_words() {
    let kept = KEPT.0.get().cast::<LastWords>();
    // SAFETY: see `Kept`. Integers and bytes are valid whatever a power-on leaves in memory; volatile reads keep the
    // compiler from reasoning about memory that this program has never written.
    let (magic, length) =
        unsafe { ((&raw const (*kept).magic).read_volatile(), (&raw const (*kept).length).read_volatile()) };
    if magic != MAGIC || length > BYTES {
        return;
    }
    // SAFETY: as above; the magic says that a panic has written the text.
    let text = unsafe { (&raw const (*kept).text).read_volatile() };
    // SAFETY: as above.
    unsafe { (&raw mut (*kept).magic).write_volatile(0) };
    log::error!("the start before this one ended with: {}", core::str::from_utf8(&text[..length]).unwrap_or("?"));
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    cortex_m::interrupt::disable();
    let mut text = Text { bytes: [0; BYTES], length: 0 };
    let _ = write!(text, "{info}"); // what does not fit is cut off
    let kept = KEPT.0.get().cast::<LastWords>();
    // SAFETY: see `Kept`; interrupts are off and nothing comes after.
    unsafe { kept.write_volatile(LastWords { magic: MAGIC, length: text.length, text: text.bytes }) };
    // SAFETY: whoever had the watchdog never runs again.
    Watchdog::new(unsafe { WATCHDOG::steal() }).trigger_reset();
    loop {
        cortex_m::asm::nop();
    }
}

struct Text {
    bytes: [u8; BYTES],
    length: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for c in part.chars() {
            let end = self.length + c.len_utf8();
            c.encode_utf8(self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?);
            self.length = end;
        }
        Ok(())
    }
}
