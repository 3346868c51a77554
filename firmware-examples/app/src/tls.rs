//! TLS to the gateway, with the feature `tls`: the device's credentials are baked in from the file that `gateway_tls` of
//! `credentials.toml` names. A firmware without one says at its start what is missing, and goes no further.

use headwater_device::Transport;
use headwater_device::tls::rand_core::{CryptoRng, Error, RngCore};
use headwater_device::tls::{Credentials, Now, RX_BYTES, TX_BYTES, Tls};
use static_cell::StaticCell;

use crate::credentials::{BUILT_UNIX_S, GATEWAY_HOST, GATEWAY_PEM};

const DECODED_BYTES: usize = GATEWAY_PEM.len() * 3 / 4 + 3;

/// TLS over this transport. Called once.
///
/// # Panics
/// If the credentials cannot be read: nothing that a retry heals.
pub fn over<T: Transport>(
    transport: T,
    random: fn(&mut [u8]),
    now: fn() -> Now,
) -> Tls<'static, T, Random, fn() -> Now> {
    static DECODED: StaticCell<[u8; DECODED_BYTES]> = StaticCell::new();
    static RX: StaticCell<[u8; RX_BYTES]> = StaticCell::new();
    static TX: StaticCell<[u8; TX_BYTES]> = StaticCell::new();
    // The black box keeps the optimizer from dropping all of TLS in a build without credentials: its size is to be right.
    let credentials = match Credentials::from_pem(core::hint::black_box(GATEWAY_PEM), DECODED.init([0; _])) {
        Ok(credentials) => credentials,
        Err(why) => panic!("gateway_tls of credentials.toml: {why:?}"),
    };
    Tls::new(transport, GATEWAY_HOST, credentials, Random(random), now, RX.init([0; _]), TX.init([0; _]))
}

/// What it is at least, while the gateway has not said it yet.
pub fn now(unix_ms: Option<u64>) -> Now {
    Now::from_clock(unix_ms, BUILT_UNIX_S)
}

/// The chip's generator.
pub struct Random(fn(&mut [u8]));

impl RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        (self.0)(into);
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

impl CryptoRng for Random {}
