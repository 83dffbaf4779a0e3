//! Services call services: in the region and beyond, who may and who may not, while instances fail and are replaced.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{
    ForeignCa, Load, MeshClient, MeshFailure, Options, Platform, Ran, Version, probe_words, processes,
    wait_until, write_probe,
};
use atoll_tests::shop_manifest;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const WEB_ID: &str = "spiffe://atoll.internal/org/default/app/shop/service/web";
const API_ID: &str = "spiffe://atoll.internal/org/default/app/shop/service/api";

#[test]
fn services_call_services() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    deploy_shop(&platform);
    deploy_other(&platform);

    in_the_region_sidecar_calls_sidecar(&platform);
    without_an_instance_in_the_region_another_one_answers(&platform);
    rules_decide_by_caller_method_and_path(&platform);
    another_app_is_refused_whatever_it_says(&platform);
    stolen_identities_get_nowhere(&platform);
    names_of_the_mesh_go_through_the_proxy_and_nothing_else(&platform);
    rules_change_without_a_new_instance_having_to_be_there_first(&platform);
    the_api_is_replaced_under_load_without_a_failed_call(&platform);
    the_api_s_instances_fail_under_load_without_a_failed_call(&platform);
}

fn api(name: &str, regions: &str, more: &str) -> String {
    format!(
        "\n[service.{name}]\nrun = [\"$SHOP\", \"api\", \"--listen\", \"127.0.0.1:$PORT\"]\npublic = false\n\
         regions = {{ {regions} }}\ndrain = \"5s\"\n{more}\n\
         [[service.{name}.check]]\nkind = \"http\"\npath = \"/healthz\"\nevery = \"200ms\"\ntimeout = \"1s\"\ndown = 2\n"
    )
}

fn probe(name: &str, calls: &str, more: &str) -> String {
    format!(
        "\n[service.{name}]\nrun = {}\npublic = true\nregions = {{ fra = {{ min = 1 }}, was = {{ min = 0, max = 0 }} }}\ncalls = [{calls}]\n{more}\n",
        probe_words()
    )
}

fn shop(rules: &str) -> String {
    let both = "fra = { min = 2, max = 4 }, was = { min = 1, max = 4 }";
    let web = shop_manifest("shop", &[("fra", 1), ("was", 1)])
        .replace("public = true\n", "public = true\ncalls = [\"api\"]\n");
    let calls = "\"api\", \"guarded\", \"faraway\"";
    web + &api("api", both, "")
        + &api("guarded", "fra = { min = 1 }, was = { min = 0, max = 0 }", "")
        + &api("faraway", "was = { min = 1 }, fra = { min = 0, max = 0 }", "")
        + &probe("probe", calls, "proxy_env = true")
        + rules
}

/// `web` may read, `probe` may do one thing.
const RULES: &str = "\
[[allow]]\nfrom = [\"web\"]\nto = \"guarded\"\nhttp = [\"GET /v1/**\"]\n\
[[allow]]\nfrom = [\"probe\"]\nto = \"guarded\"\nhttp = [\"GET /v1/products\", \"* /echo\"]\n";

fn deploy_shop(platform: &Platform) {
    let folder = platform.manifest("shop", &shop(RULES));
    write_probe(&folder);
    platform.deploy(&folder);
}

/// An app that calls the shop's api without being asked.
fn deploy_other(platform: &Platform) {
    let text =
        format!("manifest = 1\napp = \"other\"\n{}", probe("web", "\"shop/api\", \"shop/guarded\"", ""));
    let folder = platform.manifest("other", &text);
    write_probe(&folder);
    platform.deploy(&folder);
}

fn in_shop(platform: &Platform, line: &str) -> Ran {
    platform.run_in(&platform.edges()[0], "probe--shop", line)
}

fn in_other(platform: &Platform, line: &str) -> Ran {
    platform.run_in(&platform.edges()[0], "other", line)
}

