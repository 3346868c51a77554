//! Puts `memory.x` where the linker looks for it, and the radio's firmware into the program. Both Pico W boards use
//! this file, each with its own folder.
//!
//! The CYW43439 has no memory of its own to start from: the host uploads its firmware, regulatory table and
//! configuration at every start. Their licence allows them on Raspberry Pi chips only, so they are not in this
//! repository; README.md says where to get them. A build without them links, says so loudly, and its firmware names
//! what is missing instead of joining a network.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs, process};

/// Name in the program, file, and fewer bytes than any real one has: a page of an error saved under the name is caught.
const FILES: [(&str, &str, usize); 3] =
    [("RADIO", "43439A0.bin", 200_000), ("REGULATORY", "43439A0_clm.bin", 700), ("NVRAM", "nvram_rp2040.bin", 400)];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let board = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));

    fs::copy(board.join("memory.x"), out.join("memory.x")).expect("memory.x is beside Cargo.toml");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rerun-if-changed=memory.x");

    let folder = board.join("firmware");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut program = String::new();
    let mut missing = Vec::new();
    for (name, file, bytes_min) in FILES {
        let path = folder.join(file);
        let bytes = match fs::metadata(&path) {
            Ok(metadata) if (metadata.len() as usize) < bytes_min => {
                eprintln!(
                    "error: {} has {} bytes and cannot be what it is named: get it again as README.md says",
                    path.display(),
                    metadata.len()
                );
                process::exit(1);
            }
            Ok(_) => format!("include_bytes!({:?})", path.canonicalize().expect("it was just there")),
            Err(_) => {
                println!(
                    "cargo:warning=firmware/{file} is missing: this firmware links but CANNOT USE THE RADIO. \
                     README.md says where to get the file."
                );
                missing.push(file);
                "b\"\"".to_owned()
            }
        };
        // The radio's driver reads four bytes at a time.
        writeln!(program, "pub static {name}: &cyw43::Aligned<cyw43::A4, [u8]> = &cyw43::Aligned(*{bytes});")
            .expect("a String takes everything");
    }
    writeln!(program, "pub static MISSING: &[&str] = &{missing:?};").expect("a String takes everything");
    fs::write(out.join("firmware.rs"), program).expect("OUT_DIR is writable");
}
