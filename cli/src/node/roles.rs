//! The roles of a node: bound first, all of them, then run.

use super::attach::Answers;
use super::config::NodeConfig;
use super::dns::{self, Dns};
use super::facts::Addresses;
use super::node_plane;
use super::ports::{Ports, Transport};
use super::run::channel_to_control;
use anyhow::Context;
use atoll_core_gateway::Gateway;
use atoll_edge::{Edge, Serving};
use atoll_gossip::Gossip;
use atoll_host::{Host, HostView};
use atoll_identity::Identity;
use atoll_mesh_ca::MeshCa;
use atoll_model::Role;
use atoll_process::admin::Parameters;
use atoll_process::{Drain, Metrics, Tasks};
use atoll_wire::node::ask_cache::What;
use atoll_wire::node::{AskCache, CanServe, ProcessStats, Stats};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tracing::error;

type ReadyCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;
/// Records that could not be applied (`kind/key`), and why.
pub type ApplyErrors = Box<dyn Fn() -> Vec<(String, String)> + Send + Sync>;
type View = Box<dyn Fn() -> serde_json::Value + Send + Sync>;
/// Answers one kind of question of `/explain`.
type Explainer = Box<dyn Fn(&Parameters) -> Option<Result<serde_json::Value, String>> + Send + Sync>;

/// What every role stands on.
pub struct Ground {
    pub config: NodeConfig,
    pub identity: Identity,
    pub gossip: Gossip,
    pub metrics: Metrics,
    pub drain: Drain,
    pub tasks: Tasks,
}

/// Bound roles; nothing is served yet.
pub struct Roles {
    /// Where they listen.
    pub addresses: Addresses,
    /// The node plane.
    pub node_plane: Channel,
    /// What control may ask.
    pub answers: Answers,
    drain: Drain,
    control: Option<atoll_control::Bound>,
    gateway: Option<atoll_core_gateway::Bound>,
    edge: Option<atoll_edge::Bound>,
    host: Option<atoll_host::Bound>,
    dns: Option<Dns>,
    serving: Option<Serving>,
    gateway_view: Option<atoll_core_gateway::Serving>,
    host_view: Option<HostView>,
}

/// Binds every role of the node.
pub async fn bind(ground: &Ground, ca: Option<Arc<MeshCa>>, ports: &mut Ports) -> anyhow::Result<Roles> {
    let config = &ground.config;
    let control = match ca {
        Some(ca) => Some(bind_control(ground, ca).await?),
        None => None,
    };
    let node_plane = match &control {
        Some(control) => node_plane::channel(vec![control.node_plane_addr], &ground.identity),
        None => channel_to_control(config, &ground.identity),
    };
    let gateway = if config.roles.has(Role::Gateway) { Some(bind_gateway(ground, ports)?) } else { None };
    let host = if config.roles.has(Role::Host) { Some(bind_host(ground, node_plane.clone())?) } else { None };
    let edge = if config.roles.has(Role::Edge) { Some(bind_edge(ground, node_plane.clone())?) } else { None };
    let (serving, host_view) =
        (edge.as_ref().map(atoll_edge::Bound::serving), host.as_ref().map(atoll_host::Bound::view));
    let dns = Dns::bind(ground)?;
    let addresses = Addresses {
        gateway: gateway.as_ref().map(|gateway| config.gateway.advertise.unwrap_or(gateway.address)),
        edge_http: edge.as_ref().and_then(|edge| edge.http.first().copied()),
        edge_https: edge.as_ref().and_then(|edge| edge.https.first().copied()),
        edge_peers: edge.as_ref().and_then(|edge| edge.peers),
        public: edge.as_ref().map(|edge| dns::advertised(config, &edge.https)).unwrap_or_default(),
        dns: dns.as_ref().map(|dns| dns::advertised(config, dns.addresses())).unwrap_or_default(),
        admin: None,
    };
    Ok(Roles {
        addresses,
        node_plane,
        answers: answers(
            serving.as_ref(),
            host_view.as_ref(),
            gateway.as_ref().map(atoll_core_gateway::Bound::serving),
        ),
        drain: ground.drain.clone(),
        control,
        gateway_view: gateway.as_ref().map(atoll_core_gateway::Bound::serving),
        gateway,
        edge,
        host,
        dns,
        serving,
        host_view,
    })
}

