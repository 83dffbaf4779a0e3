#![allow(clippy::unwrap_used, reason = "tests")]

use crate::store::objects::Placement;
use crate::testing::{Platform, healthy, shop};
use atoll_wire::record::{Exit, instance::State};
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Waits until the app's deploy has ended; gives its state.
async fn ended(platform: &Platform, answer: &Value) -> String {
    let path = format!("/v1/deploys/{}", answer["deploy"].as_str().unwrap_or_else(|| panic!("{answer}")));
    for _ in 0..1_000 {
        let (_, status) = platform.get(&path).await;
        if !status["ended_ms"].is_null() {
            return status["state"].as_str().unwrap().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the deploy does not end");
}

async fn deploy(platform: &Platform, body: Value) {
    let (status, answer) = platform.call(Method::PUT, "/v1/apps/shop", None, body).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(ended(platform, &answer).await, "done");
}

async fn rollback(platform: &Platform, body: Value) -> (u16, Value) {
    platform.call(Method::POST, "/v1/apps/shop/rollback", None, body).await
}

async fn scale(platform: &Platform, regions: Value) -> (u16, Value) {
    let path = "/v1/apps/shop/services/web/scale";
    platform.call(Method::PATCH, path, None, json!({ "regions": regions })).await
}

fn version(text: &str, min: u32, max: u32) -> Value {
    let mut app = shop(&[("fra", min)]);
    app["services"]["web"]["env"] = json!({ "VERSION": text });
    app["services"]["web"]["regions"]["fra"]["max"] = max.into();
    app
}

fn running(platform: &Platform) -> Vec<Placement> {
    let mut placed = platform.store.list::<Placement>("");
    placed.retain(|placement| placement.state == crate::store::objects::PlacementState::Run);
    placed
}

async fn states(platform: &Platform) -> Vec<(u64, String)> {
    let (_, revisions) = platform.get("/v1/revisions?app=shop").await;
    let row = |r: &Value| (r["number"].as_u64().unwrap(), r["state"].as_str().unwrap().to_owned());
    revisions.as_array().unwrap().iter().map(row).collect()
}

#[tokio::test]
async fn an_earlier_revision_runs_again() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    deploy(&platform, version("1", 1, 1)).await;
    deploy(&platform, version("2", 1, 1)).await;
    let (_, revisions) = platform.get("/v1/revisions?app=shop").await;
    assert_eq!(revisions[1]["changed"], json!(["env"]));
    assert_eq!(revisions[1]["by"], "admin");

    let (status, answer) = rollback(&platform, json!({})).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(ended(&platform, &answer).await, "done");
    assert_eq!(states(&platform).await, [(1, "running".to_owned()), (2, "previous".to_owned())]);
    let first = revisions[0]["id"].as_str().unwrap();
    assert!(running(&platform).iter().all(|placement| placement.revision.as_str() == first));

    let (status, problem) = rollback(&platform, json!({})).await;
    assert_eq!((status, problem["code"].as_str()), (404, Some("not-found")), "nothing is before it");
    let (status, problem) = rollback(&platform, json!({ "revision": 9 })).await;
    assert_eq!(status, 404);
    assert!(problem["detail"].as_str().unwrap().contains("1, 2"), "{problem}");
    let (status, problem) = rollback(&platform, json!({ "service": "api", "revision": 1 })).await;
    assert_eq!(status, 404);
    assert!(problem["detail"].as_str().unwrap().contains("it has web"), "{problem}");
    assert_eq!(rollback(&platform, json!({ "service": "web", "revision": 2 })).await.0, 202);
}

#[tokio::test]
async fn a_failed_revision_is_not_gone_back_to_and_pushes_out_none_that_can_run() {
    let platform = Platform::start().await;
    let fails = Arc::new(AtomicBool::new(false));
    let (good, failing) = (running_revisions(), fails.clone());
    platform.reconcile(move |placement| {
        let mut facts = healthy(placement);
        if failing.load(Ordering::SeqCst) && !good.lock().unwrap().contains(&placement.revision) {
            facts.set_state(State::Exited);
            facts.restarts = 3;
            facts.last_exit = Some(Exit { status: 1, at_ms: placement.placed_ms, ..Exit::default() });
        } else {
            good.lock().unwrap().insert(placement.revision.clone());
        }
        facts
    });
    deploy(&platform, version("1", 1, 1)).await;
    deploy(&platform, version("2", 1, 1)).await;
    fails.store(true, Ordering::SeqCst);
    for number in 3..=15 {
        let body = version(&number.to_string(), 1, 1);
        let (_, answer) = platform.call(Method::PUT, "/v1/apps/shop", None, body).await;
        assert_eq!(ended(&platform, &answer).await, "rolled-back");
    }
    let (status, problem) = rollback(&platform, json!({ "service": "web", "revision": 15 })).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("revision-failed")), "{problem}");
    let kept = states(&platform).await;
    assert!(kept.contains(&(1, "previous".to_owned())), "{kept:?}");
    assert!(kept.len() <= 2 + 4, "failed ones are bounded: {kept:?}");
    let (status, answer) = rollback(&platform, json!({ "revision": 1 })).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(ended(&platform, &answer).await, "done");
}

type Revisions = Arc<std::sync::Mutex<std::collections::BTreeSet<atoll_model::RevisionId>>>;

