//! For build scripts: tells a firmware that is updated its version and the public key of its updates.

/// `firmware-examples/ota-image` sets these. Writes `updates.rs` to where the build script writes.
pub fn bake() {
    for name in ["FIRMWARE_VERSION", "FIRMWARE_PUBLIC_KEY", "FIRMWARE_NEVER_GOOD"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let how = "firmware-examples/ota-image sets it";
    let version = std::env::var("FIRMWARE_VERSION").unwrap_or_else(|_| panic!("no FIRMWARE_VERSION: {how}"));
    let key = std::env::var("FIRMWARE_PUBLIC_KEY").unwrap_or_else(|_| panic!("no FIRMWARE_PUBLIC_KEY: {how}"));
    let bytes: Vec<u8> = (0..key.len().min(64)).step_by(2).filter_map(|at| hex(key.get(at..at + 2)?)).collect();
    assert!(key.len() == 64 && bytes.len() == 32, "FIRMWARE_PUBLIC_KEY is not 64 hex digits: {key}");
    let never_good = std::env::var_os("FIRMWARE_NEVER_GOOD").is_some();
    let constants = format!(
        "pub const VERSION: &str = {version:?};\npub const PUBLIC_KEY: [u8; 32] = {bytes:?};\npub const NEVER_GOOD: bool = {never_good};\n"
    );
    let to = std::path::Path::new(&std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("updates.rs");
    std::fs::write(to, constants).expect("OUT_DIR is writable");
}

fn hex(digits: &str) -> Option<u8> {
    u8::from_str_radix(digits, 16).ok()
}