async fn bind_control(ground: &Ground, ca: Arc<MeshCa>) -> anyhow::Result<atoll_control::Bound> {
    let config = &ground.config;
    let handles = atoll_control::Handles {
        name: config.name.clone(),
        site: config.site.clone(),
        region: config.region.clone(),
        data_dir: config.data_dir.clone(),
        identity: ground.identity.clone(),
        gossip: ground.gossip.clone(),
        metrics: ground.metrics.clone(),
        drain: ground.drain.clone(),
        trust_domain: ca.trust_domain().clone(),
        mesh_ca: ca,
    };
    atoll_control::Control::bind(config.control.clone(), handles)
        .await
        .context("the role control cannot start")
}

fn bind_gateway(ground: &Ground, ports: &Ports) -> anyhow::Result<atoll_core_gateway::Bound> {
    let config = &ground.config;
    let mut gateway = config.gateway.clone();
    gateway.listen = ports.prefer("gateway", gateway.listen, Transport::Tcp);
    let handles = atoll_core_gateway::Handles {
        name: config.name.clone(),
        region: config.region.clone(),
        identity: ground.identity.clone(),
        gossip: ground.gossip.clone(),
        metrics: ground.metrics.clone(),
        drain: ground.drain.clone(),
        tasks: ground.tasks.clone(),
    };
    Gateway::bind(gateway, handles).context("the role gateway cannot start")
}

fn bind_host(ground: &Ground, node_plane: Channel) -> anyhow::Result<atoll_host::Bound> {
    let config = &ground.config;
    let executable =
        std::env::current_exe().context("cannot find the atoll executable, which sidecars run from")?;
    let handles = atoll_host::Handles {
        name: config.name.clone(),
        site: config.site.clone(),
        region: config.region.clone(),
        data_dir: config.data_dir.clone(),
        identity: ground.identity.clone(),
        gossip: ground.gossip.clone(),
        metrics: ground.metrics.clone(),
        node_plane,
        sidecar_command: vec![
            executable.to_string_lossy().into_owned(),
            "sidecar".to_owned(),
            "--listen".to_owned(),
            config.host.sidecar_listen.to_string(),
        ],
    };
    Host::bind(config.host.clone(), handles).context("the role host cannot start")
}

fn bind_edge(ground: &Ground, node_plane: Channel) -> anyhow::Result<atoll_edge::Bound> {
    let config = &ground.config;
    let handles = atoll_edge::Handles {
        name: config.name.clone(),
        site: config.site.clone(),
        region: config.region.clone(),
        data_dir: config.data_dir.clone(),
        identity: ground.identity.clone(),
        gossip: ground.gossip.clone(),
        metrics: ground.metrics.clone(),
        drain: ground.drain.clone(),
        tasks: ground.tasks.clone(),
        node_plane,
    };
    Edge::bind(config.edge.clone(), handles).context("the role edge cannot start")
}

fn answers(
    serving: Option<&Serving>,
    host: Option<&HostView>,
    gateway: Option<atoll_core_gateway::Serving>,
) -> Answers {
    let mut answers = Answers::default();
    if serving.is_none() && host.is_none() && gateway.is_none() {
        // A node that is only control has nothing to be asked for.
        return answers;
    }
    let of_host = host.cloned();
    answers.counts = Some(Arc::new(move |question| {
        let own = atoll_process::usage::of_self();
        Stats {
            clusters: gateway.as_ref().map(|gateway| gateway.counts(&question.prefix)).unwrap_or_default(),
            instances: of_host.as_ref().map(|host| host.usage(&question.prefix)).unwrap_or_default(),
            node: Some(ProcessStats { cpu_ms: own.cpu_ms, memory_bytes: own.memory_bytes }),
        }
    }));
    if let Some(serving) = serving.cloned() {
        let edge = serving.clone();
        answers.purged = Some(Arc::new(move |question| edge.has_purged(&question.app, question.seq)));
        let edge = serving.clone();
        answers.cache = Some(Arc::new(move |question: &AskCache| look_into_cache(&edge, question)));
        answers.serves = Some(Arc::new(move |question: &CanServe| {
            serving.can_serve(&question.domain, question.version, question.placed_nowhere)?;
            match question.fingerprint.as_str() {
                "" => Ok(()),
                wanted => serving.has_certificate(&question.domain, wanted),
            }
        }));
    }
    if let Some(host) = host.cloned() {
        answers.read_log = Some(Arc::new(move |question| {
            let why = format!("the instance {} is not on this host", question.instance);
            match host.read_logs(question) {
                Some(answers) => answers.map(|answer| answer.map_err(|cause| cause.to_string())).boxed(),
                None => futures_util::stream::iter([Err(why)]).boxed(),
            }
        }));
    }
    answers
}

