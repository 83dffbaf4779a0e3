//! The loop: looks when something changed, decides, writes, looks again.

use super::memory::Memory;
use super::plan::{Action, Placed, Situation, Target, Wanted, plan};
use super::progress::{DeployStatus, EdgeStatus, Progresses};
use super::verdict::{Verdict, judge, progress};
use crate::apps::{self, Context, drains, records};
use crate::attach::Attached;
use crate::config::{Config, Timing};
use crate::metrics::ControlMetrics;
use crate::store::objects::{
    App, Cause, Deploy, DeployState, Domain, Node, Placement, PlacementState, Revision, Service,
};
use crate::store::{Change, Store, StoreError};
use crate::world::World;
use atoll_model::{InstanceId, NodeName, ObjectId, OrgName, Role};
use atoll_process::Drain;
use atoll_process::clock::unix_ms;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often it looks while something is under way, and else.
const BUSY_TICK: Duration = Duration::from_millis(150);
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Least time between two looks: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(20);
/// More than the wall clock and the monotonic one part by themselves between two looks.
const CLOCK_SET_MS: u64 = 2_000;
/// After a failed write.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Longest wait for one edge's answer.
const EDGE_ANSWER: Duration = Duration::from_secs(2);
/// Between two questions to an edge that does not serve yet.
const EDGE_RETRY: Duration = Duration::from_millis(150);
/// Answers of edges that wait for the loop.
const EDGE_ANSWERS_MAX: usize = 64;

/// Drives everything that is placed.
#[derive(Debug)]
pub struct Reconciler {
    /// Where wishes come from and placements go.
    pub store: Store,
    /// What is.
    pub world: watch::Receiver<Arc<World>>,
    /// Lines to the edges.
    pub attached: Attached,
    /// For records and certificates.
    pub context: Context,
    /// Zone and ports, for URLs.
    pub config: Arc<Config>,
    /// Who watches.
    pub progresses: Progresses,
    /// What is counted.
    pub metrics: ControlMetrics,
}

/// What the store wants, read again when it changed.
#[derive(Debug, Default)]
struct Wishes {
    revision: Option<u64>,
    wanted: Vec<Wanted>,
    deploys: Vec<Deploy>,
    domains: Vec<Domain>,
    removed_nodes: BTreeSet<NodeName>,
    drained_nodes: BTreeSet<NodeName>,
}

/// Notices that the wall clock was set: stored times are by it, and waits are not to be.
#[derive(Debug, Default)]
struct Clock {
    last: Option<(u64, Instant)>,
}

impl Clock {
    /// By how much it was set since the last call, ms; nothing where it ran as it should.
    fn set_by(&mut self, now_ms: u64) -> Option<i64> {
        let (last_ms, at) = self.last.replace((now_ms, Instant::now()))?;
        let ran_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let by_ms = now_ms.checked_signed_diff(last_ms.saturating_add(ran_ms))?;
        (by_ms.unsigned_abs() > CLOCK_SET_MS).then_some(by_ms)
    }
}

#[derive(Debug)]
enum Step {
    Promote(OrgName, ObjectId),
    Finish(OrgName, ObjectId),
    Fail(OrgName, ObjectId, Cause),
}

/// What edges said of a deploy.
type EdgeAnswers = (ObjectId, BTreeMap<NodeName, EdgeStatus>);

impl Reconciler {
    /// Runs until the drain starts.
    pub async fn run(mut self, drain: Drain) {
        let mut revisions = self.store.revisions();
        let mut clock = Clock::default();
        let mut memory = Memory::default();
        let mut wishes = Wishes::default();
        let mut edges = Edges::new();
        // What gossip kept and what nodes say now has to arrive first.
        let warm_up = Duration::from_millis(self.config.timing.warm_up_ms);
        tokio::select! {
            () = tokio::time::sleep(warm_up) => {}
            () = drain.draining() => return,
        }
        loop {
            revisions.mark_unchanged();
            self.world.mark_unchanged();
            let wait = match self.look(&mut clock, &mut memory, &mut wishes, &mut edges).await {
                Ok(true) => PAUSE,
                Ok(false) if wishes.is_busy() => BUSY_TICK,
                Ok(false) => IDLE_TICK,
                Err(error) => {
                    self.metrics.store_errors.inc();
                    tracing::error!(%error, "the reconciler could not store its decisions and tries again");
                    tokio::time::sleep(STORE_RETRY).await;
                    PAUSE
                }
            };
            tokio::time::sleep(PAUSE.min(wait)).await;
            tokio::select! {
                () = drain.draining() => return,
                () = tokio::time::sleep(wait) => {}
                changed = revisions.changed() => if changed.is_err() { return },
                changed = self.world.changed() => if changed.is_err() { return },
                Some((deploy, answers)) = edges.receiver.recv() => edges.take(deploy, answers),
            }
        }
    }

