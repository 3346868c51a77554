//! One set of log lines for `defmt`, `log`, or nobody.

macro_rules! info {
    ($($arg:tt)*) => {{
        #[cfg(feature = "defmt")]
        ::defmt::info!($($arg)*);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        ::log::info!($($arg)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        $crate::trace::nobody!($($arg)*);
    }};
}

macro_rules! warning {
    ($($arg:tt)*) => {{
        #[cfg(feature = "defmt")]
        ::defmt::warn!($($arg)*);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        ::log::warn!($($arg)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        $crate::trace::nobody!($($arg)*);
    }};
}

/// Looks at the arguments, so that they are used, and does nothing.
#[cfg(not(any(feature = "defmt", feature = "log")))]
macro_rules! nobody {
    ($text:literal $(, $arg:expr)* $(,)?) => {{ $( let _ = &$arg; )* }};
}

#[cfg(not(any(feature = "defmt", feature = "log")))]
pub(crate) use nobody;
pub(crate) use {info, warning};
