//! Files that travel: uploaded once, fetched by hosts, unpacked for each start; and what is refused.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Curl, CurlAnswer, Node, Options, Platform, processes, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
/// Of a file whose fetch is broken off: long enough to be caught in between.
const LARGE: u64 = 160 << 20;

/// Says where it runs, whether it was here before, and what the page says.
const PROGRAM: &str = r#"#!/usr/bin/env python3
import http.server, json, os
was_here = os.path.exists("mine")
open("mine", "w").close()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        page = open("static/current").read()
        said = {"cwd": os.getcwd(), "was_here": was_here, "page": page, "pid": os.getpid()}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

const MANIFEST: &str = r#"manifest = 1
app = "files"
[regions]
fra = { min = 1 }
was = { min = 1 }
[service.web]
run = ["./bin/web"]
files = ["bin/", "static/"]
public = true
drain = "1s"
"#;

#[test]
fn code_travels_to_the_hosts() {
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    let folder = app(&platform);
    a_deploy_brings_its_files(&platform, &folder);
    only_what_changed_travels(&platform, &folder);
    wrong_files_are_found_before_anything_is_sent(&platform);
    hostile_uploads_are_refused(&platform);
    another_organization_sees_nothing(&platform);
    a_host_without_the_folder_says_what_to_do(&platform);
    a_restart_needs_no_control(&platform);
    a_host_that_dies_while_it_fetches_begins_anew(&platform, &folder);
    a_deleted_app_leaves_no_folder(&platform);
}

