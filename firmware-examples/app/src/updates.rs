//! Firmware updates through the gateway, with the feature `ota`: what it offers is downloaded, verified against a key that is
//! baked in, and tried. A firmware is good once the gateway has acknowledged something to it.

use core::future::pending;

use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::Duration;
use embedded_storage_async::nor_flash::NorFlash;
use headwater_device::Downlink;
use headwater_device::ota::{Mailbox, Partitions, Restart, Updater};

use crate::downlink::Wishes;

/// VERSION, PUBLIC_KEY and NEVER_GOOD: see build/updates.rs.
mod built {
    include!(concat!(env!("OUT_DIR"), "/updates.rs"));
}

/// A new firmware that the gateway has not acknowledged anything to in so long is not good.
const TRIAL_WITHIN: Duration = Duration::from_secs(10 * 60);

static MAILBOX: Mailbox<CriticalSectionRawMutex> = Mailbox::new(built::VERSION);
static ACKNOWLEDGED: Signal<CriticalSectionRawMutex, ()> = Signal::new();

/// What the gateway says, of firmware and all else.
pub(crate) fn downlink() -> impl Downlink {
    MAILBOX.downlink(Wishes)
}

/// The gateway has acknowledged all there is.
pub(crate) fn acknowledged() {
    ACKNOWLEDGED.signal(());
}

/// Updates the firmware until the board has to be reset, which is up to the caller.
///
/// # Panics
/// If the partitions or the key cannot be used: nothing that a retry heals.
pub async fn run<D: NorFlash, S: NorFlash, J: NorFlash>(partitions: Partitions<D, S, J>) {
    log::info!("firmware {}", built::VERSION);
    let updater = Updater::new(&MAILBOX, partitions, &built::PUBLIC_KEY, TRIAL_WITHIN);
    let mut updater = updater.unwrap_or_else(|why| panic!("no updates: {why:?}"));
    let confirm = async {
        if !built::NEVER_GOOD {
            ACKNOWLEDGED.wait().await;
            MAILBOX.confirm();
        }
        pending::<()>().await
    };
    let update = async {
        match updater.run().await {
            Restart::Update => log::info!("a new firmware is verified: reset"),
            Restart::Rollback => log::warn!("nothing was acknowledged to this firmware: reset"),
        }
    };
    select(update, confirm).await;
}
