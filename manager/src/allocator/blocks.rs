//! Arithmetic of blocks.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// Prefix length of a single address.
pub(super) const SINGLE: u8 = 32;

/// Prefix length of the first block that a node gets: 16 addresses.
const FIRST_BLOCK: u8 = 28;

/// Prefix length of the blocks that are given out when half of the range is leased.
const SCARCE_BLOCK: u8 = 30;

/// How many addresses a block has.
pub(super) fn size(block: Ipv4Net) -> u64 {
    1 << (SINGLE - block.prefix_len().min(SINGLE))
}

/// The single address as a block.
pub(super) const fn single(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, SINGLE)
}

/// The blocks that are left of `block` without `hole`, which lies in it.
pub(super) fn without(block: Ipv4Net, hole: Ipv4Net) -> Vec<Ipv4Net> {
    let lengths = block.prefix_len() + 1..=hole.prefix_len();
    let halves = lengths.filter_map(|length| {
        // The other half of what holds the hole at this length.
        let sibling = hole.network().to_bits() ^ (1 << (SINGLE - length));
        let sibling = Ipv4Net::new(Ipv4Addr::from_bits(sibling), length).ok()?;
        Some(sibling.trunc())
    });
    halves.collect()
}

/// Prefix length of the next block of a node that has `own` addresses leased, of `leased` in a range of `range`
/// addresses: as much again as it has; less when half of the range is leased, single addresses beyond three quarters.
pub(super) fn next_block(own: u64, leased: u64, range: u64) -> u8 {
    if leased.saturating_mul(4) >= range.saturating_mul(3) {
        return SINGLE;
    }
    if leased.saturating_mul(2) >= range {
        return SCARCE_BLOCK;
    }
    let first = 1 << (SINGLE - FIRST_BLOCK);
    let most = (range / 4).max(1);
    let wanted = own.max(first).min(most);
    // The logarithm of at most 2^32 fits.
    SINGLE - u8::try_from(wanted.ilog2()).unwrap_or(SINGLE)
}

/// The lowest free block of that length in `range`; `occupied` are disjoint stretches (first, last) in order.
pub(super) fn lowest_free(
    range: Ipv4Net,
    prefix_len: u8,
    occupied: impl Iterator<Item = (u32, u32)>,
) -> Option<Ipv4Net> {
    if prefix_len < range.prefix_len() {
        return None;
    }
    let step = 1_u64 << (SINGLE - prefix_len);
    let end = u64::from(range.broadcast().to_bits()) + 1;
    let mut next = u64::from(range.network().to_bits());
    for (first, last) in occupied {
        if next + step <= u64::from(first) {
            break;
        }
        let after = u64::from(last) + 1;
        if after > next {
            next = after.next_multiple_of(step);
        }
    }
    if next + step > end {
        return None;
    }
    let first = Ipv4Addr::from_bits(u32::try_from(next).ok()?);
    Ipv4Net::new(first, prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_hole_leaves_the_other_halves() {
        let left = without(net("10.0.0.0/28"), net("10.0.0.5/32"));
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        assert_eq!(
            left,
            ["10.0.0.8/29", "10.0.0.0/30", "10.0.0.6/31", "10.0.0.4/32"]
        );
        assert!(without(net("10.0.0.5/32"), net("10.0.0.5/32")).is_empty());
    }

    #[test]
    fn blocks_double_and_then_shrink() {
        for (own, leased, range, length) in [
            (0, 0, 256, 28),
            (16, 16, 256, 28),
            (32, 32, 256, 27),
            (64, 64, 256, 26),
            (16, 128, 256, 30),
            (16, 191, 256, 30),
            (16, 192, 256, 32),
            (0, 0, 8, 31),
            (0, 0, 1, 32),
            (0, 0, 1 << 24, 28),
            (1 << 20, 1 << 20, 1 << 24, 12),
        ] {
            assert_eq!(
                next_block(own, leased, range),
                length,
                "{own} {leased} {range}"
            );
        }
    }

    #[test]
    fn the_lowest_free_block_is_found_between_others() {
        let check = |length, occupied: &[(u32, u32)], expected: Option<&str>| {
            let base = net("10.0.0.0/24").network().to_bits();
            let occupied = occupied.iter().map(|(a, b)| (base + a, base + b));
            let found = lowest_free(net("10.0.0.0/24"), length, occupied);
            assert_eq!(found, expected.map(net));
        };
        check(28, &[], Some("10.0.0.0/28"));
        check(28, &[(0, 15)], Some("10.0.0.16/28"));
        check(28, &[(0, 0), (20, 20)], Some("10.0.0.32/28"));
        check(32, &[(0, 0), (2, 254)], Some("10.0.0.1/32"));
        check(32, &[(0, 254)], Some("10.0.0.255/32"));
        check(32, &[(0, 255)], None);
        check(31, &[(0, 252), (254, 254)], None);
        check(24, &[(3, 3)], None);
        check(23, &[], None);
    }
}