/// A host's counter of calls.
fn counted(platform: &Platform, host: &str, what: &str) -> u64 {
    let admin = platform.nodes().into_iter().find(|node| node.name == host).unwrap().admin;
    let metrics = Command::new("curl").args(["-sS", &format!("http://{admin}/metrics")]).output().unwrap();
    let text = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let lines = text.lines().filter(|line| line.starts_with(what));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

const NEAR: &str = "atoll_host_calls_total{how=\"near\"}";
const BY_GATEWAY: &str = "atoll_host_calls_total{how=\"gateway\"}";

fn in_the_region_sidecar_calls_sidecar(platform: &Platform) {
    for (edge, region) in platform.edges().iter().zip(["fra", "was"]) {
        let answer = platform.curl(edge, "shop", "/products").run();
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        assert_eq!(
            (&body["web"]["region"], &body["api"]["region"]),
            (&region.into(), &region.into()),
            "{body}"
        );
        assert!(body["api"]["products"].as_array().is_some_and(|products| products.len() == 3), "{body}");
        let page = platform.curl(edge, "shop", "/").run().text();
        assert!(page.contains("Coral lamp"), "{page}");
    }
    for host in ["fra1-host", "was1-host"] {
        wait_until("the host has counted the calls", SOON, || counted(platform, host, NEAR) >= 2);
        assert_eq!(counted(platform, host, BY_GATEWAY), 0, "{host}: no gateway has part in it");
    }
    let seen = in_shop(
        platform,
        "curl -sS -i -H 'Atoll-Client-Ip: 6.6.6.6' -H 'X-Forwarded-For: 1.2.3.4' -H 'x-request-id: mine-2' $API_URL/headers",
    );
    assert_eq!(seen.status(), 200, "{seen:?}");
    assert_eq!(seen.header("atoll-region").as_deref(), Some("fra"));
    assert!(seen.header("atoll-instance").is_some());
    let body: serde_json::Value = serde_json::from_str(seen.out.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["host"], "api.shop.internal");
    assert_eq!(body["x-request-id"], "mine-2");
    assert_eq!(body["x-forwarded-for"], "1.2.3.4");
    assert!(body["traceparent"].as_str().is_some_and(|parent| parent.len() == 55), "{body}");
    assert!(!seen.out.contains("6.6.6.6"), "{seen:?}");
    // Large bodies stream, in both versions of HTTP.
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let line = format!(
            "head -c 30000000 /dev/zero | curl -sS {version} --data-binary @- -H 'content-type: x/y' $API_URL/echo | cmp - /dev/zero 2>&1 | grep -o 'byte 30000000'"
        );
        let echoed = in_shop(platform, &line);
        assert!(echoed.out.contains("30000000"), "{version}: {echoed:?}");
    }
}

fn without_an_instance_in_the_region_another_one_answers(platform: &Platform) {
    let before = counted(platform, "fra1-host", BY_GATEWAY);
    let far = in_shop(platform, "curl -sS -i $FARAWAY_URL/json");
    assert_eq!((far.status(), far.header("atoll-region").as_deref()), (200, Some("was")), "{far:?}");
    wait_until("the call is counted", SOON, || counted(platform, "fra1-host", BY_GATEWAY) == before + 1);
    let posted = in_shop(platform, "curl -sS -i --data-binary hello $FARAWAY_URL/echo");
    assert!(posted.status() == 200 && posted.out.ends_with("hello"), "{posted:?}");
}

/// The folder of the one instance of a service, and its id.
fn folder_of(platform: &Platform, service: &str) -> (PathBuf, String) {
    let instances = platform.instances("shop");
    let found = instances.iter().find(|i| i["service"] == service && i["region"] == "fra");
    let found = found.unwrap_or_else(|| panic!("{instances:?}"));
    let id = found["id"].as_str().or_else(|| found["instance"].as_str()).unwrap().to_owned();
    let out =
        Command::new("find").arg(platform.data().join("nodes")).args(["-type", "d", "-name", &id]).output();
    let out = String::from_utf8(out.unwrap().stdout).unwrap();
    (PathBuf::from(out.lines().next().unwrap_or_else(|| panic!("no folder of {id}"))), id)
}

/// Waits for the called side's line about a refusal, with both ids.
fn is_logged(platform: &Platform, service: &str, caller: &str, why: &str) {
    let instances = platform.instances("shop");
    let ids = instances.iter().filter(|i| i["service"] == service);
    let ids: Vec<String> =
        ids.filter_map(|i| i["id"].as_str().or_else(|| i["instance"].as_str()).map(str::to_owned)).collect();
    let own = format!("spiffe://atoll.internal/org/default/app/shop/service/{service}");
    wait_until(&format!("{service} logs that {caller} was refused: {why}"), SOON, || {
        let find =
            Command::new("find").arg(platform.data().join("nodes")).args(["-name", "sidecar.log"]).output();
        let found = String::from_utf8(find.unwrap().stdout).unwrap();
        let of_service = found.lines().filter(|path| ids.iter().any(|id| path.contains(id.as_str())));
        of_service.filter_map(|path| fs::read_to_string(path).ok()).any(|text| {
            text.lines().any(|line| line.contains(caller) && line.contains(&own) && line.contains(why))
        })
    });
}

fn refused(ran: &Ran, reason: &str) {
    assert_eq!(ran.status(), 403, "{ran:?}");
    let said = ran.header("proxy-status").unwrap_or_default();
    assert!(said.starts_with("atoll-sidecar;") && said.contains(reason), "{ran:?}");
}

