//! What a node's certificates say beside its SPIFFE id: roles, region and epoch.
//!
//! One custom, non-critical X.509 extension. Its value is a DER UTF8String such as
//! `v1;roles=edge,gateway;region=fra;epoch=3`. Keys that a reader doesn't know are passed over, so
//! that a newer CA can add some.

use atoll_model::{RegionName, Role, Roles};
use std::fmt;

/// The extension's object identifier, under an arc of ours below 2.25 (which needs no registration).
pub const ATOLL_EXTENSION: &[u64] = &[2, 25, 6_047_313_952_769_136_217, 1];
/// The extended key usage of record certificates: not for TLS, and no TLS certificate has it.
pub const RECORD_SIGNING: &[u64] = &[2, 25, 6_047_313_952_769_136_217, 2];

/// Longest value, in bytes; a DER length of one byte.
const TEXT_BYTES_MAX: usize = 127;
const UTF8_STRING: u8 = 0x0c;

/// The content of [`ATOLL_EXTENSION`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtollExtension {
    /// What the node may do.
    pub roles: Roles,
    /// The region that its site is in.
    pub region: RegionName,
    /// Counts up each time a node of this name joins; orders its records over joins.
    pub epoch: u64,
}

/// Why an extension can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// Not one DER UTF8String of at most 127 bytes.
    #[error("the Atoll extension is not a short DER UTF8String")]
    Encoding,
    /// A version that we don't read.
    #[error("the Atoll extension has a version that this program does not read")]
    Version,
    /// A key that is missing, there twice, or has a bad value.
    #[error("`{0}` in the Atoll extension is missing, repeated or not valid")]
    Field(&'static str),
}

impl fmt::Display for AtollExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1;roles={};region={};epoch={}", self.roles, self.region, self.epoch)
    }
}

impl AtollExtension {
    /// The extension's value (inside the OCTET STRING), DER.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let text = self.to_string();
        let length = u8::try_from(text.len()).expect("names and numbers are bounded: under 127 bytes");
        let mut der = vec![UTF8_STRING, length];
        der.extend_from_slice(text.as_bytes());
        der
    }

    /// Reads the extension's value.
    pub fn parse(der: &[u8]) -> Result<Self, ExtensionError> {
        let text = match der {
            [UTF8_STRING, length, text @ ..]
                if usize::from(*length) == text.len() && text.len() <= TEXT_BYTES_MAX =>
            {
                std::str::from_utf8(text).map_err(|_| ExtensionError::Encoding)?
            }
            _ => return Err(ExtensionError::Encoding),
        };
        let mut fields = text.split(';');
        if fields.next() != Some("v1") {
            return Err(ExtensionError::Version);
        }
        let fields: Vec<(&str, &str)> = fields.filter_map(|field| field.split_once('=')).collect();
        Ok(Self {
            roles: field(&fields, "roles", parse_roles)?,
            region: field(&fields, "region", |text| text.parse().ok())?,
            epoch: field(&fields, "epoch", |text| text.parse().ok())?,
        })
    }
}

fn field<T>(
    fields: &[(&str, &str)],
    key: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, ExtensionError> {
    let mut found = fields.iter().filter(|(name, _)| *name == key);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => parse(value).ok_or(ExtensionError::Field(key)),
        _ => Err(ExtensionError::Field(key)),
    }
}

/// A role that we don't know can't be held towards us; it is passed over.
fn parse_roles(text: &str) -> Option<Roles> {
    let roles: Roles = text.split(',').filter_map(|role| role.parse::<Role>().ok()).collect();
    (!roles.is_empty()).then_some(roles)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample() -> AtollExtension {
        AtollExtension {
            roles: Role::ALL.into_iter().collect(),
            region: "r".repeat(40).parse().unwrap(),
            epoch: u64::MAX,
        }
    }

    #[test]
    fn the_longest_comes_back() {
        assert_eq!(AtollExtension::parse(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn damage_is_refused() {
        let der = |text: &str| [&[0x0c, text.len() as u8], text.as_bytes()].concat();
        for (text, why) in [
            ("v2;roles=edge;region=fra;epoch=1", ExtensionError::Version),
            ("v1;roles=;region=fra;epoch=1", ExtensionError::Field("roles")),
            ("v1;region=fra;epoch=1", ExtensionError::Field("roles")),
            ("v1;roles=edge;roles=control;region=fra;epoch=1", ExtensionError::Field("roles")),
            ("v1;roles=edge;region=FRA;epoch=1", ExtensionError::Field("region")),
            ("v1;roles=edge;region=fra;epoch=-1", ExtensionError::Field("epoch")),
        ] {
            assert_eq!(AtollExtension::parse(&der(text)), Err(why), "{text}");
        }
        assert!(AtollExtension::parse(&der("v1;roles=edge,later;region=fra;epoch=1;more=x")).is_ok());
        let mut cut = sample().encode();
        cut.pop();
        assert_eq!(AtollExtension::parse(&cut), Err(ExtensionError::Encoding));
        assert_eq!(AtollExtension::parse(&[]), Err(ExtensionError::Encoding));
    }
}
