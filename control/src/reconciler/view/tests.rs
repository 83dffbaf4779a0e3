#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::reconciler::plan::Load;
use crate::store::objects::{Node, Placement, PlacementState, Revision, Service};
use crate::store::{Change, StoreError};
use crate::world::{NodeSeen, Observed};
use atoll_model::{
    InstanceId, Kind, ObjectId, OrgName, RegionName, RevisionId, Role, Roles, Scale, ServiceSpec,
};
use atoll_wire::record::{self, NodeFacts, instance::State};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SERVICES: u64 = 5;
const HOSTS: u64 = 4;

/// Something that happens between two looks.
#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Deploy {
        service: u64,
        number: u64,
        min: u32,
    },
    Condemn {
        service: u64,
        number: u64,
    },
    RemoveService(u64),
    Host {
        host: u64,
        alive: bool,
        draining: bool,
    },
    RemoveNode(u64),
    /// Every host says that of all its instances.
    Say(State),
    /// One host says that of one of its instances.
    SayOne {
        pick: usize,
        state: State,
    },
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let state =
        || prop_oneof![3 => Just(State::Healthy), 1 => Just(State::Unhealthy), 1 => Just(State::Stopped)];
    prop_oneof![
        3 => (0..5_000u64).prop_map(Event::Wait),
        1 => (30_000..90_000u64).prop_map(Event::Wait),
        4 => (0..SERVICES, 1..4u64, 0..3u32).prop_map(|(service, number, min)| Event::Deploy { service, number, min }),
        1 => (0..SERVICES, 1..4u64).prop_map(|(service, number)| Event::Condemn { service, number }),
        1 => (0..SERVICES).prop_map(Event::RemoveService),
        3 => (0..HOSTS, any::<bool>(), any::<bool>()).prop_map(|(host, alive, draining)| Event::Host { host, alive, draining }),
        1 => (0..HOSTS).prop_map(Event::RemoveNode),
        4 => state().prop_map(Event::Say),
        4 => (0..50usize, state()).prop_map(|(pick, state)| Event::SayOne { pick, state }),
        1 => Just(Event::Restart),
    ]
}

fn cluster(service: u64) -> ClusterName {
    format!("default/app{}/s{service}", service / 2).parse().unwrap()
}

fn region(host: u64) -> RegionName {
    if host < 3 { "fra" } else { "was" }.parse().unwrap()
}

fn host_name(host: u64) -> NodeName {
    format!("host{host}").parse().unwrap()
}

fn revision(service: u64, number: u64) -> RevisionId {
    RevisionId::from_parts(service, number.into())
}

fn node(host: u64, alive: bool, draining: bool) -> NodeSeen {
    NodeSeen {
        roles: Roles::NONE.with(Role::Host),
        region: region(host),
        alive,
        facts: NodeFacts { draining, ..NodeFacts::default() },
        written_ms: 0,
        kind: Kind::REGION_NODE,
    }
}

fn stored_revision(service: u64, number: u64, min: u32, failed: bool) -> Revision {
    let regions = ["fra", "was"].map(|name| (name.parse().unwrap(), Scale { min, max: 9 }));
    Revision {
        id: revision(service, number),
        cluster: cluster(service),
        number,
        spec: ServiceSpec { drain_ms: 1_000, regions: regions.into(), ..ServiceSpec::default() },
        created_ms: 0,
        failed,
        by: String::new(),
    }
}

/// A store, a world and what gossip would carry.
struct Platform {
    _folder: tempfile::TempDir,
    store: Store,
    world: World,
    now_ms: u64,
    ids: u128,
}

