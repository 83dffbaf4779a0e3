//! The objects that every part of Atoll speaks of: names, ids, roles, clusters, service
//! specifications, reason codes, and the manifest that compiles to them.
//!
//! This crate does no I/O (but for what a caller hands it as text) and knows no runtime.

pub mod cache;
pub mod cluster;
pub mod condition;
pub mod domain;
pub mod ids;
pub mod kind;
pub mod manifest;
pub mod mesh;
pub mod names;
pub mod pattern;
pub mod reason;
pub mod roles;
pub mod spec;

pub use cache::{CacheRule, CacheRuleError, HostSpec, QueryKey, Tier};
pub use cluster::ClusterName;
pub use condition::{Condition, ConditionError};
pub use ids::{InstanceId, ObjectId, RevisionId};
pub use kind::{Kind, ScopeClass, Writer};
pub use mesh::{AllowFrom, AllowRule, CallTarget, GrpcPermit, HttpPermit};
pub use names::{AppName, NameError, NodeName, OrgName, RegionName, ServiceName, SiteName};
pub use pattern::{PathPattern, PatternError};
pub use reason::{Hop, Reason};
pub use roles::{Role, Roles};
pub use spec::{Bundle, Check, CheckKind, Protocol, Scale, ServiceSpec};