    /// One look; true when something was written.
    async fn look(
        &mut self,
        clock: &mut Clock,
        memory: &mut Memory,
        wishes: &mut Wishes,
        edges: &mut Edges,
    ) -> Result<bool, StoreError> {
        let now_ms = unix_ms();
        if let Some(by_ms) = clock.set_by(now_ms) {
            tracing::warn!(by_ms, "the wall clock was set: deadlines are counted anew");
            memory.clock_was_set(now_ms, by_ms);
        }
        wishes.refresh(&self.store);
        while let Ok((deploy, answers)) = edges.receiver.try_recv() {
            edges.take(deploy, answers);
        }
        let world = self.world.borrow().clone();
        memory.observe(now_ms, &world, wishes.placements());
        let timing: &Timing = &self.config.timing;
        let (removed_nodes, drained_nodes) = (&wishes.removed_nodes, &wishes.drained_nodes);
        let situation = Situation { world: &world, memory, removed_nodes, drained_nodes, timing, now_ms };
        self.report(wishes, &situation, edges);
        let steps = self.steps(wishes, &situation, edges);
        let actions = if steps.is_empty() { plan(&wishes.wanted, &situation) } else { Vec::new() };
        self.metrics.revision.set(wishes.revision.unwrap_or(0).try_into().unwrap_or(i64::MAX));
        self.metrics.placements.set(wishes.placements().count().try_into().unwrap_or(i64::MAX));
        self.metrics.attached.set(self.attached.len().try_into().unwrap_or(i64::MAX));
        if steps.is_empty() && actions.is_empty() {
            return Ok(false);
        }
        let failed = steps.iter().filter(|step| matches!(step, Step::Fail(..))).count();
        let context = Context { now_ms, ..self.context.clone() };
        self.store.change(move |change| apply(change, &context, steps, actions)).await?;
        self.metrics.deploys_failed.inc_by(failed as u64);
        Ok(true)
    }

    fn steps(&self, wishes: &Wishes, situation: &Situation<'_>, edges: &mut Edges) -> Vec<Step> {
        edges.forget_all_but(&wishes.deploys);
        let of = |deploy: &Deploy| match deploy.state {
            DeployState::Running => match judge(deploy, &wishes.wanted, situation) {
                Verdict::Failed(cause) => Some(Step::Fail(deploy.org.clone(), deploy.id.clone(), cause)),
                Verdict::Settled if deploy.delete => Some(Step::Finish(deploy.org.clone(), deploy.id.clone())),
                Verdict::Settled => Some(Step::Promote(deploy.org.clone(), deploy.id.clone())),
                Verdict::Underway => None,
            },
            DeployState::Serving => self.serving(deploy, wishes, situation, edges),
            DeployState::Done | DeployState::RolledBack | DeployState::Failed => None,
        };
        wishes.deploys.iter().filter_map(of).collect()
    }

    /// Whether every live edge serves a deploy; asks those that did not say so yet.
    fn serving(
        &self,
        deploy: &Deploy,
        wishes: &Wishes,
        situation: &Situation<'_>,
        edges: &mut Edges,
    ) -> Option<Step> {
        let domains: Vec<String> = wishes.domains_of(deploy).map(|domain| domain.domain.clone()).collect();
        let alive: BTreeSet<NodeName> =
            situation.world.alive_with(Role::Edge).map(|(name, _)| name.clone()).collect();
        let said = edges.said.entry(deploy.id.clone()).or_default();
        said.retain(|edge, _| alive.contains(edge));
        let missing: Vec<NodeName> =
            alive.iter().filter(|edge| !said.get(*edge).is_some_and(|said| said.serves)).cloned().collect();
        if domains.is_empty() || missing.is_empty() {
            return Some(Step::Finish(deploy.org.clone(), deploy.id.clone()));
        }
        if situation.memory.watched_for(deploy.state_ms, situation.now_ms)
            > situation.timing.serve_deadline_ms
        {
            let why = missing.iter().map(|edge| {
                let detail = said.get(edge).map_or("it has not answered", |said| said.detail.as_str());
                format!("{edge}: {detail}")
            });
            let message = format!("not every edge serves it: {}", why.collect::<Vec<_>>().join("; "));
            return Some(Step::Fail(deploy.org.clone(), deploy.id.clone(), Cause { message, ..Cause::default() }));
        }
        edges.ask(&self.attached, deploy, domains, missing);
        None
    }

