#![allow(clippy::unwrap_used)]
use super::*;
use crate::spec::CheckKind;

const LEAST: &str = r#"manifest = 1
app = "shop"

[regions]
fra = { min = 2, max = 6 }
was = { min = 1 }

[service.web]
run    = ["./web", "--listen", "127.0.0.1:$PORT"]
public = true

[[service.web.check]]
kind = "http"
path = "/healthz"
"#;

fn read(text: &str) -> Result<Manifest, Vec<ManifestError>> {
    parse(text, "atoll.toml", Path::new("/srv/shop"))
}

fn errors(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => panic!("taken:\n{text}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_least_manifest_gets_its_defaults() {
    let manifest = read(LEAST).unwrap();
    let app = manifest.compile();
    let web = &app.services["web"];
    assert_eq!(web.working_dir, "/srv/shop");
    assert_eq!(web.drain_ms, 30_000);
    assert_eq!(web.regions["fra"], Scale { min: 2, max: 6 });
    assert_eq!(web.regions["was"], Scale { min: 1, max: 1 });
    let check = &web.checks[0];
    assert_eq!((check.every_ms, check.timeout_ms, check.grace_ms), (1_000, 2_000, 10_000));
    assert_eq!((check.up, check.down), (1, 3));
    let fra = RegionName::new("fra").unwrap();
    assert_eq!(manifest.span_of_region(&fra), Some(Position { line: 5, column: 1 }));
    assert_eq!(
        manifest.region_error(&fra, "no such region").to_string(),
        "atoll.toml:5:1: regions.fra: no such region"
    );
    let web = ServiceName::new("web").unwrap();
    assert_eq!(manifest.run_error(&web, "gone").to_string(), "atoll.toml:9:1: service.web.run: gone");
}

#[test]
fn a_service_adds_to_what_the_app_says() {
    let text = r#"
manifest = 1
app = "shop"
[env]
LOG = "info"
WHO = "app"
[regions]
fra = { min = 1 }
was = { min = 1 }
[service.web]
run = ["./web", "$PORT", "${LOG}", "$$x"]
drain = "1.5s"
labels = { version = "v1" }
env = { WHO = "web" }
regions = { was = { min = 0, max = 0 }, sin = { min = 2 } }
[[service.web.check]]
kind = "tcp"
every = "250ms"
[service.api]
run = ["./api"]
"#;
    let app = read(text).unwrap().compile();
    let web = &app.services["web"];
    assert_eq!(web.env["WHO"], "web");
    assert_eq!(web.env["LOG"], "info");
    assert_eq!(web.drain_ms, 1_500);
    assert_eq!(web.checks[0].kind, CheckKind::Tcp);
    let names: Vec<&str> = web.regions.keys().map(RegionName::as_str).collect();
    assert_eq!(names, ["fra", "sin"]);
    assert_eq!(app.services["api"].env["WHO"], "app");
    assert_eq!(app.services["api"].regions.len(), 2);
}

#[test]
fn what_nothing_sets_yet_is_an_error() {
    let text = "manifest = 1\napp = \"shop\"\nregions = { fra = { min = 1 } }\n\
                [service.web]\nrun = [\"x\"]\npublic = true\n[service.api]\nrun = [\"x\", \"$WEB_URL\"]\n";
    let errors = read(text).unwrap_err();
    assert!(errors[0].to_string().contains("add `calls = [\"web\"]`"), "{}", errors[0]);
}

/// An app whose web calls its api.
fn calling(more: &str) -> String {
    format!(
        "manifest = 1\napp = \"shop\"\nregions = {{ fra = {{ min = 1 }} }}\n\
         [service.web]\nrun = [\"x\", \"$API_URL\", \"$BILLING_TAX_URL\"]\ncalls = [\"api\", \"billing/tax\"]\n\
         [service.api]\nrun = [\"x\"]\nprotocol = \"grpc\"\n[service.db]\nrun = [\"x\"]\nprotocol = \"tcp\"\n{more}"
    )
}

#[test]
fn calls_and_rules_are_read() {
    let rules = "[[allow]]\nfrom = [\"web\", \"acme/billing/worker\"]\nto = \"api\"\n\
                 grpc = [\"shop.v1.Cart/*\"]\nhttp = [\"GET /v1/**\"]\n[[allow]]\nfrom = []\nto = \"db\"\n";
    let app = read(&calling(rules)).unwrap().compile();
    let calls: Vec<String> = app.services["web"].calls.iter().map(ToString::to_string).collect();
    assert_eq!(calls, ["api", "billing/tax"]);
    assert_eq!(app.services["api"].protocol, crate::spec::Protocol::Grpc);
    let rule = &app.services["api"].allow[0];
    assert_eq!(rule.from[1].to_string(), "acme/billing/worker");
    assert_eq!(
        (rule.http[0].to_string().as_str(), rule.grpc[0].to_string().as_str()),
        ("GET /v1/**", "shop.v1.Cart/*")
    );
    assert!(app.services["db"].allow[0].from.is_empty());
    assert!(app.services["web"].allow.is_empty());
}

#[test]
fn wrong_calls_and_rules_are_named() {
    for (more, error) in [
        ("calls = [\"ap\"]", "13:10: service.db.calls: this app has no service `ap`; did you mean `api`?"),
        ("calls = [\"api\", \"api\"]", "13:17: service.db.calls: `api` is listed twice"),
        ("calls = [\"api\"]\nenv = { API_URL = \"x\" }", "set both by this call and under `env`"),
        ("calls = [\"a/b/c\"]", "is neither a service of this app"),
        ("calls = \"api\"", "expected a list of strings, found the string"),
        (
            "public = true",
            "13:1: service.db.public: a service that speaks tcp is reached inside the mesh only",
        ),
        ("[[allow]]\nfrom = [\"wab\"]\nto = \"api\"", "this app has no service `wab`; did you mean `web`?"),
        ("[[allow]]\nto = \"api\"", "allow.from: `from` is missing"),
        ("[[allow]]\nfrom = [\"web\"]", "allow.to: `to` is missing"),
        ("[[allow]]\nfrom = [\"web\"]\nto = \"api\"\nhttp = [\"/v1\"]", "is not a method and a path"),
        ("[[allow]]\nfrom = [\"web\"]\nto = \"api\"\nhttp = []", "leave it out to allow everything"),
        ("[[allow]]\nfrom = [\"web\"]\nto = \"db\"\nhttp = [\"GET /\"]", "`db` speaks tcp"),
        ("[[allow]]\nform = [\"web\"]\nto = \"db\"", "did you mean `from`?"),
    ] {
        let found = errors(&calling(more));
        assert!(found.iter().any(|line| line.contains(error)), "{more}: {found:?}");
    }
}

#[test]
fn host_labels_follow_the_rule() {
    let with = |services: &str| {
        let text = format!("manifest = 1\napp = \"shop\"\nregions = {{ fra = {{ min = 1 }} }}\n{services}");
        read(&text).unwrap().compile().host_labels()
    };
    let only = with("[service.front]\nrun = [\"x\"]\npublic = true\n[service.api]\nrun = [\"x\"]\n");
    assert_eq!(only.values().collect::<Vec<_>>(), ["shop"]);
    let two =
        with("[service.web]\nrun = [\"x\"]\npublic = true\n[service.api]\nrun = [\"x\"]\npublic = true\n");
    assert_eq!(two["web"], "shop");
    assert_eq!(two["api"], "api--shop");
}

/// What is put in place of which part of [`LEAST`], and what the first error must be.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "public = true",
        "publc  = true",
        "atoll.toml:10:1: service.web.publc: unknown key `publc`; did you mean `public`?",
    ),
    ("app = ", "aap = ", "atoll.toml:1:1: app: `app` is missing"),
    ("manifest = 1\n", "\n", "atoll.toml:1:1: manifest: `manifest = 1` is missing"),
    (
        "manifest = 1",
        "manifest = 2",
        "atoll.toml:1:12: manifest: this version of atoll reads manifests of version 1, not 2",
    ),
    (
        "manifest = 1",
        "manifest = \"1\"",
        "atoll.toml:1:12: manifest: expected the number 1, found the string \"1\"",
    ),
    ("\"shop\"", "\"Shop\"", "atoll.toml:2:7: app: `Shop` must start with a letter"),
    ("\"shop\"", "\"my--shop\"", "atoll.toml:2:7: app: `my--shop` must start"),
    ("\"shop\"", "7", "atoll.toml:2:7: app: expected a string, found the number 7"),
    (
        "min = 2, max = 6",
        "min = 7, max = 6",
        "atoll.toml:5:15: regions.fra.min: `min` (7) is more than `max` (6)",
    ),
    ("min = 2, max = 6", "min = -2", "atoll.toml:5:15: regions.fra.min: -2 is out of bounds"),
    (
        "min = 2, max = 6",
        "min = nan",
        "atoll.toml:5:15: regions.fra.min: expected a whole number, found the number nan",
    ),
    (
        "min = 2, max = 6",
        "min = 0, max = 6",
        "atoll.toml:5:15: regions.fra.min: `min = 0` (a service that sleeps) is not supported yet",
    ),
    ("min = 2, max = 6", "min = 1, max = 1001", "atoll.toml:5:24: regions.fra.max: 1001 is out of bounds"),
    ("min = 2, max = 6", "max = 6", "atoll.toml:5:1: regions.fra: `min` is missing"),
    (
        "min = 2, max = 6",
        "min = 2, mx = 6",
        "atoll.toml:5:18: regions.fra.mx: unknown key `mx`; did you mean `max`?",
    ),
    (
        "fra = { min = 2, max = 6 }",
        "fra = 2",
        "atoll.toml:5:7: regions.fra: expected a table, found the number 2",
    ),
    ("fra =", "FRA =", "atoll.toml:5:1: regions.FRA: `FRA` must start with a letter"),
    (
        "fra = { min = 2, max = 6 }\nwas = { min = 1 }",
        "",
        "atoll.toml:7:10: service.web: no region says where this runs",
    ),
    ("[service.web]", "[service.web--2]", "atoll.toml:8:10: service.web--2: `web--2` must start"),
    ("run    = ", "run    = [] #", "atoll.toml:9:10: service.web.run: `run` is empty"),
    ("run    = ", "run    = \"./web\" #", "atoll.toml:9:10: service.web.run: `run` is a list"),
    ("run    = ", "rum    = ", "atoll.toml:8:10: service.web.run: `run` is missing"),
    ("$PORT", "$PROT", "atoll.toml:9:32: service.web.run: nothing sets `$PROT`; did you mean `$PORT`?"),
    ("$PORT", "$HOME", "atoll.toml:9:32: service.web.run: nothing sets `$HOME`"),
    ("$PORT", "${PORT", "atoll.toml:9:32: service.web.run: `${` is not closed"),
    ("./web", "./w\\u0000b", "atoll.toml:9:11: service.web.run: a string can't hold a NUL character"),
    ("public = true", "public = \"yes\"", "atoll.toml:10:10: service.web.public: expected true or false"),
    ("public = true", "port = 8080", "atoll.toml:10:1: service.web.port: a fixed port is refused"),
    ("public = true", "drain = 30", "atoll.toml:10:9: service.web.drain: a duration is a string with a unit"),
    ("public = true", "drain = \"30\"", "atoll.toml:10:9: service.web.drain: `30` has no unit"),
    ("public = true", "drain = \"2d\"", "atoll.toml:10:9: service.web.drain: \"2d\" is out of bounds"),
    (
        "public = true",
        "balance = \"p2c\"",
        "atoll.toml:10:1: service.web.balance: `balance` is not supported yet",
    ),
    (
        "public = true",
        "protocol = \"udp\"",
        "atoll.toml:10:12: service.web.protocol: protocol \"udp\" is not supported yet",
    ),
    (
        "public = true",
        "env = { PORT = \"1\" }",
        "atoll.toml:10:9: service.web.env.PORT: `PORT` is set by the platform",
    ),
    (
        "public = true",
        "env = { \"a b\" = \"1\" }",
        "atoll.toml:10:9: service.web.env.a b: the name of a variable",
    ),
    (
        "public = true",
        "env = { A = { secret = \"x\" } }",
        "atoll.toml:10:13: service.web.env.A: `secret` is not supported yet",
    ),
    ("public = true", "public = true\npublic = true", "atoll.toml:11:1: not valid TOML: duplicate key"),
    (
        "\"http\"",
        "\"grpc\"",
        "atoll.toml:13:8: service.web.check.kind: a check of kind \"grpc\" is not supported yet",
    ),
    ("\"http\"", "\"tcp\"", "atoll.toml:14:1: service.web.check.path: `path` has no meaning"),
    ("/healthz", "healthz", "atoll.toml:14:8: service.web.check.path: a path starts with `/`"),
    ("path = \"/healthz\"", "evry = \"1s\"", "atoll.toml:12:1: service.web.check.path: `path` is missing"),
    ("path = ", "up = 0\npath = ", "atoll.toml:14:6: service.web.check.up: 0 is out of bounds"),
    ("[[service.web.check]]", "[traffic]", "atoll.toml:12:2: traffic: `traffic` is not supported yet"),
    (
        "[[service.web.check]]",
        "[service.web.check]",
        "atoll.toml:12:1: service.web.check: expected a list of tables",
    ),
    ("[regions]", "[regions", "atoll.toml:4:9: not valid TOML:"),
    ("\"shop\"", "\"sh\u{0}op\"", "atoll.toml:2:10: the file holds a NUL byte"),
];

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (part, wrong, expected) in WRONG {
        assert!(LEAST.contains(part), "{part}");
        let text = LEAST.replacen(part, wrong, 1);
        let found = errors(&text);
        assert!(
            found[0].starts_with(expected),
            "{wrong}\nfound    {}\nexpected {expected}",
            found.join("\n")
        );
    }
}

