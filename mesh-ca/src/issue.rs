//! The parts of every certificate that we make: serial, times, names, usages.

use crate::error::CaError;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use std::time::Duration;
use time::OffsetDateTime;

/// For peers whose clocks are behind ours.
const BACKDATE_MAX: Duration = Duration::from_secs(60);
/// The end that stands for "none" (RFC 5280, section 4.1.2.5): 9999-12-31T23:59:59Z.
pub(crate) const NO_END_MS: u64 = 253_402_300_799_000;

/// From when to when a certificate is valid, ms since 1970, whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before_ms: u64,
    pub(crate) not_after_ms: u64,
}

impl Validity {
    /// Valid for `lifetime` from `now_ms`. The start is earlier by a tenth of the lifetime, a minute
    /// at most, so that short-lived certificates don't look half spent when they are new.
    pub(crate) fn of(now_ms: u64, lifetime: Duration) -> Self {
        let backdate = (lifetime / 10).min(BACKDATE_MAX);
        let start = now_ms.saturating_sub(millis(backdate));
        let end = now_ms.saturating_add(millis(lifetime)).min(NO_END_MS);
        Self { not_before_ms: start / 1000 * 1000, not_after_ms: end.div_ceil(1000) * 1000 }
    }

    /// Valid until it is withdrawn.
    pub(crate) fn endless(now_ms: u64) -> Self {
        Self { not_after_ms: NO_END_MS, ..Self::of(now_ms, BACKDATE_MAX * 10) }
    }

    /// The part of it that starts no earlier than the issuer does.
    pub(crate) fn not_before(self, earliest_ms: u64) -> Self {
        Self { not_before_ms: self.not_before_ms.max(earliest_ms), ..self }
    }

    /// The part of it that ends no later than the issuer does.
    pub(crate) fn not_after(self, latest_ms: u64) -> Self {
        Self { not_after_ms: self.not_after_ms.min(latest_ms), ..self }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// 16 random bytes, of which 126 bits are free: positive, and always as long.
pub(crate) fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes)
}

/// A leaf's parameters.
pub(crate) fn leaf(
    common_name: &str,
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    validity: Validity,
    serial: &[u8; 16],
) -> Result<CertificateParams, CaError> {
    let mut params = base(common_name, names, validity, serial)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A CA's parameters; `below` is how many CAs there may be between it and a leaf.
pub(crate) fn authority(
    common_name: &str,
    names: Vec<SanType>,
    below: u8,
    validity: Validity,
    serial: &[u8; 16],
) -> Result<CertificateParams, CaError> {
    let mut params = base(common_name, names, validity, serial)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn base(
    common_name: &str,
    names: Vec<SanType>,
    validity: Validity,
    serial: &[u8; 16],
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before_ms)?;
    params.not_after = date(validity.not_after_ms)?;
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.subject_alt_names = names;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Atoll");
    // X.520 ends common names at 64 characters. They are for people; nothing of ours reads them.
    let common_name: String = common_name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// An URI among a certificate's names.
pub(crate) fn uri(text: &str) -> Result<SanType, CaError> {
    text.try_into().map(SanType::URI).map_err(|_| CaError::Name(text.to_owned()))
}

fn date(ms: u64) -> Result<OffsetDateTime, CaError> {
    let seconds = i64::try_from(ms / 1000).map_err(|_| CaError::Clock)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Clock)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_a_minute_back_at_most() {
        let now_ms = 1_000_000_500;
        let node = Validity::of(now_ms, Duration::from_secs(7 * 86_400));
        assert_eq!(node, Validity { not_before_ms: 999_940_000, not_after_ms: 1_604_801_000 });
        let short = Validity::of(now_ms, Duration::from_secs(4));
        assert_eq!(short, Validity { not_before_ms: 1_000_000_000, not_after_ms: 1_000_005_000 });
        assert_eq!(Validity::endless(now_ms).not_after_ms, NO_END_MS);
    }

    #[test]
    fn serials_are_long_positive_and_differ() {
        let serials: std::collections::HashSet<_> = (0..1000).map(|_| random_serial().unwrap()).collect();
        assert_eq!(serials.len(), 1000);
        assert!(serials.iter().all(|serial| (0x40..0x80).contains(&serial[0])));
    }
}
