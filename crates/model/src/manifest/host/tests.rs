#![allow(clippy::unwrap_used, reason = "tests")]
use crate::cache::{CacheRule, HostSpec, QueryKey, Tier};
use crate::manifest::{Manifest, parse};
use std::path::Path;

const HEAD: &str =
    "manifest = 1\napp = \"shop\"\nregions = { fra = { min = 1 } }\n[service.web]\nrun = [\"x\"]\n";

fn read(hosts: &str) -> Result<Manifest, Vec<String>> {
    parse(&format!("{HEAD}{hosts}"), "atoll.toml", Path::new("/srv/shop"))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// The only rule of the only host.
fn rule(keys: &str) -> CacheRule {
    let hosts =
        read(&format!("[[host]]\n[[host.cache]]\nmatch = {{ path = \"/a/**\" }}\n{keys}")).unwrap().hosts;
    let rule = hosts[0].cache[0].clone();
    assert_eq!(rule.errors(), [], "{keys}");
    rule
}

/// What is wrong with the rule, which begins in line 8.
fn wrong(keys: &str) -> String {
    let errors = read(&format!("[[host]]\n[[host.cache]]\n{keys}")).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

#[test]
fn hosts_and_their_rules_are_read() {
    let manifest = read(
        r#"
[[host]]
domains = ["Shop.example.com", "*.shop.example.com"]

[[host.cache]]
match       = { path = "/assets/**" }
ttl         = "1d"
browser_ttl = "1h"
key         = { query = ["v"] }

[[host.cache]]
match = { path = "/products/**" }
ttl   = "origin"
tags  = "Surrogate-Key"
stale_while_revalidate = "60s"
stale_if_error         = "1h"
tier   = "regional"
bypass = 'request.cookies["session"] != ""'

[[host]]
"#,
    )
    .unwrap();
    let plain = |path: &str| CacheRule::new(path.parse().unwrap());
    let assets = CacheRule {
        ttl_s: Some(86_400),
        browser_ttl_s: Some(3_600),
        query: QueryKey::Only(vec!["v".to_owned()]),
        ..plain("/assets/**")
    };
    let products = CacheRule {
        tags: Some("surrogate-key".to_owned()),
        stale_while_revalidate_s: Some(60),
        stale_if_error_s: Some(3_600),
        tier: Tier::Regional,
        bypass: Some(r#"request.cookies["session"] != """#.parse().unwrap()),
        ..plain("/products/**")
    };
    let domains = vec!["shop.example.com".to_owned(), "*.shop.example.com".to_owned()];
    let hosts = [HostSpec { domains, cache: vec![assets, products] }, HostSpec::default()];
    assert_eq!(manifest.hosts, hosts);
    assert_eq!(manifest.compile().hosts, hosts);
    assert_eq!(manifest.host_error(0, "gone").to_string(), "atoll.toml:8:11: host.domains: gone");
}

#[test]
fn every_key_of_a_rule() {
    assert!(rule("off = true").off);
    assert!(rule("off = false\nttl = \"1s\"\nforce = true").force);
    assert_eq!(rule("ttl = \"0s\"").ttl_s, Some(0));
    assert_eq!(rule("ttl = \"365d\"").ttl_s, Some(31_536_000));
    assert_eq!(rule("key = { query = \"none\" }").query, QueryKey::Only(Vec::new()));
    assert_eq!(rule("key = { query = \"all\" }").query, QueryKey::All);
    let ignoring = rule("key = { ignore_query = [\"utm_*\"], sort_query = true }");
    assert_eq!(ignoring.query, QueryKey::AllBut(vec!["utm_*".to_owned()]));
    assert!(ignoring.sort_query);
    let shown = rule("tags = { field = \"X-Tags\", show = true }");
    assert_eq!((shown.tags.as_deref(), shown.show_tags), (Some("x-tags"), true));
    assert_eq!(rule("tier = \"none\"").tier, Tier::None);
    assert!(!rule("compress = false").compress);
}

#[test]
fn errors_have_their_place() {
    let path = "match = { path = \"/a\" }\n";
    for (keys, error) in [
        ("", "7:1: host.cache.match: `match` is missing"),
        ("match = {}", "8:1: host.cache.match.path: `path` is missing"),
        ("match = { path = \"a\" }", "8:18: host.cache.match.path: `a` is no pattern of paths"),
        (
            "match = { path = \"/a\", methods = [\"GET\"] }",
            "8:24: host.cache.match.methods: `methods` is not supported yet",
        ),
        ("{path}tll = \"1s\"", "9:1: host.cache.tll: unknown key `tll`; did you mean `ttl`?"),
        ("{path}ttl = 5", "9:7: host.cache.ttl: a duration is a string with a unit"),
        ("{path}ttl = \"1.5s\"", "9:7: host.cache.ttl: caches count in whole seconds"),
        ("{path}ttl = \"366d\"", "9:7: host.cache.ttl: `366d` is longer than 365 days"),
        ("{path}off = true\nttl = \"1s\"", "10:1: host.cache.ttl: `ttl` has no meaning beside `off = true`"),
        ("{path}force = true", "9:1: host.cache.force: `force` stores what says no lifetime"),
        ("{path}ttl = \"origin\"\nforce = true", "10:1: host.cache.force: `force` stores"),
        (
            "{path}key = { query = \"some\" }",
            "9:17: host.cache.key.query: \"some\" is neither \"all\" nor \"none\"",
        ),
        ("{path}key = { query = [] }", "9:17: host.cache.key.query: `query` is empty; write \"none\""),
        (
            "{path}key = { query = [\"a&b\"] }",
            "9:18: host.cache.key.query: `a&b` is no name of a query parameter",
        ),
        (
            "{path}key = { query = [\"a\"], ignore_query = [\"b\"] }",
            "9:24: host.cache.key.ignore_query: `query` names",
        ),
        (
            "{path}key = { query = 3 }",
            "9:17: host.cache.key.query: expected a list of strings, found the number 3",
        ),
        ("{path}tags = \"Set-Cookie\"", "9:8: host.cache.tags: `set-cookie` has a meaning of its own"),
        ("{path}tags = { show = true }", "9:1: host.cache.tags.field: `field` is missing"),
        ("{path}tags = []", "9:8: host.cache.tags: expected the name of a header field"),
        (
            "{path}tier = \"regionel\"",
            "9:8: host.cache.tier: \"regionel\" is no tier; did you mean \"regional\"?",
        ),
        ("{path}bypass = 'request.path = \"/\"'", "9:24: host.cache.bypass: expected a comparison"),
        ("{path}bypass = \"request.path = \\\"/\\\"\"", "9:10: host.cache.bypass: expected a comparison"),
        ("{path}compress = 1", "9:12: host.cache.compress: expected true or false"),
    ] {
        let found = wrong(&keys.replace("{path}", path));
        assert!(found.starts_with(&format!("atoll.toml:{error}")), "{keys}\n{found}");
    }
    for (hosts, error) in [
        ("[[host]]\ntls = {}", "7:1: host.tls: `tls` is not supported yet"),
        ("[[host]]\ndomain = []", "7:1: host.domain: unknown key `domain`; did you mean `domains`?"),
        ("[[host]]\ndomains = []", "7:11: host.domains: `domains` is empty"),
        ("[[host]]\ndomains = [\"a.b\", \"A.b.\"]", "7:19: host.domains: `a.b` is listed twice"),
        ("[[host]]\ndomains = [\"a b\"]", "7:12: host.domains: `a b` is no domain"),
        ("[[host]]\ndomains = [\"a.b:8443\"]", "7:12: host.domains: `a.b:8443`: a port is not supported yet"),
        ("[host]\ndomains = [\"a.b\"]", "6:1: host: expected a list of tables, each under `[[host]]`"),
    ] {
        let found = read(hosts).unwrap_err();
        assert!(found[0].starts_with(&format!("atoll.toml:{error}")), "{hosts}\n{found:?}");
    }
}

#[test]
fn hosts_and_rules_are_bounded() {
    let hosts = |n: usize| "[[host]]\n".repeat(n);
    assert!(read(&hosts(16)).is_ok());
    assert_eq!(read(&hosts(17)).unwrap_err().len(), 1);
    let rules = |n: usize| format!("[[host]]\n{}", "[[host.cache]]\nmatch = { path = \"/\" }\n".repeat(n));
    assert!(read(&rules(64)).is_ok());
    assert!(read(&rules(65)).unwrap_err()[0].contains("at most 64 `[[host.cache]]`"));
    let both = format!("{}{}", rules(40), rules(25));
    assert!(read(&both).unwrap_err()[0].contains("at most 64 `[[host.cache]]`"));
}
