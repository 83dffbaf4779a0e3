//! What users get wrong, what else goes wrong, and what each of them is told.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{CliOutput, Curl, Options, Platform, processes, wait_until};
use atoll_tests::{program_manifest, shop_manifest};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn mistakes_are_named_and_change_nothing() {
    let platform = Platform::start(Options::regions(&["fra"]));
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));
    let before = platform.api("/v1/revisions?app=shop");

    wrong_manifests(&platform);
    wrong_calls_of_the_cli(&platform);
    the_api_wants_a_token(&platform);
    a_second_dev_on_the_same_folder(&platform);
    a_port_that_is_taken(&platform);
    dry_run_and_plan_change_nothing(&platform);
    two_deploys_at_once(&platform);

    assert_eq!(platform.answer(&platform.edges()[0], "shop").status, 200);
    let after = platform.api("/v1/revisions?app=shop");
    let first = |list: &serde_json::Value| list.as_array().map(|list| list.len());
    assert!(first(&after) >= first(&before), "{after}");
}

fn deploy(platform: &Platform, text: &str) -> CliOutput {
    platform.atoll().run_in(&platform.manifest("wrong", text), &["deploy"])
}

fn wrong_manifests(platform: &Platform) {
    let good = shop_manifest("wrong", &[("fra", 1)]);
    let program = atoll_testkit::shop_binary().display().to_string();
    let cases: [(&str, String, &[&str]); 12] = [
        ("an unknown key", good.replace("public =", "pubic ="), &["atoll.toml:", "pubic", "public"]),
        (
            "an unknown table",
            format!("{good}\n[sevice.x]\nrun = [\"a\"]\n"),
            &["atoll.toml:", "sevice", "service"],
        ),
        ("no TOML", good.replace("manifest = 1", "manifest = "), &["atoll.toml:1:"]),
        ("an unknown region", good.replace("fra =", "xyz ="), &["atoll.toml:5:", "xyz", "fra"]),
        ("no regions", good.replace("fra = { min = 1, max = 5 }", ""), &["region"]),
        (
            "min over max",
            good.replace("min = 1, max = 5", "min = 3, max = 2"),
            &["atoll.toml:5:", "min", "max"],
        ),
        ("a wrong name", good.replace("\"wrong\"", "\"Wrong App\""), &["atoll.toml:2:", "app"]),
        ("two dashes", good.replace("\"wrong\"", "\"a--b\""), &["atoll.toml:2:", "a--b"]),
        ("an absent program", good.replace("$SHOP", "./not-there"), &["atoll.toml:", "not-there"]),
        ("a folder as program", good.replace("$SHOP", "/usr"), &["atoll.toml:", "/usr"]),
        ("a wrong duration", good.replace("\"200ms\"", "\"soon\""), &["atoll.toml:", "every", "soon"]),
        ("an unknown variable", good.replace("$PORT", "$PROT"), &["atoll.toml:", "PROT", "PORT"]),
    ];
    assert!(!program.contains(' '), "the cases replace the program's path as it is");
    for (what, text, parts) in cases {
        let output = deploy(platform, &text);
        assert_eq!(output.code, 2, "{what}: {output:?}");
        for part in parts {
            assert!(output.stderr.contains(part), "{what}: no {part}: {}", output.stderr);
        }
    }
    assert!(platform.instances("wrong").is_empty());
    let apps = platform.api("/v1/apps").to_string();
    assert!(!apps.contains("wrong"), "{apps}");
}

fn wrong_calls_of_the_cli(platform: &Platform) {
    let atoll = platform.atoll();
    let _usage = atoll.run(&["deploy", "--no-such-flag"]).expect_code(2);
    let _usage = atoll.run(&["no-such-command"]).expect_code(2);
    let absent = atoll.run(&["deploy", "-f", "no-such-file.toml"]).expect_code(2);
    assert!(absent.stderr.contains("no-such-file.toml"), "{absent:?}");
    let _failed = atoll.run(&["delete", "no-such-app"]).expect_code(1);
    let api = platform.dev_json()["api"].as_str().unwrap().to_owned();
    let _refused = platform.anonymous().with_api(&api, "a-wrong-token").run(&["apps"]).expect_code(7);
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let nobody = format!("http://127.0.0.1:{port}");
    let _away = platform.anonymous().with_api(&nobody, "any").run(&["apps"]).expect_code(6);
}

fn the_api_wants_a_token(platform: &Platform) {
    let api = platform.dev_json()["api"].as_str().unwrap().to_owned();
    for path in ["/v1/apps", "/v1/instances", "/v1/nodes", "/v1/ca", "/v1/tokens/join"] {
        for field in [
            "x-nothing: 1",
            "authorization: Bearer ",
            "authorization: Bearer wrong",
            "authorization: Basic YTpi",
        ] {
            let answer = Curl::new(format!("{api}{path}")).header(field).run();
            assert_eq!(answer.status, 401, "{path} with {field}: {answer:?}");
            let kind = answer.header("content-type").unwrap_or_default();
            assert!(kind.starts_with("application/problem+json"), "{answer:?}");
        }
    }
    let deleted = Curl::new(format!("{api}/v1/apps/shop")).method("DELETE").run();
    assert_eq!(deleted.status, 401, "{deleted:?}");
}

