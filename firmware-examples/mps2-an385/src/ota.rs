//! Updates: the firmware that the gateway offers is downloaded into the flash, verified and tried. The boot loader
//! (`mps2-an385-boot`) exchanges the two, and takes back what does not deliver.

use core::convert::Infallible;

use cortex_m::peripheral::SCB;
use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::Duration;
use headwater_device::ota::{Mailbox, Partitions, Restart, Updater};

use crate::flash::{SimulatedFlash, Timing};
use crate::{app, log};

#[path = "../../mps2-an385-boot/src/layout.rs"]
#[allow(dead_code)] // some of it is the boot loader's
mod layout;
/// VERSION, PUBLIC_KEY and NEVER_GOOD: see build.rs.
mod built {
    include!(concat!(env!("OUT_DIR"), "/updates.rs"));
}

/// A new firmware that the gateway has not acknowledged anything from in so long is not good.
const TRIAL_WITHIN: Duration = Duration::from_secs(60);

pub static MAILBOX: Mailbox<CriticalSectionRawMutex> = Mailbox::new(built::VERSION);

/// Updates the firmware for ever: each time it has to, it resets the board.
#[embassy_executor::task]
pub async fn run(timing: Timing) {
    log!("firmware {}", built::VERSION);
    // SAFETY: made once, and apart from each other and from the outbox, which ends below them.
    let (dfu, state, journal): (SimulatedFlash, SimulatedFlash, SimulatedFlash) = unsafe {
        (
            SimulatedFlash::part(layout::DFU, timing),
            SimulatedFlash::part(layout::STATE, timing),
            SimulatedFlash::part(layout::JOURNAL, timing),
        )
    };
    let updater = Updater::new(&MAILBOX, Partitions { dfu, state, journal }, &built::PUBLIC_KEY, TRIAL_WITHIN);
    let mut updater = updater.unwrap_or_else(|why| panic!("no updates: {why:?}"));
    let reset = async {
        match updater.run().await {
            Restart::Update => log!("a new firmware is verified: reset"),
            Restart::Rollback => log!("nothing was acknowledged to this firmware: reset"),
        }
        SCB::sys_reset()
    };
    select::<_, _>(reset, confirm()).await;
}

/// This firmware is good once it has delivered something.
async fn confirm() -> Infallible {
    if !built::NEVER_GOOD {
        app::acknowledged().await;
        MAILBOX.confirm();
    }
    core::future::pending().await
}
