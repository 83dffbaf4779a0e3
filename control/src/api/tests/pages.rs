//! Lists in pages.

use super::*;
use crate::store::StoreError;
use crate::store::objects::{App, Service};
use atoll_model::ObjectId;
use std::collections::BTreeMap;

const APPS: u64 = 25;

async fn filled() -> Platform {
    let platform = Platform::start().await;
    let filled = platform.store.change(|change| {
        for n in 0..APPS {
            let app: atoll_model::AppName = format!("app{n:02}").parse().unwrap();
            let (id, org) = (ObjectId::from_parts(n, 0), atoll_model::OrgName::default_org());
            for service in ["web", "api"] {
                let cluster = format!("{org}/{app}/{service}").parse().unwrap();
                let (target, current) = (None, None);
                change.put(&Service { id: id.clone(), cluster, target, current, scale: BTreeMap::new() })?;
            }
            change.put(&App {
                deploy: id.clone(),
                id,
                org,
                app,
                created_ms: 0,
                past: vec![],
                hosts: vec![],
            })?;
        }
        Ok::<_, StoreError>(())
    });
    filled.await.unwrap();
    platform
}

/// Every item, and how many pages they were on.
async fn follow(platform: &Platform, path: &str) -> (Vec<Value>, usize) {
    let (mut items, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    while let Some(path) = next.take() {
        let request = Request::get(&path).header("authorization", format!("Bearer {}", platform.token));
        let response = platform.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200, "{path}");
        next = response.headers().get("link").map(|link| {
            let link = link.to_str().unwrap();
            link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned()
        });
        let body = response.into_body().collect().await.unwrap().to_bytes();
        items.extend(serde_json::from_slice::<Vec<Value>>(&body).unwrap());
        pages += 1;
    }
    (items, pages)
}

#[tokio::test]
async fn the_pages_of_a_list_are_the_list() {
    let platform = filled().await;
    for (path, whole) in [("/v1/apps", 25), ("/v1/services", 50)] {
        let (all, pages) = follow(&platform, path).await;
        assert_eq!((all.len(), pages), (whole, 1), "{path}");
        for limit in [1, 7, 24, 25, 49, 50] {
            let (items, pages) = follow(&platform, &format!("{path}?limit={limit}")).await;
            assert_eq!(items, all, "{path} by {limit}");
            assert_eq!(pages, whole.div_ceil(limit), "{path} by {limit}");
        }
    }
    let (items, pages) = follow(&platform, "/v1/services?app=app07&limit=1").await;
    assert_eq!((items.len(), pages), (2, 2));
    assert!(items.iter().all(|item| item["app"] == "app07"));
    let (items, _) = follow(&platform, "/v1/apps?after=app23").await;
    assert_eq!(items.len(), 1);
}

#[tokio::test]
async fn a_page_has_its_bounds() {
    let platform = filled().await;
    for limit in ["0", "1001"] {
        let (status, problem) = platform.get(&format!("/v1/apps?limit={limit}")).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("invalid")), "{problem}");
    }
    assert_eq!(platform.get("/v1/apps?limit=many").await.0, 400);
    assert_eq!(platform.get("/v1/nodes?limit=5").await.0, 400, "what has no pages says so");
}
