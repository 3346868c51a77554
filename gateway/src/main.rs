//! The binary `headwater`: arguments to `cli`.

fn main() -> std::process::ExitCode {
    give_large_blocks_back();
    headwater::cli::main()
}

/// Makes a large message's memory go back to the system once it is freed. glibc would keep it in its heap: what is small
/// and stays, as a record's place in the window does, is cut out of where the message lay, the next one does not fit there,
/// and the process grows by every large message until a fold minutes away (promise P6).
fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no other way to say it; the call reads its two numbers and nothing else")]
    // SAFETY: no other thread runs yet, and any value is allowed for the threshold.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, headwater::log::INLINE_BYTES_MAX as libc::c_int);
    }
}
