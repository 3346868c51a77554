//! Tells the linker where `memory.x` is: a firmware that is updated lies behind its boot loader.

fn main() {
    let link = if std::env::var_os("CARGO_FEATURE_OTA").is_some() { "ota" } else { "plain" };
    println!("cargo:rustc-link-search={}/link/{link}", std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed=link/{link}/memory.x");
}
