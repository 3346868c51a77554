//! The last words: say what broke, give the probe time to fetch it, start again.
//!
//! A device in the field has nobody who presses reset, and the outbox is in flash.

use core::panic::PanicInfo;

use rtt_target::rprintln;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    cortex_m::interrupt::disable();
    rprintln!("{}; restarting", info);
    cortex_m::asm::delay(400_000_000); // about a second
    cortex_m::peripheral::SCB::sys_reset()
}
