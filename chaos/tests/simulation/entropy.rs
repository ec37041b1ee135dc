//! The system's randomness, replaced for this process by one that follows from nothing but the order of the calls.
//!
//! The order of the standard library's hash maps and the order in which tokio polls the branches of a `select!` come
//! from it, below everything that takes a seed. Keys and salts made from it are as predictable as all else here.

use std::cell::Cell;

thread_local! {
    /// Of each thread its own, so that the order in which threads come does not matter.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// Takes the place of getrandom(2).
///
/// # Safety
/// `buffer` is valid for writes of `len` bytes, as for the C library's function.
// SAFETY: the name and the signature are those of the C library's function, which no other object defines here.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, _flags: u32) -> isize {
    // SAFETY: the caller promises that the buffer may be written.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, len) };
    for chunk in bytes.chunks_mut(8) {
        let word = mix(DRAWN.replace(DRAWN.get() + 1)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}

/// SplitMix64: neighbours give unrelated numbers.
const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