#[test]
fn every_error_is_given_in_the_order_of_the_file() {
    let text = LEAST.replace("min = 2", "mn = 2").replace("public", "publik").replace("/healthz", "x");
    let found = errors(&text);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found.is_sorted_by_key(|line| line.split(':').nth(1).unwrap().parse::<u32>().unwrap()));
}

#[test]
fn columns_count_characters() {
    let text = LEAST.replace("\"./web\"", "\"./wäb-äää\", 5");
    assert_eq!(errors(&text), ["atoll.toml:9:24: service.web.run: expected a string, found the number 5"]);
}

#[test]
fn names_that_join_to_too_long_a_label_are_refused() {
    let long = "a".repeat(40);
    let text = LEAST.replace("shop", &long).replace("service.web", &format!("service.{}", "b".repeat(30)));
    assert!(errors(&text)[0].contains("of 72 characters; it has at most 63"), "{:?}", errors(&text));
}

#[test]
fn files_are_patterns_and_hide_where_the_manifest_lies() {
    let with = |files: &str| LEAST.replacen("public", &format!("files = {files}\npublic"), 1);
    let text = with("[\"./bin/\", \"*.py\"]");
    let manifest = parse(&text, "atoll.toml", Path::new("/home/me/app")).unwrap();
    let web: ServiceName = "web".parse().unwrap();
    let shown: Vec<String> = manifest.files[&web].iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["bin/", "*.py"]);
    assert_eq!(manifest.services[&web].working_dir, "");
    let error = manifest.files_error(&web, "`*.py` matches nothing").to_string();
    assert!(error.ends_with(": service.web.files: `*.py` matches nothing"), "{error}");
    for (wrong, what) in [
        ("\"bin/\"", "`files` is a list"),
        ("[]", "`files` is empty"),
        ("[\"../x\"]", "can't leave the manifest's folder"),
        ("[\"/etc/\"]", "can't start with `/`"),
        ("[1]", "expected a string"),
    ] {
        let errors = parse(&with(wrong), "atoll.toml", Path::new("/x")).unwrap_err();
        assert!(errors[0].to_string().contains(what), "{}", errors[0]);
    }
}

