//! Certificates that live for seconds, renewed under load; certificates from elsewhere; who may ask
//! whom for what; join tokens.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_gossip::Scope;
use atoll_model::Kind;
use atoll_testkit::rogue::{Claim, RogueNode};
use atoll_testkit::{ForeignCa, Load, MeshClient, MeshFailure, Options, Platform, processes, wait_until};
use atoll_tests::shop_manifest_with_api;
use atoll_wire::Message;
use atoll_wire::record::{Instance, instance};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIFE: Duration = Duration::from_secs(12);
const RENEWALS: usize = 3;
const SOON: Duration = Duration::from_secs(30);
const TRUST_DOMAIN: &str = "atoll.internal";

#[test]
fn only_the_mesh_s_own_are_let_in() {
    let life = format!("{}s", LIFE.as_secs());
    let arguments = ["--node-certificate-life", &life, "--workload-certificate-life", &life];
    let mut platform = Platform::start(Options::regions(&["fra", "was"]).arguments(&arguments));
    platform.deploy(&platform.manifest("shop", &shop_manifest_with_api("shop", &[("fra", 1), ("was", 1)])));

    certificates_are_renewed_under_load(&platform);
    certificates_from_elsewhere_get_nowhere(&platform);
    an_edge_gets_only_public_services(&platform);
    no_node_speaks_for_another(&platform);
    keys_are_private(&platform);
    tokens_are_for_one_node_at_one_site(&platform);
    expired_certificates_are_recovered(&mut platform);
}

fn identity_file(platform: &Platform, node: &str) -> PathBuf {
    platform.data().join("nodes").join(node).join("identity").join("identity.pem")
}

fn certificates_are_renewed_under_load(platform: &Platform) {
    let nodes: Vec<String> = platform.nodes().into_iter().map(|node| node.name).collect();
    let load = Load::start(platform.load_targets("shop", "/json"), 40);
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    wait_until("every node has renewed its certificate several times", LIFE * 6, || {
        for node in &nodes {
            let pem = fs::read_to_string(identity_file(platform, node)).unwrap_or_default();
            seen.entry(node).or_default().insert(pem);
        }
        seen.values().all(|pems| pems.len() > RENEWALS)
    });
    let report = load.stop();
    println!("{} requests while every node renewed {RENEWALS} times or more", report.sent);
    report.expect_no_failure("renewal of certificates");
}

fn address(platform: &Platform, node: &str, section: &str, key: &str) -> SocketAddr {
    platform.setting(node, section, key).parse().unwrap()
}

/// The address of the sidecar of an instance of `shop` in a region.
fn sidecar(platform: &Platform, service: &str, region: &str) -> SocketAddr {
    let instances = platform.instances("shop");
    let wanted = |i: &&serde_json::Value| i["service"] == service && i["region"] == region;
    let found = instances.iter().find(wanted).unwrap_or_else(|| panic!("{instances:?}"));
    let id = found["id"].as_str().or_else(|| found["instance"].as_str()).unwrap();
    let is_its_sidecar = |pid: &u32| {
        let line = processes::command_line(*pid);
        line.contains(" sidecar ") && line.contains(id)
    };
    let pid = platform.processes().into_iter().find(is_its_sidecar).expect("each instance has a sidecar");
    let ports = processes::listening_ports(pid);
    assert!(!ports.is_empty(), "the sidecar listens");
    SocketAddr::from(([127, 0, 0, 1], ports[0]))
}

fn certificates_from_elsewhere_get_nowhere(platform: &Platform) {
    let gateway = address(platform, "fra1-gateway", "gateway", "listen");
    let node_plane = address(platform, "fra1-control", "control", "node_plane_listen");
    let ca = ForeignCa::new();
    let node =
        |name: &str, role: &str| ca.client(&format!("spiffe://{TRUST_DOMAIN}/node/fra1/{name}"), role, "fra");
    let fields = [("atoll-cluster", "default/shop/web"), ("atoll-tries", "3")];
    for (to, client) in [
        (gateway, node("fra1-edge", "edge")),
        (sidecar(platform, "web", "fra"), node("fra1-gateway", "gateway")),
        (node_plane, node("fra1-control", "control")),
    ] {
        let answer = client.get(to, "/json", &fields);
        assert!(matches!(answer, Err(MeshFailure::Refused(_))), "{to}: {answer:?}");
    }
}

