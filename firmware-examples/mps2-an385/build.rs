//! Tells the linker where `memory.x` is, and the firmware when it was built: certificates that were over by then are refused.

use std::time::SystemTime;

fn main() {
    println!("cargo:rustc-link-search={}", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let built = std::env::var("SOURCE_DATE_EPOCH").unwrap_or(now.to_string());
    println!("cargo:rustc-env=BUILT_UNIX_S={built}");
}
