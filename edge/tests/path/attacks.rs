//! Input that two readers could take apart differently, byte for byte through a real edge; and answers that
//! Atoll makes.

use super::client::{connect, connect_v6, get, https};
use super::served;
use super::sidecar::Answer;
use super::world::{CLUSTER, DOMAIN, RunningEdge, World, until};
use atoll_model::Role;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const HEAD: &str = "POST / HTTP/1.1\r\nhost: shop.localhost\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";

/// Sends `input`, and what an honest client would send next; what comes back until the edge closes, or is
/// silent.
async fn exchange(edge: &RunningEdge, input: &str) -> String {
    let mut stream = connect(edge, DOMAIN, &[b"http/1.1"]).await.unwrap();
    let next = format!("GET /next HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n");
    // The edge may close before it has read all.
    let _refused = stream.write_all(format!("{input}{next}").as_bytes()).await;
    let mut output = Vec::new();
    let _closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut output)).await;
    String::from_utf8_lossy(&output).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_smuggled_is_refused_and_the_connection_closed() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    let _gateway = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    served(&edge, &world).await;

    let field = |fields: &str, body: &str| format!("{HEAD}{fields}\r\n\r\n{body}");
    let chunks = |body: &str| format!("{HEAD}{CHUNKED}{body}");
    let refused = [
        ("A01", field("content-length: 6\r\ntransfer-encoding: chunked", "0\r\n\r\nG")),
        ("A02", field("content-length: 4\r\ntransfer-encoding: chunked", "4\r\nGET \r\n0\r\n\r\n")),
        ("A03", field("content-length: 5\r\ncontent-length: 6", "hellox")),
        ("A03 list", field("content-length: 5, 6", "hellox")),
        ("A04 +", field("content-length: +5", "hello")),
        ("A04 hex", field("content-length: 0x5", "hello")),
        ("A04 overflow", field("content-length: 18446744073709551617", "hello")),
        ("A05 longer", chunks("5\r\nhelloX\r\n0\r\n\r\n")),
        ("A05 shorter", chunks("6\r\nhello\r\n0\r\n\r\n")),
        ("A05 bare LF", chunks("5\nhello\r\n0\r\n\r\n")),
        ("A06", chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(1 << 17)))),
        ("A07", format!("POST / HTTP/1.0\r\nhost: {DOMAIN}\r\n{CHUNKED}0\r\n\r\n")),
        ("A09", field("expect: y 100-continue\r\ncontent-length: 2", "hi")),
        ("A10", field("foo : b", "")),
        ("A11", field("foo: a\r\n b", "")),
        ("A12 CR", field("foo: a\rb", "")),
        ("A12 LF", format!("GET / HTTP/1.1\nhost: {DOMAIN}\n\n")),
        ("A13", format!("GET / HTTP/1.1\r\nhost: {DOMAIN}\r\nhost: {DOMAIN}\r\n\r\n")),
        ("A13 user", format!("GET / HTTP/1.1\r\nhost: a@{DOMAIN}\r\n\r\n")),
        ("A14", format!("GET / http/1.1\r\nhost: {DOMAIN}\r\n\r\n")),
        ("A14 empty lines", format!("\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n")),
        ("F03", format!("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n{}", get(DOMAIN, ""))),
    ];
    for (row, input) in refused {
        let output = exchange(&edge, &input).await;
        assert!(output.starts_with("HTTP/1.1 400") || output.starts_with("HTTP/1.0 400"), "{row}: {output}");
        assert_eq!(output.matches("HTTP/1.").count(), 1, "{row}: {output}");
    }
    // A refused head has a line, with an id that the client was told.
    let output = exchange(&edge, &format!("{HEAD}x-request-id: odd-1\r\nexpect: y\r\n\r\n")).await;
    assert!(output.contains("x-request-id: odd-1") && output.contains("details=\"bad-request\""), "{output}");
    until("its line", async || {
        let log = std::fs::read_to_string(&edge.log).map_err(|e| e.to_string())?;
        let line = log.lines().find(|line| line.contains("odd-1")).ok_or("no line yet")?;
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["status"], &line["reason"]), (&400.into(), &"bad-request".into()));
        Ok(())
    })
    .await;

    // One form of the path for the route and for the instance, or none at all.
    let of_path = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {DOMAIN}\r\n\r\n");
    let output = exchange(&edge, &of_path("/a/./%2e%2e/%7eb%2fc//d?q=%2e/../x")).await;
    assert!(output.contains("GET /~b%2Fc//d?q=%2e/../x\n"), "{output}");
    for path in ["/../x", "/a%00", "/a\\..\\b", "/%zz", "/a/..;/b", "/a/..%2fb"] {
        let output = exchange(&edge, &of_path(path)).await;
        assert!(output.starts_with("HTTP/1.1 400"), "{path}: {output}");
        assert!(output.contains("details=\"ambiguous-path\""), "{path}: {output}");
        assert!(output.contains("GET /next"), "the connection stays: {path}: {output}");
    }
    assert_eq!(edge.serving.explain(DOMAIN, "/a/..;/b")["answer"], "ambiguous-path");

    // A16: trailers reach the instance, those that pretend to be the head's do not.
    let trailing =
        "x-ok: 1\r\nx-forwarded-for: 6.6.6.6\r\natoll-edge: evil\r\nhost: evil\r\ncontent-length: 9\r\n\r\n";
    let output = exchange(&edge, &chunks(&format!("5\r\nhello\r\n0\r\n{trailing}"))).await;
    assert!(
        output.contains("5 bytes") && output.contains("x-ok") && output.contains("GET /next"),
        "{output}"
    );
    assert!(!output.contains("6.6.6.6") && !output.contains("evil"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_is_served_and_an_instance_that_is_silent_is_a_504_that_says_who_waited() {
    let mut world = World::new().await;
    let edge = world.edge("fra1-edge").await;
    let (_node, gateway) = world.gateway("fra1-gateway", "fra").await;
    let host = world.join("fra1-host", "fra", Role::Host).await;
    world.deploy(&["fra"]).await;
    let sidecar = world.sidecar(Answer::Echo("i-1"));
    world.place(&host, "fra", "i-1", sidecar).await;
    served(&edge, &world).await;
    let mut stream = connect_v6(&edge, DOMAIN).await.unwrap();
    stream.write_all(get(DOMAIN, "").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("atoll-client-ip: ::1\n") && answer.contains("for=\"[::1]\""), "{answer}");

    // explain names what the request went by.
    let explained = edge.serving.explain("SHOP.localhost:443", "/a");
    assert_eq!(explained["cluster"], CLUSTER, "{explained}");
    assert_eq!(explained["chosen"], "fra", "{explained}");
    assert!(explained["regions"][0]["verdict"].as_str().unwrap().starts_with("chosen"), "{explained}");
    assert!(explained["certificate"].is_string(), "{explained}");
    assert_eq!(edge.serving.explain("nobody.localhost", "/")["answer"], "unknown-host");
    assert_eq!(edge.serving.explain("no host", "/")["answer"], "bad-request");
    let explained = gateway.explain(CLUSTER);
    assert_eq!(explained["instances"][0]["instance"], "fra1-host/i-1", "{explained}");
    assert_eq!(explained["instances"][0]["eligible"], true, "{explained}");
    assert_eq!(gateway.explain("default/nobody/web")["answer"], "not-public");

    // No sidecar to say so itself: the gateway has waited a second longer than it would have.
    world.patience(200).await;
    let silent = world.sidecar(Answer::Silence);
    world.place(&host, "fra", "i-1", silent).await;
    until("a 504", async || {
        let answer = https(&edge, DOMAIN, &get(DOMAIN, "accept: application/json\r\n")).await.unwrap();
        if answer.starts_with("HTTP/1.1 200") {
            return Err(answer);
        }
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        let status = "proxy-status: atoll-gateway; error=http_response_timeout; details=\"instance-timeout\"";
        assert!(answer.contains(status) && answer.contains("\"hop\":\"gateway\""), "{answer}");
        Ok(())
    })
    .await;
}