#[test]
fn hostile_files_are_refused_quickly_and_with_few_words() {
    let big = format!("{LEAST}#{}", "x".repeat(MANIFEST_BYTES_MAX));
    assert!(errors(&big)[0].contains("at most 1 MiB"));
    let many: String = (0..60_000).map(|i| format!("k{i} = 1\n")).collect();
    assert_eq!(errors(&many).len(), PROBLEMS_MAX);
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(!errors(&deep).is_empty());
    let services: String = (0..65).map(|i| format!("[service.s{i}]\nrun = [\"x\"]\n")).collect();
    let found = errors(&format!("manifest = 1\napp = \"a\"\n[regions]\nfra = {{ min = 1 }}\n{services}"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(errors("").iter().any(|line| line.contains("at least one service")));
    assert!(errors("\u{feff}").len() > 1);
}

#[test]
fn the_full_shape_names_what_is_not_built_yet() {
    let text = r#"
manifest = 1
app = "shop"
regions = { fra = { min = 1 } }
[service.web]
run = ["./web"]
balance = "auto"
[service.web.concurrency]
soft = 1
[traffic]
policy = "nearest"
[[host]]
tls = { cert = "auto" }
"#;
    let found = errors(text);
    assert_eq!(found.len(), 4);
    assert!(
        found.iter().all(|line| line.ends_with("is not supported yet by this version of atoll")),
        "{found:?}"
    );
}

#[test]
fn a_relative_folder_is_refused() {
    let found = parse(LEAST, "atoll.toml", Path::new("shop")).unwrap_err();
    assert!(found[0].what.contains("absolute path"));
}

#[test]
fn a_mistake_in_the_regions_is_said_once() {
    let wrong = LEAST
        .replace("fra = { min = 2, max = 6 }", "fra = { min = 9, max = 6 }")
        .replace("was = { min = 1 }", "");
    let found = errors(&wrong);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`min` (9) is more than `max` (6)"), "{found:?}");
}

#[test]
fn a_service_fits_into_a_record() {
    let env = |bytes: usize| {
        let half = "x".repeat(bytes / 2);
        format!("{LEAST}\n[service.web.env]\nA = \"{half}\"\nB = \"{half}\"\n")
    };
    read(&env(40_000)).unwrap();
    let found = errors(&env(60_000));
    assert!(found.len() == 1 && found[0].contains("48 KiB"), "{found:?}");
}