fn app(platform: &Platform) -> PathBuf {
    let folder = platform.manifest("files", MANIFEST);
    for name in ["bin", "static", ".git", "static/.git"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::write(folder.join("bin/web"), PROGRAM).unwrap();
    fs::set_permissions(folder.join("bin/web"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("static/page"), "one").unwrap();
    fs::write(folder.join("static/nothing"), "").unwrap();
    std::os::unix::fs::symlink("page", folder.join("static/current")).unwrap();
    for n in 0..20 {
        fs::write(folder.join(format!("static/{n}.txt")), format!("text {n}")).unwrap();
    }
    for secret in ["static/.git/config", ".git/config", "not-listed"] {
        fs::write(folder.join(secret), "secret").unwrap();
    }
    folder
}

/// What the instance of an edge's own region says.
fn said(platform: &Platform, edge: usize) -> Value {
    let edge = &platform.edges()[edge];
    let answer = wait_for("the app answers", SOON, || {
        Some(platform.curl(edge, "files", "/").run()).filter(|answer| {
            answer.status == 200
                && answer.header("atoll-region").is_some_and(|region| edge.site.starts_with(region))
        })
    });
    answer.json()
}

fn control(platform: &Platform) -> Node {
    platform.node("fra1", "control")
}

fn host(platform: &Platform, site: &str) -> Node {
    platform.node(site, "host")
}

fn folder_of(platform: &Platform, node: &Node, name: &str) -> PathBuf {
    platform.data().join("nodes").join(&node.name).join(name)
}

fn a_deploy_brings_its_files(platform: &Platform, folder: &Path) {
    let output = platform.deploy(folder);
    assert!(output.stderr.contains("web  23 files, 23 new, "), "{}", output.stderr);
    for edge in [0, 1] {
        let said = said(platform, edge);
        assert_eq!((said["page"].as_str(), said["was_here"].as_bool()), (Some("one"), Some(false)), "{said}");
        let cwd = PathBuf::from(said["cwd"].as_str().unwrap());
        assert!(cwd.starts_with(platform.data().canonicalize().unwrap()) && cwd.ends_with("files"), "{said}");
        let found: Vec<PathBuf> = fs::read_dir(&cwd).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(found.len(), 3, "bin, static and what it wrote: {found:?}");
        assert!(!cwd.join("static/.git").exists());
        assert_eq!(fs::metadata(cwd.join("bin/web")).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}

fn only_what_changed_travels(platform: &Platform, folder: &Path) {
    let counts = || {
        let fetched = |site| platform.metric(&host(platform, site), "atoll_host_bundle_contents_total");
        let uploads = platform.metric(&control(platform), "atoll_control_bundle_uploads_total");
        [uploads, fetched("fra1"), fetched("was1")]
    };
    let before = counts();
    assert_eq!(before, [23.0, 23.0, 23.0]);
    fs::write(folder.join("static/page"), "two").unwrap();
    let output = platform.deploy(folder);
    assert!(output.stderr.contains("web  23 files, 1 new, 3 bytes uploaded"), "{}", output.stderr);
    assert_eq!(counts(), [24.0, 24.0, 24.0]);
    for edge in [0, 1] {
        wait_until("the new page is served from a new folder", SOON, || {
            let said = said(platform, edge);
            said["page"] == "two" && said["was_here"] == false
        });
    }
    let output = platform.deploy(folder);
    assert!(output.stderr.contains("web  23 files, none new"), "{}", output.stderr);
    assert_eq!(counts(), [24.0, 24.0, 24.0]);
    let plan = platform.atoll().run_in(folder, &["plan", "--exit-code"]);
    assert_eq!(plan.code, 0, "{}{}", plan.stdout, plan.stderr);
    fs::write(folder.join("static/page"), "three").unwrap();
    let plan = platform.atoll().run_in(folder, &["plan", "--exit-code"]);
    assert_eq!(plan.code, 10, "{}{}", plan.stdout, plan.stderr);
    assert_eq!(counts()[0], 24.0, "a plan uploads nothing");
    fs::write(folder.join("static/page"), "two").unwrap();
    for site in ["fra1", "was1"] {
        let instances = folder_of(platform, &host(platform, site), "instances");
        wait_until("the folders of old instances are gone", SOON, || {
            fs::read_dir(&instances).unwrap().count() == 1
        });
    }
}

fn wrong_files_are_found_before_anything_is_sent(platform: &Platform) {
    let cases = [
        ("files = [\"../files/bin/\"]", "can't leave the manifest's folder"),
        ("files = [\"/etc/\"]", "can't start with `/`"),
        ("files = [\"none/\"]", "`none/` matches nothing"),
        ("files = [\"static\"]", "`static` is a folder"),
        ("files = [\"static/\"]", "the program `./bin/web` is not among the service's `files`"),
        ("files = [\"bin/\", \"etc/\"]", "`etc` is a link"),
        ("files = [\"bin/\", \"out\"]", "leaves the bundle"),
    ];
    for (n, (files, why)) in cases.into_iter().enumerate() {
        let text = MANIFEST.replace("files = [\"bin/\", \"static/\"]", files);
        let folder = platform.manifest(&format!("wrong-{n}"), &text);
        for name in ["bin", "static"] {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("web"), PROGRAM).unwrap();
        }
        std::os::unix::fs::symlink("/etc", folder.join("etc")).unwrap();
        std::os::unix::fs::symlink("../files/not-listed", folder.join("out")).unwrap();
        let output = platform.atoll().run_in(&folder, &["deploy"]).expect_code(2);
        let place = if why.contains("program") { "atoll.toml:7:1" } else { "atoll.toml:8:" };
        assert!(output.stderr.contains(why) && output.stderr.contains(place), "{why}: {}", output.stderr);
    }
}

struct Client {
    api: String,
    token: String,
}

impl Client {
    fn of(platform: &Platform) -> Self {
        let dev = platform.dev_json();
        Self {
            api: dev["api"].as_str().unwrap().to_owned(),
            token: dev["token"].as_str().unwrap().to_owned(),
        }
    }

    fn call(&self, method: &str, path: &str, body: &str) -> CurlAnswer {
        Curl::new(format!("{}{path}", self.api))
            .arguments(["--path-as-is", "--data-binary", body])
            .method(method)
            .header(&format!("Authorization: Bearer {}", self.token))
            .header("Content-Type: application/json")
            .run()
    }

    fn offer(&self, entries: Value) -> CurlAnswer {
        self.call("POST", "/v1/bundles", &json!({ "entries": entries }).to_string())
    }
}

/// SHA-256 of "hello".
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn hello(path: &str) -> Value {
    json!({ "kind": "file", "path": path, "executable": false, "size": 5, "sha256": HELLO })
}

fn hostile_uploads_are_refused(platform: &Platform) {
    let client = Client::of(platform);
    let answer = client.call("PUT", &format!("/v1/blobs/{HELLO}"), "something else");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (422, Some("content-mismatch")),
        "{answer:?}"
    );
    for path in ["/v1/blobs/../../../../etc/passwd", "/v1/blobs/..%2f..%2fetc%2fpasswd", "/v1/blobs/abc"] {
        let answer = client.call("PUT", path, "x");
        assert!(matches!(answer.status, 404 | 422), "{path}: {answer:?}");
    }
    let link = |path: &str, target: &str| json!({ "kind": "link", "path": path, "target": target });
    for entries in [
        json!([hello("../x")]),
        json!([hello("/x")]),
        json!([hello("a/../../x")]),
        json!([hello("a\u{0}")]),
        json!([hello("a"), hello("a")]),
        json!([hello("a"), hello("A")]),
        json!([hello("a"), hello("a/b")]),
        json!([hello("a"), link("b", "/etc/passwd")]),
        json!([hello("d/a"), link("d/up", ".."), link("x", "d/up/../y")]),
        json!([{ "kind": "file", "path": "a", "size": 1_u64 << 50, "sha256": HELLO }]),
    ] {
        let answer = client.offer(entries.clone());
        assert_eq!(answer.status, 422, "{entries}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let spec = json!({ "app": "hostile", "services": { "web": {
        "run": ["./x"], "working_dir": "", "env": {}, "labels": {}, "protocol": "http", "public": false,
        "drain_ms": 0, "checks": [], "regions": { "fra": { "min": 1, "max": 1 } },
        "bundle": { "digest": HELLO, "size": 5 } } } });
    let answer = client.call("PUT", "/v1/apps/hostile", &spec.to_string());
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.json()["detail"].as_str().unwrap().contains("there is no bundle"), "{answer:?}");
    let incoming = folder_of(platform, &control(platform), "uploads/default/contents/incoming");
    assert_eq!(fs::read_dir(incoming).unwrap().count(), 0);
}

