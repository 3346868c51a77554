//! Tells the linker where `memory.x` is, and the firmware when it was built: certificates that were over by then are refused.
//! A firmware that is updated (feature `ota`) is told its version and the public key of its updates as well.

use std::time::SystemTime;

fn main() {
    let is_updated = std::env::var_os("CARGO_FEATURE_OTA").is_some();
    let link = if is_updated { "ota" } else { "plain" };
    println!("cargo:rustc-link-search={}/link/{link}", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rerun-if-changed=link/{link}/memory.x");
    if is_updated {
        updates();
    }
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let built = std::env::var("SOURCE_DATE_EPOCH").unwrap_or(now.to_string());
    println!("cargo:rustc-env=BUILT_UNIX_S={built}");
}

/// `firmware-examples/ota-image` sets these.
fn updates() {
    for name in ["FIRMWARE_VERSION", "FIRMWARE_PUBLIC_KEY", "FIRMWARE_NEVER_GOOD"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let version = std::env::var("FIRMWARE_VERSION").expect("FIRMWARE_VERSION: what this firmware is called");
    let key = std::env::var("FIRMWARE_PUBLIC_KEY").expect("FIRMWARE_PUBLIC_KEY: 64 hex digits of an Ed25519 key");
    let bytes: Vec<u8> = (0..key.len().min(64)).step_by(2).filter_map(|at| hex(key.get(at..at + 2)?)).collect();
    assert!(key.len() == 64 && bytes.len() == 32, "FIRMWARE_PUBLIC_KEY is not 64 hex digits: {key}");
    let never_good = std::env::var_os("FIRMWARE_NEVER_GOOD").is_some();
    let constants = format!(
        "pub const VERSION: &str = {version:?};\npub const PUBLIC_KEY: [u8; 32] = {bytes:?};\npub const NEVER_GOOD: bool = {never_good};\n"
    );
    let to = std::path::Path::new(&std::env::var("OUT_DIR").unwrap()).join("updates.rs");
    std::fs::write(to, constants).unwrap();
}

fn hex(digits: &str) -> Option<u8> {
    u8::from_str_radix(digits, 16).ok()
}
