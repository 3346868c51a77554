//! What the firmware has from QEMU instead of from a board, all by semihosting: its arguments, the exit code, and a
//! seed for its random numbers (the board has no source of them). On real hardware, these are constants in flash, a
//! reset, and the chip's random number generator.

use core::fmt::Write;
use core::str::FromStr;

use cortex_m_semihosting::{nr, syscall, syscall1};

use crate::log;

pub const ARGUMENTS_MAX_BYTES: usize = 512;
/// SYS_EXIT_EXTENDED, whose block carries an exit code.
const EXIT_EXTENDED: usize = 0x20;
/// The reason that makes the host's exit code follow: ADP_Stopped_ApplicationExit.
const APPLICATION_EXIT: usize = 0x2_0026;

/// What `run` passes as KEY=VALUE words.
pub struct Arguments {
    /// Numbered records to deliver.
    pub records: u32,
    /// The gateway's MQTT port on the host's loopback.
    pub port: u16,
    /// The device's name.
    pub id: &'static str,
    /// Mixed into the random numbers.
    pub seed: u64,
    /// How much of the simulated flash there is.
    pub flash_kib: u32,
    /// Makes the flash as slow as a real one, so that a kill has time to come in the middle of a write.
    pub slow_flash: bool,
    /// Length of the picture in memory, which is to be sent; 0 for none.
    pub picture_bytes: u32,
    /// Microseconds between two records; 0 is as fast as it goes.
    pub pace_us: u32,
    /// Send, then sleep for so many milliseconds, as a board on a battery does: a few records, a reset, a few records. 0 is
    /// connected all the time.
    pub sleep_ms: u32,
    /// A file on the host: whom the device trusts and who it is, in PEM.
    #[cfg(feature = "tls")]
    pub tls: &'static str,
    /// For which the gateway has a certificate.
    #[cfg(feature = "tls")]
    pub tls_name: &'static str,
}

/// Reads the command line; a word that it cannot read ends the firmware with exit code 2.
pub fn arguments(buffer: &'static mut [u8; ARGUMENTS_MAX_BYTES]) -> Arguments {
    let mut arguments = Arguments {
        records: 10,
        port: 1883,
        id: "emulated-1",
        seed: 0,
        flash_kib: 256,
        slow_flash: false,
        picture_bytes: 0,
        pace_us: 0,
        sleep_ms: 0,
        #[cfg(feature = "tls")]
        tls: "",
        #[cfg(feature = "tls")]
        tls_name: "localhost",
    };
    // The first word is the program's name.
    for word in command_line(buffer).split_ascii_whitespace().skip(1) {
        let known = match word.split_once('=') {
            Some(("records", value)) => set(&mut arguments.records, value),
            Some(("port", value)) => set(&mut arguments.port, value),
            Some(("seed", value)) => set(&mut arguments.seed, value),
            Some(("flash-kib", value)) => set(&mut arguments.flash_kib, value),
            Some(("picture-bytes", value)) => set(&mut arguments.picture_bytes, value),
            Some(("pace-us", value)) => set(&mut arguments.pace_us, value),
            Some(("sleep-ms", value)) => set(&mut arguments.sleep_ms, value),
            Some(("slow-flash", value)) => set(&mut arguments.slow_flash, value),
            #[cfg(feature = "tls")]
            Some(("tls", value)) => {
                arguments.tls = value;
                true
            }
            #[cfg(feature = "tls")]
            Some(("tls-name", value)) => {
                arguments.tls_name = value;
                true
            }
            Some(("id", value)) if !value.is_empty() => {
                arguments.id = value;
                true
            }
            _ => false,
        };
        if !known {
            log!("not an argument of this firmware: {word}");
            exit(2);
        }
    }
    arguments
}

fn set<T: FromStr>(field: &mut T, value: &str) -> bool {
    value.parse().map(|value| *field = value).is_ok()
}

fn command_line(buffer: &'static mut [u8; ARGUMENTS_MAX_BYTES]) -> &'static str {
    let mut block = [buffer.as_mut_ptr() as usize, buffer.len()];
    // SAFETY: the host writes at most the length it is told, and then the length it has written into the block.
    let refused = unsafe { syscall1(nr::GET_CMDLINE, block.as_mut_ptr() as usize) } != 0;
    let text = if refused { &[] } else { buffer.get(..block[1]).unwrap_or(&[]) };
    str::from_utf8(text).unwrap_or("").trim_end_matches('\0')
}

/// As much of a file on the host as there is and fits; nothing of one that cannot be read.
#[cfg(feature = "tls")]
pub fn read_file(path: &str, into: &mut [u8]) -> usize {
    let mut name = [0u8; ARGUMENTS_MAX_BYTES + 1];
    let Some(start) = name.get_mut(..path.len()).filter(|_| path.len() < ARGUMENTS_MAX_BYTES) else { return 0 };
    start.copy_from_slice(path.as_bytes());
    // SAFETY: the name ends in a zero and its length does not count that; mode 1 is "rb".
    let file = unsafe { syscall(nr::OPEN, &[name.as_ptr() as usize, 1, path.len()]) };
    if file == usize::MAX {
        return 0;
    }
    // SAFETY: the host writes at most the length that it is told. It answers how many bytes it has not written.
    let left = unsafe { syscall(nr::READ, &[file, into.as_mut_ptr() as usize, into.len()]) };
    // SAFETY: the file is open.
    unsafe { syscall(nr::CLOSE, &[file]) };
    into.len().saturating_sub(left)
}

/// A seed that no two starts share, neither on one host nor after a reset of the board: the host's clock, the
/// nanoseconds since QEMU started, and what the host was asked to mix in.
pub fn seed(mixed_in: u64) -> u64 {
    let mut elapsed = [0u32; 2];
    // SAFETY: SYS_ELAPSED writes two words where it is told to; SYS_TIME takes no argument.
    let seconds = unsafe {
        syscall1(nr::ELAPSED, elapsed.as_mut_ptr() as usize);
        syscall1(nr::TIME, 0)
    };
    let words = [mixed_in, seconds as u64, u64::from(elapsed[0]), u64::from(elapsed[1])];
    words.iter().fold(0, |seed, word| mix(seed ^ word))
}

/// SplitMix64's step: every bit of the input reaches every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Ends QEMU with this exit code.
pub fn exit(code: u8) -> ! {
    // SAFETY: the block is the two words that SYS_EXIT_EXTENDED reads.
    unsafe { syscall(EXIT_EXTENDED, &[APPLICATION_EXIT, usize::from(code)]) };
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    cortex_m::interrupt::disable();
    let _ = writeln!(crate::console::Uart, "{info}");
    exit(101)
}