fn an_edge_gets_only_public_services(platform: &Platform) {
    let gateway = address(platform, "fra1-gateway", "gateway", "listen");
    let edge = || MeshClient::from_file(&identity_file(platform, "fra1-edge"));
    let ask = |cluster: &str| {
        let fields = [("atoll-cluster", cluster), ("atoll-tries", "3"), ("atoll-edge", "fra1")];
        edge().get(gateway, "/json", &fields).unwrap()
    };
    let public = ask("default/shop/web");
    assert_eq!(public.status, 200, "an edge's own certificate is let in: {public:?}");
    for cluster in ["default/shop/api", "default/shop/none", "other/shop/web", "nonsense"] {
        let refused = ask(cluster);
        assert_ne!(refused.status, 200, "{cluster}: {refused:?}");
        assert!(!String::from_utf8_lossy(&refused.body).contains("instance"), "{cluster}: {refused:?}");
    }
    let refused = ask("default/shop/api");
    assert_eq!(refused.header("atoll-reason"), Some("gateway;not-public"), "{refused:?}");
    // Only gateways may speak to a sidecar.
    for (service, node) in [("web", "fra1-edge"), ("api", "fra1-edge"), ("web", "fra1-host")] {
        let client = MeshClient::from_file(&identity_file(platform, node));
        let answer =
            client.get(sidecar(platform, service, "fra"), "/json", &[("atoll-cluster", "default/shop/web")]);
        let refused = answer.as_ref().map_or(true, |answer| answer.status != 200);
        assert!(refused, "{node} asks {service}'s sidecar: {answer:?}");
    }
}

/// Real keys, used to say what their owner may not say: it is refused, counted, and changes nothing.
fn no_node_speaks_for_another(platform: &Platform) {
    let gossip = |node: &str| -> SocketAddr { platform.setting(node, "gossip", "listen").parse().unwrap() };
    let rogue = |node: &str| {
        RogueNode::with_keys_of(&platform.data().join("nodes").join(node).join("identity")).unwrap()
    };
    let region = |name: &str| Scope::Region(name.parse().unwrap());
    let instances = platform.instances("shop");
    let of_fra = instances.iter().find(|i| i["region"] == "fra").unwrap();
    let id = of_fra["id"].as_str().or_else(|| of_fra["instance"].as_str()).unwrap();
    let key = format!("fra1-host/{id}");
    let body = Instance {
        instance: id.to_owned(),
        cluster: "default/shop/web".to_owned(),
        state: instance::State::Unhealthy.into(),
        ..Instance::default()
    }
    .encode_to_vec();
    let claim = |owner, kind, scope, key| Claim { owner, kind, scope, key, body: body.clone() };
    for (who, to, claim) in [
        // A host about another host's instance, in its own region and in the other's.
        ("was1-host", "was1-gateway", claim("was1-host", Kind::INSTANCE, region("was"), key.as_str())),
        ("was1-host", "fra1-gateway", claim("was1-host", Kind::INSTANCE, region("fra"), key.as_str())),
        // In the other's name.
        ("was1-host", "was1-gateway", claim("fra1-host", Kind::INSTANCE, region("was"), key.as_str())),
        // A gateway about an instance, and an edge about what is desired.
        ("fra1-gateway", "fra1-control", claim("fra1-gateway", Kind::INSTANCE, region("fra"), key.as_str())),
        ("fra1-edge", "fra1-gateway", claim("control", Kind::CLUSTER, Scope::Global, "default/shop/web")),
        ("fra1-edge", "was1-edge", claim("fra1-edge", Kind::VIRTUAL_HOST, Scope::Global, "shop")),
    ] {
        let before = refused_records(platform, to);
        rogue(who).tell(gossip(to), &claim).unwrap();
        if claim.scope.as_str() == "fra" && who == "was1-host" {
            // It is not in that scope at all, so there is no record to be refused.
            continue;
        }
        wait_until(&format!("{to} refuses what {who} says: {claim:?}"), SOON, || {
            refused_records(platform, to) > before
        });
    }
    let report = Load::start(platform.load_targets("shop", "/json"), 40);
    report.wait_for_more(80);
    report.stop().expect_no_failure("records that nobody may write");
    let now = platform.instances("shop");
    assert!(now.iter().all(|instance| instance["state"] == "healthy"), "{now:?}");
}

