//! Removed nodes: what control says of them in gossip becomes the deny-list of every mesh connection.

use atoll_gossip::{Gossip, Scope};
use atoll_identity::{Identity, SpiffeId};
use atoll_model::Kind;
use atoll_process::Drain;
use atoll_wire::record::Denial;
use std::collections::BTreeMap;
use tracing::{error, info};

/// Cuts live connections of denied peers, and refuses new ones.
pub async fn follow(gossip: Gossip, identity: Identity, drain: Drain) {
    let mut subscription = gossip.subscribe(&[Kind::DENIAL, Kind::REGION_DENIAL]);
    let mut denied: BTreeMap<(Kind, Scope, String), (SpiffeId, u64)> = BTreeMap::new();
    loop {
        let entries = tokio::select! {
            Some(entries) = subscription.next() => entries,
            () = drain.forced() => return,
            else => return,
        };
        for entry in entries {
            let denial = entry.decode::<Denial>().ok();
            let denial = denial.and_then(|d| Some((SpiffeId::parse(&d.spiffe_id).ok()?, d.before_epoch)));
            let place = (entry.kind, entry.scope.clone(), entry.key.to_string());
            match (entry.deleted, denial) {
                (true, _) => drop(denied.remove(&place)),
                (false, Some((id, before))) => {
                    let before = if before == 0 { u64::MAX } else { before };
                    info!(%id, before_epoch = before, "denied: its connections are cut");
                    denied.insert(place, (id, before));
                }
                (false, None) => error!(key = %entry.key, "a denial that this version does not understand"),
            }
        }
        let mut newest: BTreeMap<&SpiffeId, u64> = BTreeMap::new();
        for (id, before) in denied.values() {
            let known = newest.entry(id).or_default();
            *known = (*known).max(*before);
        }
        identity.connections().set_denied_before(newest.into_iter().map(|(id, before)| (id.clone(), before)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_gossip::{Config, DesiredChange};
    use atoll_identity::{Material, RecordIdentity, RecordKey, TlsKey, TrustDomain};
    use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
    use atoll_model::Role;
    use atoll_process::clock::unix_ms;
    use atoll_process::{Metrics, drain};
    use atoll_wire::Message;
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn subject(name: &str, role: Role, epoch: u64) -> NodeSubject {
        NodeSubject {
            node: name.parse().unwrap(),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            roles: [role].into_iter().collect(),
            epoch,
        }
    }

    fn identity(ca: &MeshCa, subject: &NodeSubject) -> Identity {
        let key = TlsKey::generate().unwrap();
        let chain = ca.issue_node(subject, &key.csr().unwrap(), unix_ms()).unwrap();
        let (roots, trust_domain) = (ca.roots(), ca.trust_domain().clone());
        Identity::new(Material { chain, key: key.to_pkcs8(), roots, trust_domain }).unwrap()
    }

    async fn start(
        ca: &MeshCa,
        name: &str,
        role: Role,
        scopes: Vec<Scope>,
        seeds: &[SocketAddr],
        dir: &Path,
        drain: Drain,
    ) -> (Gossip, Identity) {
        let subject = subject(name, role, 1);
        let own = identity(ca, &subject);
        let key = RecordKey::generate().unwrap();
        let chain = ca.issue_record(&subject, &key.csr().unwrap(), unix_ms()).unwrap();
        let record = RecordIdentity::new(key, chain).unwrap();
        let mut config = Config::new(subject.node, scopes, "127.0.0.1:0".parse().unwrap(), dir, record);
        config.seeds = seeds.to_vec();
        let gossip = Gossip::start(config, own.clone(), &Metrics::new(), drain.clone()).await.unwrap();
        tokio::spawn(follow(gossip.clone(), own.clone(), drain));
        (gossip, own)
    }

    fn denial(scope: &Scope, before_epoch: u64, revision: u64) -> DesiredChange {
        let spiffe_id = "spiffe://atoll.test/node/fra1/fra1-gw".to_owned();
        let body = Denial { spiffe_id, why: String::new(), before_epoch }.encode_to_vec();
        let (kind, key) = (Kind::REGION_DENIAL, "fra1-gw".to_owned());
        DesiredChange { kind, scope: scope.clone(), key, revision, body: Some(body.into()) }
    }

    /// A host is not in the global scope, and must cut a removed gateway all the same.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_removed_node_is_cut_on_a_host_and_its_old_key_stays_worthless() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let domain = TrustDomain::new("atoll.test").unwrap();
        let ca = MeshCa::open_or_create(dirs[0].path(), domain, Lifetimes::default(), unix_ms()).unwrap();
        let fra = Scope::Region("fra".parse().unwrap());
        let (trigger, drain) = drain::channel();
        let scopes = vec![Scope::Global, fra.clone()];
        let (control, _) = start(&ca, "ctl", Role::Control, scopes, &[], dirs[1].path(), drain.clone()).await;
        let seeds = [control.local_addr()];
        let (host, own) =
            start(&ca, "fra1-host", Role::Host, vec![fra.clone()], &seeds, dirs[2].path(), drain).await;
        let mut members = host.members();
        let met = members.wait_for(|members| !members.alive(&fra).is_empty());
        drop(tokio::time::timeout(Duration::from_secs(15), met).await.unwrap().unwrap());

        let old = identity(&ca, &subject("fra1-gw", Role::Gateway, 7)).own();
        let new = identity(&ca, &subject("fra1-gw", Role::Gateway, 8)).own();
        let guard = own.connections().admit(&old).unwrap();
        control.publish_desired(1, vec![denial(&fra, 0, 1)]).await.unwrap();
        tokio::time::timeout(Duration::from_secs(15), guard.cut()).await.unwrap();
        assert!(own.connections().denies(&new));

        // It joins again, under a higher epoch.
        control.publish_desired(1, vec![denial(&fra, 8, 2)]).await.unwrap();
        let until = Instant::now() + Duration::from_secs(15);
        while own.connections().denies(&new) {
            assert!(Instant::now() < until, "the node that joined again is still denied");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(own.connections().denies(&old));
        trigger.force();
    }
}
