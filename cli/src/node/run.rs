//! From a configuration file to a running node: identity, gossip, roles, admin; and the way back.

use super::NodeArgs;
use super::attach;
use super::config::NodeConfig;
use super::denials;
use super::drains;
use super::facts::{self, Addresses};
use super::identity::{self, Membership};
use super::node_plane;
use super::ports::{Ports, Transport};
use super::reload::{self, Live};
use super::renewal::{self, Issuer};
use super::roles::{self, Ground, Running};
use anyhow::{Context, bail};
use atoll_gossip::{Gossip, Scope};
use atoll_identity::{Identity, TrustDomain};
use atoll_mesh_ca::{Lifetimes, MeshCa};
use atoll_model::{Kind, Role};
use atoll_process::clock::unix_ms;
use atoll_process::drain::{self, Drain};
use atoll_process::signals::{Hangups, Terminations};
use atoll_process::{Admin, Metrics, Tasks, files, logging, service};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

/// Threads for gossip, control and disk; the data path has its own.
const CONTROL_THREADS: usize = 2;
/// From saying that this node drains until those who need to know have heard.
const LEAVING_HEARD: Duration = Duration::from_millis(250);
/// What is left after the drain has this long to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Runs the node until SIGTERM or SIGINT, or until a role fails.
pub fn run(args: NodeArgs) -> anyhow::Result<()> {
    logging::init(logging::Format::Auto);
    let config = NodeConfig::load(&args.config)?;
    let data_dir = config.data_dir.clone();
    files::private_dir(&data_dir)
        .with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
    let _lock = files::lock(&data_dir.join("lock"))?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("atoll-control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(node(args, config));
    runtime.shutdown_timeout(END_WITHIN);
    done
}

async fn node(args: NodeArgs, config: NodeConfig) -> anyhow::Result<()> {
    let _watchdog = AbortOnDropHandle::new(tokio::spawn(service::watchdog()));
    let mut terminations = Terminations::listen()?;
    let hangups = Hangups::listen()?;
    info!(node = %config.name, roles = %config.roles, site = %config.site, "starting");
    let started = tokio::select! {
        started = start(args, config, hangups) => started?,
        signal = terminations.next() => {
            info!(signal, "asked to stop before the node was up");
            return Ok(());
        }
    };
    let Started { live, leaving, trigger, mut running, tasks, gossip } = started;
    let half_alive = |part: &str| format!("{part} ended; the node stops, to be started again whole");
    let failed = tokio::select! {
        signal = terminations.next() => {
            info!(signal, "draining");
            None
        }
        failed = running.first_end() => Some(failed),
        part = tasks.vital_end() => Some(half_alive(part)),
        part = gossip.broken() => Some(half_alive(part)),
    };
    if let Some(why) = &failed {
        error!(why, "a part of the node failed");
    }
    service::stopping();
    leaving.start();
    // Others route around this node before it takes no more.
    let config = live.load();
    if failed.is_none() && (config.roles.has(Role::Gateway) || config.roles.has(Role::Edge)) {
        tokio::time::sleep(LEAVING_HEARD).await;
    }
    trigger.start();
    let deadline = Duration::from_millis(live.load().drain_ms);
    tokio::select! {
        () = running.all_ended() => {}
        () = tokio::time::sleep(deadline) => warn!(?deadline, "the drain took too long; ending what is left"),
        signal = terminations.next() => warn!(signal, "asked again; ending what is left"),
    }
    gossip.close().await;
    trigger.force();
    if !tasks.finished(END_WITHIN).await {
        warn!("some tasks did not end");
    }
    info!("stopped");
    match failed {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

struct Started {
    live: Live,
    /// Says that the node is about to drain.
    leaving: drain::DrainTrigger,
    trigger: drain::DrainTrigger,
    running: Running,
    tasks: Tasks,
    gossip: Gossip,
}

async fn start(args: NodeArgs, config: NodeConfig, hangups: Hangups) -> anyhow::Result<Started> {
    let (trigger, drain) = drain::channel();
    let (leaving_trigger, leaving) = drain::channel();
    let metrics = Metrics::new();
    let tasks = Tasks::new(Handle::current());
    let mut ports = Ports::load(&config.data_dir);

    let ca = if config.roles.has(Role::Control) { Some(open_ca(&config)?) } else { None };
    let Membership { identity, record } = match &ca {
        Some(ca) => identity::from_own_ca(&config, ca)?,
        None => identity::from_control(&config).await?,
    };
    let gossip = start_gossip(&config, &mut ports, record, &identity, &metrics, &drain).await?;
    tasks.spawn_vital("denials", denials::follow(gossip.clone(), identity.clone(), drain.clone()));
    let own = (&config.name, &config.region, config.roles);
    let (wished, following) = drains::follow(&gossip, own, drain.clone());
    tasks.spawn_vital("drain wishes", following);

    let ground = Ground {
        config: config.clone(),
        identity: identity.clone(),
        gossip: gossip.clone(),
        metrics: metrics.clone(),
        drain: drain.clone(),
        tasks: tasks.clone(),
    };
    let roles = roles::bind(&ground, ca.clone(), &mut ports).await?;
    let admin_address = ports.prefer("admin", config.admin.listen, Transport::Tcp);
    let admin_listener = TcpListener::bind(admin_address)
        .await
        .with_context(|| format!("cannot listen on the admin address {admin_address}"))?;
    let addresses = Addresses { admin: Some(admin_listener.local_addr()?), ..roles.addresses.clone() };
    for (purpose, address) in
        [("gossip", Some(gossip.local_addr())), ("gateway", addresses.gateway), ("admin", addresses.admin)]
    {
        if let Some(address) = address {
            ports.remember(purpose, address);
        }
    }

    let live = Live::new(config.clone());
    let issuer = match ca {
        Some(ca) => Issuer::Own(ca),
        None => Issuer::Control(roles.node_plane.clone()),
    };
    let counters = renewal::Counters {
        renewed: metrics
            .counter("atoll_node_certificate_renewals", "Certificates of the node that were renewed"),
        failed: metrics
            .counter("atoll_node_certificate_renewal_errors", "Renewals that failed and are tried again"),
        unsaved: metrics.counter(
            "atoll_node_certificate_disk_errors",
            "Times that the node's certificate could not be kept on disk; it is used all the same",
        ),
    };
    tasks.spawn_vital(
        "renewal",
        renewal::run(config.clone(), identity.clone(), issuer, counters, drain.clone()),
    );
    tasks.spawn_vital(
        "reload",
        reload::run(args.config, live.clone(), hangups, metrics.clone(), drain.clone()),
    );
    tasks.spawn_vital(
        "facts",
        facts::run(
            live.clone(),
            addresses,
            gossip.clone(),
            identity.clone(),
            roles.apply_errors(),
            facts::Phases { leaving: leaving.clone(), wished: wished.clone(), drain: drain.clone() },
        ),
    );
    if roles.answers.counts.is_some() {
        tasks.spawn_vital(
            "attach",
            attach::run(roles.node_plane.clone(), roles.answers.clone(), drain.clone()),
        );
    }
    let admin = admin(&config, metrics, &identity, &gossip, &roles, &leaving, wished);
    tasks.spawn_vital(
        "admin",
        admin.serve(admin_listener, Some(config.data_dir.join("admin.sock")), drain.clone()),
    );
    let running = roles.run();
    info!(node = %config.name, "running");
    service::ready();
    Ok(Started { live, leaving: leaving_trigger, trigger, running, tasks, gossip })
}

fn open_ca(config: &NodeConfig) -> anyhow::Result<Arc<MeshCa>> {
    let trust_domain = TrustDomain::new(&config.ca.trust_domain)
        .with_context(|| format!("`ca.trust_domain` = {:?}", config.ca.trust_domain))?;
    let lifetimes = Lifetimes {
        node: Duration::from_secs(config.ca.node_certificate_s),
        workload: Duration::from_secs(config.ca.workload_certificate_s),
        ..Lifetimes::default()
    };
    let dir = config.data_dir.join("mesh-ca");
    Ok(Arc::new(MeshCa::open_or_create(&dir, trust_domain, lifetimes, unix_ms())?))
}

async fn start_gossip(
    config: &NodeConfig,
    ports: &mut Ports,
    record: atoll_identity::RecordIdentity,
    identity: &Identity,
    metrics: &Metrics,
    drain: &Drain,
) -> anyhow::Result<Gossip> {
    let listen = ports.prefer("gossip", config.gossip.listen, Transport::Udp);
    let dir = config.data_dir.join("gossip");
    let mut gossip = atoll_gossip::Config::new(config.name.clone(), scopes(config), listen, dir, record);
    gossip.seeds = config.gossip.seeds.clone();
    gossip.interval = Duration::from_millis(config.gossip.interval_ms.max(10));
    Ok(Gossip::start(gossip, identity.clone(), metrics, drain.clone()).await?)
}

/// The scopes that the node's roles admit it to; control reads every region's.
fn scopes(config: &NodeConfig) -> Vec<Scope> {
    let mut regions = vec![config.region.clone()];
    if config.roles.has(Role::Control) {
        regions.extend(config.control.regions.iter().cloned());
    }
    regions.sort();
    regions.dedup();
    let all = std::iter::once(Scope::Global).chain(regions.into_iter().map(Scope::Region));
    all.filter(|scope| scope.admits(config.roles, Some(&config.region))).collect()
}

fn admin(
    config: &NodeConfig,
    metrics: Metrics,
    identity: &Identity,
    gossip: &Gossip,
    roles: &roles::Roles,
    leaving: &Drain,
    wished: tokio::sync::watch::Receiver<bool>,
) -> Admin {
    let (own, draining) = (identity.clone(), leaving.clone());
    let mut admin = Admin::new(metrics)
        .ready_check("node", move || match draining.is_draining() {
            true => Err("the node is draining".to_owned()),
            false => Ok(()),
        })
        // Whatever sends clients here by readiness is to send them elsewhere.
        .ready_check("drain", move || match *wished.borrow() {
            true => Err("an operator has drained this node: `atoll drain NAME --off` ends that".to_owned()),
            false => Ok(()),
        })
        .ready_check("certificate", move || match own.not_after_ms() > own.clock().now_ms() {
            true => Ok(()),
            false => Err("the node's certificate has expired".to_owned()),
        });
    for (name, check) in roles.ready_checks() {
        admin = admin.ready_check(name, check);
    }
    let (config, own, gossip) = (config.clone(), identity.clone(), gossip.clone());
    admin = admin.state("node", move || {
        serde_json::json!({
            "name": config.name,
            "site": config.site,
            "region": config.region,
            "roles": config.roles,
            "spiffe_id": own.own_id().to_string(),
            "certificate_not_after_ms": own.not_after_ms(),
            "clock_correction_ms": own.clock().correction_ms(),
            "mesh_connections": own.connections().len(),
        })
    });
    let known = gossip.clone();
    admin = admin.state("gossip", move || gossip_state(&known));
    for (name, view) in roles.views() {
        admin = admin.state(name, view);
    }
    for explain in roles.explainers() {
        admin = admin.explain(explain);
    }
    admin
}

/// Who is alive and which records are known; not their bodies.
fn gossip_state(gossip: &Gossip) -> serde_json::Value {
    let members = gossip.members();
    let members = members.borrow().clone();
    let scopes: serde_json::Map<String, serde_json::Value> = gossip
        .scopes()
        .iter()
        .map(|scope| {
            let alive: Vec<&str> = members.alive(scope).iter().map(|member| member.name.as_str()).collect();
            let (epoch, version) = gossip.desired_version(scope);
            (
                scope.to_string(),
                serde_json::json!({"alive": alive, "desired": {"epoch": epoch, "version": version}}),
            )
        })
        .collect();
    let kinds = [
        ("node", Kind::NODE),
        ("region_node", Kind::REGION_NODE),
        ("summary", Kind::SUMMARY),
        ("instance", Kind::INSTANCE),
        ("virtual_host", Kind::VIRTUAL_HOST),
        ("cluster", Kind::CLUSTER),
        ("certificate", Kind::CERTIFICATE),
        ("denial", Kind::DENIAL),
        ("region_denial", Kind::REGION_DENIAL),
        ("drain", Kind::DRAIN),
        ("region_drain", Kind::REGION_DRAIN),
        ("placement", Kind::PLACEMENT),
    ];
    let records: serde_json::Map<String, serde_json::Value> =
        kinds.into_iter().map(|(name, kind)| (name.to_owned(), gossip.entries(kind).len().into())).collect();
    serde_json::json!({"address": gossip.local_addr().to_string(), "scopes": scopes, "records": records})
}

/// The channel that a node reaches control by, before its roles are bound.
pub fn channel_to_control(config: &NodeConfig, identity: &Identity) -> tonic::transport::Channel {
    node_plane::channel(config.join.control.clone(), identity)
}
