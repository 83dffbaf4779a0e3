//! Earlier revisions run again, and the number of instances is changed, under load.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{CliOutput, Load, Options, Platform, wait_until};
use atoll_tests::shop_manifest;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const PER_SECOND: u32 = 60;

#[test]
fn what_ran_before_runs_again_and_more_or_fewer_of_it() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    let folder = deploy(&platform, "1");
    let load = Load::start(platform.load_targets("shop", "/json"), PER_SECOND);
    deploy(&platform, "2");
    revisions_say_what_changed_and_who(&platform);
    an_earlier_one_runs_again(&platform);
    the_previous_one_by_the_manifests_folder(&platform, &folder);
    more_and_fewer_without_a_restart(&platform);
    it_holds_over_deploys_and_plan_says_so(&platform, &folder);
    what_cannot_be_is_refused_with_a_reason(&platform);
    load.wait_for_more(u64::from(PER_SECOND));
    let report = load.stop();
    println!("{} sent, p99 {:?}", report.sent, report.latency(99));
    report.expect_no_failure("rolling back and scaling");
    one_that_fails_now_is_rolled_back(&platform);
}

fn manifest(version: &str) -> String {
    shop_manifest("shop", &[("fra", 1), ("was", 1)])
        + &format!("\n[service.web.env]\nVERSION = \"{version}\"\n")
}

fn deploy(platform: &Platform, version: &str) -> PathBuf {
    let folder = platform.manifest("shop", &manifest(version));
    platform.deploy(&folder);
    folder
}

fn atoll(platform: &Platform, arguments: &[&str]) -> CliOutput {
    platform.atoll().run(arguments)
}

fn revisions(platform: &Platform, app: &str) -> Vec<Value> {
    let listed = atoll(platform, &["revisions", app, "-o", "json"]).expect_code(0).json();
    listed.as_array().unwrap().clone()
}

/// The number of the revision that runs.
fn running(platform: &Platform) -> u64 {
    let all = revisions(platform, "shop");
    let running: Vec<&Value> = all.iter().filter(|row| row["state"] == "running").collect();
    assert_eq!(running.len(), 1, "{all:?}");
    running[0]["number"].as_u64().unwrap()
}

/// Instances that are not on their way out: ids by region.
fn instances(platform: &Platform) -> Vec<(String, String)> {
    let all = platform.instances("shop").into_iter().filter(|instance| instance["draining"] == false);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|instance| (text(&instance["region"]), text(&instance["id"]))).collect()
}

fn count(platform: &Platform, region: &str) -> usize {
    instances(platform).iter().filter(|(of, _)| of == region).count()
}

fn revisions_say_what_changed_and_who(platform: &Platform) {
    let all = revisions(platform, "shop");
    assert_eq!((&all[0]["state"], &all[1]["state"]), (&json!("previous"), &json!("running")));
    assert_eq!((&all[1]["changed"], &all[1]["by"]), (&json!(["env"]), &json!("admin")));
    let table = atoll(platform, &["revisions", "shop"]).expect_code(0);
    assert!(table.stdout.contains("CHANGED") && !table.stdout.contains('\u{1b}'), "{}", table.stdout);
}

fn an_earlier_one_runs_again(platform: &Platform) {
    let done = atoll(platform, &["deploy", "--revision", "1", "shop/web"]).expect_code(0);
    assert!(done.stderr.contains("edges that serve it: 2/2"), "it says how far it is: {}", done.stderr);
    assert_eq!(running(platform), 1);
    let first = revisions(platform, "shop")[0]["id"].clone();
    let edge = &platform.edges()[0];
    assert_eq!(platform.answer(edge, "shop").json()["revision"], first, "no new one was made");
}

fn the_previous_one_by_the_manifests_folder(platform: &Platform, folder: &Path) {
    let in_folder = |arguments: &[&str]| platform.atoll().run_in(folder, arguments);
    let _done = in_folder(&["deploy", "--revision", "2"]).expect_code(0);
    assert_eq!(running(platform), 2);
    let _done = in_folder(&["deploy", "--revision", "previous"]).expect_code(0);
    assert_eq!(running(platform), 1);
    let _none = in_folder(&["deploy", "--revision", "previous"]).expect_code(1);
}

