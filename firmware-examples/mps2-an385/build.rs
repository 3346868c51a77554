//! Tells the linker where `memory.x` is, and the firmware when it was built: certificates that were over by then are refused.
//! A firmware that is updated (feature `ota`) is told its version and the public key of its updates as well.

#[path = "../app/build/updates.rs"]
mod updates;

use std::time::SystemTime;

fn main() {
    let is_updated = std::env::var_os("CARGO_FEATURE_OTA").is_some();
    let link = if is_updated { "ota" } else { "plain" };
    println!("cargo:rustc-link-search={}/link/{link}", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rerun-if-changed=link/{link}/memory.x");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../app/build/updates.rs");
    if is_updated {
        updates::bake();
    }
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let built = std::env::var("SOURCE_DATE_EPOCH").unwrap_or(now.to_string());
    println!("cargo:rustc-env=BUILT_UNIX_S={built}");
}
