//! What the store keeps.

use super::Stored;
use atoll_mesh_ca::TokenRecord;
use atoll_model::{
    AppName, ClusterName, HostSpec, InstanceId, NodeName, ObjectId, OrgName, RegionName, RevisionId, Roles,
    Scale, ServiceName, ServiceSpec, SiteName,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its id.
    pub id: ObjectId,
    /// Its owner.
    pub org: OrgName,
    /// Its name, unique on the platform.
    pub app: AppName,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// The running or last deploy.
    pub deploy: ObjectId,
    /// The deploys before it that are kept, oldest first.
    pub past: Vec<ObjectId>,
    /// What is wanted of its domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostSpec>,
}

/// A service and what it should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ObjectId,
    /// Its cluster: organization, app, service.
    pub cluster: ClusterName,
    /// What it should run now; nothing: it is on its way out.
    pub target: Option<RevisionId>,
    /// What the last successful deploy gave it; what a failed one goes back to.
    pub current: Option<RevisionId>,
    /// How many instances an operator wants in a region, where that is not the manifest's `min`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scale: BTreeMap<RegionName, u32>,
}

impl Service {
    /// How many instances are to run in a region: what was asked for, while the revision's bounds allow it.
    #[must_use]
    pub fn wanted(&self, region: &RegionName, bounds: Scale) -> u32 {
        let asked = self.scale.get(region).filter(|count| (bounds.min..=bounds.max).contains(count));
        asked.copied().unwrap_or(bounds.min)
    }
}

/// An immutable version of a service's specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its id.
    pub id: RevisionId,
    /// The service.
    pub cluster: ClusterName,
    /// Counts up from 1 for each service.
    pub number: u64,
    /// What to run.
    pub spec: ServiceSpec,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// Its deploy failed: nothing of it is to stay.
    pub failed: bool,
    /// Who deployed it.
    #[serde(default)]
    pub by: String,
}

/// How far a deploy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeployState {
    /// Instances are being replaced.
    Running,
    /// Instances are as wanted; edges are asked whether they serve it.
    Serving,
    /// Done.
    Done,
    /// Failed, and what ran before still serves, or nothing ran before and nothing is left.
    RolledBack,
    /// Failed, and not undone.
    Failed,
}

impl DeployState {
    /// Whether it has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Failed)
    }
}

/// What a deploy does to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// Before.
    pub from: Option<RevisionId>,
    /// After; nothing: the service is removed.
    pub to: Option<RevisionId>,
}

/// Why a deploy failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cause {
    /// One sentence.
    pub message: String,
    /// The service.
    pub service: Option<ServiceName>,
    /// Where.
    pub region: Option<RegionName>,
    /// The instance.
    pub instance: Option<InstanceId>,
    /// The exit status of its last process, if it ended by itself.
    pub exit_status: Option<i32>,
    /// The signal that ended its last process.
    pub signal: Option<i32>,
    /// The last lines it printed.
    pub output: Vec<String>,
}

/// One deploy of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// Its id.
    pub id: ObjectId,
    /// The owner.
    pub org: OrgName,
    /// The app.
    pub app: AppName,
    /// How far it is.
    pub state: DeployState,
    /// Whether the app is being removed.
    pub delete: bool,
    /// What it changes.
    pub services: BTreeMap<ServiceName, ServiceChange>,
    /// When it was accepted, ms since 1970.
    pub started_ms: u64,
    /// When it came to its present state.
    pub state_ms: u64,
    /// The desired state that edges must have: a store revision.
    pub version: u64,
    /// Why it failed.
    pub cause: Option<Cause>,
    /// Who asked for it.
    pub by: String,
    /// What the services' [`Service::scale`] was before, where the deploy changes it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scale_before: BTreeMap<ServiceName, BTreeMap<RegionName, u32>>,
    /// What [`App::hosts`] was before, where the deploy changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_before: Option<Vec<HostSpec>>,
}

/// Whether an instance is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlacementState {
    /// Yes.
    Run,
    /// It finishes what it has.
    Drain,
}

/// An instance's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The instance.
    pub instance: InstanceId,
    /// Of which service.
    pub cluster: ClusterName,
    /// Of which revision.
    pub revision: RevisionId,
    /// In which region.
    pub region: RegionName,
    /// On which host.
    pub host: NodeName,
    /// Whether it is to run.
    pub state: PlacementState,
    /// When it was placed, ms since 1970.
    pub placed_ms: u64,
    /// When it came to its present state.
    pub state_ms: u64,
}

/// What a token may do. Each may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// See what the organization has.
    Read,
    /// Change what runs.
    Deploy,
    /// Make and revoke the organization's tokens, read its audit log.
    Admin,
    /// Run the platform: nodes, certificates, organizations. Only for tokens of the organization `default`.
    /// Also what tokens may do that were made when there were no roles.
    #[default]
    Operator,
}

impl TokenRole {
    /// As the API names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }
}

