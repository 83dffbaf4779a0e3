#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

fn headers(lines: &[&str]) -> HeaderMap {
    lines.iter().map(|line| (ACCEPT_ENCODING, line.parse().unwrap())).collect()
}

fn accepted(lines: &[&str]) -> Accepted {
    Accepted::of(&headers(lines))
}

/// The canonical text; `-` for none, `=` for what stays as it is.
fn canonical(lines: &[&str]) -> String {
    match accepted(lines).canonical() {
        Canonical::Absent => "-".to_owned(),
        Canonical::Value(value) => value.to_str().unwrap().to_owned(),
        Canonical::AsSent => "=".to_owned(),
    }
}

#[test]
fn what_is_accepted_and_what_is_best() {
    use Coding::{Brotli, Gzip, Zstd};
    for (line, text, best) in [
        ("", "-", None),
        ("identity", "-", None),
        ("deflate, compress", "-", None),
        ("gzip", "gzip", Some(Gzip)),
        ("GZip", "gzip", Some(Gzip)),
        ("x-gzip", "gzip", Some(Gzip)),
        ("gzip, deflate", "gzip", Some(Gzip)),
        ("gzip, deflate, br", "br, gzip", Some(Brotli)),
        ("gzip, deflate, br, zstd", "br, gzip, zstd", Some(Brotli)),
        ("zstd,gzip", "gzip, zstd", Some(Zstd)),
        ("zstd, br", "br, zstd", Some(Brotli)),
        ("gzip;q=1.0, br;q=0.9", "br, gzip", Some(Gzip)),
        ("br;q=0.001, gzip;q=0.002, zstd;q=0.003", "br, gzip, zstd", Some(Zstd)),
        ("br;q=0, gzip", "gzip", Some(Gzip)),
        ("br;q=0.000, gzip;q=0.", "-", None),
        ("gzip ; Q=0.5\t, \tbr ;\tq=0.5", "br, gzip", Some(Brotli)),
        (",, gzip ,,", "gzip", Some(Gzip)),
        ("*", "br, gzip, zstd", Some(Brotli)),
        ("*;q=0.5, gzip", "br, gzip, zstd", Some(Gzip)),
        ("br;q=0, *", "gzip, zstd", Some(Zstd)),
        ("gzip, *;q=0, identity", "gzip", Some(Gzip)),
        // A refusal holds, in whichever order.
        ("gzip, gzip;q=0", "-", None),
        ("x-gzip;q=0, gzip", "-", None),
        // Liked better than ours.
        ("identity, gzip;q=0.5", "gzip", None),
        ("identity;q=0.5, gzip;q=0.5", "gzip", Some(Gzip)),
        ("identity, *;q=0", "-", None),
    ] {
        assert_eq!(canonical(&[line]), text, "{line:?}");
        assert_eq!(accepted(&[line]).best(), best, "{line:?}");
        assert!(!accepted(&[line]).identity_refused(), "{line:?}");
    }
    assert_eq!(canonical(&[]), "-");
    assert_eq!(canonical(&["gzip", "deflate", "br;q=0.1"]), "br, gzip");
    assert_eq!(canonical(&["gzip", "gzip;q=0"]), "-");
}

#[test]
fn malformed_parts_are_passed_over() {
    for part in [
        "gzip;q=2",
        "gzip;q=1.001",
        "gzip;q=0.0000",
        "gzip;q=.5",
        "gzip;q=-1",
        "gzip;q=",
        "gzip;q",
        "gzip;",
        "gzip;q=0.5;q=1",
        "gzip;level=9",
        "gzip;q =1",
        "gzip;q= 1",
        "gzip q=1",
        "gzip br",
        "\"gzip\"",
        "gzipped",
        ";q=1",
        "identity;q=x",
        "*;q=x",
        "**",
    ] {
        assert_eq!(canonical(&[part]), "-", "{part}");
        assert_eq!(canonical(&[part, "br"]), "br", "{part}");
        assert_eq!(canonical(&[&format!("br,{part},zstd")]), "br, zstd", "{part}");
    }
}

#[test]
fn where_identity_is_refused_the_field_stays() {
    for line in
        ["identity;q=0", "*;q=0", "gzip, identity;q=0", "gzip, *;q=0.0", "gzip;q=0, *;q=0", "*, identity;q=0"]
    {
        assert!(accepted(&[line]).identity_refused(), "{line}");
        assert_eq!(canonical(&[line]), "=", "{line}");
    }
    assert_eq!(accepted(&["gzip, *;q=0"]).best(), Some(Coding::Gzip));
    assert_eq!(accepted(&["deflate, *;q=0"]).best(), None);
    for line in ["*;q=0, identity;q=0.1", "identity", "gzip", ""] {
        assert!(!accepted(&[line]).identity_refused(), "{line}");
    }
}

#[test]
fn a_request_is_put_into_the_form() {
    let applied = |lines: &[&str]| {
        let mut headers = headers(lines);
        Accepted::of(&headers).canonical().apply(&mut headers);
        headers.get_all(ACCEPT_ENCODING).iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(applied(&["deflate", "gzip, br"]), ["br, gzip"]);
    assert!(applied(&["deflate"]).is_empty());
    assert_eq!(applied(&["deflate", "*;q=0"]), ["deflate", "*;q=0"]);
}

/// Texts that are nearly right.
fn part_text() -> impl Strategy<Value = String> {
    let name = prop_oneof!["gzip|br|zstd|x-gzip|identity|deflate|\\*", "[!-~]{0,6}"];
    (name, prop_oneof!["", ";q=[01]", " ;\t[qQ]=0\\.[0-9]{0,3}", "[ -~]{0,6}"])
        .prop_map(|(name, rest)| name + &rest)
}

proptest! {
    #[test]
    fn any_bytes_are_read(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4)) {
        let headers = lines
            .iter()
            .filter_map(|line| Some((ACCEPT_ENCODING, HeaderValue::from_bytes(line).ok()?)))
            .collect::<HeaderMap>();
        let _ = Accepted::of(&headers).canonical();
    }

    /// The best is one of the accepted; the form says just those, and says the same of itself.
    #[test]
    fn the_form_stands_for_the_request(parts in proptest::collection::vec(part_text(), 0..6), lines in any::<bool>()) {
        let line = parts.join(",");
        let lines: Vec<&str> = if lines { parts.iter().map(String::as_str).collect() } else { vec![&line] };
        let of = accepted(&lines);
        prop_assert!(of.best().is_none_or(|best| of.accepts(best)));
        let Canonical::Value(value) = of.canonical() else {
            prop_assert!(of.identity_refused() || Coding::ALL.into_iter().all(|coding| !of.accepts(coding)));
            return Ok(());
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, value.clone());
        let again = Accepted::of(&headers);
        for coding in Coding::ALL {
            prop_assert_eq!(again.accepts(coding), of.accepts(coding));
        }
        prop_assert_eq!(again.canonical(), Canonical::Value(value));
    }
}
