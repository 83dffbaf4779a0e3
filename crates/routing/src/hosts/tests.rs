#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn route(prefix: &str, cluster: &str) -> Route {
    Route {
        name: prefix.to_owned(),
        path_prefix: prefix.to_owned(),
        cluster: format!("default/shop/{cluster}").into(),
    }
}

fn host(id: &str, domains: &[&str], routes: &[(&str, &str)]) -> VirtualHost {
    VirtualHost::new(id, 1, domains, routes.iter().map(|(p, c)| route(p, c))).unwrap()
}

#[test]
fn a_host_is_found_as_clients_write_it() {
    let mut table = HostTable::new();
    table.insert(host("o-1", &["shop.localhost"], &[("/", "web")]));
    table.insert(host("o-2", &["*.shop.localhost", "API.localhost."], &[("/", "api")]));
    for text in [
        "shop.localhost",
        "SHOP.localhost.",
        "shop.localhost:8443",
        "shop.localhost.:8443",
        "shop.localhost:",
    ] {
        assert_eq!(table.find(text).map(|h| h.id.as_str()), Some("o-1"), "{text}");
    }
    for text in ["a.shop.localhost", "api.localhost"] {
        assert_eq!(table.find(text).map(|h| h.id.as_str()), Some("o-2"), "{text}");
    }
    for text in [
        "a.b.shop.localhost",
        "localhost",
        "",
        ".",
        "shop..localhost",
        "shop.localhost:x",
        "[::1]",
        "a b",
        "shop.localhost/x",
        "*.shop.localhost",
    ] {
        assert!(table.find(text).is_none(), "{text}");
    }
}

#[test]
fn paths_match_by_segments_and_the_longest_wins() {
    let host = host("o-1", &["a"], &[("/", "web"), ("/api/", "api"), ("/api/v2", "next")]);
    let serve =
        |path: &str| host.route(path).map(|r| r.cluster.rsplit_once('/').unwrap().1.to_owned()).unwrap();
    assert_eq!(serve("/"), "web");
    assert_eq!(serve("/apix"), "web");
    assert_eq!(serve("/api"), "api");
    assert_eq!(serve("/api/v20"), "api");
    assert_eq!(serve("/api/v2/x"), "next");
    assert_eq!(serve("*"), "web");
    let narrow = VirtualHost::new("o-2", 1, ["b"], [route("/only", "web")]).unwrap();
    assert!(narrow.route("/").is_none());
}

#[test]
fn bad_virtual_hosts_are_refused() {
    assert!(VirtualHost::new("o", 1, ["a b"], []).is_err());
    assert!(VirtualHost::new("o", 1, ["*"], []).is_err());
    assert!(VirtualHost::new("o", 1, ["a.*.b"], []).is_err());
    assert!(VirtualHost::new("o", 1, ["a:80"], []).is_err());
    assert!(VirtualHost::new("o", 1, ["a"], [route("api", "api")]).is_err());
}

proptest! {
    /// Whatever the order of changes, the table is what its virtual hosts say: a linear search.
    #[test]
    fn the_table_is_what_its_hosts_say(
        changes in proptest::collection::vec(
            ("[a-c]", proptest::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..3), any::<bool>()), 0..30),
        asked in proptest::collection::vec("[ab](\\.[ab]){0,3}", 1..10),
    ) {
        let mut table = HostTable::new();
        let mut model = BTreeMap::new();
        for (id, domains, remove) in changes {
            if remove {
                table.remove(&id);
                model.remove(&id);
            } else {
                table.insert(VirtualHost::new(&*id, 1, &domains, []).unwrap());
                model.insert(id, domains);
            }
        }
        prop_assert_eq!(table.len(), model.len());
        for host in asked {
            let claims = |domain: &str| model.iter().find(|(_, domains)| domains.iter().any(|d| d == domain)).map(|(id, _)| id.clone());
            let expected = claims(&host).or_else(|| claims(&wildcard_of(&host)?));
            prop_assert_eq!(table.find(&host).map(|h| h.id.clone()), expected, "{}", host);
        }
    }

    #[test]
    fn normalising_is_done_once(text in "\\PC{0,40}") {
        if let Some(host) = normalise_host(&text) {
            let again = normalise_host(&host).map(|h| h.into_owned());
            prop_assert_eq!(again.as_deref(), Some(&*host));
        }
    }

    #[test]
    fn any_text_is_taken_without_a_panic(text in any::<String>()) {
        let _any = normalise_host(&text);
        let _any = HostTable::new().find(&text);
    }
}

#[test]
fn the_first_rule_of_the_domain_that_was_found_decides() {
    let rule = |path: &str, domains: &[&str]| HostRule {
        domains: domains.iter().map(ToString::to_string).collect(),
        rule: Arc::new(CacheRule::new(path.parse().unwrap())),
    };
    let none: [Route; 0] = [];
    let host = VirtualHost::new("h", 1, ["a.example", "*.example"], none).unwrap().with_cache_rules(vec![
        rule("/x/**", &["*.example"]),
        rule("/x/y", &[]),
        rule("/**", &["a.example"]),
    ]);
    let found = |domain, path| host.cache_rule(domain, path).map(|rule| rule.path.to_string());
    assert_eq!(found("b.example", "/x/y").as_deref(), Some("/x/**"));
    assert_eq!(found("a.example", "/x/y").as_deref(), Some("/x/y"));
    assert_eq!(found("a.example", "/x/z").as_deref(), Some("/**"));
    assert_eq!(found("b.example", "/z"), None);
}
