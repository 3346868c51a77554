//! A driver for the LAN9118 Ethernet controller, as much of it as embassy-net needs: frames in and out through the
//! chip's FIFOs, one interrupt that says "a frame is here", always one Ethernet address. The chip sends the frame while
//! its last word is written, so nothing here waits for room. The link counts as up for ever: a cut cable shows as
//! silence, and TCP's and MQTT's timeouts are what must find it out.
//!
//! The interrupt works as a doorbell: the handler turns it off in the chip and wakes the stack, which empties the FIFO
//! and turns it on again. Turning on comes before the last look into the FIFO, so that no frame slips in between.

use core::fmt;
use core::task::Context;

use embassy_net_driver::{Capabilities, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use embassy_sync::waitqueue::AtomicWaker;

use crate::board::{self, Irq};

const BASE: usize = 0x4020_0000;
const RX_DATA: usize = BASE;
const TX_DATA: usize = BASE + 0x20;
const RX_STATUS: usize = BASE + 0x40;
const TX_STATUS: usize = BASE + 0x48;
const ID_REV: usize = BASE + 0x50;
const IRQ_CFG: usize = BASE + 0x54;
const INT_STS: usize = BASE + 0x58;
const INT_EN: usize = BASE + 0x5C;
const FIFO_INT: usize = BASE + 0x68;
const TX_CFG: usize = BASE + 0x70;
const HW_CFG: usize = BASE + 0x74;
const RX_FIFO_INF: usize = BASE + 0x7C;
const TX_FIFO_INF: usize = BASE + 0x80;
const MAC_CSR_CMD: usize = BASE + 0xA4;
const MAC_CSR_DATA: usize = BASE + 0xA8;

/// Interrupt when the RX status FIFO holds more entries than FIFO_INT's lowest byte says.
const RSFL: u32 = 1 << 3;
/// Enabled, active high, push-pull: anything else leaves the line active low, that is, always on at the processor.
const IRQ_ACTIVE_HIGH: u32 = 1 << 8 | 1 << 4 | 1;
const SOFT_RESET: u32 = 1;
const TX_ON: u32 = 1 << 1;
const TX_FIRST_AND_LAST: u32 = 1 << 13 | 1 << 12;
const RX_ERROR: u32 = 1 << 15;
const CSR_BUSY: u32 = 1 << 31;
const CSR_READ: u32 = 1 << 30;
const MAC_CR: u32 = 1;
const MAC_ADDRESS_HIGH: u32 = 2;
const MAC_ADDRESS_LOW: u32 = 3;
const MAC_FULL_DUPLEX_TX_RX: u32 = 1 << 20 | 1 << 3 | 1 << 2;

/// An Ethernet frame without its checksum, and the space for it in whole words.
const FRAME_MAX_BYTES: usize = 1514;
const BUFFER_BYTES: usize = FRAME_MAX_BYTES.next_multiple_of(4);
const CHECKSUM_BYTES: usize = 4;
/// The RX FIFO has 10 KB.
const BURST_FRAMES: usize = 6;
/// The chip answers a command within microseconds; a chip that is not there never does.
const BUSY_READS_MAX: u32 = 100_000;

static FRAME_IS_HERE: AtomicWaker = AtomicWaker::new();

pub struct Lan9118 {
    address: [u8; 6],
    rx: [u8; BUFFER_BYTES],
    tx: [u8; BUFFER_BYTES],
}

pub enum Error {
    /// Something else than a LAN9118 answers, with this ID_REV.
    NotFound(u32),
    Stuck,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(id) => write!(f, "no LAN9118: its ID_REV reads {id:#010x}"),
            Self::Stuck => f.write_str("the LAN9118 stays busy"),
        }
    }
}

