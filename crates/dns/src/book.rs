//! What the node has heard, kept so that a zone can be made of it: without I/O.

use crate::edges::{Edge, Place, Viewpoint, serving};
use crate::names::{Names, key};
use crate::zone::{NameServer, SERVERS_MAX, Zone};
use atoll_model::NodeName;
use atoll_wire::record::{NodeFacts, VirtualHost};
use hickory_proto::rr::Name;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Most addresses that one node is believed to have.
const NODE_ADDRESSES_MAX: usize = 8;

/// A node as its record says.
#[derive(Debug, Clone, PartialEq)]
struct Node {
    /// Of the record certificate that signed it.
    epoch: u64,
    public: Vec<IpAddr>,
    dns: Vec<IpAddr>,
    place: Option<Place>,
    draining: bool,
}

/// What is heard.
#[derive(Debug)]
pub(crate) struct Book {
    origin: Name,
    own: NodeName,
    names: Names,
    hosts: HashMap<Box<str>, Vec<String>>,
    nodes: BTreeMap<NodeName, Node>,
    /// Nodes that were removed: records of epochs below this are not believed.
    denied: BTreeMap<String, u64>,
    /// The edges that were healthy when one last was.
    last_good: BTreeSet<NodeName>,
}

impl Book {
    /// Nothing heard yet. `own` is the node that answers.
    pub(crate) fn new(origin: Name, own: NodeName) -> Self {
        Self {
            names: Names::new(key(&origin)),
            origin,
            own,
            hosts: HashMap::new(),
            nodes: BTreeMap::new(),
            denied: BTreeMap::new(),
            last_good: BTreeSet::new(),
        }
    }

    /// A virtual host by its key, or that there is none any more.
    pub(crate) fn virtual_host(&mut self, key: &str, host: Option<VirtualHost>) {
        for domain in self.hosts.remove(key).unwrap_or_default() {
            self.names.remove(&domain);
        }
        if let Some(VirtualHost { domains, .. }) = host {
            for domain in &domains {
                self.names.add(domain);
            }
            self.hosts.insert(key.into(), domains);
        }
    }

    /// A node's facts, signed in `epoch`, or that it has none any more. `edge` is whether its certificate
    /// says that it is one: what a node says of its roles is not asked. Tells whether that changes a zone: what
    /// nodes say anew is most often how far they have applied desired state.
    pub(crate) fn node(&mut self, name: NodeName, epoch: u64, edge: bool, facts: Option<&NodeFacts>) -> bool {
        let Some(facts) = facts else { return self.nodes.remove(&name).is_some() };
        let public = if edge { public_addresses(facts) } else { Vec::new() };
        let node = Node {
            epoch,
            public,
            dns: addresses(&facts.dns_addresses),
            place: Place::new(facts.latitude, facts.longitude),
            draining: facts.draining,
        };
        self.nodes.insert(name, node.clone()) != Some(node)
    }

    /// That a node was removed: what it signed in epochs below `before` (0: ever) counts no more. Nothing:
    /// it counts again.
    pub(crate) fn denial(&mut self, name: &str, before: Option<u64>) {
        match before {
            Some(before) => self.denied.insert(name.to_owned(), if before == 0 { u64::MAX } else { before }),
            None => self.denied.remove(name),
        };
    }

