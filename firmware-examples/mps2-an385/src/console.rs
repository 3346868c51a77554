//! The log: UART0, which QEMU shows on its standard error. A line begins with the seconds since the start.

use core::fmt;

use crate::board;

const UART0: usize = 0x4000_4000;
const DATA: usize = 0x0;
const STATE: usize = 0x4;
const CTRL: usize = 0x8;
const BAUD_DIVISOR: usize = 0x10;
const TX_FULL: u32 = 1;
const TX_ENABLE: u32 = 1;
const BAUD: u64 = 115_200;

/// Prints one line.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}

pub fn init() {
    board::write(UART0 + BAUD_DIVISOR, (board::CLOCK_HZ / BAUD) as u32);
    board::write(UART0 + CTRL, TX_ENABLE);
}

pub fn line(text: fmt::Arguments) {
    let now_ms = embassy_time::Instant::now().as_millis();
    let _ = fmt::write(&mut Uart, format_args!("{:4}.{:03} {text}\n", now_ms / 1000, now_ms % 1000));
}

pub struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while board::read(UART0 + STATE) & TX_FULL != 0 {}
            board::write(UART0 + DATA, u32::from(byte));
        }
        Ok(())
    }
}