impl Platform {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _feed) = Store::open(folder.path(), 0).unwrap();
        let mut world = World::default();
        for host in 0..HOSTS {
            world.nodes.insert(host_name(host), node(host, true, false));
        }
        Self { _folder: folder, store, world, now_ms: 1_000_000, ids: 0 }
    }

    async fn write(&self, change: impl FnOnce(&mut Change<'_>) -> Result<(), StoreError> + Send + 'static) {
        self.store.change(change).await.unwrap();
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::Wait(ms) => self.now_ms += ms,
            Event::Deploy { service, number, min } => {
                self.write(move |change| {
                    change.put(&stored_revision(service, number, min, false))?;
                    let tail = cluster(service).to_string();
                    let mut stored = change.get::<Service>(&tail).unwrap_or_else(|| Service {
                        id: ObjectId::from_parts(service, 0),
                        cluster: cluster(service),
                        target: None,
                        current: None,
                        scale: BTreeMap::new(),
                    });
                    stored.target = Some(revision(service, number));
                    change.put(&stored)
                })
                .await;
            }
            Event::Condemn { service, number } => {
                self.write(move |change| {
                    let tail = Revision::tail(&cluster(service), &revision(service, number));
                    let Some(mut stored) = change.get::<Revision>(&tail) else { return Ok(()) };
                    stored.failed = true;
                    change.put(&stored)
                })
                .await;
            }
            Event::RemoveService(service) => {
                self.write(move |change| {
                    let Some(mut stored) = change.get::<Service>(&cluster(service).to_string()) else {
                        return Ok(());
                    };
                    stored.target = None;
                    change.put(&stored)
                })
                .await;
            }
            Event::Host { host, alive, draining } => {
                self.world.nodes.insert(host_name(host), node(host, alive, draining));
            }
            Event::RemoveNode(host) => {
                self.write(move |change| {
                    change.put(&Node {
                        org: OrgName::default_org(),
                        name: host_name(host),
                        site: "fra1".parse().unwrap(),
                        region: region(host),
                        roles: Roles::NONE.with(Role::Host),
                        epoch: 1,
                        joined_ms: 0,
                        removed: true,
                    })
                })
                .await;
            }
            Event::Say(state) => {
                for placement in self.store.list::<Placement>("") {
                    self.say(&placement, state);
                }
            }
            Event::SayOne { pick, state } => {
                let placements = self.store.list::<Placement>("");
                if let Some(placement) = placements.get(pick % placements.len().max(1)) {
                    self.say(placement, state);
                }
            }
            Event::Restart => {}
        }
    }

    fn say(&mut self, placement: &Placement, state: State) {
        let mut facts = record::Instance::default();
        facts.set_state(state);
        let seen = Observed::from_record(placement.host.clone(), placement.region.as_str(), facts);
        self.world.instances.insert(&placement.instance, seen);
    }

    async fn act(&mut self, actions: Vec<Action>) {
        let now_ms = self.now_ms;
        for action in actions {
            self.ids += 1;
            let instance = InstanceId::from_parts(now_ms, self.ids);
            self.write(move |change| match action {
                Action::Place { cluster, revision, region, host } => {
                    let state = PlacementState::Run;
                    let (placed_ms, state_ms) = (now_ms, now_ms);
                    change.put(&Placement {
                        instance,
                        cluster,
                        revision,
                        region,
                        host,
                        state,
                        placed_ms,
                        state_ms,
                    })
                }
                Action::Drain { mut placement, .. } => {
                    placement.state = PlacementState::Drain;
                    placement.state_ms = now_ms;
                    change.put(&placement)
                }
                Action::Remove { placement, .. } => {
                    change.remove::<Placement>(&placement.tail());
                    Ok(())
                }
            })
            .await;
        }
    }
}