fn rules_decide_by_caller_method_and_path(platform: &Platform) {
    let ask = |arguments: &str| in_shop(platform, &format!("curl -sS -i --path-as-is {arguments}"));
    let allowed = ask("$GUARDED_URL/v1/products");
    assert_eq!(allowed.status(), 200, "{allowed:?}");
    assert_eq!(ask("-X POST --data-binary x $GUARDED_URL/echo").status(), 200);
    for no in [
        "-X POST $GUARDED_URL/v1/products",
        "$GUARDED_URL/v1/products/1",
        "$GUARDED_URL/json",
        "$GUARDED_URL/echo/../json",
        "'$GUARDED_URL/echo/%2e%2e/json'",
        "-X POST $GUARDED_URL/control/unhealthy",
    ] {
        refused(&ask(&no.replace('\'', "")), "not-authorized");
    }
    let ambiguous = ask("-X POST $GUARDED_URL/echo/..%2fcontrol/unhealthy");
    assert_eq!(ambiguous.status(), 400, "{ambiguous:?}");
    let caller = "spiffe://atoll.internal/org/default/app/shop/service/probe";
    is_logged(platform, "guarded", caller, "no [[allow]] rule");
    wait_until("refusals are counted", SOON, || {
        counted(platform, "fra1-host", "atoll_host_calls_refused_total") >= 6
    });
}

fn another_app_is_refused_whatever_it_says(platform: &Platform) {
    let caller = "spiffe://atoll.internal/org/default/app/other/service/web";
    let ask = |arguments: &str| in_other(platform, &format!("curl -sS -i {arguments}"));
    refused(&ask("$SHOP_API_URL/v1/products"), "not-authorized");
    is_logged(platform, "api", caller, "another app");
    for forged in [
        format!("-H 'atoll-caller: {WEB_ID}'"),
        "-H 'atoll-cluster: default/other/web'".to_owned(),
        "-H 'host: web.shop.internal'".to_owned(),
    ] {
        refused(&ask(&format!("{forged} $SHOP_API_URL/v1/products")), "not-authorized");
    }
    refused(&ask("$SHOP_GUARDED_URL/v1/products"), "not-authorized");
    is_logged(platform, "guarded", caller, "no [[allow]] rule names it");
}

fn identity_file(platform: &Platform, node: &str) -> PathBuf {
    platform.data().join("nodes").join(node).join("identity").join("identity.pem")
}

/// Where the sidecar of an instance takes mutual TLS: of its sockets the one that speaks TLS to others.
fn sidecar_of(platform: &Platform, service: &str) -> SocketAddr {
    let (folder, _) = folder_of(platform, service);
    let state: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("state.json")).unwrap()).unwrap();
    state["sidecar_address"].as_str().unwrap().parse().unwrap()
}

fn workload(platform: &Platform, host: &str, name: &str) -> MeshClient {
    let find =
        Command::new("find").arg(platform.data().join("nodes").join(host)).args(["-name", name]).output();
    let found = String::from_utf8(find.unwrap().stdout).unwrap();
    MeshClient::from_workload(PathBuf::from(found.lines().next().expect("the host keeps it")).as_path())
}

fn stolen_identities_get_nowhere(platform: &Platform) {
    let api = sidecar_of(platform, "api");
    let fields = [("atoll-cluster", "default/shop/api"), ("atoll-caller", WEB_ID)];
    // A node that may not be here is refused in the handshake, whatever it says.
    let node = |name: &str| MeshClient::from_file(&identity_file(platform, name));
    let foreign = ForeignCa::new();
    for (who, client) in [
        ("an edge", node("fra1-edge")),
        ("another region's gateway", node("was1-gateway")),
        ("a host", node("fra1-host")),
        ("control", node("fra1-control")),
        (
            "another CA's gateway",
            foreign.client("spiffe://atoll.internal/node/fra1/fra1-gateway", "gateway", "fra"),
        ),
    ] {
        let answer = client.get(api, "/v1/products", &fields);
        assert!(matches!(answer, Err(MeshFailure::Refused(_))), "{who}: {answer:?}");
    }
    // A stolen certificate of a service is that service, and no other.
    let ask = |client: &MeshClient, fields: &[(&str, &str)]| {
        let answer = client.get(api, "/v1/products", fields).unwrap();
        (answer.status, answer.header("atoll-reason").unwrap_or_default().to_owned())
    };
    let no = (403, "sidecar;not-authorized".to_owned());
    let other = workload(platform, "fra1-host", "default_other_web.json");
    assert_eq!(ask(&other, &fields), no, "its word about a caller counts for nothing");
    let web = workload(platform, "fra1-host", "default_shop_web.json");
    assert_eq!(ask(&web, &fields[..1]).0, 200);
    assert_eq!(
        ask(&web, &[("atoll-cluster", "default/shop/guarded")]),
        no,
        "this is not that service's sidecar"
    );
    // The region's own gateway speaks for callers, but a private service has no public requests.
    let gateway = node("fra1-gateway");
    assert_eq!(ask(&gateway, &fields[..1]), (403, "sidecar;not-public".to_owned()));
    assert_eq!(ask(&gateway, &fields).0, 200);
    for caller in [
        "",
        "spiffe://evil/org/default/app/shop/service/web",
        "spiffe://atoll.internal/org/acme/app/shop/service/web",
    ] {
        assert_eq!(ask(&gateway, &[fields[0], ("atoll-caller", caller)]), no, "{caller}");
    }
    assert_eq!(ask(&gateway, &[fields[0], fields[1], ("atoll-caller", API_ID)]), no, "two callers");
}

