//! Keeps code small: what stands in `apart!` is polled by a function of its own.
//!
//! The compiler puts a future that is awaited in one place into the one that awaits it, all the way up to the task: one
//! function of 15 KB whose variables lie too far away for short instructions.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// `apart!(work())` is `work().await`.
macro_rules! apart {
    ($work:expr) => {{
        let mut work = core::pin::pin!($work);
        core::future::poll_fn(|context| crate::apart::poll(work.as_mut(), context)).await
    }};
}

pub(crate) use apart;

#[inline(never)]
pub(crate) fn poll<T>(work: Pin<&mut impl Future<Output = T>>, context: &mut Context<'_>) -> Poll<T> {
    work.poll(context)
}
