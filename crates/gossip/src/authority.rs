//! Who may write what. A pure function of the signer's certified facts and the record, so that it
//! answers for kinds that this version does not know, too.

use crate::scope::{CONTROL_OWNER, Owner, Scope};
use crate::signers::RecordSigner;
use atoll_model::{Kind, Role, ScopeClass, Writer};
use atoll_wire::record::Record;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Longest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Why a record is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No certificate came with it, and none is known.
    #[error("its signer's certificate is not known")]
    UnknownSigner,
    /// The certificate does not chain to a trusted root.
    #[error("its signer's certificate is not trusted")]
    Certificate,
    /// The signature or the path to it is wrong.
    #[error("its signature does not fit")]
    Signature,
    /// Not a record.
    #[error("it can't be read")]
    Malformed,
    /// The kind's number is outside the scheme.
    #[error("its kind says neither scope nor writer")]
    Kind,
    /// Signed by one, owned by another.
    #[error("its owner is not its signer")]
    Owner,
    /// The signer's role may not write this kind.
    #[error("its signer's role may not write this kind")]
    Role,
    /// The scope is not one that the kind or the signer may use.
    #[error("its scope is not its signer's")]
    Scope,
    /// The key is not one that the owner may use.
    #[error("its key is not its owner's to use")]
    Key,
    /// The epoch is not the one that the certificate holds.
    #[error("its epoch is not the certificate's")]
    Epoch,
    /// Key or body is too long.
    #[error("its key or body is too long")]
    Size,
    /// Not newer than what is held, or out of order: a replay.
    #[error("it is older than what is known")]
    Outdated,
    /// The owner was removed from the platform.
    #[error("its owner was removed")]
    Denied,
    /// The owner has too many records.
    #[error("its owner has too many records")]
    Quota,
}

impl Refusal {
    /// The label of the metric.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownSigner => "unknown_signer",
            Self::Certificate => "certificate",
            Self::Signature => "signature",
            Self::Malformed => "malformed",
            Self::Kind => "kind",
            Self::Owner => "owner",
            Self::Role => "role",
            Self::Scope => "scope",
            Self::Key => "key",
            Self::Epoch => "epoch",
            Self::Size => "size",
            Self::Outdated => "outdated",
            Self::Denied => "denied",
            Self::Quota => "quota",
        }
    }
}

/// Whether `signer` may have written `record`.
pub fn check(signer: &RecordSigner, record: &Record) -> Result<(), Refusal> {
    let kind = Kind(record.kind);
    let (class, writer) = kind.scope_class().zip(kind.writer()).ok_or(Refusal::Kind)?;
    if record.key.len() > KEY_BYTES_MAX || record.body.len() > BODY_BYTES_MAX {
        return Err(Refusal::Size);
    }
    if record.key.is_empty() {
        return Err(Refusal::Key);
    }
    check_owner(signer, record, writer)?;
    check_scope(signer, record, class)?;
    check_key(signer, record, kind)
}

fn check_owner(signer: &RecordSigner, record: &Record, writer: Writer) -> Result<(), Refusal> {
    let owner = Owner::parse(&record.owner).map_err(|_| Refusal::Owner)?;
    let role = match writer {
        Writer::Node => None,
        Writer::Edge => Some(Role::Edge),
        Writer::Gateway => Some(Role::Gateway),
        Writer::Host => Some(Role::Host),
        Writer::Control => Some(Role::Control),
    };
    if role.is_some_and(|role| !signer.roles.has(role)) {
        return Err(Refusal::Role);
    }
    match owner {
        // The store's epoch is not the signer's: any control node signs for the role.
        Owner::Control if writer == Writer::Control => Ok(()),
        Owner::Node(name) if writer != Writer::Control && name == signer.node => {
            if record.epoch == signer.epoch { Ok(()) } else { Err(Refusal::Epoch) }
        }
        Owner::Control | Owner::Node(_) => Err(Refusal::Owner),
    }
}

fn check_scope(signer: &RecordSigner, record: &Record, class: ScopeClass) -> Result<(), Refusal> {
    let scope = Scope::parse(&record.scope).map_err(|_| Refusal::Scope)?;
    if scope.class() != class || !scope.admits(signer.roles, Some(&signer.region)) {
        return Err(Refusal::Scope);
    }
    Ok(())
}

fn check_key(signer: &RecordSigner, record: &Record, kind: Kind) -> Result<(), Refusal> {
    let prefixed = |prefix: &str| {
        record
            .key
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|rest| !rest.is_empty())
    };
    let fits = match kind {
        Kind::NODE | Kind::REGION_NODE => record.key == record.owner,
        Kind::INSTANCE => prefixed(&record.owner),
        Kind::SUMMARY => prefixed(signer.region.as_str()),
        _ => true,
    };
    if fits { Ok(()) } else { Err(Refusal::Key) }
}

