//! What operators and scripts hold on to: keys that make a change happen once, the API's own
//! description, answers that outlive a crash, a configuration that is read again, a deploy that is left
//! to itself.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Curl, CurlAnswer, Options, Platform, processes, wait_until};
use atoll_tests::{program_manifest, shop_manifest};
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn operators_can_rely_on_it() {
    let platform = Platform::start(Options::regions(&["fra"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    the_api_describes_itself(&platform);
    a_change_with_a_key_happens_once(&platform);
    what_was_answered_outlives_a_crash(&platform);
    a_configuration_is_read_again(&platform);
    a_deploy_goes_on_without_its_client(&platform);
}

fn ask(platform: &Platform, path: &str) -> Curl {
    let dev = platform.dev_json();
    let (api, token) = (dev["api"].as_str().unwrap(), dev["token"].as_str().unwrap());
    Curl::new(format!("{api}{path}")).header(&format!("authorization: Bearer {token}"))
}

fn the_api_describes_itself(platform: &Platform) {
    let document = ask(platform, "/v1/openapi.json").run().json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{document}");
    let paths = document["paths"].as_object().unwrap();
    for path in ["/v1/apps", "/v1/apps/{app}", "/v1/nodes", "/v1/instances", "/v1/tokens/join", "/v1/ca"] {
        assert!(paths.contains_key(path), "{path} is described: {:?}", paths.keys().collect::<Vec<_>>());
    }
}

fn create_token(platform: &Platform, key: &str, site: &str) -> CurlAnswer {
    let body = format!(r#"{{"roles":["edge"],"site":"{site}","region":"fra","ttl_ms":60000}}"#);
    ask(platform, "/v1/tokens/join")
        .method("POST")
        .header("content-type: application/json")
        .header(&format!("idempotency-key: {key}"))
        .arguments(["--data", body.as_str()])
        .run()
}

fn a_change_with_a_key_happens_once(platform: &Platform) {
    let first = create_token(platform, "once", "fra1");
    assert!((200..300).contains(&first.status), "{first:?}");
    let count = || platform.api("/v1/tokens/join").as_array().unwrap().len();
    let tokens = count();
    let again = create_token(platform, "once", "fra1");
    assert_eq!((again.status, again.text()), (first.status, first.text()), "the same answer again");
    assert_eq!(count(), tokens, "and no second token");
    let other = create_token(platform, "once", "fra2");
    assert!((400..500).contains(&other.status), "{other:?}");
    assert_eq!(other.json()["code"], "idempotency-key-reused", "{other:?}");
}

fn what_was_answered_outlives_a_crash(platform: &Platform) {
    let control = platform.node("fra1", "control").pid;
    let made = create_token(platform, "before-the-crash", "fra1");
    processes::kill(control);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    wait_until("control is back", SOON, || {
        let now = platform.node("fra1", "control").pid;
        now != control && now != 0 && ask(platform, "/v1/apps").run().status == 200
    });
    let tokens = platform.api("/v1/tokens/join");
    assert!(tokens.as_array().unwrap().iter().any(|token| token["id"] == id.as_str()), "{id}: {tokens}");
}

/// A counter of the edge, as its admin address shows it.
fn counted(platform: &Platform, metric: &str) -> u64 {
    let admin = platform.node("fra1", "edge").admin;
    let text = Curl::new(format!("http://{admin}/metrics")).run().text();
    let line = text.lines().find(|line| line.starts_with(metric));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn a_configuration_is_read_again(platform: &Platform) {
    let edge = platform.node("fra1", "edge");
    let file = platform.data().join("nodes").join(format!("{}.toml", edge.name));
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("drain_ms", "drian_ms")).unwrap();
    processes::signal(edge.pid, Signal::HUP);
    wait_until("the edge has refused the file", SOON, || {
        counted(platform, "atoll_node_config_reload_errors_total") == 1
    });
    let answer = platform.curl(&platform.edges()[0], "shop", "/json").run();
    assert_eq!(answer.status, 200, "it serves with the last good one: {answer:?}");
    assert!(platform.logs().contains("drian_ms"), "and says which key it does not know");
    fs::write(&file, &good).unwrap();
    processes::signal(edge.pid, Signal::HUP);
    wait_until("the edge has taken the file", SOON, || {
        counted(platform, "atoll_node_config_reloads_total") == 1
    });
}

/// Its port opens only when the file is there, so that the deploy lasts as long as the test wants.
fn a_deploy_goes_on_without_its_client(platform: &Platform) {
    let gate = platform.scratch("gate").join("open");
    let program = format!(
        "import os,time,http.server as h\nwhile not os.path.exists({gate:?}): time.sleep(0.05)\n\
         h.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), h.SimpleHTTPRequestHandler).serve_forever()"
    );
    let folder = platform.manifest("slow", &program_manifest("slow", "fra", &["python3", "-c", &program]));
    let mut deploy = platform
        .atoll()
        .command()
        .current_dir(&folder)
        .arg("deploy")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(deploy.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("fra")) {
        seen.push(said.next().expect("the deploy shows its progress").unwrap());
    }
    processes::signal(deploy.id(), Signal::INT);
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert_eq!(deploy.wait().unwrap().code(), Some(130), "{seen:?} {rest:?}");
    assert!(rest.iter().any(|line| line.contains("atoll status slow")), "it says how to go on: {rest:?}");
    fs::write(&gate, "").unwrap();
    let edge = &platform.edges()[0];
    wait_until("the deploy ends without its client", SOON, || {
        platform.curl(edge, "slow", "/").run().status == 200
    });
}
