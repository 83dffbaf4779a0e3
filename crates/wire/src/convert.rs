//! Conversions between wire and model.

mod cache;

pub use cache::CacheRuleError;

use crate::record;
use atoll_model::{Bundle, Check, CheckKind, Protocol, ServiceSpec};

/// A specification from the wire that this version does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An unknown protocol.
    #[error("unknown protocol `{0}`")]
    Protocol(String),
    /// An unknown kind of check.
    #[error("unknown kind of check `{0}`")]
    Check(String),
    /// Nothing to run.
    #[error("nothing to run")]
    Run,
}

impl From<&ServiceSpec> for record::Spec {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            run: spec.run.clone(),
            working_dir: spec.working_dir.clone(),
            env: spec.env.clone(),
            labels: spec.labels.clone(),
            protocol: spec.protocol.as_str().to_owned(),
            public: spec.public,
            drain_ms: spec.drain_ms,
            checks: spec.checks.iter().map(record::Check::from).collect(),
            // What the names mean depends on the app: control fills them in.
            calls: Vec::new(),
            proxy_env: spec.proxy_env,
            bundle: spec
                .bundle
                .as_ref()
                .map(|bundle| record::Bundle { digest: bundle.digest.clone(), size: bundle.size }),
        }
    }
}

impl TryFrom<record::Spec> for ServiceSpec {
    type Error = SpecError;
    /// The regions, calls and rules are control's own and stay empty; the calls come as [`record::Call`].
    fn try_from(spec: record::Spec) -> Result<Self, SpecError> {
        if spec.run.is_empty() {
            return Err(SpecError::Run);
        }
        let Some(protocol) = Protocol::from_name(&spec.protocol) else {
            return Err(SpecError::Protocol(spec.protocol));
        };
        Ok(Self {
            run: spec.run,
            working_dir: spec.working_dir,
            env: spec.env,
            labels: spec.labels,
            protocol,
            public: spec.public,
            drain_ms: spec.drain_ms,
            checks: spec.checks.into_iter().map(Check::try_from).collect::<Result<_, _>>()?,
            proxy_env: spec.proxy_env,
            bundle: spec.bundle.map(|bundle| Bundle { digest: bundle.digest, size: bundle.size }),
            ..Self::default()
        })
    }
}

impl From<&Check> for record::Check {
    fn from(check: &Check) -> Self {
        let (kind, path) = match &check.kind {
            CheckKind::Http { path } => ("http", path.clone()),
            CheckKind::Tcp => ("tcp", String::new()),
        };
        Self {
            kind: kind.to_owned(),
            path,
            every_ms: check.every_ms,
            timeout_ms: check.timeout_ms,
            grace_ms: check.grace_ms,
            up: check.up,
            down: check.down,
        }
    }
}

impl TryFrom<record::Check> for Check {
    type Error = SpecError;
    fn try_from(check: record::Check) -> Result<Self, SpecError> {
        let kind = match check.kind.as_str() {
            "http" => CheckKind::Http { path: check.path },
            "tcp" => CheckKind::Tcp,
            other => return Err(SpecError::Check(other.to_owned())),
        };
        Ok(Self {
            kind,
            every_ms: check.every_ms.max(10),
            timeout_ms: check.timeout_ms.max(10),
            grace_ms: check.grace_ms,
            up: check.up.max(1),
            down: check.down.max(1),
        })
    }
}