/// What somebody who reads everything at each look would do, with the same notes of the past.
fn all_over(platform: &Platform, memory: &mut Memory, timing: &Timing) -> (Wishes, Vec<Action>) {
    let mut wishes = Wishes::default();
    wishes.refresh(&platform.store);
    let world = &platform.world;
    let placed = wishes.services.values().flat_map(|service| &service.placed);
    let hosts: Vec<NodeName> = placed.clone().map(|placed| placed.placement.host.clone()).collect();
    memory.observe_hosts(platform.now_ms, world, hosts.iter());
    placed.for_each(|placed| memory.observe_instance(platform.now_ms, world, &placed.placement));
    let situation = Situation {
        world,
        memory,
        removed_nodes: &wishes.removed_nodes,
        drained_nodes: &wishes.drained_nodes,
        timing,
        now_ms: platform.now_ms,
    };
    let actions = plan(wishes.services.values(), &Load::of(wishes.services.values()), &situation);
    (wishes, actions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn looking_at_what_changed_is_as_good_as_looking_at_everything(
        events in proptest::collection::vec(event(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let timing = Timing::default();
            let mut platform = Platform::new();
            let mut view = View::default();
            let mut memory = Memory::default();
            for event in events {
                if matches!(event, Event::Restart) {
                    (view, memory) = (View::default(), Memory::default());
                }
                platform.happens(event).await;
                view.update_without_sweep(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
                let (wishes, expected) = all_over(&platform, &mut memory, &timing);
                prop_assert_eq!(&view.wishes.services, &wishes.services);
                prop_assert_eq!(&view.wishes.load, &wishes.load);
                prop_assert_eq!(&view.wishes.instances, &wishes.instances);
                prop_assert_eq!(&view.wishes.removed_nodes, &wishes.removed_nodes);
                prop_assert_eq!(view.wishes.is_busy(), wishes.is_busy());
                for placement in platform.store.list::<Placement>("") {
                    let id = &placement.instance;
                    prop_assert_eq!(view.memory.is_healthy(id), memory.is_healthy(id));
                    let settled = |memory: &Memory| memory.is_settled(id, platform.now_ms, timing.settle_ms);
                    prop_assert_eq!(settled(&view.memory), settled(&memory));
                }
                let actions = view.plan(&timing, platform.now_ms, &BTreeSet::new());
                prop_assert_eq!(&actions, &expected);
                platform.act(actions).await;
            }
            Ok(())
        })?;
    }
}

/// A guard that is not timed: what one change costs must not depend on how much there is.
#[tokio::test]
async fn one_change_among_many_services_is_one_service_looked_at() {
    let mut platform = Platform::new();
    let names: Vec<(u64, ClusterName)> =
        (0..500).map(|n| (n, format!("default/app{}/s{n}", n / 10).parse().unwrap())).collect();
    platform
        .write(move |change| {
            for (n, cluster) in names {
                let revision = Revision { cluster: cluster.clone(), ..stored_revision(n, 1, 1, false) };
                let (id, target) = (ObjectId::from_parts(n, 0), Some(revision.id.clone()));
                change.put(&Service { id, cluster, target, current: None, scale: BTreeMap::new() })?;
                change.put(&revision)?;
            }
            Ok(())
        })
        .await;
    let timing = Timing::default();
    let mut view = View::default();
    // Everything is placed, gets healthy and settles.
    for _ in 0..4 {
        view.update(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
        let actions = view.plan(&timing, platform.now_ms, &BTreeSet::new());
        platform.act(actions).await;
        platform.happens(Event::Say(State::Healthy)).await;
        platform.now_ms += timing.settle_ms + 1;
    }
    view.update_without_sweep(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
    view.plan(&timing, platform.now_ms, &BTreeSet::new());
    assert_eq!(view.wishes.instances.len(), 1_000);
    view.update_without_sweep(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
    assert_eq!((view.plan(&timing, platform.now_ms, &BTreeSet::new()), view.looked_at), (vec![], 0));

    platform.happens(Event::SayOne { pick: 7, state: State::Unhealthy }).await;
    view.update_without_sweep(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
    view.plan(&timing, platform.now_ms, &BTreeSet::new());
    assert_eq!(view.looked_at, 1);
    platform.happens(Event::SayOne { pick: 7, state: State::Healthy }).await;
    platform.now_ms += timing.settle_ms + 1;
    platform.happens(Event::Deploy { service: 1, number: 2, min: 0 }).await;
    view.update(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
    view.plan(&timing, platform.now_ms, &BTreeSet::new());
    assert!(view.looked_at <= 2 + SWEEP, "{}", view.looked_at);
}

#[tokio::test]
async fn what_an_app_is_to_have_is_not_decided_while_it_changes_and_others_do_not_wait() {
    let mut platform = Platform::new();
    platform.happens(Event::Deploy { service: 0, number: 1, min: 1 }).await;
    platform.happens(Event::Deploy { service: 2, number: 1, min: 1 }).await;
    let timing = Timing::default();
    let mut view = View::default();
    view.update(platform.now_ms, &platform.store, Arc::new(platform.world.clone()));
    let changing = [(cluster(0).org, cluster(0).app)].into();
    let of = |actions: Vec<Action>| -> BTreeSet<ClusterName> {
        let placed = |action| if let Action::Place { cluster, .. } = action { Some(cluster) } else { None };
        actions.into_iter().filter_map(placed).collect()
    };
    assert_eq!(of(view.plan(&timing, platform.now_ms, &changing)), [cluster(2)].into());
    let both = of(view.plan(&timing, platform.now_ms, &BTreeSet::new()));
    assert_eq!(both, [cluster(0), cluster(2)].into(), "none was written");
}
