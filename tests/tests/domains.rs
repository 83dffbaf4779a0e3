//! Domains of one's own, with certificates that OpenSSL made, asked with curl and OpenSSL.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{
    CliOutput, Curl, CurlAnswer, Edge, Load, LoadTarget, Options, Platform, Version, wait_for, wait_until,
};
use atoll_tests::{shop_manifest, shop_manifest_with_api};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const WWW: &str = "www.example.com";

/// A CA of one's own, made with OpenSSL.
struct Ca {
    folder: PathBuf,
}

/// Files of a certificate.
#[derive(Clone)]
struct Made {
    chain: PathBuf,
    key: PathBuf,
}

impl Ca {
    fn new(folder: PathBuf) -> Self {
        let ca = Self { folder };
        ca.openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=root -keyout root.key -out root.pem",
        );
        ca.openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=middle -keyout middle.key -out middle.csr");
        std::fs::write(ca.folder.join("ca.ext"), "basicConstraints=critical,CA:TRUE\n").unwrap();
        ca.openssl("x509 -req -in middle.csr -CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext -out middle.pem");
        ca
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// A leaf and its chain. `key`: arguments of `openssl req -newkey`.
    fn make(&self, name: &str, domains: &[&str], key: &str, days: &str) -> Made {
        let names: Vec<String> = domains.iter().map(|domain| format!("DNS:{domain}")).collect();
        let extension = format!("subjectAltName={}\nextendedKeyUsage=serverAuth\n", names.join(","));
        std::fs::write(self.folder.join(format!("{name}.ext")), extension).unwrap();
        self.openssl(&format!(
            "req -newkey {key} -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA middle.pem -CAkey middle.key -CAcreateserial -days {days} -extfile {name}.ext -out {name}.pem"
        ));
        let read = |file: &str| std::fs::read_to_string(self.folder.join(file)).unwrap();
        let chain = self.folder.join(format!("{name}-chain.pem"));
        std::fs::write(&chain, read(&format!("{name}.pem")) + &read("middle.pem")).unwrap();
        Made { chain, key: self.folder.join(format!("{name}.key")) }
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .expect("openssl, of Debian's package openssl");
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

fn add(platform: &Platform, domain: &str, app: &str, made: &Made) -> CliOutput {
    let (chain, key) = (made.chain.to_str().unwrap(), made.key.to_str().unwrap());
    platform.atoll().run(&["domains", "add", domain, "--app", app, "--cert", chain, "--key", key])
}

fn ask(edge: &Edge, domain: &str, root: &Path) -> CurlAnswer {
    let port = edge.https.port();
    Curl::new(format!("https://{domain}:{port}/json")).cacert(root).resolve(domain, edge.https).run()
}

/// The serial number of the certificate that an edge shows for a name.
fn serial(edge: &Edge, domain: &str) -> Option<String> {
    let shown = Command::new("openssl")
        .args(["s_client", "-connect", &edge.https.to_string(), "-servername", domain])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut parse = Command::new("openssl")
        .args(["x509", "-noout", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(parse.stdin.as_mut().unwrap(), &shown.stdout).unwrap();
    let parsed = parse.wait_with_output().unwrap();
    parsed.status.success().then(|| String::from_utf8(parsed.stdout).unwrap())
}

#[test]
fn an_own_domain_is_served_renewed_and_given_up() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    let ca = Ca::new(platform.scratch("ca"));
    let first = ca.make("first", &[WWW], "rsa:2048", "20");
    served_at_every_edge(&platform, &ca, &first);
    every_kind_of_key(&platform, &ca);
    a_wildcard_is_for_one_label(&platform, &ca);
    a_deploy_goes_on_as_before(&platform);
    renewed_without_a_dropped_connection(&platform, &ca);
    expiry_is_shown_and_warned_of(&platform);
    what_is_wrong_is_refused_by_name(&platform, &ca, &first);
    served_by_a_restarted_edge_without_control(&platform, &ca);
    given_up_alone_or_with_its_app(&platform, &ca);
}

fn served_at_every_edge(platform: &Platform, ca: &Ca, made: &Made) {
    let added = add(platform, WWW, "shop", made).expect_code(0);
    assert!(added.stdout.starts_with(&format!("https://{WWW}")), "{}", added.stdout);
    assert!(added.stderr.contains("edges that serve it: 2/2"), "{}", added.stderr);
    assert!(added.stderr.contains(&format!("{WWW} CNAME shop.localhost")), "{}", added.stderr);
    for edge in platform.edges() {
        let answer = ask(&edge, WWW, &ca.root());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let routes = platform.atoll().run(&["routes", "list", "shop", "-o", "json"]).expect_code(0).json();
    let own = routes.as_array().unwrap().iter().find(|route| route["domain"] == WWW).unwrap();
    assert_eq!((&own["service"], &own["regions"][0]), (&"web".into(), &"fra".into()));
}

fn every_kind_of_key(platform: &Platform, ca: &Ca) {
    let kinds = [
        ("p256", "ec -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "ec -pkeyopt ec_paramgen_curve:P-384"),
        ("ed25519", "ed25519"),
    ];
    let edge = &platform.edges()[0];
    for (name, key) in kinds {
        let domain = format!("{name}.example.com");
        let made = ca.make(name, &[&domain], key, "20");
        let _added = add(platform, &domain, "shop", &made).expect_code(0);
        // curl's TLS library may not offer Ed25519; that the edge shows it is enough.
        assert!(serial(edge, &domain).is_some(), "{name}");
    }
    // As `openssl ecparam -genkey` and `openssl rsa -traditional` write keys.
    let bare = ca.make("bare", &["bare.example.com"], "rsa:2048", "20");
    ca.openssl("rsa -in bare.key -traditional -out bare.pkcs1");
    let bare = Made { key: ca.folder.join("bare.pkcs1"), ..bare };
    let _added = add(platform, "bare.example.com", "shop", &bare).expect_code(0);
    assert_eq!(ask(edge, "bare.example.com", &ca.root()).status, 200);
}

fn a_wildcard_is_for_one_label(platform: &Platform, ca: &Ca) {
    let made = ca.make("star", &["*.example.org"], "rsa:2048", "20");
    let _added = add(platform, "*.example.org", "shop", &made).expect_code(0);
    let edge = &platform.edges()[1];
    assert_eq!(ask(edge, "anything.example.org", &ca.root()).status, 200);
    for other in ["example.org", "a.b.example.org"] {
        assert_eq!(serial(edge, other), None, "{other} is not under the wildcard");
    }
}

/// With own domains, a wildcard among them.
fn a_deploy_goes_on_as_before(platform: &Platform) {
    let text = shop_manifest("shop", &[("fra", 1)]) + "\n[service.web.env]\nCHANGED = \"1\"\n";
    let deployed = platform.deploy(&platform.manifest("shop", &text));
    let urls: Vec<&str> = deployed.stdout.lines().collect();
    assert!(urls.iter().any(|url| url.starts_with(&format!("https://{WWW}"))), "{urls:?}");
    assert!(urls.iter().all(|url| !url.contains('*')), "{urls:?}");
    let services = platform.atoll().run(&["services", "shop", "-o", "json"]).expect_code(0).json();
    assert!(services[0]["url"].as_str().unwrap().starts_with("https://shop.localhost"), "{services}");
}

/// Load over connections that stay open, while the certificate is replaced; new connections see the new one.
fn renewed_without_a_dropped_connection(platform: &Platform, ca: &Ca) {
    let edges = platform.edges();
    let target = |edge: &Edge, version| LoadTarget {
        address: edge.https,
        host: WWW.to_owned(),
        ca: ca.root(),
        path: "/json".to_owned(),
        others: Vec::new(),
        version,
    };
    let targets = edges.iter().flat_map(|edge| [target(edge, Version::H1), target(edge, Version::H2)]);
    let load = Load::start(targets.collect(), 40);
    load.wait_for_more(40);
    let before = serial(&edges[0], WWW).unwrap();
    let renewed = ca.make("second", &[WWW], "ec -pkeyopt ec_paramgen_curve:P-256", "25");
    let again = add(platform, WWW, "shop", &renewed).expect_code(0);
    assert!(again.stderr.contains("has a new certificate"), "{}", again.stderr);
    for edge in &edges {
        assert_ne!(serial(edge, WWW).unwrap(), before, "new connections get the new one at once");
    }
    load.wait_for_more(80);
    load.stop().expect_no_failure("the renewal of a certificate");
}

fn expiry_is_shown_and_warned_of(platform: &Platform) {
    let listed = platform.atoll().run(&["domains", "list", "-o", "json"]).expect_code(0);
    let all = listed.json();
    let of = |name: &str| all.as_array().unwrap().iter().find(|row| row["domain"] == name).cloned().unwrap();
    assert_eq!((&of(WWW)["own"], &of(WWW)["certificate_state"]), (&true.into(), &"valid".into()));
    assert_eq!(of("p256.example.com")["certificate_state"], "expiring");
    assert_eq!(of("shop.localhost")["certificate_state"], "valid", "the platform renews its own");
    assert!(
        listed.stderr.contains("WARNING: the certificate of p256.example.com runs out"),
        "{}",
        listed.stderr
    );
    let certs = platform.atoll().run(&["certs"]).expect_code(0);
    assert!(certs.stdout.contains("mesh root") && certs.stdout.contains(WWW), "{}", certs.stdout);
}

fn what_is_wrong_is_refused_by_name(platform: &Platform, ca: &Ca, first: &Made) {
    platform.deploy(&platform.manifest("blog", &shop_manifest_with_api("blog", &[("fra", 1)])));
    let other = ca.make("other", &["other.example.com"], "rsa:2048", "20");
    let swapped = Made { chain: other.chain.clone(), key: first.key.clone() };
    let reversed = ca.folder.join("reversed.pem");
    let read = |file: &str| std::fs::read_to_string(ca.folder.join(file)).unwrap();
    std::fs::write(&reversed, read("middle.pem") + &read("other.pem")).unwrap();
    let reversed = Made { chain: reversed, key: other.key.clone() };
    let expired = ca.make("expired", &["other.example.com"], "rsa:2048", "0");
    for (domain, app, made, code, says) in [
        ("other.example.com", "shop", &swapped, 2, "does not belong to the first certificate"),
        ("other.example.com", "shop", &reversed, 2, "does not belong to the first certificate"),
        ("wrong.example.com", "shop", &other, 2, "is for other.example.com, not for wrong.example.com"),
        ("other.example.com", "shop", &expired, 2, "has expired"),
        ("x.localhost", "shop", &other, 1, "platform's own zone"),
        ("other.example.com", "none", &other, 1, "no app `none`"),
        (WWW, "blog", first, 1, "belongs to app shop"),
    ] {
        let refused = add(platform, domain, app, made).expect_code(code);
        assert!(refused.stderr.contains(says), "{domain}: {}", refused.stderr);
    }
    let (chain, key) = (other.chain.to_str().unwrap(), other.key.to_str().unwrap());
    let private = ["--app", "blog", "--service", "api", "--cert", chain, "--key", key];
    let private = [&["domains", "add", "other.example.com"], &private[..]].concat();
    let refused = platform.atoll().run(&private).expect_code(2);
    assert!(refused.stderr.contains("no public service `api`"), "{}", refused.stderr);
}

/// The certificate is kept sealed at the edge.
fn served_by_a_restarted_edge_without_control(platform: &Platform, ca: &Ca) {
    let control = platform.node("fra1", "control");
    let held = platform.hold_down(&control.name, Signal::KILL);
    let edge = platform.node("was1", "edge");
    platform.restart(&edge.name, Signal::TERM);
    let edge = &platform.edges()[1];
    let answer = wait_for("the edge serves the domain again", SOON, || {
        Some(ask(edge, WWW, &ca.root())).filter(|answer| answer.status == 200)
    });
    assert_eq!(answer.header("atoll-region"), Some("fra"));
    drop(held);
    wait_until("control is back", SOON, || platform.atoll().run(&["apps"]).code == 0);
}

fn given_up_alone_or_with_its_app(platform: &Platform, ca: &Ca) {
    let edges = platform.edges();
    let gone = |domain: &str| {
        wait_until(&format!("{domain} is unknown to every edge"), SOON, || {
            edges.iter().all(|edge| serial(edge, domain).is_none())
        });
    };
    let _removed = platform.atoll().run(&["domains", "remove", WWW]).expect_code(0);
    gone(WWW);
    let again = platform.atoll().run(&["domains", "remove", WWW]).expect_code(1);
    assert!(again.stderr.contains("no own domain"), "{}", again.stderr);
    let _deleted = platform.atoll().run(&["delete", "shop"]).expect_code(0);
    gone("anything.example.org");
    // It is free now.
    let made = ca.make("again", &["*.example.org"], "rsa:2048", "20");
    let _added = add(platform, "*.example.org", "blog", &made).expect_code(0);
    assert_eq!(ask(&edges[0], "anything.example.org", &ca.root()).status, 200);
}
