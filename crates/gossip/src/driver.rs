//! The task that makes the pure parts run: time, random choice of peers, and what follows from changes.

use crate::core::News;
use crate::membership::{Change, Member, Membership, Pace};
use crate::scope::Scope;
use crate::standing::Standing;
use crate::transport::{Event, Opening, Transport};
use atoll_model::{Kind, NodeName};
use atoll_process::drain::Drain;
use atoll_process::tasks::Tasks;
use atoll_wire::record::NodeFacts;
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Peers who are told of an own change at once, and who are told on of one that was heard.
const SPREAD: usize = 3;
const FORWARD: usize = 2;
/// Least time between two such tellings.
const SPREAD_EVERY: Duration = Duration::from_millis(20);
/// How often a remembered address is tried though members are known: two halves find each other.
const HEAL_EVERY: Duration = Duration::from_secs(30);
/// Ticks without news after which they come slower, and how much slower at most.
const QUIET_AFTER: u32 = 10;
const QUIET_SLOWER_MAX: u32 = 5;
/// How often the traffic of open connections is counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often while nobody is known.
const SEEK_EVERY: Duration = Duration::from_millis(500);
/// Addresses tried at a time.
const SEEK_MAX: usize = 8;
/// Exchanges that this node has under way at a time.
const EXCHANGES_MAX: usize = 16;
/// Exchanges with one peer in a row, while one of both has more to say.
const ROUNDS_MAX: usize = 256;

/// Who is alive, by scope; this node itself is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// For each scope that this node is in.
    pub by_scope: BTreeMap<Scope, Vec<Member>>,
}

impl Members {
    /// Who is alive in the scope, in the order of names.
    #[must_use]
    pub fn alive(&self, scope: &Scope) -> &[Member] {
        self.by_scope.get(scope).map_or(&[], Vec::as_slice)
    }

    /// The member of that name, in any scope.
    #[must_use]
    pub fn find(&self, name: &NodeName) -> Option<&Member> {
        self.by_scope.values().flatten().find(|member| member.name == *name)
    }
}

/// What the driver is made of.
pub(crate) struct Driver {
    transport: Arc<Transport>,
    memberships: Vec<Membership>,
    scopes: Vec<Scope>,
    seeds: Vec<SocketAddr>,
    interval: Duration,
    members: watch::Sender<Arc<Members>>,
    standing: Arc<Standing>,
    tasks: Tasks,
    started: Instant,
    healed: Instant,
    sought: Option<Instant>,
    busy: Arc<Semaphore>,
    /// Ticks since something was new.
    quiet_ticks: u32,
    counted: Instant,
}

/// What the driver needs beside the transport.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) own: Member,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) interval: Duration,
    pub(crate) pace: Pace,
}

impl Driver {
    pub(crate) fn new(
        transport: Arc<Transport>,
        plan: Plan,
        tasks: Tasks,
        members: watch::Sender<Arc<Members>>,
        standing: Arc<Standing>,
    ) -> Self {
        let scopes = transport.core.scopes.clone();
        let memberships = scopes
            .iter()
            .map(|scope| Membership::new(scope.clone(), plan.own.clone(), &plan.pace, rand::rng().random()))
            .collect();
        let started = Instant::now();
        Self {
            transport,
            memberships,
            scopes,
            seeds: plan.seeds,
            interval: plan.interval,
            members,
            standing,
            tasks,
            started,
            healed: started,
            sought: None,
            busy: Arc::new(Semaphore::new(EXCHANGES_MAX)),
            quiet_ticks: 0,
            counted: started,
        }
    }