/// Whether the name may be a node's: `control` is the role's.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    name == CONTROL_OWNER
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::signers::test_signer;
    use atoll_model::Roles;

    fn record(owner: &str, kind: Kind, scope: &str, key: &str) -> Record {
        Record {
            owner: owner.into(),
            kind: kind.0,
            scope: scope.into(),
            key: key.into(),
            epoch: if owner == "control" { 77 } else { 1 },
            version: 1,
            ..Record::default()
        }
    }

    fn signer(node: &str, region: &str, roles: &[Role]) -> RecordSigner {
        test_signer(node, region, &roles.iter().copied().collect::<Roles>())
    }

    #[test]
    fn what_each_role_may_write() {
        let edge = signer("fra1-edge", "fra", &[Role::Edge]);
        let gateway = signer("fra1-gw", "fra", &[Role::Gateway]);
        let host = signer("host-a", "fra", &[Role::Host]);
        let control = signer("ctl", "fra", &[Role::Control]);
        let unknown_host = Kind(2 << 16 | 3 << 8 | 99);
        for (who, record) in [
            (&edge, record("fra1-edge", Kind::NODE, "", "fra1-edge")),
            (&gateway, record("fra1-gw", Kind::NODE, "", "fra1-gw")),
            (&gateway, record("fra1-gw", Kind::REGION_NODE, "fra", "fra1-gw")),
            (&gateway, record("fra1-gw", Kind::SUMMARY, "", "fra/default/shop/web")),
            (&host, record("host-a", Kind::INSTANCE, "fra", "host-a/i-1")),
            (&host, record("host-a", unknown_host, "fra", "anything")),
            (&control, record("ctl", Kind::NODE, "", "ctl")),
            (&control, record("control", Kind::CLUSTER, "", "default/shop/web")),
            (&control, record("control", Kind::PLACEMENT, "was", "host-b/i-2")),
        ] {
            assert_eq!(check(who, &record), Ok(()), "{record:?}");
        }
    }

    #[test]
    fn every_forbidden_write_is_refused() {
        let edge = signer("fra1-edge", "fra", &[Role::Edge]);
        let gateway = signer("fra1-gw", "fra", &[Role::Gateway]);
        let host_b = signer("host-b", "fra", &[Role::Host]);
        let control = signer("ctl", "fra", &[Role::Control]);
        let named_control = signer("control", "fra", &[Role::Edge]);
        let epoch = Record { epoch: 2, ..record("host-b", Kind::INSTANCE, "fra", "host-b/i-1") };
        let long_key =
            record("host-b", Kind::INSTANCE, "fra", &format!("host-b/{}", "x".repeat(KEY_BYTES_MAX)));
        let long_body = Record {
            body: vec![0; BODY_BYTES_MAX + 1].into(),
            ..record("host-b", Kind::INSTANCE, "fra", "host-b/i")
        };
        for (who, record, refusal) in [
            (&host_b, record("host-b", Kind::INSTANCE, "fra", "host-a/i-1"), Refusal::Key),
            (&host_b, record("host-a", Kind::INSTANCE, "fra", "host-a/i-1"), Refusal::Owner),
            (&host_b, record("host-b", Kind::INSTANCE, "fra", "host-b/"), Refusal::Key),
            (&host_b, record("host-b", Kind::INSTANCE, "fra", "host-bb/i"), Refusal::Key),
            (&host_b, record("host-b", Kind::INSTANCE, "was", "host-b/i-1"), Refusal::Scope),
            (&host_b, record("host-b", Kind::INSTANCE, "", "host-b/i-1"), Refusal::Scope),
            (&host_b, record("host-b", Kind::NODE, "", "host-b"), Refusal::Scope),
            (&host_b, record("host-b", Kind::REGION_NODE, "fra", "host-a"), Refusal::Key),
            (&host_b, record("control", Kind::PLACEMENT, "fra", "host-b/i-1"), Refusal::Role),
            (&host_b, record("host-b", Kind::PLACEMENT, "fra", "host-b/i-1"), Refusal::Role),
            (&edge, record("fra1-edge", Kind::INSTANCE, "fra", "fra1-edge/i-1"), Refusal::Role),
            (&edge, record("fra1-edge", Kind::SUMMARY, "", "fra/c"), Refusal::Role),
            (&edge, record("control", Kind::VIRTUAL_HOST, "", "v"), Refusal::Role),
            (&edge, record("fra1-edge", Kind::REGION_NODE, "fra", "fra1-edge"), Refusal::Scope),
            (&gateway, record("fra1-gw", Kind::SUMMARY, "", "was/default/shop/web"), Refusal::Key),
            (&gateway, record("fra1-gw", Kind::INSTANCE, "fra", "fra1-gw/i"), Refusal::Role),
            (&control, record("ctl", Kind::CLUSTER, "", "c"), Refusal::Owner),
            (&control, record("control", Kind::NODE, "", "control"), Refusal::Owner),
            (&named_control, record("control", Kind::NODE, "", "control"), Refusal::Owner),
            (&control, record("control", Kind(7 << 16 | 4 << 8), "", "k"), Refusal::Kind),
            (&control, record("control", Kind(1 << 16 | 9 << 8), "", "k"), Refusal::Kind),
            (&control, record("control", Kind::CLUSTER, "fra", "c"), Refusal::Scope),
            (&control, record("control", Kind::CLUSTER, "", ""), Refusal::Key),
            (&control, record("No Name", Kind::NODE, "", "x"), Refusal::Owner),
            (&host_b, epoch, Refusal::Epoch),
            (&host_b, long_key, Refusal::Size),
            (&host_b, long_body, Refusal::Size),
        ] {
            assert_eq!(check(who, &record), Err(refusal), "{record:?}");
        }
    }
}
