//! The loop: looks when something changed, decides, writes, looks again.

use super::plan::{Action, Situation};
use super::progress::{DeployStatus, EdgeStatus, Progresses};
use super::verdict::{Verdict, judge, progress};
use super::view::View;
use super::wishes::Wishes;
use crate::apps::{self, Context, records};
use crate::attach::Attached;
use crate::config::{Config, Timing};
use crate::metrics::ControlMetrics;
use crate::store::objects::{
    Cause, Deploy, DeployState, Domain, Placement, PlacementState, Revision, Service,
};
use crate::store::{Change, Store, StoreError};
use crate::world::World;
use atoll_model::{InstanceId, NodeName, ObjectId, OrgName, Role};
use atoll_process::Drain;
use atoll_process::clock::unix_ms;
use atoll_wire::node::CanServe;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Steps of deploys, and of instances, that one look writes: a change of the store holds up all others.
const STEPS_MAX: usize = 64;
const ACTIONS_MAX: usize = 256;
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
/// Deploys of which edges are asked at a time: an edge answers 32 questions at once.
const ASKING_MAX: usize = 24;
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

impl Step {
    fn deploy(&self) -> &ObjectId {
        match self {
            Self::Promote(_, deploy) | Self::Finish(_, deploy) | Self::Fail(_, deploy, _) => deploy,
        }
    }
}

/// What edges said of a deploy.
type EdgeAnswers = (ObjectId, BTreeMap<NodeName, EdgeStatus>);

impl Reconciler {
    /// Runs until the drain starts.
    pub async fn run(mut self, drain: Drain) {
        let mut revisions = self.store.revisions();
        let mut clock = Clock::default();
        let mut view = View::default();
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
            let wait = match self.look(&mut clock, &mut view, &mut edges).await {
                Ok(true) => PAUSE,
                Ok(false) if view.wishes.is_busy() => BUSY_TICK,
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
        view: &mut View,
        edges: &mut Edges,
    ) -> Result<bool, StoreError> {
        let now_ms = unix_ms();
        if let Some(by_ms) = clock.set_by(now_ms) {
            tracing::warn!(by_ms, "the wall clock was set: deadlines are counted anew");
            view.memory.clock_was_set(now_ms, by_ms);
        }
        while let Ok((deploy, answers)) = edges.receiver.try_recv() {
            edges.take(deploy, answers);
        }
        let world = self.world.borrow().clone();
        view.update(now_ms, &self.store, world);
        let timing: &Timing = &self.config.timing;
        let situation = view.situation(timing, now_ms);
        self.report(&view.wishes, &situation, edges);
        let mut steps = self.steps(&view.wishes, &situation, edges);
        // The next look decides on the rest.
        steps.truncate(STEPS_MAX);
        let changing = steps.iter().filter_map(|step| view.wishes.deploys.get(step.deploy()));
        let changing = changing.map(|deploy| (deploy.org.clone(), deploy.app.clone())).collect();
        let mut actions = view.plan(timing, now_ms, &changing);
        actions.truncate(ACTIONS_MAX);
        self.metrics.services_looked_at.inc_by(view.looked_at as u64);
        self.metrics.revision.set(view.wishes.revision.unwrap_or(0).try_into().unwrap_or(i64::MAX));
        self.metrics.placements.set(view.wishes.instances.len().try_into().unwrap_or(i64::MAX));
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
            DeployState::Running => match judge(deploy, &wishes.services_of(deploy), situation) {
                Verdict::Failed(cause) => Some(Step::Fail(deploy.org.clone(), deploy.id.clone(), cause)),
                Verdict::Settled if deploy.delete => {
                    Some(Step::Finish(deploy.org.clone(), deploy.id.clone()))
                }
                Verdict::Settled => Some(Step::Promote(deploy.org.clone(), deploy.id.clone())),
                Verdict::Underway => None,
            },
            DeployState::Serving => self.serving(deploy, wishes, situation, edges),
            DeployState::Done | DeployState::RolledBack | DeployState::Failed => None,
        };
        wishes.deploys.values().filter_map(of).collect()
    }

