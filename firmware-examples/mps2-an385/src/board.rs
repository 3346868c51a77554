//! The few things that all drivers of this board share: register access, interrupts, and the vector table's one entry
//! for them. There is no device crate for the AN385 image, and with three devices none is missed.

use core::ptr;

use cortex_m::interrupt::InterruptNumber;
use cortex_m::peripheral::NVIC;
use cortex_m_rt::exception;

use crate::{lan9118, time};

/// The processor's and the timers' clock.
pub const CLOCK_HZ: u64 = 25_000_000;

#[derive(Clone, Copy)]
#[repr(u16)]
pub enum Irq {
    TIMER1 = 9,
    ETHERNET = 13,
}

// SAFETY: the numbers are those of the AN385 application note.
unsafe impl InterruptNumber for Irq {
    fn number(self) -> u16 {
        self as u16
    }
}

/// Lets an interrupt through, forgetting that it was wanted before.
pub fn enable(irq: Irq) {
    NVIC::unpend(irq);
    // SAFETY: no code here relies on masked interrupts for its critical sections.
    unsafe { NVIC::unmask(irq) }
}

pub fn read(register: usize) -> u32 {
    // SAFETY: callers name registers of devices that this board has; no memory is there.
    unsafe { ptr::read_volatile(register as *const u32) }
}

pub fn write(register: usize, value: u32) {
    // SAFETY: as in `read`.
    unsafe { ptr::write_volatile(register as *mut u32, value) }
}

#[exception]
unsafe fn DefaultHandler(irq: i16) {
    match irq {
        _ if irq == Irq::TIMER1 as i16 => time::on_alarm(),
        _ if irq == Irq::ETHERNET as i16 => lan9118::on_interrupt(),
        _ => panic!("exception or interrupt {irq} has no handler"),
    }
}

#[exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    panic!("hard fault: {frame:?}")
}