    /// The zone as it now is. `alive` tells who is; `known` whether the desired state has come.
    pub(crate) fn zone(&mut self, alive: impl Fn(&NodeName) -> bool, serial: u32, known: bool) -> Zone {
        let believed = self.nodes.iter().filter(|(name, node)| !self.is_denied(name, node.epoch));
        let edges: Vec<Edge> = believed
            .clone()
            .filter(|(_, node)| !node.public.is_empty())
            .map(|(name, node)| Edge {
                name: name.clone(),
                addresses: node.public.clone(),
                place: node.place,
                alive: *name == self.own || alive(name),
                draining: node.draining,
            })
            .collect();
        let place = self.nodes.get(&self.own).and_then(|node| node.place);
        let from = Viewpoint { name: self.own.clone(), place };
        let mut servers: Vec<(bool, NameServer)> = believed
            .filter(|(_, node)| !node.dns.is_empty())
            .filter_map(|(name, node)| {
                let dead = *name != self.own && !alive(name);
                Some((dead, NameServer::new(name.as_str(), &self.origin, node.dns.clone())?))
            })
            .collect();
        servers.sort_by_key(|(dead, _)| *dead);
        servers.truncate(SERVERS_MAX);
        if servers.is_empty() {
            // Somebody answers: this node.
            servers.extend(
                NameServer::new(self.own.as_str(), &self.origin, vec![]).map(|server| (false, server)),
            );
        }
        let healthy: BTreeSet<NodeName> =
            edges.iter().filter(|edge| edge.healthy()).map(|edge| edge.name.clone()).collect();
        if !healthy.is_empty() {
            self.last_good = healthy;
        }
        Zone {
            origin: self.origin.clone(),
            serial,
            known: known || !self.hosts.is_empty(),
            names: self.names.clone(),
            serving: serving(&edges, &from, &self.last_good),
            servers: servers.into_iter().map(|(_, server)| server).collect(),
        }
    }

    fn is_denied(&self, name: &NodeName, epoch: u64) -> bool {
        self.denied.get(name.as_str()).is_some_and(|before| epoch < *before)
    }
}

