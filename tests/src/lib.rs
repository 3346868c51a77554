//! What the tests stand on.

pub mod aggregate;
pub mod proxy;
pub mod upstream;