fn look_into_cache(edge: &Serving, question: &AskCache) -> Result<String, String> {
    let said = match &question.what {
        Some(What::Stats(of)) => {
            let app = (!of.app.is_empty()).then_some(of.app.as_str());
            edge.cache_stats(&of.org, app)
        }
        Some(What::Explain(asked)) => {
            let fields = asked.fields.iter().map(|field| (field.name.clone(), field.value.clone()));
            edge.cache_explain(&asked.app, &asked.host, &asked.target, &fields.collect::<Vec<_>>())
        }
        None => return Err("this node does not know the question".to_owned()),
    };
    Ok(said.to_string())
}

impl Roles {
    /// What `/readyz` asks of the roles.
    pub fn ready_checks(&self) -> Vec<(&'static str, ReadyCheck)> {
        let mut checks: Vec<(&'static str, ReadyCheck)> = Vec::new();
        if let Some(serving) = self.serving.clone() {
            checks.push(("edge", Box::new(move || serving.ready())));
        }
        if let Some(view) = self.gateway_view.clone() {
            checks.push(("gateway", Box::new(move || view.ready())));
        }
        checks
    }

    /// What of the desired state could not be applied.
    pub fn apply_errors(&self) -> ApplyErrors {
        let (edge, gateway) = (self.serving.clone(), self.gateway_view.clone());
        Box::new(move || {
            let edge = edge.iter().flat_map(|edge| edge.apply_errors());
            edge.chain(gateway.iter().flat_map(|gateway| gateway.apply_errors())).collect()
        })
    }

    /// What `/state` shows of the roles.
    pub fn views(&self) -> Vec<(&'static str, View)> {
        let mut views: Vec<(&'static str, View)> = Vec::new();
        if let Some(serving) = self.serving.clone() {
            views.push(("edge", Box::new(move || serving.state())));
        }
        if let Some(view) = self.gateway_view.clone() {
            views.push(("gateway", Box::new(move || view.state())));
        }
        if let Some(view) = self.host_view.clone() {
            views.push(("host", Box::new(move || view.state())));
        }
        views
    }

    /// What answers `/explain?host=…&path=…` (edge) and `/explain?cluster=…` (gateway).
    pub fn explainers(&self) -> Vec<Explainer> {
        let mut explainers: Vec<Explainer> = Vec::new();
        if let Some(serving) = self.serving.clone() {
            explainers.push(Box::new(move |asked| {
                let host = asked.get("host")?;
                let path = asked.get("path").map_or("/", String::as_str);
                Some(match path.starts_with('/') {
                    true => Ok(serving.explain(host, path)),
                    false => Err(format!("`path` begins with a slash; {path:?} does not")),
                })
            }));
        }
        if let Some(view) = self.gateway_view.clone() {
            explainers.push(Box::new(move |asked| Some(Ok(view.explain(asked.get("cluster")?)))));
        }
        explainers
    }

    /// Starts to serve.
    pub fn run(self) -> Running {
        let mut roles = JoinSet::new();
        let drain = self.drain;
        if let Some(control) = self.control {
            let drain = drain.clone();
            roles.spawn(async move {
                control.run(drain).await;
                "the role control ended".to_owned()
            });
        }
        if let Some(gateway) = self.gateway {
            roles.spawn(async move { ended("gateway", gateway.run().await) });
        }
        if let Some(host) = self.host {
            let drain = drain.clone();
            roles.spawn(async move { ended("host", host.run(drain).await) });
        }
        if let Some(edge) = self.edge {
            roles.spawn(async move { ended("edge", edge.run().await) });
        }
        if let Some(dns) = self.dns {
            dns.run();
        }
        Running { roles }
    }
}

fn ended<E: Into<anyhow::Error>>(role: &'static str, result: Result<(), E>) -> String {
    match result {
        Ok(()) => format!("the role {role} ended"),
        Err(cause) => {
            let cause: anyhow::Error = cause.into();
            format!("the role {role} failed: {cause:#}")
        }
    }
}

/// Roles at work.
pub struct Running {
    roles: JoinSet<String>,
}

impl Running {
    /// The first role that ends, which none does before the drain unless it fails. Cancel-safe.
    pub async fn first_end(&mut self) -> String {
        match self.roles.join_next().await {
            Some(Ok(why)) => {
                error!(why, "a role ended; the node stops");
                why
            }
            Some(Err(cause)) => {
                error!(%cause, "a role panicked; the node stops");
                "a role panicked".to_owned()
            }
            None => std::future::pending().await,
        }
    }

    /// Resolves once no role is left. Cancel-safe.
    pub async fn all_ended(&mut self) {
        while self.roles.join_next().await.is_some() {}
    }
}
