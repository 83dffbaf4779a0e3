#![allow(clippy::unwrap_used, reason = "tests")]

use crate::store::objects::{Node, Placement};
use crate::testing::{Platform, healthy, shop};
use atoll_model::{Kind, OrgName, Role, Roles};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

async fn with_nodes() -> Platform {
    let platform = Platform::start().await;
    let node = |name: &str, region: &str, role: Role| Node {
        org: OrgName::default_org(),
        name: name.parse().unwrap(),
        site: format!("{region}1").parse().unwrap(),
        region: region.parse().unwrap(),
        roles: Roles::NONE.with(role),
        epoch: 1,
        joined_ms: 1,
        removed: false,
    };
    let nodes = [
        node("ctl", "fra", Role::Control),
        node("fra1-host", "fra", Role::Host),
        node("fra1-edge", "fra", Role::Edge),
        node("was1-host", "was", Role::Host),
    ];
    platform.store.change(move |change| nodes.iter().try_for_each(|node| change.put(node))).await.unwrap();
    platform
}

fn told(platform: &Platform) -> Vec<(Kind, String, String)> {
    let of_drains = |kind: &Kind| *kind == Kind::DRAIN || *kind == Kind::REGION_DRAIN;
    let desired = platform.store.desired().into_iter().filter(|record| of_drains(&record.kind));
    desired.map(|record| (record.kind, record.scope, record.key)).collect()
}

async fn call(platform: &Platform, method: Method, path: &str) -> (u16, Value) {
    platform.call(method, path, None, Value::Null).await
}

#[tokio::test]
async fn a_wish_is_kept_told_and_ended() {
    let platform = with_nodes().await;
    let (status, answer) = call(&platform, Method::PUT, "/v1/nodes/fra1-host/drain").await;
    assert_eq!((status, &answer["drained"]), (200, &json!(true)), "{answer}");
    assert_eq!(call(&platform, Method::PUT, "/v1/regions/fra/drain").await.0, 200);
    let expected = [
        (Kind::DRAIN, "", "node/fra1-host"),
        (Kind::DRAIN, "", "region/fra"),
        (Kind::REGION_DRAIN, "fra", "node/fra1-host"),
        (Kind::REGION_DRAIN, "fra", "region/fra"),
    ];
    let expected = expected.map(|(kind, scope, key)| (kind, scope.to_owned(), key.to_owned()));
    assert_eq!(told(&platform), expected);
    let (_, drains) = platform.get("/v1/drains").await;
    let names = |row: &Value| {
        row["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&drains[0]), ["fra1-host"]);
    assert_eq!(names(&drains[1]), ["fra1-edge", "fra1-host"], "control is not drained with its region");
    let (_, nodes) = platform.get("/v1/nodes").await;
    let host = nodes.as_array().unwrap().iter().find(|node| node["name"] == "fra1-host").unwrap();
    assert_eq!((&host["drained"]["by"], &host["drained"]["with_region"]), (&json!("admin"), &json!(false)));

    let (_, answer) = call(&platform, Method::DELETE, "/v1/nodes/fra1-host/drain").await;
    assert_eq!((&answer["drained"], &answer["with_region"]), (&json!(true), &json!("fra")));
    let (_, answer) = call(&platform, Method::DELETE, "/v1/regions/fra/drain").await;
    assert_eq!(answer["drained"], false);
    assert!(told(&platform).is_empty());
    assert_eq!(platform.get("/v1/drains").await.1, json!([]));
    for (path, expected) in
        [("/v1/nodes/none/drain", 404), ("/v1/regions/mars/drain", 404), ("/v1/nodes/ctl/drain", 409)]
    {
        assert_eq!(call(&platform, Method::PUT, path).await.0, expected, "{path}");
    }
}

#[tokio::test]
async fn without_another_host_instances_stay_and_it_is_said() {
    let platform = with_nodes().await;
    platform.reconcile(healthy);
    let (_, accepted) =
        platform.call(Method::PUT, "/v1/apps/shop", None, shop(&[("fra", 1), ("was", 1)])).await;
    let path = format!("/v1/deploys/{}", accepted["deploy"].as_str().unwrap());
    for _ in 0..500 {
        if platform.get(&path).await.1["state"] == "done" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = platform.store.list::<Placement>("");
    call(&platform, Method::PUT, "/v1/nodes/fra1-host/drain").await;
    let (_, drains) = platform.get("/v1/drains").await;
    let node = &drains[0]["nodes"][0];
    assert_eq!((&node["moving"], &node["heard"], &node["safe"]), (&json!(0), &json!(false), &json!(false)));
    assert_eq!(node["stay"][0]["cluster"], "default/shop/web");
    assert_eq!(node["stay"][0]["elsewhere"], true, "it runs in was, too");
    assert_eq!(platform.store.list::<Placement>(""), before);
    call(&platform, Method::PUT, "/v1/regions/was/drain").await;
    let (_, drains) = platform.get("/v1/drains").await;
    assert_eq!(drains[0]["nodes"][0]["stay"][0]["elsewhere"], false, "nothing is left that is not drained");
}