fn more_and_fewer_without_a_restart(platform: &Platform) {
    let before: BTreeSet<_> = instances(platform).into_iter().collect();
    let scaled = atoll(platform, &["scale", "shop/web", "fra=3"]).expect_code(0);
    assert!(scaled.stderr.contains("3/3 healthy"), "{}", scaled.stderr);
    assert_eq!((count(platform, "fra"), count(platform, "was")), (3, 1));
    let after: BTreeSet<_> = instances(platform).into_iter().collect();
    assert!(before.is_subset(&after), "what ran goes on: {before:?} {after:?}");
    let shown = atoll(platform, &["scale", "shop/web", "-o", "json"]).expect_code(0).json();
    assert_eq!((&shown["fra"]["wanted"], &shown["fra"]["min"]), (&json!(3), &json!(1)));
    let status = atoll(platform, &["status", "shop"]).expect_code(0);
    assert!(status.stdout.contains("fra 3/3"), "{}", status.stdout);
    let _done = atoll(platform, &["scale", "shop/web", "fra=2", "was=2"]).expect_code(0);
    assert_eq!((count(platform, "fra"), count(platform, "was")), (2, 2));
}

fn it_holds_over_deploys_and_plan_says_so(platform: &Platform, folder: &Path) {
    deploy(platform, "3");
    assert_eq!((count(platform, "fra"), count(platform, "was")), (2, 2));
    let plan = platform.atoll().run_in(folder, &["plan", "-o", "json"]).expect_code(0).json();
    let changes: Vec<(&str, &str)> = plan["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["action"].as_str().unwrap(), change["name"].as_str().unwrap()))
        .collect();
    assert_eq!(changes, [("restart", "web"), ("keep", "web fra"), ("keep", "web was")]);
    let _same = platform.atoll().run_in(folder, &["plan", "--exit-code"]).expect_code(0);
    let _done = atoll(platform, &["scale", "shop/web", "fra=min", "was=min"]).expect_code(0);
    assert_eq!((count(platform, "fra"), count(platform, "was")), (1, 1));
}

fn what_cannot_be_is_refused_with_a_reason(platform: &Platform) {
    let before = (running(platform), instances(platform));
    for (arguments, code, says) in [
        (&["scale", "shop/web", "fra=9"][..], 2, "between 1 and 5 instances in fra"),
        (&["scale", "shop/web", "sin=1"], 2, "only in fra, was"),
        (&["scale", "shop/none", "fra=1"], 1, "it has web"),
        (&["scale", "shop/web", "fra"], 2, "REGION=N"),
        (&["scale", "shop", "fra=1"], 2, "APP/SERVICE"),
        (&["deploy", "--revision", "99", "shop/web"], 1, "1, 2, 3"),
        (&["deploy", "--revision", "x", "shop/web"], 2, "atoll revisions"),
        (&["deploy", "--revision", "1", "none/web"], 1, "no app `none`"),
    ] {
        let refused = atoll(platform, arguments).expect_code(code);
        assert!(refused.stderr.contains(says), "{arguments:?}: {}", refused.stderr);
    }
    assert_eq!((running(platform), instances(platform)), before);
}

/// Its program is not what it was: the deploy of that revision fails as deploys do.
fn one_that_fails_now_is_rolled_back(platform: &Platform) {
    let folder = platform.manifest("moody", "");
    let (program, gate) = (folder.join("moody"), folder.join("works"));
    let shop = atoll_testkit::shop_binary();
    let script = format!(
        "#!/bin/sh\n[ \"$MOOD\" = good ] || [ -e {gate:?} ] || {{ echo 'the gate is shut'; exit 9; }}\nexec {shop:?} \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(&gate, "").unwrap();
    let write = |mood: &str| {
        let text = format!(
            "manifest = 1\napp = \"moody\"\n[regions]\nfra = {{ min = 1, max = 3 }}\n[service.web]\n\
             run = [\"./moody\", \"web\", \"--listen\", \"127.0.0.1:$PORT\"]\npublic = true\ndrain = \"1s\"\n\
             [service.web.env]\nMOOD = \"{mood}\"\n"
        );
        fs::write(folder.join("atoll.toml"), text).unwrap();
    };
    write("bad");
    platform.deploy(&folder);
    write("good");
    platform.deploy(&folder);
    fs::remove_file(&gate).unwrap();
    let failed = atoll(platform, &["deploy", "--revision", "1", "moody/web"]).expect_code(3);
    assert!(failed.stderr.contains("the gate is shut"), "its last words: {}", failed.stderr);
    let states: Vec<Value> =
        revisions(platform, "moody").iter().map(|revision| revision["state"].clone()).collect();
    assert_eq!(states, ["failed", "running"]);
    let edge = &platform.edges()[0];
    wait_until("what ran before still runs", SOON, || platform.curl(edge, "moody", "/").run().status == 200);
    let refused = atoll(platform, &["deploy", "--revision", "1", "moody/web"]).expect_code(1);
    assert!(refused.stderr.contains("failed when it was deployed"), "{}", refused.stderr);
}
