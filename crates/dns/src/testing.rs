//! What several tests need.

use crate::edges::Serving;
use crate::names::Names;
use crate::zone::{NameServer, Zone, origin};
use hickory_proto::rr::Name;

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// `zone.test` with two edges, which are its name servers.
pub(crate) fn zone(domains: &[&str]) -> Zone {
    let origin = origin("zone.test").unwrap();
    let mut names = Names::new("zone.test");
    for domain in domains {
        names.add(domain);
    }
    let server = |node: &str, addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        NameServer::new(node, &origin, addresses).unwrap()
    };
    Zone {
        serial: 7,
        known: true,
        names,
        serving: Serving {
            v4: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            v6: vec![],
            failed_open: false,
        },
        servers: vec![server("fra1-edge", &["10.0.0.1"]), server("was1-edge", &["10.0.0.2", "2001:db8::2"])],
        origin,
    }
}
