//! The example app through every hop, in three regions: regions, headers, refusals, large bodies.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Curl, CurlAnswer, Edge, Options, Platform, processes, shop_binary, wait_until};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const REGIONS: [&str; 3] = ["fra", "was", "sin"];
const MIB: u64 = 1 << 20;
const LARGE: u64 = 100 * MIB;
/// What a process may grow by while 100 MiB pass it.
const GROWTH_MAX: u64 = 32 * MIB;

#[test]
fn the_example_answers_through_every_hop() {
    let platform = Platform::start(Options::regions(&REGIONS));
    let deployed = platform.deploy(&example(&platform));
    assert!(deployed.stdout.contains("https://shop.localhost:"), "{deployed:?}");

    every_edge_answers_from_its_region(&platform);
    headers_are_as_promised(&platform);
    what_a_client_may_not_say_is_removed(&platform);
    plain_http_redirects(&platform);
    unknown_names_are_refused(&platform);
    private_services_have_no_name(&platform);
    lists_and_status_tell(&platform);
    large_bodies_stream(&platform);
    one_line_a_request_is_logged(&platform);
    logs_are_read(&platform);
    a_removed_app_is_gone(&platform);
}

/// The example as it is in the repository, with its program beside the manifest.
fn example(platform: &Platform) -> PathBuf {
    let folder = platform.scratch("shop");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop/atoll.toml");
    fs::copy(manifest, folder.join("atoll.toml")).unwrap();
    fs::copy(shop_binary(), folder.join("atoll-shop")).unwrap();
    folder
}

fn ok(answer: CurlAnswer) -> CurlAnswer {
    assert_eq!((answer.exit, answer.status), (0, 200), "{answer:?}");
    answer
}

fn every_edge_answers_from_its_region(platform: &Platform) {
    for (edge, region) in platform.edges().iter().zip(REGIONS) {
        for (curl, version) in [
            (platform.curl(edge, "shop", "/json").http1(), "1.1"),
            (platform.curl(edge, "shop", "/json").http2(), "2"),
            (platform.curl(edge, "shop", "/json").http2().arguments(["--tlsv1.2", "--tls-max", "1.2"]), "2"),
        ] {
            let answer = ok(curl.run());
            assert_eq!(answer.version, version);
            let body = answer.json();
            assert_eq!(body["region"], region, "{body}");
            assert_eq!(body["service"], "web");
            assert!(body["instance"].as_str().is_some_and(|id| !id.is_empty()));
            assert_eq!(answer.header("atoll-region"), Some(region));
            assert_eq!(answer.header("atoll-edge"), Some(edge.site.as_str()));
        }
    }
}

fn headers_are_as_promised(platform: &Platform) {
    let edge = &platform.edges()[1];
    let answer = ok(platform.curl(edge, "shop", "/headers?a=b").header("x-request-id: mine-1").run());
    let seen = answer.json();
    let field = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(field("host"), format!("shop.localhost:{}", edge.https.port()));
    assert_eq!(field("x-forwarded-proto"), "https");
    assert_eq!(field("x-forwarded-host"), format!("shop.localhost:{}", edge.https.port()));
    assert!(
        !field("x-forwarded-for").is_empty() && field("x-forwarded-for") == field("atoll-client-ip"),
        "{seen}"
    );
    assert!(field("forwarded").contains("proto=https"), "{seen}");
    assert_eq!(field("x-request-id"), "mine-1");
    assert!(!field("cdn-loop").is_empty());
    assert_eq!(field("atoll-edge"), edge.site);
    assert_eq!(field("atoll-region"), REGIONS[1]);
    for internal in ["atoll-cluster", "atoll-tries", "atoll-reason", "atoll-sent", "atoll-hops", "connection"]
    {
        assert!(seen.get(internal).is_none(), "{internal} reached the instance: {seen}");
    }
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert!(answer.header("cache-status").is_some(), "{answer:?}");
    for internal in ["atoll-hops", "atoll-tries-used", "atoll-reason", "server-timing"] {
        assert!(answer.header(internal).is_none(), "{internal} reached the client: {answer:?}");
    }
}

