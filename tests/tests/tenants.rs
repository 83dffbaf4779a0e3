//! Two organizations on one platform: each deploys and serves, neither sees, changes or guesses anything of the
//! other; what a token may do; who did what.
#![allow(clippy::unwrap_used, reason = "a test")]

use atoll_testkit::{Atoll, Curl, Options, Platform, wait_until};
use atoll_tests::shop_manifest;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

#[test]
fn organizations_share_a_platform_and_nothing_else() {
    let platform = Platform::start(Options::regions(&["fra"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    let _made = platform.atoll().run(&["orgs", "create", "acme"]).expect_code(0);
    let tokens = ["admin", "deploy", "read"].map(|role| token(&platform, role));
    let [admin, deploy, read] = tokens.each_ref().map(|text| with_token(&platform, text));

    the_second_one_deploys_and_serves(&platform, &deploy);
    nothing_of_the_first_is_seen(&platform, &admin);
    names_are_taken_without_saying_by_whom(&platform, &deploy);
    a_role_is_what_it_says(&platform, &read, &deploy, &admin);
    every_change_has_its_entry(&platform, &admin);
    a_revoked_token_is_worth_nothing(&platform, &admin, &read);
    no_log_has_a_token(&platform, &tokens);
    an_empty_organization_goes(&platform, &deploy);
}

/// A new token of `acme`.
fn token(platform: &Platform, role: &str) -> String {
    let name = format!("{role}-of-acme");
    let command = ["tokens", "api", "create", &name, "--role", role, "--org", "acme"];
    let made = platform.atoll().run(&command).expect_code(0);
    made.stdout.trim().to_owned()
}

fn with_token(platform: &Platform, token: &str) -> Atoll {
    platform.anonymous().with_api(platform.dev_json()["api"].as_str().unwrap(), token)
}

fn the_second_one_deploys_and_serves(platform: &Platform, deploy: &Atoll) {
    let who = deploy.run(&["whoami", "-o", "json"]).expect_code(0).json();
    assert_eq!((who["org"].as_str(), who["role"].as_str()), (Some("acme"), Some("deploy")));
    let folder = platform.manifest("store", &shop_manifest("store", &[("fra", 1)]));
    let _done = deploy.run_in(&folder, &["deploy"]).expect_code(0);
    let answer = platform.answer(&platform.edges()[0], "store");
    assert_eq!(answer.status, 200);
    assert_eq!(platform.answer(&platform.edges()[0], "shop").status, 200);
    // Its identity in the mesh is its own organization's.
    let log = fs::read_to_string(platform.data().join("logs/fra1-host.log")).unwrap();
    let issued = log.lines().filter(|line| line.contains("workload certificate"));
    assert!(issued.clone().any(|line| line.contains("acme/store/web")), "{log}");
    assert!(!issued.into_iter().any(|line| line.contains("default/store/")), "{log}");
    let own = deploy.run(&["instances", "-o", "json"]).expect_code(0).json();
    assert!(own.as_array().unwrap().iter().all(|instance| instance["app"] == "store"), "{own}");
    let logs = deploy.run(&["logs", "store", "-n", "1"]).expect_code(0);
    assert!(!logs.stderr.contains("error"), "{logs:?}");
}

fn nothing_of_the_first_is_seen(platform: &Platform, admin: &Atoll) {
    let apps = admin.run(&["apps", "-o", "json"]).expect_code(0).json();
    assert_eq!(apps.as_array().unwrap().len(), 1, "{apps}");
    let instance = platform.instances("shop")[0]["id"].as_str().unwrap().to_owned();
    let deploy = platform.api("/v1/status/shop")["deploy"]["id"].as_str().unwrap().to_owned();
    for command in [["status", "shop"], ["delete", "shop"], ["logs", "shop"], ["logs", &instance]] {
        let refused = admin.run(&command).expect_code(1);
        assert!(!refused.stderr.contains("default"), "{refused:?}");
    }
    // One that lives for this alone.
    let made =
        admin.run(&["tokens", "api", "create", "curl", "--role", "admin", "--ttl", "1h"]).expect_code(0);
    let token = made.stdout.trim();
    let status = |path: &str| {
        let url = format!("{}{path}", platform.dev_json()["api"].as_str().unwrap());
        Curl::new(url).header(&format!("Authorization: Bearer {token}")).run().status
    };
    let others = |id: &str| format!("/v1/deploys/{id}");
    assert_eq!((status(&others(&deploy)), status(&others("o-0"))), (404, 404));
    assert_eq!(status("/v1/audit?org=default"), status("/v1/audit?org=nobody"));
}

fn names_are_taken_without_saying_by_whom(platform: &Platform, deploy: &Atoll) {
    let folder = platform.manifest("stolen", &shop_manifest("shop", &[("fra", 1)]));
    for command in [vec!["deploy"], vec!["plan"]] {
        let refused = deploy.run_in(&folder, &command).expect_code(1);
        assert!(refused.stderr.contains("taken"), "{refused:?}");
        assert!(!refused.stderr.contains("default"), "{refused:?}");
    }
    let files = platform.scratch("certificate");
    let made = rcgen::generate_simple_self_signed(vec!["www.example.com".to_owned()]).unwrap();
    let (cert, key) = (files.join("cert.pem"), files.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let add = |atoll: &Atoll, app: &str| {
        let text = |path: &Path| path.display().to_string();
        atoll.run(&[
            "domains",
            "add",
            "www.example.com",
            "--app",
            app,
            "--cert",
            &text(&cert),
            "--key",
            &text(&key),
        ])
    };
    let _added = add(&platform.atoll(), "shop").expect_code(0);
    let refused = add(deploy, "store").expect_code(1);
    assert!(refused.stderr.contains("taken") && !refused.stderr.contains("shop"), "{refused:?}");
}

fn a_role_is_what_it_says(platform: &Platform, read: &Atoll, deploy: &Atoll, admin: &Atoll) {
    let _seen = read.run(&["status", "store"]).expect_code(0);
    let folder = platform.manifest("store", &shop_manifest("store", &[("fra", 1)]));
    let refused = read.run_in(&folder, &["deploy", "--no-wait"]).expect_code(7);
    assert!(refused.stderr.contains("`deploy`"), "{refused:?}");
    let refused = deploy.run(&["tokens", "api", "list"]).expect_code(7);
    assert!(refused.stderr.contains("`admin`"), "{refused:?}");
    for command in [
        vec!["nodes"],
        vec!["orgs", "list"],
        vec!["ca", "status"],
        vec!["tokens", "create", "--role", "edge", "--site", "fra1"],
        vec!["drain", "fra", "--no-wait"],
        vec!["tokens", "api", "create", "mighty", "--role", "operator"],
        vec!["tokens", "api", "list", "--org", "default"],
    ] {
        let refused = admin.run(&command).expect_code(7);
        assert!(refused.stderr.contains("`operator`"), "{command:?}: {refused:?}");
    }
    let control = platform.data().join("logs/fra1-control.log");
    wait_until("refused attempts are logged", Duration::from_secs(10), || {
        fs::read_to_string(&control).is_ok_and(|log| log.contains("the token's role may not do it"))
    });
    let admin_address = platform.node("fra1", "control").admin;
    let metrics = Curl::new(format!("http://{admin_address}/metrics")).run().text();
    let counted = metrics.lines().find(|line| line.starts_with("atoll_control_api_forbidden_total"));
    let count: u64 = counted.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap();
    assert!(count >= 9, "{counted:?}");
}

fn every_change_has_its_entry(platform: &Platform, admin: &Atoll) {
    let entries = |atoll: &Atoll, more: &[&str]| -> Vec<Value> {
        let command = [&["audit", "--all", "-o", "json"], more].concat();
        atoll.run(&command).expect_code(0).json().as_array().unwrap().clone()
    };
    let of_acme = entries(admin, &[]);
    let says = |entry: &Value, by: &str, path: &str| entry["by"] == by && entry["path"] == path;
    assert!(of_acme.iter().any(|entry| says(entry, "deploy-of-acme", "/v1/apps/{app}")), "{of_acme:?}");
    assert_eq!(
        of_acme.iter().filter(|entry| says(entry, "admin", "/v1/tokens/api")).count(),
        3,
        "{of_acme:?}"
    );
    assert!(of_acme.iter().all(|entry| entry["app"] != "shop" && entry["org"] == "acme"), "{of_acme:?}");
    let of_store = entries(admin, &["--app", "store", "--since", "1h"]);
    assert!(!of_store.is_empty() && of_store.iter().all(|entry| entry["app"] == "store"), "{of_store:?}");
    let of_first = entries(&platform.atoll(), &[]);
    for (method, object) in
        [("join", "fra1-edge"), ("PUT", "shop"), ("POST", "acme"), ("PUT", "www.example.com")]
    {
        let is_it = |entry: &&Value| entry["method"] == method && entry["object"] == object;
        assert!(of_first.iter().any(|entry| is_it(&entry)), "{method} {object}: {of_first:?}");
    }
    let table = admin.run(&["audit"]).expect_code(0);
    assert!(
        table.stdout.contains("deploy-of-acme") && table.stdout.contains("PUT /v1/apps/{app}"),
        "{table:?}"
    );
}

fn a_revoked_token_is_worth_nothing(platform: &Platform, admin: &Atoll, read: &Atoll) {
    let list = admin.run(&["tokens", "api", "list", "-o", "json"]).expect_code(0).json();
    let id = |name: &str| {
        let found = list.as_array().unwrap().iter().find(|token| token["name"] == name);
        found.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let read_id = id("read-of-acme");
    let foreign = platform.atoll().run(&["tokens", "api", "list", "-o", "json"]).expect_code(0).json();
    let foreign = foreign[0]["id"].as_str().unwrap().to_owned();
    let _not_theirs = admin.run(&["tokens", "api", "revoke", &foreign]).expect_code(1);
    let _before = read.run(&["apps"]).expect_code(0);
    let revoked = admin.run(&["tokens", "api", "revoke", &read_id]).expect_code(0);
    assert!(revoked.stderr.contains("context"), "{revoked:?}");
    let _after = read.run(&["apps"]).expect_code(7);
}

fn no_log_has_a_token(platform: &Platform, tokens: &[String]) {
    let own = platform.dev_json()["token"].as_str().unwrap().to_owned();
    for log in fs::read_dir(platform.data().join("logs")).unwrap() {
        let path = log.unwrap().path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        for token in tokens.iter().chain([&own]) {
            assert!(!text.contains(token.as_str()), "{}", path.display());
        }
    }
}

fn an_empty_organization_goes(platform: &Platform, deploy: &Atoll) {
    let atoll = platform.atoll();
    let refused = atoll.run(&["orgs", "remove", "acme"]).expect_code(1);
    assert!(refused.stderr.contains("store"), "{refused:?}");
    let _deleted = deploy.run(&["delete", "store"]).expect_code(0);
    let _removed = atoll.run(&["orgs", "remove", "acme"]).expect_code(0);
    let _gone = deploy.run(&["apps"]).expect_code(7);
    let orgs = atoll.run(&["orgs", "list", "-o", "json"]).expect_code(0).json();
    assert_eq!(orgs.as_array().unwrap().len(), 1, "{orgs}");
    assert_eq!(platform.answer(&platform.edges()[0], "shop").status, 200);
}