    fn report(&self, wishes: &Wishes, situation: &Situation<'_>, edges: &Edges) {
        for deploy in &wishes.deploys {
            let urls = wishes.domains_of(deploy).map(|domain| self.config.url(&domain.domain)).collect();
            self.progresses.report(DeployStatus {
                regions: progress(deploy, &wishes.wanted, situation),
                edges: edges.said.get(&deploy.id).cloned().unwrap_or_default(),
                ..DeployStatus::of(deploy, urls)
            });
        }
        for id in self.progresses.ids() {
            if !wishes.deploys.iter().any(|deploy| deploy.id == id) {
                let stored = self.store.list::<Deploy>("").into_iter().find(|deploy| deploy.id == id);
                // One that was accepted since we looked is for the next look.
                if stored.as_ref().is_none_or(|deploy| deploy.state.is_final()) {
                    self.progresses.end(&id, stored.as_ref());
                }
            }
        }
    }
}

fn apply(
    change: &mut Change<'_>,
    context: &Context,
    steps: Vec<Step>,
    actions: Vec<Action>,
) -> Result<(), StoreError> {
    for step in steps {
        match step {
            Step::Promote(org, deploy) => apps::promote(change, context, &org, &deploy)?,
            Step::Finish(org, deploy) => apps::finish(change, context.now_ms, &org, &deploy)?,
            Step::Fail(org, deploy, cause) => apps::fail(change, context, &org, &deploy, cause)?,
        }
    }
    actions.into_iter().try_for_each(|action| act(change, context, action))
}

fn act(change: &mut Change<'_>, context: &Context, action: Action) -> Result<(), StoreError> {
    match action {
        Action::Place { cluster, revision, region, host } => {
            let service = change.get::<Service>(&cluster.to_string());
            // A deploy can have been accepted since we decided.
            if service.is_none_or(|service| service.target.as_ref() != Some(&revision)) {
                return Ok(());
            }
            let Some(stored) = change.get::<Revision>(&Revision::tail(&cluster, &revision)) else {
                return Ok(());
            };
            let instance = InstanceId::from_parts(context.now_ms, rand::random());
            tracing::info!(%cluster, %revision, %region, %host, %instance, "placing an instance");
            let (placed_ms, state_ms) = (context.now_ms, context.now_ms);
            let state = PlacementState::Run;
            let placement =
                Placement { instance, cluster, revision, region, host, state, placed_ms, state_ms };
            records::place(change, &placement, &stored.spec)
        }
        Action::Drain { placement, why } => {
            let Some(mut placement) = change.get::<Placement>(&placement.tail()) else { return Ok(()) };
            let tail = Revision::tail(&placement.cluster, &placement.revision);
            let Some(stored) = change.get::<Revision>(&tail) else { return Ok(()) };
            tracing::info!(instance = %placement.instance, cluster = %placement.cluster, why, "draining an instance");
            placement.state = PlacementState::Drain;
            placement.state_ms = context.now_ms;
            records::place(change, &placement, &stored.spec)
        }
        Action::Remove { placement, why } => {
            tracing::info!(instance = %placement.instance, cluster = %placement.cluster, why, "removing an instance");
            records::displace(change, &placement);
            apps::collect(change, &placement.cluster.org, &placement.cluster.app)
        }
    }
}