/// An API token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// The organization it may act for.
    pub org: OrgName,
    /// SHA-256 of the token, hex. Its first characters are the token's id.
    pub hash: String,
    /// Whose it is, for logs.
    pub name: String,
    /// What it may do.
    #[serde(default)]
    pub role: TokenRole,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// Who made it: the name of a token.
    #[serde(default)]
    pub by: String,
    /// From when on it is worth nothing; never, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was last used, within the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<u64>,
}

impl ApiToken {
    /// The id by which people name it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.hash.get(..TOKEN_ID_CHARS).unwrap_or(&self.hash)
    }
}

/// Characters of a token's id: enough that no two meet, too few to find the token by.
const TOKEN_ID_CHARS: usize = 16;

/// A single-use token with which a node joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The organization.
    pub org: OrgName,
    /// What it allows, and who used it.
    #[serde(flatten)]
    pub record: TokenRecord,
}

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The organization that runs it.
    pub org: OrgName,
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// Its roles.
    pub roles: Roles,
    /// Of its record key: counts up with each join.
    pub epoch: u64,
    /// When it joined, ms since 1970.
    pub joined_ms: u64,
    /// It was removed: nothing is renewed, and it is denied everywhere.
    pub removed: bool,
}

/// A public domain and its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The owner.
    pub org: OrgName,
    /// Lower case, no trailing dot.
    pub domain: String,
    /// The service behind it.
    pub cluster: ClusterName,
    /// The certificate, leaf first, DER in base64.
    pub chain: Vec<String>,
    /// Its key, PKCS#8, sealed, in base64.
    pub sealed_key: String,
    /// SHA-256 of the chain, hex.
    pub fingerprint: String,
    /// When the certificate was issued, ms since 1970.
    pub issued_ms: u64,
    /// When it runs out.
    pub not_after_ms: u64,
    /// The organization's own domain: its certificate was uploaded, and no CA of ours renews it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

/// Whose a domain outside the platform's zone is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainClaim {
    /// The domain; `*.` as first label stands for one label.
    pub domain: String,
    /// Its owner.
    pub org: OrgName,
    /// The app behind it.
    pub app: AppName,
}

impl DomainClaim {
    /// The tail of a claim's key: the labels from the right, so that what is below a name lies together.
    #[must_use]
    pub fn tail(domain: &str) -> String {
        domain.rsplit('.').collect::<Vec<_>>().join(".")
    }
}

/// What an operator has drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drained {
    /// One node.
    Node(NodeName),
    /// Every node of a region, those that join later included.
    Region(RegionName),
}

impl std::fmt::Display for Drained {
    /// As records are keyed: `node/NAME` or `region/NAME`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Region(name) => write!(f, "region/{name}"),
        }
    }
}

/// That an operator wants something to take nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainWish {
    /// What.
    pub what: Drained,
    /// Who asked for it.
    pub by: String,
    /// Since when, ms since 1970.
    pub since_ms: u64,
}

/// The answer to a change that carried an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The organization.
    pub org: OrgName,
    /// The key that the client chose.
    pub key: String,
    /// SHA-256 of the request, hex.
    pub request: String,
    /// The answer's status.
    pub status: u16,
    /// The answer's body, sealed, in base64: it can hold a secret.
    pub sealed_body: String,
    /// When it is forgotten, ms since 1970.
    pub expires_ms: u64,
}

/// A tenant of the platform. The organization `default` is there without being stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Its id.
    pub id: ObjectId,
    /// Its name.
    pub org: OrgName,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// Who made it: the name of a token.
    pub by: String,
}

/// One change that was made, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct AuditEntry {
    /// Counts up from 1 in each organization.
    pub seq: u64,
    /// When, ms since 1970.
    pub at_ms: u64,
    /// Whose log it is in.
    pub org: String,
    /// Who: the name of the token, or of the node.
    pub by: String,
    /// The token's id.
    pub token: String,
    /// The organization that the token or the node is of.
    pub by_org: String,
    /// `read`, `deploy`, `admin`, `operator`; `node` for what nodes do.
    pub role: String,
    /// The request's method; for nodes the call's name.
    pub method: String,
    /// The request's path, with parameters in braces.
    pub path: String,
    /// What the parameters stood for, or what was made.
    pub object: String,
    /// The app, if it was about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The status of the answer.
    pub status: u16,
    /// The request's id.
    pub request_id: String,
    /// What changed, where that was cheap to say.
    pub detail: String,
}

/// Which entries of an organization's audit log there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// The organization.
    pub org: OrgName,
    /// The oldest that is kept.
    pub first: u64,
    /// The next one's number.
    pub next: u64,
}

macro_rules! stored {
    ($type:ident, $kind:literal, |$object:ident| $tail:expr $(, filed $under:expr)?) => {
        impl Stored for $type {
            const KIND: &'static str = $kind;
            fn key(&self) -> String {
                let $object = self;
                format!("{}/{}", $kind, $tail)
            }
            $(fn filed_under(&self) -> Option<String> {
                let $object = self;
                Some($under)
            })?
        }
    };
}

/// What of an app's stored responses edges are not to use any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPurges {
    /// The owner.
    pub org: OrgName,
    /// The app.
    pub app: AppName,
    /// Purges up to this one were left out for being old.
    pub floor: u64,
    /// The newest ones, in their order.
    pub marks: Vec<StoredPurge>,
}

