//! Compressed variants of what is stored: which codings a request accepts, what is worth compressing, and the work itself.
//!
//! [`accepted`] reads `Accept-Encoding`, [`worth`] judges a stored answer, [`compress`] makes the variant.
//! Pure: nothing here stores or sends. A compressed answer is another representation: its entity tag is [`weakened`], and its
//! `Vary` names `Accept-Encoding` ([`add_vary`]).

pub mod accepted;
pub mod compress;
pub mod worth;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, VARY};

/// A content coding that we can apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878, with a window of at most 8 MiB (RFC 9659).
    Zstd,
}

impl Coding {
    /// All of them; each at its [`Coding::index`].
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Brotli, Self::Zstd];

    /// Its name in `Content-Encoding`.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// Its place among [`Coding::ALL`], for tables with one entry each.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The entity tag of an answer that was compressed here: its bytes are not those that the origin tagged, so that it can no longer be
/// a strong one (RFC 9110, section 8.8.1). What is weak, or no tag, stays.
#[must_use]
pub fn weakened(etag: &HeaderValue) -> HeaderValue {
    let tag = etag.as_bytes().trim_ascii();
    if tag.len() < 2 || !tag.starts_with(b"\"") || !tag.ends_with(b"\"") {
        return etag.clone();
    }
    // A valid value with two more letters is one.
    HeaderValue::from_bytes(&[b"W/", tag].concat()).unwrap_or_else(|_| etag.clone())
}

/// Says that the answer depends on `Accept-Encoding`, unless that is said already, by its name or by `*`.
pub fn add_vary(headers: &mut HeaderMap) {
    let said = |name: &[u8]| name == b"*" || name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes());
    let mut names = headers.get_all(VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    if !names.any(|name| said(name.trim_ascii())) {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_is_at_its_index() {
        for (index, coding) in Coding::ALL.into_iter().enumerate() {
            assert_eq!(coding.index(), index);
        }
    }

    #[test]
    fn strong_tags_become_weak() {
        for (etag, weak) in [
            ("\"a\"", "W/\"a\""),
            ("\"\"", "W/\"\""),
            ("W/\"a\"", "W/\"a\""),
            ("a", "a"),
            ("\"", "\""),
            ("", ""),
        ] {
            assert_eq!(weakened(&etag.parse().unwrap()), weak, "{etag}");
        }
        let latin = HeaderValue::from_bytes(b"\"\xe9\"").unwrap();
        assert_eq!(weakened(&latin).as_bytes(), b"W/\"\xe9\"");
    }

    #[test]
    fn vary_names_it_once() {
        let varied = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(VARY, line.parse().unwrap());
            }
            add_vary(&mut headers);
            headers.get_all(VARY).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(varied(&[]), ["Accept-Encoding"]);
        assert_eq!(varied(&["Origin"]), ["Origin", "Accept-Encoding"]);
        assert_eq!(varied(&["X-Accept-Encoding"]), ["X-Accept-Encoding", "Accept-Encoding"]);
        for said in ["*", "accept-encoding", "Origin,ACCEPT-Encoding", "a, *"] {
            assert_eq!(varied(&[said]), [said]);
            assert_eq!(varied(&["Origin", said]), ["Origin", said]);
        }
    }
}
