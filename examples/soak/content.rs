//! Bytes that identify their stream and their position in it.

/// The bytes of stream `seed` from `position` on.
pub(crate) fn fill(seed: u64, position: u64, out: &mut [u8]) {
    for (byte, position) in out.iter_mut().zip(position..) {
        *byte = at(seed, position);
    }
}

/// Whether these are the bytes of stream `seed` from `position` on.
pub(crate) fn is(seed: u64, position: u64, bytes: &[u8]) -> bool {
    bytes
        .iter()
        .zip(position..)
        .all(|(byte, position)| *byte == at(seed, position))
}

fn at(seed: u64, position: u64) -> u8 {
    let mixed = (position ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}
