//! Keeps the zone true to what gossip says.

use crate::book::Book;
use crate::metrics::DnsMetrics;
use crate::server::{Bound, CurrentZone};
use crate::zone::Zone;
use arc_swap::ArcSwap;
use atoll_gossip::{Entry, Gossip, Scope};
use atoll_model::{Kind, NodeName, Role};
use atoll_process::{Drain, Tasks};
use atoll_wire::record::{Denial, NodeFacts, VirtualHost};
use hickory_proto::rr::Name;
use std::sync::Arc;
use tracing::warn;

/// What answering needs.
#[derive(Debug, Clone)]
pub struct Handles {
    /// The node that answers.
    pub name: NodeName,
    /// The platform's zone.
    pub zone: Name,
    /// Names, nodes and who is alive.
    pub gossip: Gossip,
    /// Runs it.
    pub tasks: Tasks,
    /// Its end.
    pub drain: Drain,
}

impl Bound {
    /// Starts to answer: from what is known by now, and then as it changes. Where no desired state has come
    /// yet, names that are not known are answered with SERVFAIL, not denied.
    pub fn run(self, handles: Handles) {
        let Handles { name, zone, gossip, tasks, drain } = handles;
        let metrics = self.metrics();
        let current: CurrentZone = Arc::new(ArcSwap::from_pointee(Zone::unknown(zone.clone())));
        let book = Book::new(zone, name);
        tasks.spawn_vital("dns zone", follow(book, gossip, Arc::clone(&current), metrics, drain.clone()));
        self.serve(&current, &tasks, &drain);
    }
}

async fn follow(mut book: Book, gossip: Gossip, current: CurrentZone, metrics: DnsMetrics, drain: Drain) {
    let mut changes = gossip.subscribe(&[Kind::VIRTUAL_HOST, Kind::NODE, Kind::DENIAL]);
    let mut members = gossip.members();
    loop {
        let mut is_new = true;
        tokio::select! {
            changed = changes.next() => match changed {
                // Each is taken, whatever the others change.
                Some(entries) => is_new = entries.iter().fold(false, |new, entry| take(&mut book, entry) | new),
                // Gossip is closed: the node ends, and what was true last is as good as anything.
                None => return drain.forced().await,
            },
            moved = members.changed() => if moved.is_err() {
                return drain.forced().await;
            },
            () = drain.forced() => return,
        }
        let alive = Arc::clone(&members.borrow_and_update());
        let (epoch, revision) = gossip.desired_version(&Scope::Global);
        // A serial is 32 bits and wraps (RFC 1982).
        let serial = u32::try_from(revision & u64::from(u32::MAX)).unwrap_or_default();
        let (now, known) = (current.load(), epoch > 0);
        if !is_new && now.serial == serial && (now.known || !known) {
            continue;
        }
        let zone = book.zone(|name| alive.find(name).is_some(), serial, known);
        metrics.names.set(i64::try_from(zone.names.len()).unwrap_or(i64::MAX));
        let addresses = zone.serving.v4.len() + zone.serving.v6.len();
        metrics.addresses.set(i64::try_from(addresses).unwrap_or(i64::MAX));
        let failed_open = zone.serving.failed_open && addresses > 0;
        if failed_open && metrics.failed_open.get() == 0 {
            warn!("no edge is known to be healthy; DNS answers with all that are known");
        }
        metrics.failed_open.set(i64::from(failed_open));
        current.store(Arc::new(zone));
    }
}

/// Writes down what a record says, and tells whether that may change the zone.
fn take(book: &mut Book, entry: &Entry) -> bool {
    match entry.kind {
        Kind::VIRTUAL_HOST => {
            match entry.decode::<VirtualHost>() {
                Ok(host) => book.virtual_host(&entry.key, Some(host).filter(|_| !entry.deleted)),
                // The last one that was understood stays.
                Err(cause) => {
                    warn!(key = %entry.key, %cause, "a virtual host that this version does not understand");
                }
            }
            true
        }
        Kind::NODE => {
            let Ok(name) = NodeName::new(&*entry.key) else { return false };
            let facts = entry.decode::<NodeFacts>().ok().filter(|_| !entry.deleted);
            book.node(name, entry.epoch, entry.signer.roles.has(Role::Edge), facts.as_ref())
        }
        Kind::DENIAL => {
            let denial = entry.decode::<Denial>().ok().filter(|_| !entry.deleted);
            book.denial(&entry.key, denial.map(|denial| denial.before_epoch));
            true
        }
        _ => false,
    }
}