fn what_a_client_may_not_say_is_removed(platform: &Platform) {
    let edge = &platform.edges()[0];
    let long = "a".repeat(129);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let seen = ok(platform
        .curl(edge, "shop", "/headers")
        .header("x-forwarded-for: 6.6.6.6")
        .header("x-forwarded-proto: http")
        .header("forwarded: for=6.6.6.6")
        .header("atoll-client-ip: 6.6.6.6")
        .header("atoll-cluster: default/other/web")
        .header("atoll-anything: at-all")
        .header(&format!("x-request-id: {long}"))
        .header(&format!("traceparent: {parent}"))
        .header("connection: x-secret")
        .header("x-secret: 1")
        .http1()
        .run())
    .json();
    assert!(!seen.to_string().contains("6.6.6.6"), "{seen}");
    assert_eq!(seen["x-forwarded-proto"], "https");
    assert!(seen.get("atoll-anything").is_none() && seen.get("x-secret").is_none(), "{seen}");
    assert_ne!(seen["x-request-id"], long.as_str());
    let trace = seen["traceparent"].as_str().unwrap();
    assert!(trace.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "the client's trace goes on: {trace}");
}

fn plain_http_redirects(platform: &Platform) {
    for edge in platform.edges() {
        let ask = |host: &str| {
            Curl::new(format!("http://{host}:{}/a/b?c=d", edge.http.port())).resolve(host, edge.http).run()
        };
        let answer = ask("shop.localhost");
        assert_eq!(answer.status, 308, "{answer:?}");
        let wanted = format!("https://shop.localhost:{}/a/b?c=d", edge.https.port());
        assert_eq!(answer.header("location"), Some(wanted.as_str()));
        let answer = ask("nobody.localhost");
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(
            answer.header("proxy-status").is_some_and(|text| text.contains("unknown-host")),
            "{answer:?}"
        );
    }
}

fn unknown_names_are_refused(platform: &Platform) {
    let edge = &platform.edges()[0];
    let answer = platform.curl(edge, "nobody", "/").run();
    assert_eq!((answer.exit, answer.status), (35, 0), "the handshake is refused: {answer:?}");
    for curl in [platform.curl(edge, "shop", "/").http1(), platform.curl(edge, "shop", "/").http2()] {
        let answer = curl.header("host: other.localhost").run();
        assert_eq!(answer.status, 421, "{answer:?}");
        assert!(answer.header("proxy-status").is_some_and(|text| text.contains("misdirected")), "{answer:?}");
    }
}

fn private_services_have_no_name(platform: &Platform) {
    let answer = platform.curl(&platform.edges()[0], "api--shop", "/").run();
    assert_eq!((answer.exit, answer.status), (35, 0), "{answer:?}");
}

fn lists_and_status_tell(platform: &Platform) {
    let atoll = platform.atoll();
    let list = |what: &str| {
        let list = atoll.run(&[what, "-o", "json"]).expect_code(0).json();
        list.as_array().unwrap_or_else(|| panic!("{what}: {list}")).len()
    };
    assert_eq!(list("apps"), 1);
    assert_eq!(list("services"), 2);
    assert_eq!(list("instances"), 8);
    assert_eq!(list("nodes"), 10);
    assert!(list("revisions") >= 2);
    let status = atoll.run(&["status", "shop"]).expect_code(0);
    for part in ["shop.localhost", "fra", "was", "sin", "healthy"] {
        assert!(status.stdout.contains(part), "no {part}: {status:?}");
    }
    assert!(status.stderr.contains("nothing isolates"), "it says what is not isolated: {status:?}");
    let _json = atoll.run(&["status", "shop", "-o", "json"]).expect_code(0).json();
    let _ca = atoll.run(&["ca", "status", "-o", "json"]).expect_code(0).json();
}