fn another_organization_sees_nothing(platform: &Platform) {
    let client = Client::of(platform);
    let made = client.call("POST", "/v1/orgs", &json!({ "name": "other" }).to_string());
    assert_eq!(made.status, 201, "{made:?}");
    let wish = json!({ "name": "thief", "role": "deploy", "org": "other" });
    let made = client.call("POST", "/v1/tokens/api", &wish.to_string());
    assert_eq!(made.status, 201, "{made:?}");
    let other = Client { api: client.api.clone(), token: made.json()["token"].as_str().unwrap().to_owned() };
    // Something that the first one has, as both would list it.
    assert_eq!(client.call("PUT", &format!("/v1/blobs/{HELLO}"), "hello").status, 200);
    let own = client.offer(json!([hello("x")])).json();
    assert_eq!(own["missing"], json!([]));
    assert_eq!(other.offer(json!([hello("x")])).json()["missing"], json!([HELLO]));
    let mut spec = json!({ "app": "stolen", "services": { "web": {
        "run": ["./x"], "working_dir": "", "env": {}, "labels": {}, "protocol": "http", "public": false,
        "drain_ms": 0, "checks": [], "regions": { "fra": { "min": 1, "max": 1 } } } } });
    spec["services"]["web"]["bundle"] = json!({ "digest": own["digest"], "size": 5 });
    let answer = other.call("PUT", "/v1/apps/stolen", &spec.to_string());
    assert_eq!(answer.status, 422, "{answer:?}");
    let reader = json!({ "name": "reader", "role": "read" });
    let made = client.call("POST", "/v1/tokens/api", &reader.to_string()).json();
    let reader = Client { api: client.api, token: made["token"].as_str().unwrap().to_owned() };
    assert_eq!(reader.offer(json!([hello("x")])).status, 403);
    assert_eq!(reader.call("PUT", &format!("/v1/blobs/{HELLO}"), "hello").status, 403);
}