/// One purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPurge {
    /// Its place in the order.
    pub seq: u64,
    /// What it names.
    pub what: Purged,
    /// Stale, instead of gone.
    pub soft: bool,
}

/// What a purge names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purged {
    /// All of the app.
    All,
    /// What carries a tag.
    Tag(String),
    /// One address.
    Url {
        /// The domain.
        host: String,
        /// Path and query.
        target: String,
    },
    /// Paths that begin so.
    Prefix(String),
}

impl std::fmt::Display for Purged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Url { host, target } => write!(f, "url https://{host}{target}"),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
        }
    }
}

/// Purges that one app's record holds: with the longest names they fit into its 64 KiB.
const PURGE_BYTES_MAX: usize = 40 * 1024;

impl AppPurges {
    /// The last purge; 0 for none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.marks.last().map_or(self.floor, |mark| mark.seq)
    }

    /// Adds some behind the others, and leaves out the oldest where they would be too many. Gives the place of the
    /// last: their places begin with `now_ms`, or later.
    pub fn add(&mut self, named: Vec<Purged>, soft: bool, now_ms: u64) -> u64 {
        for what in named {
            let seq = now_ms.max(self.last() + 1);
            self.marks.push(StoredPurge { seq, what, soft });
        }
        // More than each has in the record.
        let bytes = |mark: &StoredPurge| mark.what.to_string().len() + 24;
        let (mut left, mut kept) = (PURGE_BYTES_MAX, 0);
        for mark in self.marks.iter().rev() {
            let Some(rest) = left.checked_sub(bytes(mark)) else { break };
            (left, kept) = (rest, kept + 1);
        }
        let too_many = self.marks.len() - kept;
        if let Some(newest) = self.marks.drain(..too_many).next_back() {
            self.floor = newest.seq;
        }
        self.last()
    }

    /// As edges read it.
    #[must_use]
    pub fn to_record(&self) -> atoll_wire::record::Purges {
        use atoll_wire::record::{Purge, PurgedUrl, Purges, purge::What};
        let mark = |mark: &StoredPurge| Purge {
            seq: mark.seq,
            what: Some(match &mark.what {
                Purged::All => What::All(true),
                Purged::Tag(tag) => What::Tag(tag.clone()),
                Purged::Url { host, target } => {
                    What::Url(PurgedUrl { host: host.clone(), target: target.clone() })
                }
                Purged::Prefix(prefix) => What::Prefix(prefix.clone()),
            }),
            soft: mark.soft,
        };
        Purges { floor: self.floor, marks: self.marks.iter().map(mark).collect() }
    }
}

stored!(AppPurges, "purges", |o| format!("{}/{}", o.org, o.app));
stored!(App, "app", |o| format!("{}/{}", o.org, o.app));
stored!(Service, "service", |o| o.cluster.to_string());
stored!(Revision, "revision", |o| format!("{}/{}", o.cluster, o.id));
stored!(Deploy, "deploy", |o| format!("{}/{}", o.org, o.id));
stored!(Placement, "placement", |o| format!("{}/{}", o.cluster, o.instance));
stored!(ApiToken, "api-token", |o| format!("{}/{}", o.org, o.hash));
stored!(JoinToken, "join-token", |o| format!("{}/{}", o.org, o.record.id));
stored!(Node, "node", |o| format!("{}/{}", o.org, o.name));
stored!(Domain, "domain", |o| format!("{}/{}", o.org, o.domain), filed format!("{}/", o.cluster));
stored!(DomainClaim, "domain-claim", |o| DomainClaim::tail(&o.domain));
stored!(DrainWish, "drain", |o| o.what.to_string());
stored!(Org, "org", |o| format!("{}", o.org));
stored!(AuditEntry, "audit", |o| Self::tail(&o.org, o.seq));
stored!(AuditHead, "audit-head", |o| o.org.to_string());
stored!(Idempotency, "idempotency", |o| format!("{}/{}", o.org, o.key));

impl Org {
    /// The names of all organizations, the first one before those that are stored.
    #[must_use]
    pub fn names(stored: Vec<Self>) -> Vec<OrgName> {
        [OrgName::default_org()].into_iter().chain(stored.into_iter().map(|org| org.org)).collect()
    }
}

impl AuditEntry {
    /// The tail of an entry's key in the store.
    #[must_use]
    pub fn tail(org: &str, seq: u64) -> String {
        format!("{org}/{seq:020}")
    }
}

impl Placement {
    /// The key of its record and of the instance's: `host/instance`.
    #[must_use]
    pub fn record_key(&self) -> String {
        format!("{}/{}", self.host, self.instance)
    }

    /// The tail of its key in the store.
    #[must_use]
    pub fn tail(&self) -> String {
        format!("{}/{}", self.cluster, self.instance)
    }
}

impl Revision {
    /// The tail of a revision's key in the store.
    #[must_use]
    pub fn tail(cluster: &ClusterName, id: &RevisionId) -> String {
        format!("{cluster}/{id}")
    }
}
