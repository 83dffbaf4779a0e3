//! The zone at one moment: all that an answer is made from.

use crate::edges::Serving;
use crate::names::{Existence, Names, key};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::SOA;
use std::net::IpAddr;

/// How long an address may be kept, s. Short, so that clients leave a lost edge soon.
pub const ADDRESS_TTL: u32 = 30;
/// How long it may be kept that there is nothing, s (RFC 2308): a new app is to be found soon.
pub const NEGATIVE_TTL: u32 = 30;
/// How long the SOA and the name servers may be kept, s.
pub const ZONE_TTL: u32 = 3600;
/// The label under which the name servers are: `<node>.ns.<zone>`. Two labels, so that no app has the name.
const SERVERS: &str = "ns";
/// Most name servers in an answer, as many as the root has.
pub const SERVERS_MAX: usize = 13;
/// Longest zone, so that `<service>--<app>` and a node's name fit before it.
const ORIGIN_BYTES_MAX: usize = 160;

/// A text that is no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a zone is a domain such as `apps.example.com`: labels of a-z, 0-9 and -, at most {ORIGIN_BYTES_MAX} characters"
)]
pub struct OriginError;

/// Reads the name of a zone; a dot at its end may be left out.
pub fn origin(text: &str) -> Result<Name, OriginError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() > ORIGIN_BYTES_MAX || !text.split('.').all(plain) {
        return Err(OriginError);
    }
    Name::from_ascii(format!("{}.", text.to_ascii_lowercase())).map_err(|_| OriginError)
}

/// A node that answers for the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    /// `<node>.ns.<zone>`.
    pub name: Name,
    /// Where it answers.
    pub addresses: Vec<IpAddr>,
}

impl NameServer {
    /// The name server that `node` is; nothing where the name does not fit.
    #[must_use]
    pub fn new(node: &str, zone: &Name, addresses: Vec<IpAddr>) -> Option<Self> {
        let name = zone.prepend_label(SERVERS).and_then(|above| above.prepend_label(node)).ok()?;
        Some(Self { name, addresses })
    }
}

/// What is at a name of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'z> {
    /// The zone's own name; a virtual host may answer there, too.
    Apex {
        /// Whether one does.
        host: bool,
    },
    /// A name server.
    Server(&'z NameServer),
    /// A virtual host.
    Host,
    /// Nothing, but there is something below.
    Empty,
    /// Nothing.
    Absent,
    /// Nothing known yet: the desired state has not come.
    Unknown,
}

/// The zone. Never changed: the next one replaces it.
#[derive(Debug, Clone)]
pub struct Zone {
    /// The zone's name.
    pub origin: Name,
    /// Grows with desired state.
    pub serial: u32,
    /// Whether desired state has come, so that a name that is not there does not exist.
    pub known: bool,
    /// The virtual hosts' names.
    pub names: Names,
    /// The addresses that all of them have.
    pub serving: Serving,
    /// Who answers for the zone, at least one; the first is the SOA's.
    pub servers: Vec<NameServer>,
}

impl Zone {
    /// A zone of which nothing is known yet.
    #[must_use]
    pub fn unknown(origin: Name) -> Self {
        let names = Names::new(key(&origin));
        Self { origin, serial: 0, known: false, names, serving: Serving::default(), servers: Vec::new() }
    }

    /// What is at a name, which must be the zone's own or one below it.
    #[must_use]
    pub fn find(&self, name: &Name) -> Found<'_> {
        let existence = self.names.find(name);
        if *name == self.origin {
            return Found::Apex { host: existence == Existence::Host };
        }
        if let Some(server) = self.servers.iter().find(|server| server.name == *name) {
            return Found::Server(server);
        }
        match existence {
            Existence::Host => Found::Host,
            Existence::Empty => Found::Empty,
            Existence::Absent if self.holds_servers(name) => Found::Empty,
            Existence::Absent if self.known => Found::Absent,
            Existence::Absent => Found::Unknown,
        }
    }

    /// The zone's SOA.
    #[must_use]
    pub fn soa(&self) -> SOA {
        let primary = self.servers.first().map_or_else(|| self.origin.clone(), |server| server.name.clone());
        // A zone is at most 160 bytes long: the label always fits.
        let mailbox = self.origin.prepend_label("hostmaster").unwrap_or_else(|_| self.origin.clone());
        SOA::new(primary, mailbox, self.serial, 3_600, 600, 604_800, NEGATIVE_TTL)
    }

    /// Whether the name is the one that all name servers are below.
    fn holds_servers(&self, name: &Name) -> bool {
        !self.servers.is_empty()
            && name.iter().next().is_some_and(|label| label.eq_ignore_ascii_case(SERVERS.as_bytes()))
            && name.base_name() == self.origin
    }
}
