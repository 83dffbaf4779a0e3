//! Parts of a stored whole (RFC 9110, section 14).

/// Most ranges of one request; with more the whole is sent, which costs less than many parts (CVE-2011-3192 and its kin).
pub const RANGES_MAX: usize = 16;
/// Longest `Range` that is read, bytes.
const BYTES_MAX: usize = 1024;

/// What a `Range` asks for of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: there is no range that we take.
    Whole,
    /// These parts, in the order asked for: first and last byte of each.
    Parts(Vec<(u64, u64)>),
    /// Nothing of it is there: 416.
    Unsatisfiable,
}

/// Reads a `Range` for a body of so many bytes. Ranges that overlap, more than 16, and other units get the whole.
#[must_use]
pub fn wanted(range: &[u8], length: u64) -> Wanted {
    let Some(specs) =
        std::str::from_utf8(range).ok().filter(|text| text.len() <= BYTES_MAX).and_then(specs_of)
    else {
        return Wanted::Whole;
    };
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (n, spec) in specs.split(',').map(str::trim).enumerate() {
        if n >= RANGES_MAX {
            return Wanted::Whole;
        }
        match part(spec, length) {
            Some(Some(part)) => parts.push(part),
            Some(None) => {}
            // One that is none makes the field invalid, as if it were not there.
            None => return Wanted::Whole,
        }
    }
    let overlap = |(n, part): (usize, &(u64, u64))| {
        parts[..n].iter().any(|other| part.0 <= other.1 && other.0 <= part.1)
    };
    if parts.is_empty() {
        Wanted::Unsatisfiable
    } else if parts.iter().enumerate().any(overlap) {
        Wanted::Whole
    } else {
        Wanted::Parts(parts)
    }
}

fn specs_of(text: &str) -> Option<&str> {
    let (unit, specs) = text.trim().split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(specs)
}

/// First and last byte of one range; nothing inside where it lies behind the end; nothing at all where it is no range.
fn part(spec: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let suffix = number(last)?.min(length);
        return Some((suffix > 0).then(|| (length - suffix, length - 1)));
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if first > last {
        return None;
    }
    Some((first < length).then(|| (first, last.min(length - 1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_or_the_whole_is_sent() {
        let parts = |list: &[(u64, u64)]| Wanted::Parts(list.to_vec());
        for (text, expected) in [
            ("bytes=0-0", parts(&[(0, 0)])),
            ("bytes=0-99999999999999999999999", parts(&[(0, 99)])),
            ("Bytes=5-", parts(&[(5, 99)])),
            ("bytes=-5", parts(&[(95, 99)])),
            ("bytes=-500", parts(&[(0, 99)])),
            ("bytes=0-1, 98-", parts(&[(0, 1), (98, 99)])),
            ("bytes=90-200, 300-400", parts(&[(90, 99)])),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=0-5,3-9", Wanted::Whole),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes 0-1", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("bytes=--1", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
        ] {
            assert_eq!(wanted(text.as_bytes(), 100), expected, "{text}");
        }
        let many = (0..1000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(wanted(format!("bytes={many}").as_bytes(), 10_000), Wanted::Whole);
        assert_eq!(wanted(b"bytes=0-0", 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_body_and_apart(text in "bytes=[0-9,\\- ]{0,60}", length in 0u64..2000) {
            if let Wanted::Parts(parts) = wanted(text.as_bytes(), length) {
                let mut taken = vec![false; length as usize];
                for (first, last) in parts {
                    prop_assert!(first <= last && last < length);
                    for byte in first..=last {
                        prop_assert!(!std::mem::replace(&mut taken[byte as usize], true));
                    }
                }
            }
        }
    }
}