impl Lan9118 {
    /// Resets and starts the chip.
    pub fn new() -> Result<Self, Error> {
        let id = board::read(ID_REV);
        if id >> 16 != 0x0118 {
            return Err(Error::NotFound(id));
        }
        board::write(HW_CFG, SOFT_RESET);
        wait_while(HW_CFG, SOFT_RESET)?;
        board::write(INT_EN, 0);
        board::write(INT_STS, u32::MAX);
        board::write(IRQ_CFG, IRQ_ACTIVE_HIGH);
        board::write(FIFO_INT, 0);
        board::write(TX_CFG, TX_ON);
        let low = mac_read(MAC_ADDRESS_LOW)?.to_le_bytes();
        let high = mac_read(MAC_ADDRESS_HIGH)?.to_le_bytes();
        mac_write(MAC_CR, MAC_FULL_DUPLEX_TX_RX)?;
        board::enable(Irq::ETHERNET);
        let address = [low[0], low[1], low[2], low[3], high[0], high[1]];
        Ok(Self { address, rx: [0; BUFFER_BYTES], tx: [0; BUFFER_BYTES] })
    }
}

/// The doorbell: rings once, until `receive` finds the FIFO empty and turns it on again.
pub fn on_interrupt() {
    board::write(INT_EN, 0);
    FRAME_IS_HERE.wake();
}

impl Driver for Lan9118 {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, cx: &mut Context) -> Option<(Rx<'_>, Tx<'_>)> {
        if frames_here() == 0 {
            FRAME_IS_HERE.register(cx.waker());
            board::write(INT_STS, RSFL);
            board::write(INT_EN, RSFL);
            if frames_here() == 0 {
                return None;
            }
        }
        Some((Rx(&mut self.rx), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, cx: &mut Context) -> Option<Tx<'_>> {
        let free_bytes = board::read(TX_FIFO_INF) & 0xFFFF;
        if free_bytes < BUFFER_BYTES as u32 + 8 {
            cx.waker().wake_by_ref();
            return None;
        }
        Some(Tx(&mut self.tx))
    }

    fn link_state(&mut self, _cx: &mut Context) -> LinkState {
        LinkState::Up
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = FRAME_MAX_BYTES;
        capabilities.max_burst_size = Some(BURST_FRAMES);
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.address)
    }
}

pub struct Rx<'a>(&'a mut [u8; BUFFER_BYTES]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        let status = board::read(RX_STATUS);
        let fifo_bytes = (status >> 16 & 0x3FFF) as usize;
        let mut words = self.0.chunks_exact_mut(4);
        for _ in 0..fifo_bytes.div_ceil(4) {
            let word = board::read(RX_DATA);
            if let Some(bytes) = words.next() {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let frame_bytes = fifo_bytes.saturating_sub(CHECKSUM_BYTES);
        // The stack drops an empty frame as it drops every frame that it cannot read.
        let good = status & RX_ERROR == 0 && frame_bytes <= FRAME_MAX_BYTES;
        f(&mut self.0[..if good { frame_bytes } else { 0 }])
    }
}

pub struct Tx<'a>(&'a mut [u8; BUFFER_BYTES]);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, f: F) -> R {
        let result = f(&mut self.0[..bytes]);
        board::write(TX_DATA, TX_FIRST_AND_LAST | bytes as u32);
        board::write(TX_DATA, bytes as u32);
        for word in self.0[..bytes.next_multiple_of(4)].chunks_exact(4) {
            board::write(TX_DATA, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
        // What became of earlier frames interests nobody, but their entries must not fill the FIFO.
        while board::read(TX_FIFO_INF) >> 16 & 0xFF != 0 {
            board::read(TX_STATUS);
        }
        result
    }
}

fn frames_here() -> u32 {
    board::read(RX_FIFO_INF) >> 16 & 0xFF
}

fn mac_read(register: u32) -> Result<u32, Error> {
    board::write(MAC_CSR_CMD, CSR_BUSY | CSR_READ | register);
    wait_while(MAC_CSR_CMD, CSR_BUSY)?;
    Ok(board::read(MAC_CSR_DATA))
}

fn mac_write(register: u32, value: u32) -> Result<(), Error> {
    board::write(MAC_CSR_DATA, value);
    board::write(MAC_CSR_CMD, CSR_BUSY | register);
    wait_while(MAC_CSR_CMD, CSR_BUSY)
}

fn wait_while(register: usize, bit: u32) -> Result<(), Error> {
    match (0..BUSY_READS_MAX).any(|_| board::read(register) & bit == 0) {
        true => Ok(()),
        false => Err(Error::Stuck),
    }
}
