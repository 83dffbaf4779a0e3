#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::testing::{Platform, healthy, node, shop};
use crate::world::World;
use atoll_wire::node::control_message::Ask;
use atoll_wire::node::node_message::Answer as Told;
use atoll_wire::node::{CacheAnswer, NodeMessage, ServeAnswer};
use http::Method;
use serde_json::json;
use std::sync::{Arc, Mutex};

/// An edge that answers questions about its cache with `answer`, and keeps them.
fn edge(platform: &Platform, answer: Value) -> Arc<Mutex<Vec<What>>> {
    let (end, mut asked) = platform.parts.attached.attach("fra1-edge".parse().unwrap());
    let seen = Arc::<Mutex<Vec<What>>>::default();
    let questions = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some(Ok(message)) = asked.recv().await {
            let told = match message.ask {
                Some(Ask::AskCache(question)) => {
                    questions.lock().unwrap().extend(question.what);
                    Told::Cache(CacheAnswer { json: answer.to_string() })
                }
                _ => Told::Serve(ServeAnswer { serves: true, why_not: String::new() }),
            };
            end.deliver(NodeMessage { id: message.id, answer: Some(told), last: true });
        }
    });
    seen
}

/// A deployed app `shop`, whose domain is `shop.localhost`.
async fn with_shop(platform: &Platform) {
    platform.reconcile(healthy);
    let (status, answer) = platform.call(Method::PUT, "/v1/apps/shop", None, shop(&[("fra", 1)])).await;
    assert_eq!(status, 202, "{answer}");
    tokio::time::timeout(Duration::from_secs(20), async {
        while platform.get("/v1/domains/shop.localhost").await.0 != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn every_edge_is_asked_and_one_that_is_away_is_named() {
    let platform = Platform::start().await;
    let apps =
        json!([{ "app": "default/shop", "requests": { "hit": 3, "miss": 1 }, "entries": 2, "bytes": 900 }]);
    let seen = edge(&platform, json!({ "apps": apps, "entries": 9, "bytes": 9_000, "bytes_max": 90_000 }));
    let nodes = [node("fra1-edge", "fra", Role::Edge), node("was1-edge", "was", Role::Edge)].into();
    platform.world.send_replace(Arc::new(World { nodes, ..World::default() }));
    let (status, answer) = platform.get("/v1/cache/stats").await;
    assert_eq!(
        (status, &answer["total"]),
        (200, &json!({ "requests": { "hit": 3, "miss": 1 }, "hit_ratio": 0.75 }))
    );
    assert_eq!(
        (&answer["edges"][0]["stats"]["bytes"], &answer["edges"][0]["stats"]["apps"]),
        (&json!(9_000), &apps)
    );
    let away = &answer["edges"][1];
    assert_eq!((&away["edge"], &away["stats"]), (&json!("was1-edge"), &Value::Null));
    assert!(away["why_not"].as_str().unwrap().contains("not connected"), "{away}");
    assert_eq!(
        *seen.lock().unwrap(),
        [What::Stats(CacheStats { org: "default".to_owned(), app: String::new() })]
    );
    assert_eq!(platform.get("/v1/cache/stats?app=other").await.0, 404);
}

#[tokio::test]
async fn what_others_have_stored_is_for_operators() {
    let platform = Platform::start().await;
    let _seen = edge(&platform, json!({ "apps": [], "entries": 9, "bytes": 9_000, "bytes_max": 90_000 }));
    let nodes = [node("fra1-edge", "fra", Role::Edge)].into();
    platform.world.send_replace(Arc::new(World { nodes, ..World::default() }));
    let wish = json!({ "name": "reads", "role": "read" });
    let (_, made) = platform.call(Method::POST, "/v1/tokens/api", None, wish).await;
    let mut reader = platform;
    reader.token = made["token"].as_str().unwrap().to_owned();
    let (status, answer) = reader.get("/v1/cache/stats").await;
    assert_eq!((status, &answer["edges"][0]["stats"]), (200, &json!({ "apps": [] })));
    assert_eq!(answer["total"], json!({ "requests": {}, "hit_ratio": null }));
}

#[tokio::test]
async fn an_address_is_explained_to_its_organization() {
    let platform = Platform::start().await;
    let seen = edge(&platform, json!({ "would": "hit", "why": "it is fresh" }));
    with_shop(&platform).await;
    let url = "https%3A%2F%2FShop.localhost%3A8443%2Fp%3Fx%3D1";
    let path = format!("/v1/cache/explain?url={url}&header=Accept-Language:%20de&header=accept%3A+*%2F*");
    let (status, answer) = platform.get(&path).await;
    assert_eq!((status, &answer["app"]), (200, &json!("shop")), "{answer}");
    let edge = &answer["edges"][0];
    assert_eq!((&edge["explanation"]["would"], &edge["why_not"]), (&json!("hit"), &Value::Null));
    let field = |name: &str, value: &str| CacheField { name: name.to_owned(), value: value.to_owned() };
    let asked = CacheExplain {
        app: "default/shop".to_owned(),
        host: "Shop.localhost:8443".to_owned(),
        target: "/p?x=1".to_owned(),
        fields: vec![field("accept-language", "de"), field("accept", "*/*")],
    };
    assert_eq!(*seen.lock().unwrap(), [What::Explain(asked)]);
    for (wrong, status) in [
        ("url=https://other.localhost/p", 404),
        ("url=http://shop.localhost/p", 422),
        ("url=/p", 422),
        ("header=a:b", 422),
        ("url=https://shop.localhost/p&url=https://shop.localhost/q", 422),
        ("url=https://shop.localhost/p&header=none", 422),
        ("url=https://shop.localhost/p&header=a%20b:c", 422),
        ("url=https://shop.localhost/p&app=shop", 400),
    ] {
        let (answered, problem) = platform.get(&format!("/v1/cache/explain?{wrong}")).await;
        assert_eq!(answered, status, "{wrong}: {problem}");
    }
}

#[test]
fn addresses_are_read_as_clients_write_them() {
    let read = |url: &str| of_url(url).ok();
    assert_eq!(read("https://a.example"), Some(("a.example".to_owned(), "/".to_owned())));
    assert_eq!(read("https://A.example:1/%62?c"), Some(("A.example:1".to_owned(), "/%62?c".to_owned())));
    for wrong in ["a.example/p", "https://user@a.example/", "https://a..example/", "ftp://a.example/"] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}

#[test]
fn no_more_is_collected_than_fits() {
    let collected = AtomicUsize::new(ANSWERS_BYTES_MAX - 4);
    assert_eq!(read("{}", &collected), Ok(json!({})));
    assert!(read("[]", &collected).unwrap_err().contains("can't be read"));
    assert!(read("{}", &collected).unwrap_err().contains("ask for one app"));
}
