//! Dates as HTTP writes them (RFC 9110, section 5.6.7).

use std::time::UNIX_EPOCH;

/// Longest text that can be a date.
const BYTES_MAX: usize = 40;

/// Seconds since 1970 of an IMF-fixdate, an RFC 850 date, or one of asctime's. Letters may be of the wrong case, as clients write
/// them; nothing else is forgiven. Dates before 1970 are 0.
#[must_use]
pub fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= BYTES_MAX)?;
    let usual = in_usual_case(text.trim_matches([' ', '\t']));
    let at = httpdate::parse_http_date(&usual).ok()?;
    Some(at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// The preferred form.
#[cfg(test)]
#[must_use]
pub fn format(seconds: u64) -> String {
    // Beyond year 9999 the form has no room.
    let most = std::time::Duration::from_secs(253_402_300_799);
    let at = UNIX_EPOCH + std::time::Duration::from_secs(seconds).min(most);
    httpdate::fmt_http_date(at)
}

/// Names of days and months begin with a capital; the zone is all capitals.
fn in_usual_case(text: &str) -> String {
    let mut usual = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        usual.push(if in_word { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() });
        in_word = c.is_ascii_alphabetic();
    }
    let zone = usual.len().saturating_sub(3);
    if usual.get(zone..).is_some_and(|zone| zone.eq_ignore_ascii_case("gmt")) {
        usual.replace_range(zone.., "GMT");
    }
    usual
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_are_read_and_the_rest_is_not() {
        let at = Some(784_111_777);
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sun, 06 nOV 1994 08:49:37 gmt",
        ] {
            assert_eq!(parse(text.as_bytes()), at, "{text}");
        }
        for text in [
            "0",
            "",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov  1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(format(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(format(u64::MAX).as_bytes()), Some(253_402_300_799));
    }
}