/// Where clients reach an edge. One of an older version says only where it listens for HTTPS.
fn public_addresses(facts: &NodeFacts) -> Vec<IpAddr> {
    if !facts.public_addresses.is_empty() {
        return addresses(&facts.public_addresses);
    }
    let listens = facts.edge_https_address.parse::<SocketAddr>().ok();
    listens.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()).into_iter().collect()
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    let parsed = texts.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let usable = parsed.filter(|address| !address.is_unspecified() && !address.is_multicast());
    usable.take(NODE_ADDRESSES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::answer;
    use crate::testing::name;
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::{DNSClass, RecordType};

    const SERIAL: u32 = 3;

    fn book(own: &str) -> Book {
        Book::new(crate::zone::origin("zone.test").unwrap(), own.parse().unwrap())
    }

    fn host(domains: &[&str]) -> VirtualHost {
        VirtualHost { domains: domains.iter().map(ToString::to_string).collect(), ..VirtualHost::default() }
    }

    fn facts(address: &str, longitude: f64) -> NodeFacts {
        NodeFacts {
            public_addresses: vec![address.to_owned()],
            dns_addresses: vec![address.to_owned()],
            latitude: 1.0,
            longitude,
            ..NodeFacts::default()
        }
    }

    fn add_edge(book: &mut Book, node: &str, facts: &NodeFacts) {
        book.node(node.parse().unwrap(), 5, true, Some(facts));
    }

    fn given(book: &mut Book, alive: &[&str]) -> Vec<String> {
        let zone = book.zone(|name| alive.contains(&name.as_str()), SERIAL, true);
        zone.serving.v4.iter().map(ToString::to_string).collect()
    }

    fn two() -> Book {
        let mut book = book("fra1-control");
        add_edge(&mut book, "fra1-edge", &facts("10.0.0.1", 8.0));
        add_edge(&mut book, "was1-edge", &facts("10.0.0.2", -77.0));
        book
    }

    #[test]
    fn domains_come_and_go_with_their_virtual_hosts() {
        let mut book = book("fra1-control");
        book.virtual_host("a", Some(host(&["shop.zone.test", "shop.example"])));
        book.virtual_host("b", Some(host(&["shop.zone.test"])));
        let code = |book: &mut Book, text: &str| {
            let zone = book.zone(|_| false, SERIAL, true);
            answer(&zone, &name(text), RecordType::TXT, DNSClass::IN).code
        };
        assert_eq!(code(&mut book, "shop.zone.test."), ResponseCode::NoError);
        book.virtual_host("a", Some(host(&["other.zone.test"])));
        assert_eq!(code(&mut book, "shop.zone.test."), ResponseCode::NoError, "another still has it");
        book.virtual_host("b", None);
        assert_eq!(code(&mut book, "shop.zone.test."), ResponseCode::NXDomain);
        assert_eq!(code(&mut book, "other.zone.test."), ResponseCode::NoError);
    }

    #[test]
    fn a_lost_edge_disappears_and_the_last_good_ones_stay_when_all_are_lost() {
        let mut book = two();
        assert_eq!(given(&mut book, &["fra1-edge", "was1-edge"]), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(given(&mut book, &["was1-edge"]), ["10.0.0.2"]);
        assert_eq!(given(&mut book, &[]), ["10.0.0.2", "10.0.0.1"], "the one that was good last is first");
        assert_eq!(given(&mut book, &["fra1-edge"]), ["10.0.0.1"]);
    }

    #[test]
    fn what_a_zone_does_not_say_changes_none() {
        let mut book = two();
        let mut said = |facts: &NodeFacts| book.node("fra1-edge".parse().unwrap(), 5, true, Some(facts));
        assert!(!said(&NodeFacts { applied_version: 9, ..facts("10.0.0.1", 8.0) }));
        assert!(said(&NodeFacts { draining: true, ..facts("10.0.0.1", 8.0) }));
        assert!(said(&facts("10.0.0.9", 8.0)));
        assert!(book.node("fra1-edge".parse().unwrap(), 5, true, None));
        assert!(!book.node("fra1-edge".parse().unwrap(), 5, true, None));
    }

    #[test]
    fn an_edge_that_answers_is_alive_and_first() {
        let mut book = Book { own: "was1-edge".parse().unwrap(), ..two() };
        assert_eq!(given(&mut book, &["fra1-edge"]), ["10.0.0.2", "10.0.0.1"]);
        assert_eq!(given(&mut book, &[]), ["10.0.0.2"]);
    }

    #[test]
    fn only_an_edge_is_given_to_clients() {
        let mut book = two();
        book.node("fra1-gateway".parse().unwrap(), 5, false, Some(&facts("10.6.6.6", 8.0)));
        assert_eq!(given(&mut book, &["fra1-edge", "fra1-gateway"]), ["10.0.0.1"]);
    }

    #[test]
    fn a_removed_node_is_not_believed_even_when_nothing_else_is_left() {
        let mut book = two();
        book.denial("fra1-edge", Some(0));
        assert_eq!(given(&mut book, &["fra1-edge"]), ["10.0.0.2"]);
        assert!(
            book.zone(|_| true, SERIAL, true).servers.iter().all(|s| !s.name.to_ascii().starts_with("fra1"))
        );
        book.denial("fra1-edge", Some(5));
        assert_eq!(given(&mut book, &["fra1-edge"]), ["10.0.0.1"], "it has joined again since");
        book.denial("was1-edge", Some(6));
        assert_eq!(given(&mut book, &[]), ["10.0.0.1"]);
        book.denial("was1-edge", None);
        assert_eq!(given(&mut book, &["was1-edge"]), ["10.0.0.2"]);
    }

    #[test]
    fn addresses_that_nobody_reaches_are_left_out() {
        let mut book = two();
        for (node, https) in [("a", "0.0.0.0:443"), ("b", "192.0.2.7:443"), ("c", "[::]:443"), ("d", "")] {
            let facts = NodeFacts { edge_https_address: https.to_owned(), ..NodeFacts::default() };
            add_edge(&mut book, node, &facts);
        }
        add_edge(&mut book, "e", &facts("0.0.0.0", 1.0));
        assert_eq!(given(&mut book, &["a", "b", "c", "d", "e"]), ["192.0.2.7"]);
    }

    #[test]
    fn there_is_always_a_name_server_and_the_dead_ones_come_last() {
        let mut alone = book("fra1-control");
        let zone = alone.zone(|_| false, SERIAL, false);
        assert_eq!(zone.servers.len(), 1);
        assert!(!zone.known && zone.serial == SERIAL);
        let zone = two().zone(|name| name.as_str() == "was1-edge", SERIAL, true);
        let names: Vec<String> = zone.servers.iter().map(|server| server.name.to_ascii()).collect();
        assert_eq!(names, ["was1-edge.ns.zone.test.", "fra1-edge.ns.zone.test."]);
    }
}
