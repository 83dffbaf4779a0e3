//! Hashing that is the same on every node and in every version.

/// FNV-1a, 64 bits.
pub(crate) fn fnv(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in *part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // A boundary that no UTF-8 text holds, so that ("ab", "c") is not ("a", "bc").
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// Spreads every bit over all others (the finalizer of MurmurHash3); FNV's high bits alone are weak.
pub(crate) fn spread(mut value: u64) -> u64 {
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// `random` as an index below `count`, which is not 0.
pub(crate) fn below(random: u64, count: usize) -> usize {
    let wide = u128::from(random) * count as u128;
    // The product's high half is below `count`.
    usize::try_from(wide >> 64).unwrap_or(0)
}
