//! What an app says of its domains: from the API to the records that edges read.

use crate::apps::{Context, fail, finish, promote};
use crate::store::Change;
use crate::store::objects::{App, Cause, Domain, Service};
use crate::testing::{Platform, shop};
use atoll_model::{Kind, ObjectId, OrgName};
use atoll_wire::{Message, record};
use http::Method;
use serde_json::{Value, json};

const OWN: &str = "www.example.com";

/// `shop` with a second public service, `api`, and these hosts.
fn app(hosts: Value) -> Value {
    let mut app = shop(&[("fra", 1)]);
    app["services"]["api"] = app["services"]["web"].clone();
    app["hosts"] = hosts;
    app
}

async fn deploy(platform: &Platform, hosts: Value) -> (u16, Value) {
    platform.call(Method::PUT, "/v1/apps/shop", None, app(hosts)).await
}

/// Runs `edit` in a change of the store.
async fn edit(platform: &Platform, edit: impl FnOnce(&mut Change<'_>, &Context) + Send + 'static) {
    let context = Context { now_ms: 1, ..platform.parts.context.clone() };
    let edited = platform.store.change(move |change| {
        edit(change, &context);
        Ok::<_, crate::store::StoreError>(())
    });
    edited.await.unwrap();
}

/// Ends the deploy that was accepted.
async fn end(platform: &Platform, answer: &Value, well: bool) {
    let id: ObjectId = answer["deploy"].as_str().unwrap_or_else(|| panic!("{answer}")).parse().unwrap();
    edit(platform, move |change, context| {
        let org = OrgName::default_org();
        if well {
            promote(change, context, &org, &id).unwrap();
            finish(change, 1, &org, &id).unwrap();
        } else {
            fail(change, context, &org, &id, Cause::default()).unwrap();
        }
    })
    .await;
}

/// The rules of each virtual host by its first domain, as `domains path`.
fn rules(platform: &Platform) -> Vec<(String, Vec<String>)> {
    let hosts = platform.store.desired().into_iter().filter(|record| record.kind == Kind::VIRTUAL_HOST);
    let decode = |body: Vec<u8>| record::VirtualHost::decode(body.as_slice()).unwrap();
    let rule = |rule: &record::CacheRule| format!("{}{}", rule.domains.join(","), rule.path);
    let each = hosts.filter_map(|host| host.body).map(decode);
    let mut all: Vec<_> =
        each.map(|host| (host.domains[0].clone(), host.cache.iter().map(rule).collect())).collect();
    all.sort();
    all
}

fn expected(api: &[&str], web: &[&str]) -> Vec<(String, Vec<String>)> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    vec![("api--shop.localhost".to_owned(), texts(api)), ("shop.localhost".to_owned(), texts(web))]
}

#[tokio::test]
async fn rules_reach_the_virtual_hosts_of_their_domains_in_order() {
    let platform = Platform::start().await;
    let (status, answer) = deploy(&platform, json!([])).await;
    assert_eq!(status, 202, "{answer}");
    end(&platform, &answer, true).await;
    assert_eq!(rules(&platform), expected(&[], &[]));

    let hosts = json!([
        { "domains": ["shop.localhost"], "cache": [{ "path": "/a" }, { "path": "/b" }] },
        { "cache": [{ "path": "/c", "off": true }] },
        { "domains": ["api--shop.localhost", "shop.localhost"], "cache": [{ "path": "/d" }] },
    ]);
    let (_, before) = deploy(&platform, hosts.clone()).await;
    let web = ["shop.localhost/a", "shop.localhost/b", "/c", "shop.localhost/d"];
    assert_eq!(rules(&platform), expected(&["/c", "api--shop.localhost/d"], &web));
    end(&platform, &before, true).await;
    let (_, shown) = platform.get("/v1/apps/shop").await;
    assert_eq!(shown["hosts"], hosts);

    // A domain that is added gets the rules that name none.
    edit(&platform, |change, context| {
        let service = change.get::<Service>("default/shop/web").unwrap();
        let domain = context.certificates.issue(&service.cluster, OWN, 1).unwrap();
        change.put(&Domain { own: true, ..domain }).unwrap();
    })
    .await;
    let (status, answer) =
        deploy(&platform, json!([{ "domains": [OWN], "cache": [{ "path": "/own" }] }])).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(rules(&platform), expected(&[], &["www.example.com/own"]));
}

