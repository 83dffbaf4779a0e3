//! Opaque ids that sort by the time they were made.

use serde::{Deserialize, Serialize};
use std::fmt;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// 26 characters: 48 bits of milliseconds, then 80 random bits (the layout of a ULID, in lower case).
fn encode(unix_ms: u64, random: u128) -> String {
    let value = (u128::from(unix_ms & 0xffff_ffff_ffff) << 80) | (random & ((1 << 80) - 1));
    (0..26).rev().map(|i| ALPHABET[((value >> (i * 5)) & 31) as usize] as char).collect()
}

fn well_formed(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|b| ALPHABET.contains(&b))
}

/// A text that is not an id of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id")]
pub struct IdError;

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// Makes an id from the time and at least 80 random bits, both the caller's.
            #[must_use]
            pub fn from_parts(unix_ms: u64, random: u128) -> Self {
                Self(format!("{}{}", $prefix, encode(unix_ms, random)).into())
            }

            /// The id as text.
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

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl std::str::FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                match text.strip_prefix($prefix) {
                    Some(rest) if well_formed(rest) => Ok(Self(text.into())),
                    _ => Err(IdError),
                }
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0.into()
            }
        }
    };
}

id!(/// One running copy of a revision.
    InstanceId, "i-");
id!(/// An immutable version of a service's specification.
    RevisionId, "r-");
id!(/// Any other stored object: app, service, token, deploy, virtual host.
    ObjectId, "o-");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_round_trip() {
        let early = InstanceId::from_parts(1_000, u128::MAX);
        let late = InstanceId::from_parts(1_001, 0);
        assert!(early < late);
        assert_eq!(early.as_str().parse::<InstanceId>(), Ok(early.clone()));
        assert!(early.as_str().parse::<RevisionId>().is_err());
        assert!("i-short".parse::<InstanceId>().is_err());
    }
}
