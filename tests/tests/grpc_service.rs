//! gRPC of all four kinds, by a client and a server that nobody here wrote, in the region and beyond.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use atoll_testkit::{Options, Platform, probe_words, wait_until, write_probe};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[test]
fn grpc_of_all_four_kinds_passes() {
    let Some(python) = grpcio() else { return };
    let platform = Platform::start(Options::regions(&["fra", "was"]));
    deploy(&platform, &python, "");
    for variable in ["NEAR_URL", "FAR_URL"] {
        assert_eq!(run(&platform, &python, variable), "all four; else: UNIMPLEMENTED", "{variable}");
    }
    // Who may call which method is decided by name; a refusal is one that clients of gRPC understand.
    let rule = |to: &str| {
        format!(
            "\n[[allow]]\nfrom = [\"web\"]\nto = \"{to}\"\ngrpc = [\"test.v1.Kinds/Unary\", \"test.v1.Kinds/Down\", \"test.v1.Kinds/Up\", \"test.v1.Kinds/Both\"]\n"
        )
    };
    deploy(&platform, &python, &(rule("near") + &rule("far")));
    for variable in ["NEAR_URL", "FAR_URL"] {
        wait_until("the method that no rule lists is refused", Duration::from_secs(30), || {
            run(&platform, &python, variable) == "all four; else: PERMISSION_DENIED"
        });
    }
}

/// The interpreter of an environment that has grpcio.
fn grpcio() -> Option<PathBuf> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("grpc");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/grpcio");
    let installed = Command::new(scripts.join("install.sh")).arg(&folder).output().unwrap();
    if !installed.status.success() {
        println!("skipped: grpcio can't be installed: {}", String::from_utf8_lossy(&installed.stderr));
        return None;
    }
    Some(folder.canonicalize().unwrap().join("bin/python"))
}

fn deploy(platform: &Platform, python: &Path, rules: &str) {
    let server = |name: &str, region: &str, other: &str| {
        format!(
            "\n[service.{name}]\nrun = [{python:?}, \"server.py\"]\nprotocol = \"grpc\"\ndrain = \"1s\"\n\
             regions = {{ {region} = {{ min = 1, max = 3 }}, {other} = {{ min = 0, max = 0 }} }}\n"
        )
    };
    let text = format!(
        "manifest = 1\napp = \"kinds\"\n[service.web]\nrun = {}\npublic = true\ncalls = [\"near\", \"far\"]\n\
         regions = {{ fra = {{ min = 1 }}, was = {{ min = 0, max = 0 }} }}\n{}{}{rules}",
        probe_words(),
        server("near", "fra", "was"),
        server("far", "was", "fra"),
    );
    let folder = platform.manifest("kinds", &text);
    write_probe(&folder);
    for name in ["server.py", "client.py"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("grpc").join(name), folder.join(name)).unwrap();
    }
    platform.deploy(&folder);
}

fn run(platform: &Platform, python: &Path, variable: &str) -> String {
    let line = format!("{} client.py {variable}", python.display());
    let ran = platform.run_in(&platform.edges()[0], "kinds", &line);
    if ran.code != 0 {
        println!("{variable}: {ran:?}");
    }
    ran.out.trim().to_owned()
}
