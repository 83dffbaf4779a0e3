use super::*;
use atoll_bundle::Digest;
use bytes::Bytes;

async fn put(platform: &Platform, token: &str, sha256: &str, body: &'static [u8]) -> (u16, Value) {
    let request = Request::put(format!("/v1/blobs/{sha256}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from_static(body)))
        .unwrap();
    let response = platform.send(request).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

async fn offer(platform: &Platform, entries: Value) -> (u16, Value) {
    platform.call(Method::POST, "/v1/bundles", None, json!({ "entries": entries })).await
}

fn file(path: &str, content: &[u8]) -> Value {
    json!({ "kind": "file", "path": path, "executable": true, "size": content.len(),
        "sha256": Digest::of(content).to_string() })
}

fn with_bundle(digest: &Value, size: u64) -> Value {
    let mut app = shop(&[("fra", 1)]);
    app["services"]["web"]["bundle"] = json!({ "digest": digest, "size": size });
    app["services"]["web"]["working_dir"] = json!("");
    app
}

#[tokio::test]
async fn a_bundle_is_uploaded_piece_by_piece_and_then_deployed() {
    let platform = Platform::start().await;
    let token = platform.token.clone();
    let both = json!([file("bin/web", b"program"), file("data", b"text")]);
    let (status, first) = offer(&platform, both.clone()).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["missing"].as_array().unwrap().len(), 2);
    let (status, problem) = deploy(&platform, None, with_bundle(&first["digest"], 11)).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid-app")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("upload it first"));

    for content in [&b"program"[..], b"text"] {
        let (status, kept) = put(&platform, &token, &Digest::of(content).to_string(), content).await;
        assert_eq!((status, kept["size"].as_u64()), (200, Some(content.len() as u64)), "{kept}");
    }
    let (_, second) = offer(&platform, both).await;
    assert_eq!(second, json!({ "digest": first["digest"], "size": 11, "missing": [] }));
    let (status, problem) = deploy(&platform, None, with_bundle(&first["digest"], 12)).await;
    assert_eq!(status, 422, "{problem}");
    let (status, accepted) = deploy(&platform, None, with_bundle(&first["digest"], 11)).await;
    assert_eq!(status, 202, "{accepted}");
    // A plan needs no upload.
    let absent = Value::from(Digest::of(b"other").to_string());
    let (status, plan) =
        platform.call(Method::PUT, "/v1/apps/shop?dry_run=true", None, with_bundle(&absent, 1)).await;
    assert_eq!(status, 200, "{plan}");
    // Contents are no changes of their own; a bundle is.
    let audit = platform.send(
        Request::get("/v1/audit")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::default())
            .unwrap(),
    );
    let log = audit.await.into_body().collect().await.unwrap().to_bytes();
    let log = String::from_utf8(log.to_vec()).unwrap();
    assert!(!log.contains("/v1/blobs"), "{log}");
    assert_eq!(log.matches("/v1/bundles").count(), 1, "{log}");
}

#[tokio::test]
async fn hostile_uploads_are_refused() {
    let platform = Platform::start().await;
    let token = platform.token.clone();
    let digest = Digest::of(b"program").to_string();
    let (status, problem) = put(&platform, &token, &digest, b"another").await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("content-mismatch")));
    for wrong in ["x", "..%2F..%2Fetc%2Fpasswd", &digest.to_uppercase()] {
        let (status, problem) = put(&platform, &token, wrong, b"program").await;
        assert_eq!(status, 422, "{wrong}: {problem}");
    }
    assert_eq!(put(&platform, "nobody", &digest, b"program").await.0, 401);
    // By hand: a client would not announce what it does not send.
    let head = format!(
        "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 536870913\r\n\r\n"
    );
    let mut stream = tokio::net::TcpStream::connect(platform.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");

    let link = |path: &str, target: &str| json!({ "kind": "link", "path": path, "target": target });
    for (entries, why) in [
        (json!([]), "at least one"),
        (json!([file("../x", b"a")]), "not allowed"),
        (json!([file("/etc/passwd", b"a")]), "not allowed"),
        (json!([file("a\u{0}b", b"a")]), "not allowed"),
        (json!([file("a//b", b"a")]), "not allowed"),
        (json!([file("a", b"a"), file("a", b"b")]), "listed twice"),
        (json!([file("a", b"a"), file("A", b"b")]), "differ only"),
        (json!([file("a", b"a"), link("l", "../..")]), "leaves the bundle"),
        (json!([file("a", b"a"), link("l", "/etc")]), "not allowed"),
        (json!([{ "kind": "file", "path": "a", "size": 1_u64 << 40, "sha256": digest }]), "512 MiB"),
        (json!([{ "kind": "device", "path": "a" }]), "device"),
        (json!([{ "kind": "file", "path": "a", "size": 1, "sha256": "x" }]), "64 hexadecimal"),
        (json!([{ "kind": "folder", "path": "a", "mode": "4755" }]), "mode"),
    ] {
        let (status, problem) = offer(&platform, entries).await;
        assert_eq!(status, 422, "{why}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{why}: {problem}");
    }
}