#[tokio::test]
async fn a_deploy_that_is_undone_gives_the_rules_back() {
    let platform = Platform::start().await;
    let (_, answer) = deploy(&platform, json!([{ "cache": [{ "path": "/one" }] }])).await;
    end(&platform, &answer, true).await;
    let one = expected(&["/one"], &["/one"]);
    assert_eq!(rules(&platform), one);

    let (_, answer) = deploy(&platform, json!([{ "cache": [{ "path": "/two" }] }])).await;
    assert_eq!(rules(&platform), expected(&["/two"], &["/two"]));
    end(&platform, &answer, false).await;
    assert_eq!(rules(&platform), one);

    // Another number of instances, or an earlier revision, says nothing of domains.
    let path = "/v1/apps/shop/services/web/scale";
    let (status, answer) = platform.call(Method::PATCH, path, None, json!({ "regions": { "fra": 1 } })).await;
    assert_eq!(status, 202, "{answer}");
    end(&platform, &answer, false).await;
    assert_eq!(rules(&platform), one);

    let (_, answer) = deploy(&platform, json!([])).await;
    end(&platform, &answer, true).await;
    assert_eq!(rules(&platform), expected(&[], &[]));
    let body = json!({ "service": "web", "revision": 1 });
    let (status, answer) = platform.call(Method::POST, "/v1/apps/shop/rollback", None, body).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(rules(&platform), expected(&[], &[]));
}

#[tokio::test]
async fn a_plan_says_which_hosts_change() {
    let platform = Platform::start().await;
    let (_, answer) = deploy(&platform, json!([{ "cache": [{ "path": "/one" }] }])).await;
    end(&platform, &answer, true).await;
    let hosts = json!([
        { "domains": ["shop.localhost"], "cache": [{ "path": "/two" }] },
        { "cache": [{ "path": "/one", "ttl_s": 5 }] },
    ]);
    let path = "/v1/apps/shop?dry_run=true";
    let (_, plan) = platform.call(Method::PUT, path, None, app(hosts)).await;
    let changes = plan["changes"].as_array().unwrap().iter().filter(|change| change["object"] == "host");
    let said: Vec<_> =
        changes.map(|c| (c["action"].as_str().unwrap(), c["detail"].as_str().unwrap())).collect();
    assert_eq!(said, [("create", "1 rule of the cache"), ("replace", "cache /one: ttl")]);
}

#[tokio::test]
async fn hosts_that_make_no_sense_are_refused() {
    let platform = Platform::start().await;
    let long = "a".repeat(60);
    let names: Vec<_> = (0..40).map(|i| format!("{long}{i}")).collect();
    let large: Vec<_> =
        (0..40).map(|i| json!({ "path": format!("/{i}"), "query": { "only": names } })).collect();
    for (hosts, place, part) in [
        (
            json!([{ "domains": [OWN] }]),
            "hosts[0].domains[0]",
            "deploy without it first, then `atoll domains add",
        ),
        (
            json!([{ "domains": ["x--shop.localhost"] }]),
            "hosts[0].domains[0]",
            "it has api--shop.localhost, shop.localhost",
        ),
        (json!([{ "domains": ["Shop.localhost"] }]), "hosts[0].domains[0]", "lower case"),
        (
            json!([{}, { "cache": [{ "path": "/", "force": true }] }]),
            "hosts[1].cache[0].force",
            "give it a `ttl`",
        ),
        (
            json!([{ "cache": [{ "path": "/", "tags": "set-cookie" }] }]),
            "hosts[0].cache[0].tags",
            "a meaning of its own",
        ),
        (json!(vec![json!({}); 17]), "hosts", "at most 16"),
        (json!([{ "cache": vec![json!({ "path": "/" }); 65] }]), "hosts", "at most 64"),
        (json!([{ "cache": large }]), "hosts", "at most 24 KiB"),
    ] {
        let (status, problem) = deploy(&platform, hosts).await;
        let text = problem.to_string();
        assert_eq!(status, 422, "{text}");
        assert!(text.contains(place) && text.contains(part), "{text}");
    }
    for rule in
        [json!({ "path": "a" }), json!({ "path": "/", "bypass": "1" }), json!({ "path": "/", "ttl": 1 })]
    {
        let (status, problem) = deploy(&platform, json!([{ "cache": [rule] }])).await;
        assert!((400..=422).contains(&status), "{problem}");
    }
    assert_eq!(platform.get("/v1/apps").await.1, json!([]));
}

#[test]
fn an_app_that_was_stored_without_hosts_is_read() {
    let id = ObjectId::from_parts(1, 1);
    let stored =
        json!({ "id": id, "org": "default", "app": "shop", "created_ms": 1, "deploy": id, "past": [] });
    let app: App = serde_json::from_value(stored.clone()).unwrap();
    assert!(app.hosts.is_empty());
    assert_eq!(serde_json::to_value(app).unwrap(), stored);
}
