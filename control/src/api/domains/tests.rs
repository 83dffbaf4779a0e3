#![allow(clippy::unwrap_used, reason = "tests")]

use crate::testing::{Platform, healthy, shop};
use atoll_model::Kind;
use atoll_wire::Message;
use atoll_wire::record::VirtualHost;
use http::Method;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

fn certificate(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

async fn put(platform: &Platform, domain: &str, app: &str, names: &[&str]) -> (u16, Value) {
    let (certificate_pem, key_pem) = certificate(names);
    let body = json!({ "app": app, "certificate_pem": certificate_pem, "key_pem": key_pem });
    platform.call(Method::PUT, &format!("/v1/domains/{domain}"), None, body).await
}

async fn deploy(platform: &Platform, app: &str, public: bool) {
    let mut body = shop(&[("fra", 1)]);
    body["app"] = app.into();
    body["services"]["web"]["public"] = public.into();
    let (status, answer) = platform.call(Method::PUT, &format!("/v1/apps/{app}"), None, body).await;
    assert_eq!(status, 202, "{answer}");
    let path = format!("/v1/deploys/{}", answer["deploy"].as_str().unwrap());
    for _ in 0..500 {
        if platform.get(&path).await.1["state"] == "done" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the deploy does not end");
}

/// Domains that the edges are told to serve, and those whose certificate they are told of.
fn told(platform: &Platform) -> (Vec<String>, Vec<String>) {
    let desired = platform.store.desired();
    let hosts = desired.iter().filter(|record| record.kind == Kind::VIRTUAL_HOST);
    let hosts =
        hosts.flat_map(|record| VirtualHost::decode(record.body.as_deref().unwrap()).unwrap().domains);
    let certificates = desired.iter().filter(|record| record.kind == Kind::CERTIFICATE);
    (hosts.collect(), certificates.map(|record| record.key.clone()).collect())
}

#[tokio::test]
async fn an_own_domain_comes_is_renewed_and_goes() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    deploy(&platform, "shop", true).await;
    let (status, first) = put(&platform, "WWW.example.com", "shop", &["www.example.com"]).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!((&first["domain"], &first["target"]), (&json!("www.example.com"), &json!("shop.localhost")));
    let both = vec!["shop.localhost".to_owned(), "www.example.com".to_owned()];
    assert_eq!(told(&platform), (both.clone(), both.clone()));
    let (status, second) = put(&platform, "www.example.com", "shop", &["www.example.com"]).await;
    assert_eq!((status, &second["replaced"]), (200, &json!(true)));
    assert_ne!(first["certificate_fingerprint"], second["certificate_fingerprint"]);
    assert!(second["version"].as_u64() > first["version"].as_u64());

    let (_, listed) = platform.get("/v1/domains?app=shop").await;
    assert_eq!(listed[1]["own"], true);
    let (_, routes) = platform.get("/v1/routes").await;
    assert_eq!((&routes[1]["domain"], &routes[1]["regions"]), (&json!("www.example.com"), &json!(["fra"])));

    // While its service is not public nothing serves it, and it stays the app's.
    deploy(&platform, "shop", false).await;
    assert_eq!(told(&platform), (vec![], vec![]));
    assert_eq!(platform.get("/v1/domains").await.1[0]["served"], false);
    deploy(&platform, "shop", true).await;
    assert_eq!(told(&platform), (both.clone(), both));

    let remove = |domain: &'static str| platform.call(Method::DELETE, domain, None, Value::Null);
    assert_eq!(remove("/v1/domains/shop.localhost").await.0, 409, "it comes with its app");
    assert_eq!(remove("/v1/domains/www.example.com").await.0, 200);
    assert_eq!(remove("/v1/domains/www.example.com").await.0, 404);
    let only = vec!["shop.localhost".to_owned()];
    assert_eq!(told(&platform), (only.clone(), only));
}

#[tokio::test]
async fn what_is_taken_or_not_good_is_refused() {
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    deploy(&platform, "shop", true).await;
    deploy(&platform, "blog", true).await;
    let code = |(status, problem): (u16, Value)| (status, problem["code"].as_str().unwrap_or("-").to_owned());
    assert_eq!(put(&platform, "www.example.com", "shop", &["www.example.com"]).await.0, 201);
    let taken = put(&platform, "www.example.com", "blog", &["www.example.com"]).await;
    assert_eq!(code(taken), (409, "domain-taken".to_owned()));
    let zone = put(&platform, "blog.localhost", "shop", &["blog.localhost"]).await;
    assert_eq!(code(zone), (409, "domain-of-platform".to_owned()));
    let names = put(&platform, "a.example.com", "shop", &["b.example.com"]).await;
    assert_eq!(names.1["where"], "certificate_pem");
    assert_eq!(code(names), (422, "certificate-refused".to_owned()));
    assert_eq!(put(&platform, "a.example.com", "none", &["a.example.com"]).await.0, 404);
    assert_eq!(put(&platform, "com", "shop", &["com"]).await.0, 422);
    // Its own wildcard beside its own name.
    assert_eq!(put(&platform, "*.example.com", "blog", &["*.example.com"]).await.0, 201);
    let (status, _) = platform.call(Method::DELETE, "/v1/apps/shop", None, Value::Null).await;
    assert_eq!(status, 202);
    for _ in 0..500 {
        let (status, _) = put(&platform, "www.example.com", "blog", &["www.example.com"]).await;
        if status == 201 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("a domain under a deleted app is not free");
}

#[tokio::test]
async fn another_organizations_domains_and_what_overlaps_with_them_are_refused() {
    use crate::store::objects::DomainClaim;
    let platform = Platform::start().await;
    platform.reconcile(healthy);
    deploy(&platform, "shop", true).await;
    let claim = |domain: &str| DomainClaim {
        domain: domain.to_owned(),
        org: "acme".parse().unwrap(),
        app: "secret".parse().unwrap(),
    };
    let claims = [claim("www.example.com"), claim("*.example.org")];
    platform.store.change(move |change| claims.iter().try_for_each(|claim| change.put(claim))).await.unwrap();
    for domain in ["www.example.com", "*.example.com", "a.example.org", "*.example.org"] {
        let (status, problem) = put(&platform, domain, "shop", &[domain]).await;
        assert_eq!((status, problem["code"].as_str()), (409, Some("domain-taken")), "{domain}");
        let text = problem.to_string();
        assert!(!text.contains("acme") && !text.contains("secret"), "{text}");
    }
    for domain in ["a.b.example.org", "example.org", "other.example.com"] {
        assert_eq!(put(&platform, domain, "shop", &[domain]).await.0, 201, "{domain}");
    }
}
