//! TLS to the gateway: the device's credentials and its random numbers. On a real board the first lie in flash, baked
//! in or in a page of their own, and the second come from the chip's generator; here both come from the host.

use headwater_device::tls::rand_core::{CryptoRng, Error, RngCore};
use headwater_device::tls::{Credentials, Now, RX_BYTES, TX_BYTES, Tls};
use static_cell::StaticCell;

use crate::host::{self, Arguments};
use crate::log;

const PEM_BYTES_MAX: usize = 4096;
/// Time does not stand before this.
const BUILT_UNIX_S: &str = env!("BUILT_UNIX_S");

pub type OverTls<T> = Tls<'static, T, HostRandom, fn() -> Now>;

/// TLS over this transport. Called once.
pub fn over<T>(transport: T, arguments: &Arguments, now: fn() -> Now) -> OverTls<T> {
    static PEM: StaticCell<[u8; PEM_BYTES_MAX]> = StaticCell::new();
    static DECODED: StaticCell<[u8; PEM_BYTES_MAX * 3 / 4]> = StaticCell::new();
    static RX: StaticCell<[u8; RX_BYTES]> = StaticCell::new();
    static TX: StaticCell<[u8; TX_BYTES]> = StaticCell::new();
    let pem = PEM.init([0; _]);
    let length = host::read_file(arguments.tls, pem);
    let read = Credentials::from_pem(&pem[..length], DECODED.init([0; _]));
    let credentials = read.unwrap_or_else(|error| {
        log!("tls={}: {error:?}", arguments.tls);
        host::exit(2)
    });
    Tls::new(transport, arguments.tls_name, credentials, HostRandom, now, RX.init([0; _]), TX.init([0; _]))
}

/// What it is at least, while the gateway has not said it yet.
pub fn now(unix_ms: Option<u64>) -> Now {
    Now::from_clock(unix_ms, BUILT_UNIX_S.parse().unwrap_or(0))
}

pub struct HostRandom;

impl RngCore for HostRandom {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        if host::read_file("/dev/urandom", into) != into.len() {
            panic!("the host has no random numbers");
        }
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

impl CryptoRng for HostRandom {}
