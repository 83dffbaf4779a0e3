#![allow(clippy::unwrap_used)]
use super::*;
use crate::path::normalise;
use atoll_model::PathPattern;
use proptest::prelude::*;

fn cluster(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn rule(from: &[&str], http: &[&str], grpc: &[&str]) -> AllowRule {
    AllowRule {
        from: from.iter().map(|text| text.parse().unwrap()).collect(),
        http: http.iter().map(|text| text.parse().unwrap()).collect(),
        grpc: grpc.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn policy(rules: &[AllowRule]) -> Policy {
    Policy::new(cluster("default/shop/api"), false, rules)
}

fn decide(policy: &Policy, caller: &str, method: &str, path: &str) -> Result<Allowed, Refused> {
    let path = normalise(path).ok();
    let asked = Asked::Http { method, path: path.as_ref() };
    authorize(Some(policy), Caller::Service(&cluster(caller)), asked)
}

#[test]
fn without_rules_the_own_app_may_and_nobody_else() {
    let own = policy(&[]);
    assert_eq!(decide(&own, "default/shop/web", "GET", "/"), Ok(Allowed::SameApp));
    assert_eq!(
        decide(&own, "default/shop/web", "GET", "/a//..;x"),
        Ok(Allowed::SameApp),
        "no path is looked at"
    );
    assert_eq!(decide(&own, "default/other/web", "GET", "/"), Err(Refused::OtherApp));
    assert_eq!(decide(&own, "acme/shop/web", "GET", "/"), Err(Refused::OtherOrganization));
    let web = cluster("default/shop/web");
    assert_eq!(authorize(Some(&own), Caller::Service(&web), Asked::Bytes), Ok(Allowed::SameApp));
    assert_eq!(authorize(None, Caller::Service(&web), Asked::Bytes), Err(Refused::Unknown));
}

#[test]
fn what_is_public_is_for_clients_and_rules_are_for_services() {
    let asked = Asked::Http { method: "GET", path: None };
    assert_eq!(authorize(Some(&policy(&[])), Caller::Public, asked), Err(Refused::NotPublic));
    let public = Policy::new(cluster("default/shop/api"), true, &[rule(&[], &[], &[])]);
    assert_eq!(authorize(Some(&public), Caller::Public, asked), Ok(Allowed::Public));
    assert_eq!(decide(&public, "default/shop/web", "GET", "/"), Err(Refused::NotListed));
}

#[test]
fn with_rules_only_what_they_list() {
    let rules = policy(&[
        rule(&["web", "default/billing/worker"], &["GET /v1/**", "* /v1/items/*", "POST /a/*/b"], &[]),
        rule(&["cart"], &[], &["shop.v1.Cart/*", "shop.v1.Stock/Take"]),
        rule(&["admin", "acme/shop/admin"], &[], &[]),
    ]);
    assert!(rules.looks_at_paths());
    let web = "default/shop/web";
    for (caller, method, path, expected) in [
        (web, "GET", "/v1", Ok(Allowed::Rule(0))),
        (web, "GET", "/v1/", Ok(Allowed::Rule(0))),
        (web, "GET", "/v1/a/b", Ok(Allowed::Rule(0))),
        (web, "GET", "/v1/x/%2e%2e/../v1/a", Ok(Allowed::Rule(0))),
        (web, "GET", "/v10", Err(Refused::NotPermitted)),
        (web, "HEAD", "/v1/a", Err(Refused::NotPermitted)),
        (web, "get", "/v1/a", Err(Refused::NotPermitted)),
        (web, "DELETE", "/v1/items/7", Ok(Allowed::Rule(0))),
        (web, "DELETE", "/v1/items/", Err(Refused::NotPermitted)),
        (web, "DELETE", "/v1/items/7/x", Err(Refused::NotPermitted)),
        (web, "POST", "/a/x/b", Ok(Allowed::Rule(0))),
        (web, "POST", "/a/x/b/", Err(Refused::NotPermitted)),
        (web, "GET", "/v1/../admin", Err(Refused::NotPermitted)),
        (web, "GET", "/v1/..;/admin", Err(Refused::AmbiguousPath)),
        (web, "GET", "/v1/a%2f..%2f..%2fadmin", Err(Refused::AmbiguousPath)),
        (web, "GET", "/v1/a%2fb", Err(Refused::AmbiguousPath)),
        (web, "GET", "/v1\\..\\admin", Err(Refused::AmbiguousPath)),
        (web, "GET", "/v1//admin", Err(Refused::AmbiguousPath)),
        (web, "POST", "/shop.v1.Cart/Add", Err(Refused::NotPermitted)),
        ("default/billing/worker", "GET", "/v1/a", Ok(Allowed::Rule(0))),
        ("default/billing/web", "GET", "/v1/a", Err(Refused::NotListed)),
        ("default/shop/cart", "POST", "/shop.v1.Cart/Add", Ok(Allowed::Rule(1))),
        ("default/shop/cart", "POST", "/shop.v1.Stock/Take", Ok(Allowed::Rule(1))),
        ("default/shop/cart", "POST", "/shop.v1.Stock/Give", Err(Refused::NotPermitted)),
        ("default/shop/cart", "GET", "/shop.v1.Cart/Add", Err(Refused::NotPermitted)),
        ("default/shop/cart", "POST", "/shop.v1.Cart/", Err(Refused::NotPermitted)),
        ("default/shop/cart", "POST", "/shop.v1.Cart/Add/x", Err(Refused::NotPermitted)),
        ("default/shop/admin", "PATCH", "/any//thing;x", Ok(Allowed::Rule(2))),
        ("acme/shop/admin", "GET", "/", Err(Refused::OtherOrganization)),
        ("default/shop/other", "GET", "/v1", Err(Refused::NotListed)),
    ] {
        assert_eq!(decide(&rules, caller, method, path), expected, "{caller} {method} {path}");
    }
    let bytes = |caller: &str| authorize(Some(&rules), Caller::Service(&cluster(caller)), Asked::Bytes);
    assert_eq!(bytes("default/shop/admin"), Ok(Allowed::Rule(2)));
    assert_eq!(bytes(web), Err(Refused::NotPermitted), "a stream has no path to look at");
    assert_eq!(Refused::AmbiguousPath.reason(), Reason::AmbiguousPath);
    assert_eq!(Refused::Unknown.reason(), Reason::NotAuthorized);
}

/// What a pattern means, by trying every split.
fn covers_slowly(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", [])), _) => true,
        (Some((&"*", pattern)), Some((segment, path))) => !segment.is_empty() && covers_slowly(pattern, path),
        (Some((wanted, pattern)), Some((segment, path))) => wanted == segment && covers_slowly(pattern, path),
        _ => false,
    }
}

proptest! {
    #[test]
    fn patterns_match_as_they_are_written(
        pattern in proptest::collection::vec("a|b|\\*", 0..4), rest in any::<bool>(), path in proptest::collection::vec("a|b|", 0..5),
    ) {
        let mut pattern = pattern;
        if rest || pattern.is_empty() {
            pattern.push(if rest { "**".to_owned() } else { String::new() });
        }
        let pattern = format!("/{}", pattern.join("/"));
        let path = format!("/{}", path.join("/"));
        let slow = covers_slowly(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>());
        let covers = pattern.parse::<PathPattern>().unwrap().matches(&path);
        prop_assert_eq!(covers, slow, "{} {}", pattern, path);
    }

    #[test]
    fn nobody_gets_in_who_is_not_named(
        callers in proptest::collection::vec((0_usize..2, 0_usize..2, 0_usize..3), 0..4),
        who in (0_usize..2, 0_usize..2, 0_usize..3),
        method in "GET|POST|HEAD", path in "/[ab/.%;2fF\\\\]{0,10}",
    ) {
        let name = |(org, app, service): (usize, usize, usize)| {
            format!("{}/{}/{}", ["default", "acme"][org], ["shop", "bank"][app], ["web", "api", "db"][service])
        };
        let rules: Vec<AllowRule> = callers.iter().map(|c| rule(&[&name(*c)], &["GET /a/**"], &[])).collect();
        let (policy, caller) = (policy(&rules), name(who));
        let allowed = decide(&policy, &caller, &method, &path).is_ok();
        if allowed {
            prop_assert!(who.0 == 0, "another organization");
            if rules.is_empty() {
                prop_assert_eq!(who.1, 0);
            } else {
                let normal = normalise(&path).unwrap();
                prop_assert!(callers.contains(&who) && method == "GET");
                prop_assert!(normal.as_str() == "/a" || normal.as_str().starts_with("/a/"));
                prop_assert!(!normal.is_ambiguous());
            }
        }
    }
}
