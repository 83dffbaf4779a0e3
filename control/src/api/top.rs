//! What happens now: requests of services, what instances and nodes use; asked of the nodes at each turn.

mod rates;

use super::lists::instances_of;
use super::logs::too_many;
use super::{Api, Problem, auth};
use crate::attach::{Place, Reading};
use crate::caller::Caller;
use crate::store::objects::{App, TokenRole};
use atoll_model::{AppName, NodeName, RegionName, Role};
use axum::Extension;
use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use rates::{Answer, Load, Now, Rates, round};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

const INTERVAL_MS: u64 = 1_000;
const INTERVAL_MS_MAX: u64 = 60_000;
/// Longest wait for a node.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    app: Option<String>,
    interval_ms: Option<u64>,
}

/// One turn.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Turn {
    /// ms since 1970.
    at_ms: u64,
    services: Vec<ServiceTop>,
    instances: Vec<InstanceTop>,
    /// For operators: those with another role than control.
    nodes: Vec<NodeTop>,
    /// Of what nothing is known this time: nodes for operators, regions for others.
    missing: Vec<Missing>,
}

/// A service in a region. What was not measured is left out.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
struct ServiceTop {
    app: String,
    service: String,
    region: String,
    /// Instances that are placed there.
    instances: u32,
    /// Of these.
    healthy: u32,
    /// Requests that passed the region's gateways. Calls from one sidecar straight to another are not counted.
    requests_per_s: Option<f64>,
    /// Those that were answered with a status of 500 or above.
    failures_per_s: Option<f64>,
    in_flight: Option<u64>,
    /// Time to the answer's head at the gateway; half took less.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// CPUs that the instances use, sidecars included.
    cpu: Option<f64>,
    /// Resident memory of the instances, sidecars included.
    memory_bytes: Option<u64>,
}

/// An instance.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct InstanceTop {
    instance: String,
    app: String,
    service: String,
    region: String,
    host: String,
    state: &'static str,
    program: Option<Load>,
    sidecar: Option<Load>,
}

/// A node's own process.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct NodeTop {
    node: String,
    region: String,
    roles: Vec<String>,
    #[serde(flatten)]
    load: Load,
}

/// A node that gave no answer, or a region of such a node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
struct Missing {
    /// For operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    region: String,
    detail: String,
}

impl Missing {
    /// As all see it: the names of nodes are for operators.
    fn without_names(self) -> Self {
        Self { node: None, detail: "some of its nodes did not answer".to_owned(), ..self }
    }
}