/// How many records a node has refused, by its own count.
fn refused_records(platform: &Platform, node: &str) -> u64 {
    let admin = platform.nodes().into_iter().find(|known| known.name == node).unwrap().admin;
    let metrics = Command::new("curl").args(["-sS", &format!("http://{admin}/metrics")]).output().unwrap();
    String::from_utf8_lossy(&metrics.stdout)
        .lines()
        .filter(|line| line.starts_with("atoll_gossip_records_refused_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Nobody but the owner reads what the platform keeps.
fn keys_are_private(platform: &Platform) {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&platform.data()), 0o700);
    assert_eq!(mode(&platform.data().join("dev.json")), 0o600);
    let mut keys = 0;
    for_each_file(&platform.data(), &mut |path| {
        let holds_key =
            fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"));
        if holds_key {
            keys += 1;
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
    });
    assert!(keys >= 7, "each node has a key: {keys}");
}

fn for_each_file(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => for_each_file(&entry.path(), visit),
            Ok(kind) if kind.is_file() => visit(&entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}

/// A new edge in a folder of its own.
struct Joining {
    folder: PathBuf,
    child: Child,
}

impl Joining {
    fn start(platform: &Platform, name: &str, site: &str, role: &str, token: &str) -> Self {
        let folder = platform.scratch(&format!("join-{name}-{site}-{role}"));
        let data = folder.join("data");
        let control = platform.setting("fra1-control", "control", "node_plane_listen");
        let seed = platform.setting("fra1-control", "gossip", "listen");
        let region = site.trim_end_matches(|c: char| c.is_ascii_digit());
        fs::write(folder.join("token"), token).unwrap();
        let text = format!(
            "name = {name:?}\nsite = {site:?}\nregion = {region:?}\nroles = [{role:?}]\ndata_dir = {data:?}\n\
             [join]\ncontrol = [{control:?}]\ntoken_file = {:?}\n[gossip]\nseeds = [{seed:?}]\n\
             [edge]\nhttps = [\"127.0.0.1:0\"]\n",
            folder.join("token")
        );
        fs::write(folder.join("node.toml"), text).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = platform.anonymous().command();
        command.arg("node").arg("--config").arg(folder.join("node.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { child: command.spawn().unwrap(), folder }
    }

    /// Whether it has joined; `None` while that is open.
    fn joined(&mut self) -> Option<bool> {
        if self.folder.join("data/identity/identity.pem").exists() {
            return Some(true);
        }
        self.child.try_wait().unwrap().map(|_| false)
    }

    fn outcome(&mut self) -> bool {
        atoll_testkit::wait_for("the join has come to an end", SOON, || self.joined())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn token(platform: &Platform, arguments: &[&str]) -> String {
    let arguments = ["tokens", "create", "--role", "edge", "--site", "fra1"].iter().chain(arguments);
    let arguments: Vec<&str> = arguments.copied().collect();
    platform.atoll().run(&arguments).expect_code(0).stdout.trim().to_owned()
}

fn tokens_are_for_one_node_at_one_site(platform: &Platform) {
    let used = token(platform, &[]);
    let mut first = Joining::start(platform, "late-one", "fra1", "edge", &used);
    assert!(first.outcome(), "{}", first.log());
    let refused = |name: &str, site: &str, role: &str, token: &str| {
        let mut joining = Joining::start(platform, name, site, role, token);
        assert!(!joining.outcome(), "{name} at {site} as {role}: {}", joining.log());
        assert!(!joining.log().trim().is_empty(), "it says why");
    };
    refused("late-two", "fra1", "edge", &used);

    let short = token(platform, &["--ttl", "1s"]);
    wait_until("the token has expired", SOON, || {
        let listed = platform.atoll().run(&["tokens", "list", "-o", "json"]).expect_code(0).json();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let id = short.split('.').nth(1).unwrap();
        let mine = listed.as_array().unwrap().iter().find(|token| token["id"] == id).cloned();
        mine.is_none_or(|token| u128::from(token["expires_ms"].as_u64().unwrap_or(0)) < now)
    });
    refused("late-three", "fra1", "edge", &short);
    refused("late-four", "was1", "edge", &token(platform, &[]));
    refused("late-five", "fra1", "gateway", &token(platform, &[]));
    refused("late-six", "fra1", "edge", &token(platform, &["--node", "another"]));
    let mut guessed = token(platform, &[]);
    // A character of the secret, which is the third part.
    let at = guessed.match_indices('.').nth(1).unwrap().0 + 3;
    let other = if guessed.as_bytes()[at] == b'A' { "B" } else { "A" };
    guessed.replace_range(at..=at, other);
    refused("late-seven", "fra1", "edge", &guessed);
    refused("late-eight", "fra1", "edge", "not a token");

    let shared = token(platform, &[]);
    let mut both =
        ["race-one", "race-two"].map(|name| Joining::start(platform, name, "fra1", "edge", &shared));
    let won = both.iter_mut().filter_map(|joining| joining.outcome().then_some(())).count();
    assert_eq!(won, 1, "exactly one of two uses at once wins");
}

/// Everything is stopped for longer than any certificate lives.
fn expired_certificates_are_recovered(platform: &mut Platform) {
    assert!(platform.stop().success());
    std::thread::sleep(LIFE + Duration::from_secs(1));
    platform.start_again();
    for edge in platform.edges() {
        wait_until("the app is served again", SOON, || {
            platform.curl(&edge, "shop", "/json").run().status == 200
        });
    }
}
