//! The programs under test, built once by the cargo that runs the tests; or those of the folder that
//! `ATOLL_TEST_PROGRAMS` names, to test what was built elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `atoll`.
///
/// # Panics
/// When it can't be built.
#[must_use]
pub fn atoll_binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("atoll"))
}

/// The example app's server.
///
/// # Panics
/// When it can't be built.
#[must_use]
pub fn shop_binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("atoll-shop"))
}

fn built(program: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| match std::env::var_os("ATOLL_TEST_PROGRAMS") {
        Some(folder) => folder.into(),
        None => {
            let folder = profile_folder();
            build(&folder);
            folder
        }
    });
    let path = folder.join(program);
    assert!(path.is_file(), "there is no {}", path.display());
    path
}

/// `target/debug` or `target/release`: the running test is in its folder `deps`.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    assert!(deps.ends_with("deps"), "{} is not where cargo puts tests", test.display());
    deps.parent().unwrap().to_owned()
}

fn build(profile_folder: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args(["build", "--quiet", "--package", "atoll", "--package", "atoll-example-shop", "--bins"])
        .arg("--target-dir")
        .arg(profile_folder.parent().unwrap());
    match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            command.args(["--profile", profile]);
        }
    }
    // What cargo tells this test about its own package would look like a change to build scripts.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    let built = command.output().unwrap();
    assert!(built.status.success(), "the build failed:\n{}", String::from_utf8_lossy(&built.stderr));
}