fn large_bodies_stream(platform: &Platform) {
    let folder = platform.scratch("large");
    let (up, down) = (folder.join("up"), folder.join("down"));
    let (sent, expected) = (write_noise(&up), pattern_sha256(LARGE));
    // From one region to another would be the same code; through its own is what most requests take.
    for (edge, version) in [(&platform.edges()[0], "--http1.1"), (&platform.edges()[2], "--http2")] {
        // Buffers of the allocator and of connections are there before anything is measured.
        ok(platform.curl(edge, "shop", "/download?bytes=1000000").arguments([version]).run());
        let pids = platform.processes();
        assert!(pids.len() > 20, "nodes, sidecars and instances: {pids:?}");
        let ((), growth) = processes::memory_growth(&pids, || {
            let answer =
                ok(platform.curl(edge, "shop", "/upload").arguments([version]).post_file(&up).run()).json();
            assert_eq!(answer["length"], LARGE);
            assert_eq!(answer["sha256"], sent.as_str());
            let path = format!("/download?bytes={LARGE}");
            ok(platform.curl(edge, "shop", &path).arguments([version]).body_to(&down).run());
            assert_eq!(file_sha256(&down), expected);
        });
        let grown: Vec<_> = growth.iter().filter(|(.., bytes)| *bytes > GROWTH_MAX).collect();
        assert!(grown.is_empty(), "{version}: {grown:?}");
    }
}

/// Bytes that no compression makes smaller, and their checksum.
fn write_noise(path: &Path) -> String {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut digest = Context::new(&SHA256);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..LARGE / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        file.write_all(&bytes).unwrap();
        digest.update(&bytes);
    }
    file.flush().unwrap();
    data_encoding::HEXLOWER.encode(digest.finish().as_ref())
}

/// Of the example's download: byte `n` is `n % 251`.
fn pattern_sha256(length: u64) -> String {
    let bytes: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
    let digest = aws_lc_rs::digest::digest(&SHA256, &bytes);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}

fn file_sha256(path: &Path) -> String {
    let (mut file, mut digest, mut piece) =
        (File::open(path).unwrap(), Context::new(&SHA256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece).unwrap() {
            0 => return data_encoding::HEXLOWER.encode(digest.finish().as_ref()),
            count => digest.update(&piece[..count]),
        }
    }
}

fn one_line_a_request_is_logged(platform: &Platform) {
    let edge: &Edge = &platform.edges()[2];
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer =
        ok(platform.curl(edge, "shop", "/json").header("x-request-id: find-me").header(parent).run());
    // Which region it is: after large bodies on two busy cores its own need not be the nearest at once.
    let region = answer.header("atoll-region").unwrap();
    let path = platform.data().join("logs").join(format!("{}-access.log", edge.site));
    wait_until("the access log has the request", Duration::from_secs(10), || {
        fs::read_to_string(&path).unwrap_or_default().contains("find-me")
    });
    let text = fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains("find-me")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(line["region"], region, "{line}");
    for field in ["instance", "revision", "gateway_us", "sidecar_us", "app_us", "trace_id", "cache"] {
        assert!(!line[field].is_null(), "no {field}: {line}");
    }
}

fn logs_are_read(platform: &Platform) {
    let logs = platform.atoll().run(&["logs", "shop/web"]).expect_code(0);
    assert!(logs.stdout.contains("listens on"), "{logs:?}");
}

fn a_removed_app_is_gone(platform: &Platform) {
    let _removed = platform.atoll().run(&["delete", "shop"]).expect_code(0);
    assert!(platform.instances("shop").is_empty());
    let program = platform.scratch("shop").join("atoll-shop").display().to_string();
    wait_until("its processes are gone", Duration::from_secs(20), || {
        let pids = platform.processes();
        pids.iter().all(|pid| !processes::command_line(*pid).contains(&program) && !is_shop(*pid))
    });
    wait_until("every edge has forgotten it", Duration::from_secs(10), || {
        platform.edges().iter().all(|edge| platform.curl(edge, "shop", "/").run().exit == 35)
    });
    let again = platform.atoll().run(&["delete", "shop"]);
    assert_eq!(again.code, 1, "{again:?}");
}

fn is_shop(pid: u32) -> bool {
    processes::command_line(pid).contains("atoll-shop")
}
