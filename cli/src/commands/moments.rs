//! Moments as people write and read them.

use crate::failure::{Failure, Outcome};
use atoll_model::manifest::parse_duration_ms;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment, ms since 1970: how long before now, or a date with time and zone.
pub fn parse(text: &str, now_ms: u64) -> Outcome<u64> {
    if let Ok(ago_ms) = parse_duration_ms(text) {
        return Ok(now_ms.saturating_sub(ago_ms));
    }
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Failure::usage(format!("`{}` is no time", text.escape_debug()))
            .place("--since")
            .fix("write how long ago, such as 10m or 2h, or a date with time and zone, such as 2026-01-31T12:00:00Z")
    })?;
    Ok(u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

/// A moment with its milliseconds, in UTC.
pub fn show(at_ms: u64) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| at_ms.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn moments_are_read_as_ages_and_as_dates() {
        assert_eq!(parse("10m", 1_000_000).unwrap(), 400_000);
        assert_eq!(parse("1d", 1_000_000).unwrap(), 0);
        assert_eq!(parse("1970-01-01T00:10:00Z", 0).unwrap(), 600_000);
        assert_eq!(parse("1970-01-01T01:10:00+01:00", 0).unwrap(), 600_000);
        assert!(parse("yesterday", 0).unwrap_err().fix.is_some());
        assert_eq!(show(600_001), "1970-01-01T00:10:00.001Z");
    }
}