fn a_second_dev_on_the_same_folder(platform: &Platform) {
    let output = platform.dev_command().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains(&platform.data().display().to_string()), "{said}");
    assert!(processes::is_alive(platform.dev_pid()));
    assert_eq!(platform.answer(&platform.edges()[0], "shop").status, 200, "the first one is not harmed");
}

fn a_port_that_is_taken(platform: &Platform) {
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let data = platform.scratch("other-data");
    let output = platform.anonymous().run(
        &["dev", "--regions", "fra", "--no-context", "--https-port", &port, "--http-port", "0", "--data"]
            .into_iter()
            .map(str::to_owned)
            .chain([data.display().to_string()])
            .collect::<Vec<_>>(),
    );
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains(&port) && output.stderr.contains("--https-port"), "{output:?}");
    let left = processes::of_folder(&data);
    assert!(left.is_empty(), "{left:?}");
}

fn dry_run_and_plan_change_nothing(platform: &Platform) {
    let text = shop_manifest("planned", &[("fra", 1)]);
    let folder = platform.manifest("planned", &text);
    let atoll = platform.atoll();
    let shown = atoll.run_in(&folder, &["deploy", "--dry-run"]).expect_code(0);
    assert!(shown.stdout.contains("planned") || shown.stdout.contains("web"), "{shown:?}");
    let _changes = atoll.run_in(&folder, &["plan", "--exit-code"]).expect_code(10);
    assert!(!platform.api("/v1/apps").to_string().contains("planned"));
    assert!(platform.instances("planned").is_empty());
}

fn two_deploys_at_once(platform: &Platform) {
    let with = |value: &str| {
        shop_manifest("shop", &[("fra", 1)]) + &format!("\n[service.web.env]\nV = \"{value}\"\n")
    };
    let (one, two) = (platform.manifest("one", &with("1")), platform.manifest("two", &with("2")));
    let atoll = platform.atoll();
    let outputs = std::thread::scope(|scope| {
        let first = scope.spawn(|| atoll.run_in(&one, &["deploy"]));
        let second = scope.spawn(|| atoll.run_in(&two, &["deploy"]));
        [first.join().unwrap(), second.join().unwrap()]
    });
    let done = outputs.iter().filter(|output| output.code == 0).count();
    assert!(done >= 1, "{outputs:?}");
    for refused in outputs.iter().filter(|output| output.code != 0) {
        assert!(refused.code == 1 && refused.stderr.contains("deploy"), "{refused:?}");
    }
    wait_until("one instance is left", Duration::from_secs(30), || {
        let instances = platform.instances("shop");
        instances.len() == 1 && instances[0]["state"] == "healthy"
    });
}

/// Control's folder is on a file system of a few MiB that is then filled.
#[test]
fn a_full_disk_at_control_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can mount a small file system");
        return;
    }
    let mut platform = Platform::prepare(Options::regions(&["fra"]));
    let control = platform.data().join("nodes/fra1-control");
    fs::create_dir_all(&control).unwrap();
    for folder in [platform.data(), platform.data().join("nodes"), control.clone()] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let Some(_mounted) = Mounted::tmpfs(&control, "24m") else {
        println!("skipped: this machine lets nobody mount a file system");
        return;
    };
    platform.start_again();
    platform.deploy(&platform.manifest("shop", &shop_manifest("shop", &[("fra", 1)])));

    fill(&control.join("ballast"));
    let mut refused = None;
    for n in 0..400 {
        let app = format!("more-{n}");
        let folder = platform
            .manifest("more", &program_manifest(&app, "fra", &["/bin/sh", "-c", &"x".repeat(30_000)]));
        let output = platform.atoll().run_in(&folder, &["deploy", "--no-wait"]);
        if output.code != 0 {
            refused = Some(output);
            break;
        }
    }
    let refused = refused.expect("a full disk takes no more");
    assert!([1, 6].contains(&refused.code), "{refused:?}");
    let answer = platform.answer(&platform.edges()[0], "shop");
    assert_eq!(answer.status, 200, "what runs goes on");

    fs::remove_file(control.join("ballast")).unwrap();
    let text = shop_manifest("shop", &[("fra", 1)]) + "\n[service.web.env]\nAFTER = \"1\"\n";
    let folder = platform.manifest("shop", &text);
    wait_until("control takes deploys again", Duration::from_secs(60), || {
        platform.atoll().run_in(&folder, &["deploy", "--no-wait"]).code == 0
    });
    assert!(platform.api("/v1/apps").to_string().contains("shop"));
    // Nothing may use the small file system when it goes, and it goes before the folder that it is in.
    assert!(platform.stop().success());
}

fn fill(file: &Path) {
    use std::io::Write;
    let mut ballast = fs::File::create(file).unwrap();
    let block = vec![0xa5; 1 << 16];
    while ballast.write_all(&block).is_ok() {}
    while ballast.write_all(&block[..512]).is_ok() {}
}

/// A file system that is unmounted when this is dropped.
struct Mounted<'p>(&'p Path);

impl<'p> Mounted<'p> {
    fn tmpfs(at: &'p Path, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "atoll-test"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still use it.
        let _gone = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}
