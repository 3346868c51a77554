//! The allocator's free memory.

/// Gives free pages of the heap back to the system, wherever they lie. glibc keeps what is freed below something that
/// stays: a record's place in the window is cut out of where a large message lay, the next one does not fit there, and the
/// process would grow by every large message until a fold minutes away (promise P6).
///
/// A lower `M_MMAP_THRESHOLD` does it too, and cost the receiver of a drain half as much processor again, because every
/// buffer of a request is then mapped and cleared anew.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no other way to say it")]
    // SAFETY: the call takes no pointer and may be made from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