fn running_revisions() -> Revisions {
    Revisions::default()
}

#[tokio::test]
async fn a_scale_restarts_nothing_holds_over_deploys_and_stays_in_its_bounds() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    deploy(&platform, version("1", 1, 3)).await;
    let before = running(&platform);
    let (status, answer) = scale(&platform, json!({ "fra": 3 })).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(ended(&platform, &answer).await, "done");
    let after = running(&platform);
    assert_eq!(after.len(), 3);
    assert!(after.contains(&before[0]), "what ran goes on");
    let (_, services) = platform.get("/v1/services?app=shop").await;
    assert_eq!(services[0]["regions"]["fra"]["wanted"], 3);

    deploy(&platform, version("2", 1, 3)).await;
    assert_eq!(running(&platform).len(), 3, "it holds over a deploy");
    let (_, plan) = platform.call(Method::PUT, "/v1/apps/shop?dry_run=true", None, version("2", 1, 3)).await;
    let actions: Vec<_> = plan["changes"].as_array().unwrap().iter().map(|c| &c["action"]).collect();
    assert_eq!(actions, ["restart", "keep"], "{plan}");

    let (status, problem) = scale(&platform, json!({ "fra": 4 })).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("out-of-bounds")));
    assert!(problem["detail"].as_str().unwrap().contains("between 1 and 3"), "{problem}");
    assert_eq!(problem["where"], "regions.fra");
    assert_eq!(scale(&platform, json!({ "was": 1 })).await.0, 422);
    assert_eq!(scale(&platform, json!({})).await.0, 422);

    let (_, answer) = scale(&platform, json!({ "fra": null })).await;
    assert_eq!(ended(&platform, &answer).await, "done");
    assert_eq!(running(&platform).len(), 1);
    let (_, answer) = scale(&platform, json!({ "fra": 2 })).await;
    assert_eq!(ended(&platform, &answer).await, "done");
    deploy(&platform, version("3", 1, 1)).await;
    assert_eq!(running(&platform).len(), 1, "outside the new bounds it is void");
    deploy(&platform, version("4", 1, 3)).await;
    assert_eq!(running(&platform).len(), 1, "and does not come back");
}

#[tokio::test]
async fn a_scale_whose_instances_fail_is_undone_and_leaves_the_others_alone() {
    let platform = Platform::start().await;
    let fails = Arc::new(AtomicBool::new(false));
    let (good, failing) = (Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new())), fails.clone());
    platform.reconcile(move |placement| {
        let mut facts = healthy(placement);
        if failing.load(Ordering::SeqCst) && !good.lock().unwrap().contains(&placement.instance) {
            facts.set_state(State::Exited);
            facts.restarts = 3;
            facts.last_exit = Some(Exit { status: 7, at_ms: placement.placed_ms, ..Exit::default() });
        } else {
            good.lock().unwrap().insert(placement.instance.clone());
        }
        facts
    });
    deploy(&platform, version("1", 2, 5)).await;
    let before = running(&platform);
    fails.store(true, Ordering::SeqCst);
    let (_, answer) = scale(&platform, json!({ "fra": 4 })).await;
    assert_eq!(ended(&platform, &answer).await, "rolled-back");
    let (_, status) = platform.get("/v1/status/shop").await;
    assert_eq!(status["deploy"]["cause"]["exit_status"], 7);
    assert_eq!(status["services"][0]["regions"]["fra"]["wanted"], 2);
    for _ in 0..500 {
        if running(&platform) == before {
            assert_eq!(
                states(&platform).await,
                [(1, "running".to_owned())],
                "the revision is as good as before"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?} are not {before:?}", running(&platform));
}

#[tokio::test]
async fn a_public_service_without_instances_is_deployed_once_the_edges_know_it() {
    use atoll_wire::node::{NodeMessage, ServeAnswer, control_message::Ask, node_message::Answer};
    let platform = Platform::start().await;
    let (line, mut asked) = platform.parts.attached.attach("fra1-edge".parse().unwrap());
    let knows = Arc::new(AtomicBool::new(false));
    let known = knows.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = asked.recv().await {
            let Some(Ask::CanServe(question)) = message.ask else { continue };
            // As edges do: what has no instances anywhere can't be reached.
            let serves = known.load(Ordering::SeqCst) && question.placed_nowhere;
            let serve = ServeAnswer { serves, why_not: "no healthy instance".to_owned() };
            line.deliver(NodeMessage { id: message.id, answer: Some(Answer::Serve(serve)), last: true });
        }
    });
    platform.reconcile(healthy);
    let mut app = shop(&[("fra", 0), ("was", 0)]);
    for region in ["fra", "was"] {
        app["services"]["web"]["regions"][region]["max"] = 2.into();
    }
    let (status, answer) = platform.call(Method::PUT, "/v1/apps/shop", None, app).await;
    assert_eq!(status, 202, "{answer}");
    let path = format!("/v1/deploys/{}", answer["deploy"].as_str().unwrap());
    let edge_said = async {
        loop {
            let (_, status) = platform.get(&path).await;
            assert!(status["ended_ms"].is_null(), "{status}");
            if status["edges"]["fra1-edge"]["serves"] == false {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), edge_said).await.unwrap();
    knows.store(true, Ordering::SeqCst);
    assert_eq!(ended(&platform, &answer).await, "done");
    assert!(running(&platform).is_empty());
}