    /// Runs until the drain is forced or `stop` is told, then says goodbye.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>, drain: Drain, stop: Arc<Notify>) {
        let core = Arc::clone(&self.transport.core);
        let mut next_tick = Instant::now();
        let mut spread_from = Instant::now();
        let mut told = false;
        loop {
            let timeout = self.next_timeout();
            tokio::select! {
                () = drain.forced() => break,
                () = stop.notified() => break,
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event),
                    None => break,
                },
                () = sleep_until(timeout) => {}
                () = sleep_until(next_tick) => {
                    self.tick();
                    next_tick = Instant::now() + self.pause();
                }
                () = core.spread.notified(), if !told => told = true,
                () = sleep_until(spread_from), if told => {
                    told = false;
                    spread_from = Instant::now() + SPREAD_EVERY;
                    self.spread();
                }
            }
            self.standing.note_turn();
            self.settle();
        }
        let now = self.now();
        for membership in &mut self.memberships {
            membership.leave(now);
        }
        self.settle();
    }

    /// Until the next tick: longer while nothing changes, when ticks only make good what got lost.
    fn pause(&mut self) -> Duration {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        let slower = (self.quiet_ticks / QUIET_AFTER).clamp(1, QUIET_SLOWER_MAX);
        self.interval.mul_f64(rand::rng().random_range(0.75..1.25)) * slower
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn next_timeout(&self) -> Instant {
        let first = self.memberships.iter().filter_map(Membership::poll_timeout).min();
        self.started + first.unwrap_or_else(|| self.now() + Duration::from_secs(1))
    }

    fn position(&self, scope: &Scope) -> Option<usize> {
        self.scopes.iter().position(|own| own == scope)
    }

    fn handle_event(&mut self, event: Event) {
        let now = self.now();
        self.standing.note_heard();
        match event {
            Event::Packet { peer, scope, bytes } => {
                let Some(index) = self.position(&scope) else { return };
                if let Err(why) = self.memberships[index].handle_packet(now, &peer, &bytes) {
                    self.transport.core.stats.packets_refused.inc();
                    if self.transport.core.stats.may_log("packet") {
                        tracing::warn!(peer = %peer.name, %scope, "refused a membership packet: {why}");
                    }
                }
            }
            Event::Introduced { peer, address, generation } => {
                let member = Member {
                    name: peer.name.clone(),
                    address,
                    generation,
                    site: peer.site.clone(),
                    region: peer.region.clone(),
                    roles: peer.roles,
                };
                for membership in &mut self.memberships {
                    membership.introduce(now, member.clone());
                }
            }
        }
    }

    /// After every event: timers, packets, changes.
    fn settle(&mut self) {
        let now = self.now();
        let mut changed = false;
        for (membership, scope) in self.memberships.iter_mut().zip(&self.scopes) {
            membership.handle_timeout(now);
            for (to, packet) in membership.poll_packets() {
                self.transport.send_packet(&to.name, to.address, scope, &packet);
            }
            for change in membership.poll_changes() {
                changed = true;
                self.quiet_ticks = 0;
                match change {
                    Change::Up(member) => tracing::info!(%scope, member = %member.name, "member up"),
                    Change::Down(member) => tracing::info!(%scope, member = %member.name, "member down"),
                }
            }
        }
        if changed {
            self.publish_members();
        }
    }

    fn publish_members(&self) {
        let mut members = Members::default();
        for (membership, scope) in self.memberships.iter().zip(&self.scopes) {
            let mut alive: Vec<Member> = membership.alive().cloned().collect();
            alive.sort_by(|a, b| a.name.cmp(&b.name));
            members.by_scope.insert(scope.clone(), alive);
        }
        self.transport.core.stats.members.set(members.by_scope.values().map(Vec::len).sum::<usize>() as i64);
        self.members.send_if_modified(|known| {
            let new = **known != members;
            for gone in
                known.by_scope.values().flatten().filter(|member| members.find(&member.name).is_none())
            {
                self.transport.cut(&gone.name);
            }
            *known = Arc::new(members);
            new
        });
    }

    /// Every interval: one random member of each scope, and whoever is to be found.
    fn tick(&mut self) {
        let mut lonely = false;
        for (membership, scope) in self.memberships.iter().zip(&self.scopes) {
            let alive: Vec<&Member> = membership.alive().collect();
            match alive.choose(&mut rand::rng()) {
                Some(member) => self.exchange_with(member, scope, Opening::Summary),
                None => lonely = true,
            }
        }
        let now = Instant::now();
        if now >= self.counted + COUNT_EVERY {
            self.counted = now;
            self.transport.count_traffic();
        }
        if lonely {
            self.quiet_ticks = 0;
        }
        if lonely && self.sought.is_none_or(|at| now >= at + SEEK_EVERY) {
            self.sought = Some(now);
            self.seek(SEEK_MAX);
        } else if now >= self.healed + HEAL_EVERY {
            self.healed = now;
            self.seek(1);
        }
    }

    /// A change, own or heard: a few members of its scope hear of it at once. It ends where it is known.
    fn spread(&mut self) {
        let news =
            std::mem::take(&mut *self.transport.core.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.quiet_ticks = 0;
        for (membership, scope) in self.memberships.iter().zip(&self.scopes) {
            let (most, from) = match news.get(scope) {
                Some(News::Own) => (SPREAD, None),
                Some(News::From(peer)) => (FORWARD, Some(peer)),
                None => continue,
            };
            let mut others: Vec<&Member> =
                membership.alive().filter(|member| from != Some(&member.name)).collect();
            others.shuffle(&mut rand::rng());
            for member in others.into_iter().take(most) {
                self.exchange_with(member, scope, Opening::Watermarks);
            }
        }
    }

    fn exchange_with(&self, member: &Member, scope: &Scope, opening: Opening) {
        self.exchange(member.address, Some(member.name.clone()), vec![scope.clone()], opening);
    }

    fn exchange(
        &self,
        address: SocketAddr,
        name: Option<NodeName>,
        scopes: Vec<Scope>,
        mut opening: Opening,
    ) {
        // All busy: the next interval comes soon.
        let Ok(permit) = Arc::clone(&self.busy).try_acquire_owned() else { return };
        let transport = Arc::clone(&self.transport);
        let standing = scopes.contains(&Scope::Global).then(|| Arc::clone(&self.standing));
        self.tasks.spawn("gossip exchange", async move {
            let Ok(link) = transport.dial(address, name.as_ref()).await else { return };
            for _ in 0..ROUNDS_MAX {
                let began = std::time::Instant::now();
                match transport.exchange(&link, &scopes, opening).await {
                    Ok(true) => {}
                    Ok(false) => {
                        if let Some(standing) = standing {
                            standing.note_level(began);
                        }
                        break;
                    }
                    Err(_) => break,
                }
                opening = Opening::Watermarks;
            }
            drop(permit);
        });
    }

    /// Tries addresses of nodes that are no members: seeds, and those that records on disk name.
    fn seek(&self, most: usize) {
        let known: HashSet<SocketAddr> =
            self.memberships.iter().flat_map(Membership::alive).map(|member| member.address).collect();
        let own = self.memberships.first().map(|membership| membership.own().address);
        let lacking = |address: &SocketAddr| !known.contains(address) && Some(*address) != own;
        let mut remembered: Vec<SocketAddr> = self.remembered().into_iter().filter(lacking).collect();
        remembered.shuffle(&mut rand::rng());
        let mut seeds: Vec<SocketAddr> = self.seeds.iter().copied().filter(lacking).collect();
        seeds.shuffle(&mut rand::rng());
        // Half and half, so that neither a list of dead seeds nor one of dead peers is in the way.
        let mut addresses: Vec<SocketAddr> = Vec::new();
        while addresses.len() < most && !(seeds.is_empty() && remembered.is_empty()) {
            addresses.extend(seeds.pop());
            addresses.extend(remembered.pop());
        }
        for address in addresses.into_iter().take(most.max(2)) {
            self.exchange(address, None, self.scopes.clone(), Opening::Watermarks);
        }
    }

    fn remembered(&self) -> HashSet<SocketAddr> {
        let core = &self.transport.core;
        let facts = [Kind::NODE, Kind::REGION_NODE].into_iter().flat_map(|kind| core.entries(kind));
        facts
            .filter(|entry| &*entry.key != core.name.as_str())
            .filter_map(|entry| entry.decode::<NodeFacts>().ok()?.gossip_address.parse().ok())
            .collect()
    }
}