#[utoipa::path(get, path = "/v1/top",
    params(
        ("app" = Option<String>, Query, description = "only this app"),
        ("interval_ms" = Option<u64>, Query, minimum = 1_000, maximum = 60_000, description =
            "time between two turns, 1000 by default"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = Turn, description =
            "`top` with a turn at each interval, the first after one. Rates are over the interval; times are as \
             exact as buckets of 19 % are. Comments keep the connection alive. It ends with its token."),
        (status = 404, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(options): Query<Options>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let unknown = |app: &str| Problem::not_found(format!("there is no app `{}`", app.escape_debug()));
    let name = options.app.as_deref();
    let app: Option<AppName> = name.map(|app| app.parse().map_err(|_| unknown(app))).transpose()?;
    if let Some(app) = &app {
        let known = api.store.get::<App>(&format!("{}/{app}", caller.org));
        known.ok_or_else(|| unknown(app.as_str()))?;
    }
    let interval_ms = options.interval_ms.unwrap_or(INTERVAL_MS);
    if !(INTERVAL_MS..=INTERVAL_MS_MAX).contains(&interval_ms) {
        let detail = format!("between {INTERVAL_MS} and {INTERVAL_MS_MAX}");
        return Err(Problem::invalid("interval_ms", detail));
    }
    let prefix = app.map_or_else(|| format!("{}/", caller.org), |app| format!("{}/{app}/", caller.org));
    let mut ticks = interval(Duration::from_millis(interval_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let place = api.attached.place(Reading::Top, &caller.org).ok_or_else(too_many)?;
    let watcher = Watcher {
        api,
        caller,
        prefix,
        rates: Rates::default(),
        began: Instant::now(),
        ticks,
        asked_before: false,
        _place: place,
    };
    let turns = stream::unfold(watcher, |mut watcher| async move {
        let turn = watcher.next().await?;
        let event = Event::default().event("top").json_data(&turn);
        let event = event.unwrap_or_else(|error| Event::default().event("error").data(error.to_string()));
        Some((Ok(event), watcher))
    });
    Ok(Sse::new(turns).keep_alive(KeepAlive::default()))
}

/// One who watches.
struct Watcher {
    api: Api,
    /// Of the clusters that are watched.
    prefix: String,
    caller: Caller,
    rates: Rates,
    began: Instant,
    ticks: Interval,
    asked_before: bool,
    _place: Place,
}

impl Watcher {
    /// The next turn, for as long as the caller's token is good.
    async fn next(&mut self) -> Option<Turn> {
        if !std::mem::replace(&mut self.asked_before, true) {
            self.ticks.tick().await;
            let (answers, _missing) = self.ask().await;
            self.rates.take(answers);
        }
        self.ticks.tick().await;
        let (answers, missing) = self.ask().await;
        let now = self.rates.take(answers);
        auth::is_good(&self.api.store, &self.caller).then(|| self.turn(&now, missing))
    }

    /// Nodes are shown.
    fn is_operator(&self) -> bool {
        self.caller.role >= TokenRole::Operator
    }

    /// Asks every live node at once.
    async fn ask(&self) -> (Vec<Answer>, Vec<Missing>) {
        let world = self.api.world();
        let nodes: Vec<(NodeName, RegionName, bool)> = world
            .nodes
            .iter()
            .filter(|(_, seen)| {
                // What others use is for operators. A node that is only control holds no line to control.
                let counts = seen.roles.has(Role::Gateway) || seen.roles.has(Role::Host);
                seen.alive && (counts || (self.is_operator() && seen.roles.has(Role::Edge)))
            })
            .map(|(name, seen)| (name.clone(), seen.region.clone(), seen.roles.has(Role::Gateway)))
            .collect();
        let asked = stream::iter(nodes).map(|(node, region, is_gateway)| async move {
            match self.api.attached.read_stats(&node, &self.prefix, ANSWER_WAIT).await {
                Ok(stats) => {
                    let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    Ok(Answer { node, region, is_gateway, at_ms, stats })
                }
                Err(error) => Err(Missing {
                    detail: error.to_string(),
                    node: Some(node.to_string()),
                    region: region.to_string(),
                }),
            }
        });
        let mut asked = asked.buffer_unordered(ASKED_MAX);
        let (mut answers, mut missing) = (Vec::new(), Vec::new());
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(none) => missing.push(if self.is_operator() { none } else { none.without_names() }),
            }
        }
        missing.sort();
        missing.dedup();
        (answers, missing)
    }

    fn turn(&self, now: &Now, missing: Vec<Missing>) -> Turn {
        let mut services = BTreeMap::<(String, String, String), ServiceTop>::new();
        let mut instances = Vec::new();
        for placed in instances_of(&self.api, &self.prefix) {
            let key = (placed.app.clone(), placed.service.clone(), placed.region.clone());
            let of_service = services.entry(key).or_default();
            of_service.instances += 1;
            of_service.healthy += u32::from(placed.state == "healthy");
            let (program, sidecar) = now.instances.get(&placed.id).copied().unwrap_or_default();
            for load in program.into_iter().chain(sidecar) {
                of_service.cpu = Some(round(of_service.cpu.unwrap_or(0.0) + load.cpu));
                of_service.memory_bytes = Some(of_service.memory_bytes.unwrap_or(0) + load.memory_bytes);
            }
            instances.push(InstanceTop {
                instance: placed.id,
                app: placed.app,
                service: placed.service,
                region: placed.region,
                host: placed.host,
                state: placed.state,
                program,
                sidecar,
            });
        }
        for (region, cluster) in now.traffic.keys() {
            let mut names = cluster.splitn(3, '/').skip(1).map(str::to_owned);
            if let (Some(app), Some(service)) = (names.next(), names.next()) {
                services.entry((app, service, region.to_string())).or_default();
            }
        }
        let org = self.prefix.split('/').next().unwrap_or_default();
        let services = services.into_iter().filter_map(|((app, service, region), mut top)| {
            let key = (region.parse().ok()?, format!("{org}/{app}/{service}"));
            let idle = now.regions.contains(&key.0).then(Default::default);
            let traffic = now.traffic.get(&key).cloned().or(idle);
            top.requests_per_s = traffic.as_ref().map(|traffic| round(traffic.requests_per_s));
            top.failures_per_s = traffic.as_ref().map(|traffic| round(traffic.failures_per_s));
            top.in_flight = traffic.as_ref().map(|traffic| traffic.in_flight);
            top.p50_ms = traffic.as_ref().and_then(|traffic| traffic.percentile_ms(0.5));
            top.p99_ms = traffic.as_ref().and_then(|traffic| traffic.percentile_ms(0.99));
            // An old count of what is no more is no news.
            let shown = top.instances > 0 || top.requests_per_s.is_some_and(|rate| rate > 0.0);
            (top.app, top.service, top.region) = (app, service, region);
            shown.then_some(top)
        });
        Turn {
            at_ms: atoll_process::clock::unix_ms(),
            services: services.collect(),
            instances,
            nodes: if self.is_operator() { self.nodes(now) } else { Vec::new() },
            missing,
        }
    }

    fn nodes(&self, now: &Now) -> Vec<NodeTop> {
        let world = self.api.world();
        let node = |(name, load): (&NodeName, &Load)| {
            let seen = world.nodes.get(name)?;
            let roles = seen.roles.iter().map(|role| role.as_str().to_owned()).collect();
            Some(NodeTop { node: name.to_string(), region: seen.region.to_string(), roles, load: *load })
        };
        now.nodes.iter().filter_map(node).collect()
    }
}
