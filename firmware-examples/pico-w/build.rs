//! Puts `memory.x` where the linker looks for it, and the radio's firmware into the program. Both Pico W boards use
//! this file, each with its own folder.
//!
//! The CYW43439 has no memory of its own to start from: the host uploads its firmware, regulatory table and
//! configuration at every start. Their licence allows them on Raspberry Pi's chips only, so they are not in this
//! repository. The feature `radio-crate`, on by default, takes them from crates.io; files in the board's folder
//! `firmware/` come before it. A build with neither links, says loudly what is missing, and so does its firmware,
//! instead of joining a network.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs, process};

/// One thing that the radio wants from its host.
struct Part {
    name: &'static str,
    file: &'static str,
    /// Fewer than any real one has, so that a page of an error saved under the name is caught.
    bytes_min: usize,
    in_crate: &'static str,
}

const PARTS: [Part; 3] = [
    Part { name: "RADIO", file: "43439A0.bin", bytes_min: 200_000, in_crate: "cyw43_setup::FW" },
    Part { name: "REGULATORY", file: "43439A0_clm.bin", bytes_min: 700, in_crate: "cyw43_setup::CLM" },
    Part { name: "NVRAM", file: "nvram_rp2040.bin", bytes_min: 400, in_crate: "cyw43_setup::NVRAM" },
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let board = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));

    fs::copy(board.join("memory.x"), out.join("memory.x")).expect("memory.x is beside Cargo.toml");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rerun-if-changed=memory.x");

    let folder = board.join("firmware");
    println!("cargo:rerun-if-changed={}", folder.display());
    // All three from one place: firmware and table of different releases need not fit.
    let own_files = PARTS.iter().any(|part| folder.join(part.file).exists());
    let with_crate = env::var_os("CARGO_FEATURE_RADIO_CRATE").is_some() && !own_files;

    let mut program = String::new();
    let mut missing = Vec::new();
    for part in &PARTS {
        let path = folder.join(part.file);
        let bytes = if with_crate {
            part.in_crate.to_owned()
        } else if path.exists() {
            let bytes = fs::metadata(&path).expect("it was just there").len();
            if (bytes as usize) < part.bytes_min {
                let path = path.display();
                eprintln!(
                    "error: {path} has {bytes} bytes and cannot be what it is named: get it again, see README.md"
                );
                process::exit(1);
            }
            format!("include_bytes!({:?})", path.canonicalize().expect("it was just there"))
        } else {
            println!(
                "cargo:warning=firmware/{} is missing: this firmware links but CANNOT USE THE RADIO. \
                 README.md says where to get the file.",
                part.file
            );
            missing.push(part.file);
            "b\"\"".to_owned()
        };
        let line = match (part.name, with_crate) {
            ("REGULATORY", _) => format!("pub static REGULATORY: &[u8] = {bytes};"),
            // These two are read four bytes at a time; the crate has them aligned already.
            (name, true) => format!("pub static {name}: &cyw43::Aligned<cyw43::A4, [u8]> = &{bytes};"),
            (name, false) => {
                format!("pub static {name}: &cyw43::Aligned<cyw43::A4, [u8]> = &cyw43::Aligned(*{bytes});")
            }
        };
        writeln!(program, "{line}").expect("a String takes everything");
    }
    writeln!(program, "pub static MISSING: &[&str] = &{missing:?};").expect("a String takes everything");
    fs::write(out.join("firmware.rs"), program).expect("OUT_DIR is writable");
}