fn names_of_the_mesh_go_through_the_proxy_and_nothing_else(platform: &Platform) {
    let ask = |arguments: &str| in_shop(platform, &format!("curl -sS -i {arguments}"));
    let named = ask("http://api.shop.internal/v1/products");
    assert!(named.status() == 200 && named.out.contains("Coral lamp"), "{named:?}");
    assert_eq!(ask("http://faraway.shop.internal/json").status(), 200);
    refused(&ask("http://example.com/"), "not-internal");
    refused(&ask("http://169.254.169.254/latest/meta-data"), "not-internal");
    let tunnel = ask("--proxytunnel http://api.shop.internal/");
    assert!(tunnel.out.contains("403") || tunnel.err.contains("403"), "{tunnel:?}");
    refused(&ask("http://guarded.shop.internal/json"), "not-authorized");
    let none = ask("http://nobody.shop.internal/");
    assert_eq!(none.status(), 503, "{none:?}");
    // Without `proxy_env` there is none.
    let plain = in_other(platform, "echo \"[$http_proxy$HTTP_PROXY$no_proxy]\"");
    assert_eq!(plain.out.trim(), "[]");
}

/// The instance that runs already is told, before any new one has started.
fn rules_change_without_a_new_instance_having_to_be_there_first(platform: &Platform) {
    let (_, id) = folder_of(platform, "guarded");
    let folder = platform
        .manifest("shop", &shop("[[allow]]\nfrom = [\"probe\", \"default/other/web\"]\nto = \"guarded\"\n"));
    write_probe(&folder);
    platform.deploy(&folder);
    let ask = |line: &str| in_other(platform, line);
    wait_until("the new rule holds", SOON, || {
        ask("curl -sS -i $SHOP_GUARDED_URL/v1/products").status() == 200
    });
    println!("before: {id}, after: {}", folder_of(platform, "guarded").1);
}

/// Of the web's calls, over connections that are always busy: one that is idle for long may be closed just when it
/// is used again, which says nothing of calls.
fn load(platform: &Platform) -> Load {
    let mut targets = platform.load_targets("shop", "/products");
    targets.retain(|target| target.version == Version::H2);
    Load::start(targets, 40)
}

fn the_api_is_replaced_under_load_without_a_failed_call(platform: &Platform) {
    let load = load(platform);
    load.wait_for_more(40);
    let folder = platform.manifest("shop", &shop(RULES));
    write_probe(&folder);
    platform.deploy(&folder);
    load.wait_for_more(40);
    let report = load.stop();
    println!("{} calls through web while web, api and the others were replaced", report.sent);
    report.expect_no_failure("a rolling deploy");
}

fn the_api_s_instances_fail_under_load_without_a_failed_call(platform: &Platform) {
    let load = load(platform);
    load.wait_for_more(40);
    let before = counted(platform, "fra1-host", BY_GATEWAY);
    // Each of the two in fra is told by whoever answers, until both fail their checks.
    wait_until("the calls of fra go to was", SOON, || {
        let _told = in_shop(platform, "curl -sS -X POST --max-time 2 \"$API_URL/control/unhealthy?for=8s\"");
        let here = in_shop(platform, "curl -sS -i $API_URL/json");
        here.header("atoll-region").as_deref() == Some("was")
    });
    load.wait_for_more(80);
    assert!(counted(platform, "fra1-host", BY_GATEWAY) > before, "calls go by way of gateways");
    wait_until("they come back", SOON, || {
        in_shop(platform, "curl -sS -i $API_URL/json").header("atoll-region").as_deref() == Some("fra")
    });
    // Killed: at once, and without a word.
    for pid in processes_of(platform, "api") {
        processes::kill(pid);
    }
    load.wait_for_more(80);
    let report = load.stop();
    println!("{} calls while the api's instances of fra failed and were killed", report.sent);
    report.expect_no_failure("failing instances of the called service");
}

/// The programs of a service's instances in fra.
fn processes_of(platform: &Platform, service: &str) -> Vec<u32> {
    let instances = platform.instances("shop");
    let of_service = instances.iter().filter(|i| i["service"] == service && i["region"] == "fra");
    of_service.filter_map(|i| u32::try_from(i["pid"].as_u64()?).ok()).filter(|pid| *pid != 0).collect()
}