/// As a host on another machine would see a manifest without `files`.
fn a_host_without_the_folder_says_what_to_do(platform: &Platform) {
    let client = Client::of(platform);
    let spec = json!({ "app": "afar", "services": { "web": {
        "run": ["./web"], "working_dir": "/home/somebody/else", "env": {}, "labels": {}, "protocol": "http",
        "public": false, "drain_ms": 0, "checks": [], "regions": { "fra": { "min": 1, "max": 1 } } } } });
    let answer = client.call("PUT", "/v1/apps/afar", &spec.to_string());
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = format!("/v1/deploys/{}", answer.json()["deploy"].as_str().unwrap());
    let ended = wait_for("the deploy fails", SOON, || {
        Some(platform.api(&path)).filter(|deploy| deploy["state"] == "rolled-back")
    });
    let cause = ended["cause"]["message"].as_str().unwrap();
    assert!(
        cause.contains("/home/somebody/else does not exist on this host") && cause.contains("`files`"),
        "{cause}"
    );
}

fn a_restart_needs_no_control(platform: &Platform) {
    let pid = control(platform).pid;
    processes::signal(pid, Signal::STOP);
    let before = said(platform, 0);
    processes::kill(u32::try_from(before["pid"].as_u64().unwrap()).unwrap());
    wait_until("the program runs again, in a folder made anew", SOON, || {
        let answer = platform.curl(&platform.edges()[0], "files", "/").run();
        answer.status == 200
            && answer.header("atoll-region") == Some("fra")
            && answer.json()["pid"] != before["pid"]
            && answer.json()["was_here"] == false
            && answer.json()["cwd"] == before["cwd"]
    });
    processes::signal(pid, Signal::CONT);
    wait_until("control answers", SOON, || platform.atoll().run(&["apps"]).code == 0);
}

fn a_host_that_dies_while_it_fetches_begins_anew(platform: &Platform, folder: &Path) {
    fs::File::create(folder.join("static/large")).unwrap().set_len(LARGE).unwrap();
    fs::write(folder.join("static/page"), "large").unwrap();
    let text = MANIFEST.replace("was = { min = 1 }\n", "");
    fs::write(folder.join("atoll.toml"), text).unwrap();
    let (control, host) = (control(platform), host(platform, "fra1"));
    let incoming = folder_of(platform, &host, "bundles/contents/incoming");
    let arriving = || -> u64 {
        let files = fs::read_dir(&incoming).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    };
    let (atoll, of_deploy) = (platform.atoll(), folder.to_owned());
    let deploy = std::thread::spawn(move || atoll.run_in(&of_deploy, &["deploy"]));
    wait_until("the host fetches", SOON, || arriving() > 0);
    processes::signal(control.pid, Signal::STOP);
    processes::kill(host.pid);
    let broken_off = arriving();
    assert!(0 < broken_off && broken_off < LARGE, "{broken_off}");
    wait_until("the host is started again, without what it had half", SOON, || {
        let now = platform.node("fra1", "host").pid;
        now != host.pid && now != 0 && arriving() == 0
    });
    processes::signal(control.pid, Signal::CONT);
    let output = deploy.join().unwrap();
    assert_eq!(output.code, 0, "{}", output.stderr);
    wait_until("the new page is served", SOON, || said(platform, 0)["page"] == "large");
    assert_eq!(arriving(), 0);
}

fn a_deleted_app_leaves_no_folder(platform: &Platform) {
    assert_eq!(platform.atoll().run(&["delete", "files"]).code, 0);
    for site in ["fra1", "was1"] {
        let instances = folder_of(platform, &host(platform, site), "instances");
        wait_until("every folder of an instance is gone", SOON, || {
            fs::read_dir(&instances).unwrap().count() == 0
        });
    }
}
