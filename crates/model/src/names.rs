//! Validated names. A name that exists in the type system has been checked.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name of any object, in bytes. Two of them, `--` and a zone's first label fit a DNS label.
pub const NAME_BYTES_MAX: usize = 40;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name can't be empty")]
    Empty,
    /// The text is longer than [`NAME_BYTES_MAX`].
    #[error("`{0}` is longer than {NAME_BYTES_MAX} characters")]
    TooLong(String),
    /// A character outside `a-z 0-9 -`, a dash at an end, or a first character that is no letter.
    #[error("`{0}` must start with a letter and hold only a-z, 0-9 and single dashes between them")]
    Shape(String),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.chars().take(NAME_BYTES_MAX).collect()));
    }
    let ok_chars = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !ok_chars || !starts || text.ends_with('-') || text.contains("--") {
        return Err(NameError::Shape(text.escape_debug().to_string()));
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// Checks `text` and takes it as a name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                check(text.as_ref())?;
                Ok(Self(text.as_ref().into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.into()
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(/// An organization; `default` is the first.
    OrgName);
name!(/// An app; unique on a platform.
    AppName);
name!(/// A service of an app.
    ServiceName);
name!(/// A region, such as `fra`.
    RegionName);
name!(/// A site, such as `fra1`.
    SiteName);
name!(/// A node, such as `fra1-edge`; unique in the trust domain.
    NodeName);

impl OrgName {
    /// The organization that exists from the start.
    #[must_use]
    pub fn default_org() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken() {
        for text in ["a", "shop", "fra1", "fra1-edge", "a-b-c9"] {
            assert!(AppName::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for text in ["", "A", "1a", "-a", "a-", "a--b", "a_b", "a.b", "ä", "a\u{0}", &"a".repeat(41)] {
            assert!(AppName::new(text).is_err(), "{text}");
        }
    }
}
