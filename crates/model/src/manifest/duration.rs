//! Durations as people write them: `"250ms"`, `"1.5s"`, `"2m"`, `"1h"`, `"1d"`.

/// The longest duration that is read, ms: 365 days.
pub const DURATION_MS_MAX: u64 = 365 * 24 * 3_600_000;

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 24 * 3_600_000)];

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit.
    #[error("`{0}` has no unit; write for example \"{0}s\" (units: ms, s, m, h, d)")]
    NoUnit(String),
    /// A unit that does not exist.
    #[error("`{0}` is no unit of time; the units are ms, s, m, h and d")]
    Unit(String),
    /// Not digits with at most one point.
    #[error("`{0}` is not a duration; write for example \"250ms\", \"1.5s\" or \"2m\"")]
    Number(String),
    /// More than [`DURATION_MS_MAX`].
    #[error("`{0}` is longer than 365 days")]
    TooLong(String),
}

/// Reads a duration as milliseconds; what is left of a millisecond is rounded down.
///
/// # Errors
/// When the text is not a decimal number (no sign, no exponent) followed by a unit.
pub fn parse_duration_ms(text: &str) -> Result<u64, DurationError> {
    let shown = || text.escape_debug().take(40).collect::<String>();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(DurationError::Number(shown()));
    }
    if unit.is_empty() {
        return Err(DurationError::NoUnit(shown()));
    }
    let (_, unit_ms) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| DurationError::Unit(unit.escape_debug().take(20).collect()))?;
    let whole: u64 = whole.parse().map_err(|_| DurationError::TooLong(shown()))?;
    // Nine digits are more than a millisecond of a day needs, and can't overflow.
    let fraction = &fraction[..fraction.len().min(9)];
    let scale = 10_u64.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part = fraction.parse::<u64>().unwrap_or(0) * unit_ms / scale;
    whole
        .checked_mul(unit_ms)
        .and_then(|ms| ms.checked_add(part))
        .filter(|ms| *ms <= DURATION_MS_MAX)
        .ok_or_else(|| DurationError::TooLong(shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, ms) in [
            ("250ms", 250),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("0.0005s", 0),
            ("0.1234567890123s", 123),
        ] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        assert!(matches!(parse_duration_ms("5"), Err(DurationError::NoUnit(_))));
        assert!(matches!(parse_duration_ms("5x"), Err(DurationError::Unit(_))));
        assert!(matches!(parse_duration_ms("400d"), Err(DurationError::TooLong(_))));
        assert!(matches!(parse_duration_ms("99999999999999999999h"), Err(DurationError::TooLong(_))));
        for text in ["", "s", "-1s", "1.s", ".5s", "1.2.3s", "1e3s", "NaNs", "1 s", "1s ", "٣s"] {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
    }
}