impl Wishes {
    fn refresh(&mut self, store: &Store) {
        let revision = *store.revisions().borrow();
        if self.revision == Some(revision) {
            return;
        }
        let revisions: BTreeMap<_, _> =
            store.list::<Revision>("").into_iter().map(|revision| (revision.id.clone(), revision)).collect();
        let mut placed: BTreeMap<_, Vec<Placed>> = BTreeMap::new();
        for placement in store.list::<Placement>("") {
            let drain_ms = revisions.get(&placement.revision).map_or(0, |revision| revision.spec.drain_ms);
            placed.entry(placement.cluster.clone()).or_default().push(Placed { placement, drain_ms });
        }
        let wanted = |service: Service| {
            let target = service.target.as_ref().and_then(|id| revisions.get(id)).map(|revision| Target {
                revision: revision.id.clone(),
                regions: revision
                    .spec
                    .regions
                    .iter()
                    .map(|(name, scale)| (name.clone(), service.wanted(name, *scale)))
                    .collect(),
            });
            let failed =
                revisions.values().filter(|revision| revision.failed && revision.cluster == service.cluster);
            Wanted {
                condemned: failed.map(|revision| revision.id.clone()).collect(),
                placed: placed.remove(&service.cluster).unwrap_or_default(),
                cluster: service.cluster,
                target,
            }
        };
        let latest: BTreeSet<ObjectId> = store.list::<App>("").into_iter().map(|app| app.deploy).collect();
        *self = Self {
            revision: Some(revision),
            wanted: store.list::<Service>("").into_iter().map(wanted).collect(),
            deploys: store
                .list::<Deploy>("")
                .into_iter()
                .filter(|deploy| !deploy.state.is_final() && latest.contains(&deploy.id))
                .collect(),
            domains: store.list::<Domain>(""),
            removed_nodes: store
                .list::<Node>("")
                .into_iter()
                .filter(|node| node.removed)
                .map(|node| node.name)
                .collect(),
            drained_nodes: drains::drained_nodes(store).into_keys().collect(),
        };
    }

    fn placements(&self) -> impl Iterator<Item = &Placement> + Clone {
        self.wanted.iter().flat_map(|service| service.placed.iter().map(|placed| &placed.placement))
    }

    fn domains_of(&self, deploy: &Deploy) -> impl Iterator<Item = &Domain> {
        self.domains.iter().filter(|domain| domain.org == deploy.org && domain.cluster.app == deploy.app)
    }

    fn is_busy(&self) -> bool {
        !self.deploys.is_empty()
            || self.placements().any(|placement| placement.state == PlacementState::Drain)
    }
}

/// Questions to edges, and what they said.
#[derive(Debug)]
struct Edges {
    said: BTreeMap<ObjectId, BTreeMap<NodeName, EdgeStatus>>,
    asking: BTreeSet<ObjectId>,
    sender: mpsc::Sender<EdgeAnswers>,
    receiver: mpsc::Receiver<EdgeAnswers>,
}

impl Edges {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(EDGE_ANSWERS_MAX);
        Self { said: BTreeMap::new(), asking: BTreeSet::new(), sender, receiver }
    }

    fn take(&mut self, deploy: ObjectId, answers: BTreeMap<NodeName, EdgeStatus>) {
        self.asking.remove(&deploy);
        self.said.entry(deploy).or_default().extend(answers);
    }

    fn forget_all_but(&mut self, deploys: &[Deploy]) {
        self.said.retain(|id, _| deploys.iter().any(|deploy| deploy.id == *id));
    }

    /// Asks once, unless answers are still on their way.
    fn ask(&mut self, attached: &Attached, deploy: &Deploy, domains: Vec<String>, edges: Vec<NodeName>) {
        if !self.asking.insert(deploy.id.clone()) {
            return;
        }
        let (attached, sender) = (attached.clone(), self.sender.clone());
        let (id, version) = (deploy.id.clone(), deploy.version);
        tokio::spawn(async move {
            let questions = edges.into_iter().map(|edge| ask_edge(&attached, edge, &domains, version));
            let answers: BTreeMap<_, _> =
                futures_util::future::join_all(questions).await.into_iter().collect();
            if answers.values().any(|answer| !answer.serves) {
                tokio::time::sleep(EDGE_RETRY).await;
            }
            // The loop is gone when this fails, and nobody waits.
            let _gone = sender.send((id, answers)).await.is_err();
        });
    }
}

async fn ask_edge(
    attached: &Attached,
    edge: NodeName,
    domains: &[String],
    version: u64,
) -> (NodeName, EdgeStatus) {
    for domain in domains {
        if let Err(error) = attached.can_serve(&edge, domain, version, EDGE_ANSWER).await {
            return (edge, EdgeStatus { serves: false, detail: format!("{domain}: {error}") });
        }
    }
    (edge, EdgeStatus { serves: true, detail: String::new() })
}
