#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use atoll_model::Role;
use proptest::prelude::*;
use rand::RngExt;
use std::collections::HashSet;

pub(crate) fn member(n: usize, generation: u64) -> Member {
    Member {
        name: NodeName::new(format!("n{n}")).unwrap(),
        address: SocketAddr::from(([127, 0, 0, 1], 1000 + n as u16)),
        generation,
        site: SiteName::new("fra1").unwrap(),
        region: RegionName::new("fra").unwrap(),
        roles: Roles::NONE.with(Role::Gateway),
    }
}

fn peer(member: &Member) -> Peer {
    Peer {
        name: member.name.clone(),
        site: member.site.clone(),
        region: member.region.clone(),
        roles: member.roles,
    }
}

/// Nodes and the packets between them, in virtual time.
struct World {
    now: Duration,
    nodes: Vec<Membership>,
    flying: Vec<(Duration, usize, usize, Bytes)>,
    dead: HashSet<usize>,
    rng: StdRng,
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let nodes = (0..count)
            .map(|n| Membership::new(Scope::Global, member(n, 1), &Pace::default(), seed + n as u64))
            .collect();
        Self {
            now: Duration::ZERO,
            nodes,
            flying: Vec::new(),
            dead: HashSet::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn run(&mut self, for_ms: u64, loss: f64) {
        for _ in 0..for_ms / 10 {
            self.now += Duration::from_millis(10);
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.flying).into_iter().partition(|f| f.0 <= self.now);
            self.flying = later;
            for (_, from, to, bytes) in due {
                if !self.dead.contains(&to) {
                    let source = peer(self.nodes[from].own());
                    self.nodes[to].handle_packet(self.now, &source, &bytes).unwrap();
                }
            }
            for n in 0..self.nodes.len() {
                if self.dead.contains(&n) {
                    continue;
                }
                self.nodes[n].handle_timeout(self.now);
                for (to, bytes) in self.nodes[n].poll_packets() {
                    let index: usize = to.name.as_str()[1..].parse().unwrap();
                    if self.rng.random::<f64>() >= loss {
                        let at = self.now + Duration::from_millis(self.rng.random_range(1..80));
                        self.flying.push((at, n, index, bytes));
                    }
                }
            }
        }
    }
}

#[test]
fn nodes_find_each_other_and_notice_a_loss_within_seconds() {
    let mut world = World::new(12, 7);
    for n in 1..12 {
        world.nodes[n].introduce(world.now, member(0, 1));
    }
    world.run(5_000, 0.1);
    for node in &world.nodes {
        assert_eq!(node.alive().count(), 11);
    }
    world.dead.insert(4);
    world.run(8_000, 0.0);
    for (n, node) in world.nodes.iter_mut().enumerate().filter(|(n, _)| *n != 4) {
        assert!(!node.alive().any(|member| member.name.as_str() == "n4"), "n{n} still sees it");
        assert!(
            node.poll_changes()
                .iter()
                .any(|change| matches!(change, Change::Down(m) if m.name.as_str() == "n4"))
        );
    }
    // It comes back under a higher generation.
    world.dead.remove(&4);
    world.nodes[4] = Membership::new(Scope::Global, member(4, 2), &Pace::default(), 99);
    let now = world.now;
    world.nodes[4].introduce(now, member(1, 1));
    world.run(5_000, 0.1);
    for (_, node) in world.nodes.iter().enumerate().filter(|(n, _)| *n != 4) {
        assert!(node.alive().any(|other| other.name.as_str() == "n4" && other.generation >= 2));
    }
}

#[test]
fn a_packet_counts_only_from_the_peer_that_the_certificate_names() {
    let mut a = Membership::new(Scope::Global, member(0, 1), &Pace::default(), 1);
    let mut b = Membership::new(Scope::Global, member(1, 1), &Pace::default(), 2);
    b.introduce(Duration::ZERO, member(0, 1));
    let packets = b.poll_packets();
    assert!(!packets.is_empty());
    let liar = peer(&member(2, 1));
    let refused = a.handle_packet(Duration::ZERO, &liar, &packets[0].1);
    assert_eq!(refused, Err(PacketError::NotThePeer(member(1, 1).name)));
    let other_roles = Peer { roles: Roles::NONE.with(Role::Control), ..peer(&member(1, 1)) };
    assert!(a.handle_packet(Duration::ZERO, &other_roles, &packets[0].1).is_err());
    assert_eq!(a.alive().count(), 0);
    assert_eq!(a.handle_packet(Duration::ZERO, &peer(&member(1, 1)), &packets[0].1), Ok(()));
    assert_eq!(a.alive().count(), 1);
    let mut was =
        Membership::new(Scope::Region(RegionName::new("was").unwrap()), member(0, 1), &Pace::default(), 1);
    let refused = was.handle_packet(Duration::ZERO, &peer(&member(1, 1)), &packets[0].1);
    assert_eq!(refused, Err(PacketError::NotInScope(member(1, 1).name)));
}

proptest! {
    #[test]
    fn random_packets_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut a = Membership::new(Scope::Global, member(0, 1), &Pace::default(), 1);
        let _either = a.handle_packet(Duration::ZERO, &peer(&member(1, 1)), &bytes);
        prop_assert_eq!(a.alive().count(), 0);
    }
}
