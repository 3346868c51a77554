//! Tells the linker where the emulated board's `memory.x` is.

fn main() {
    println!("cargo:rustc-link-search={}/../mps2-an385/link/plain", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rerun-if-changed=../mps2-an385/link/plain/memory.x");
}