    /// Whether every live edge serves a deploy; asks those that did not say so yet.
    fn serving(
        &self,
        deploy: &Deploy,
        wishes: &Wishes,
        situation: &Situation<'_>,
        edges: &mut Edges,
    ) -> Option<Step> {
        let domains = self.questions(deploy, wishes);
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
            return Some(Step::Fail(
                deploy.org.clone(),
                deploy.id.clone(),
                Cause { message, ..Cause::default() },
            ));
        }
        edges.ask(&self.attached, deploy, domains, missing);
        None
    }

    fn report(&self, wishes: &Wishes, situation: &Situation<'_>, edges: &Edges) {
        for deploy in wishes.deploys.values() {
            let urls = self.domains_of(deploy).iter().map(|domain| self.config.url(domain)).collect();
            self.progresses.report(DeployStatus {
                regions: progress(deploy, &wishes.services_of(deploy), situation),
                edges: edges.said.get(&deploy.id).cloned().unwrap_or_default(),
                ..DeployStatus::of(deploy, urls)
            });
        }
        for id in self.progresses.ids() {
            if !wishes.deploys.contains_key(&id) {
                let stored = self.stored_deploy(&id);
                // One that was accepted since we looked is for the next look.
                if stored.as_ref().is_none_or(|deploy| deploy.state.is_final()) {
                    self.progresses.end(&id, stored.as_ref());
                }
            }
        }
    }

    /// A deploy of any organization. Looks at keys alone, once for each deploy that has begun or ended.
    fn stored_deploy(&self, id: &ObjectId) -> Option<Deploy> {
        let tails = self.store.tails::<Deploy>("");
        let tail = tails.iter().find(|tail| tail.rsplit('/').next() == Some(id.as_str()))?;
        self.store.get(tail)
    }

    /// What edges are asked of a deploy.
    fn questions(&self, deploy: &Deploy, wishes: &Wishes) -> Vec<CanServe> {
        let domains = self.store.filed::<Domain>(&format!("{}/{}/", deploy.org, deploy.app));
        let question = |domain: Domain| {
            let target = wishes.services.get(&domain.cluster).and_then(|service| service.target.as_ref());
            let placed_nowhere = target.is_some_and(|target| target.regions.values().all(|want| *want == 0));
            CanServe { domain: domain.domain, version: deploy.version, placed_nowhere, ..CanServe::default() }
        };
        // What leads to one of its own leads to the platform's name of the same service, too.
        domains.into_iter().filter(|domain| !domain.own).map(question).collect()
    }

    fn domains_of(&self, deploy: &Deploy) -> Vec<String> {
        let tails = self.store.filed_tails::<Domain>(&format!("{}/{}/", deploy.org, deploy.app));
        let names = tails.iter().filter_map(|tail| Some(tail.split_once('/')?.1.to_owned()));
        names.filter(|name| !name.starts_with("*.")).collect()
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

    fn forget_all_but(&mut self, deploys: &BTreeMap<ObjectId, Deploy>) {
        self.said.retain(|id, _| deploys.contains_key(id));
    }

    /// Asks once, unless answers are still on their way.
    fn ask(&mut self, attached: &Attached, deploy: &Deploy, domains: Vec<CanServe>, edges: Vec<NodeName>) {
        if self.asking.len() >= ASKING_MAX || !self.asking.insert(deploy.id.clone()) {
            return;
        }
        let (attached, sender) = (attached.clone(), self.sender.clone());
        let id = deploy.id.clone();
        tokio::spawn(async move {
            let questions = edges.into_iter().map(|edge| ask_edge(&attached, edge, &domains));
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

async fn ask_edge(attached: &Attached, edge: NodeName, domains: &[CanServe]) -> (NodeName, EdgeStatus) {
    for domain in domains {
        if let Err(error) = attached.ask_whether_it_serves(&edge, domain.clone(), EDGE_ANSWER).await {
            return (edge, EdgeStatus { serves: false, detail: format!("{}: {error}", domain.domain) });
        }
    }
    (edge, EdgeStatus { serves: true, detail: String::new() })
}
