//! Patterns of paths: one syntax and one meaning for all that names paths.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest pattern of a path, or name of a gRPC service with its method, in bytes.
pub const PATTERN_BYTES_MAX: usize = 512;

/// A text that is no pattern of paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no pattern of paths, such as \"/\", \"/assets/**\" or \"/items/*/image\": it begins with `/`, has at most {PATTERN_BYTES_MAX} characters and no `%`, `?`, `;`, `.` or `..`; `*` stands for one segment, and `**`, as the last one, for any number"
)]
pub struct PatternError(String);

/// A pattern of paths: `/assets/**`. It is a path in its normal form in which `*` stands for one segment that is not
/// empty, and `**`, as the last one, for any number of any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(Box<str>);

impl PathPattern {
    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern's segments are those of the path, which is in its normal form. `/a/**` matches `/a/b/c` and
    /// `/a/`, and `/a`, too.
    #[must_use]
    pub fn matches(&self, normal_path: &str) -> bool {
        let mut segments = normal_path.split('/');
        for wanted in self.0.split('/') {
            if wanted == "**" {
                return true;
            }
            match segments.next() {
                Some(segment) if wanted == segment => {}
                Some(segment) if wanted == "*" && !segment.is_empty() => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

/// A path in its normal form, whose segments may be `*`, and the last one `**`.
fn is_pattern(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let clean = |b: u8| b.is_ascii_graphic() && !b"?#%\\;".contains(&b);
    let segments = rest.split('/').count();
    let fits = |(i, segment): (usize, &str)| match segment {
        "*" => true,
        "**" => i + 1 == segments,
        "" => i + 1 == segments,
        "." | ".." => false,
        other => !other.contains('*'),
    };
    path.len() <= PATTERN_BYTES_MAX && path.bytes().all(clean) && rest.split('/').enumerate().all(fits)
}

impl FromStr for PathPattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Self, PatternError> {
        match is_pattern(text) {
            true => Ok(Self(text.into())),
            false => Err(PatternError(text.escape_debug().take(80).collect())),
        }
    }
}

impl TryFrom<String> for PathPattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.0.into()
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_by_segments() {
        for (pattern, path, fits) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/**", "/", true),
            ("/**", "/a/b/", true),
            ("/assets/**", "/assets/a/b", true),
            ("/assets/**", "/assets/", true),
            ("/assets/**", "/assets", true),
            ("/assets/**", "/assetsx", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a//c", false),
            ("/a/*", "/a/b/c", false),
            ("/a/", "/a", false),
        ] {
            assert_eq!(pattern.parse::<PathPattern>().unwrap().matches(path), fits, "{pattern} {path}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "a", "/a//b", "/a/**/b", "/a*", "/%41", "/a?b", "/a/../b", "/ä", "/a;b"] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_as_it_is_or_not_at_all(text in "\\PC{0,20}|/[a.*/]{0,12}", path in "/[a./]{0,12}") {
            if let Ok(pattern) = text.parse::<PathPattern>() {
                prop_assert_eq!(pattern.to_string(), text);
                let _either = pattern.matches(&path);
            }
        }
    }
}
