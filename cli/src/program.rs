//! Whether the program of a `run` is there, seen from this machine.

use atoll_model::ServiceSpec;
use atoll_model::manifest::variables_of;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is wrong with a service's program; nothing where it is there, or can't be known here because
/// its name holds variables.
pub fn program_fault(spec: &ServiceSpec) -> Option<String> {
    let program = spec.run.first()?;
    if variables_of(program).is_ok_and(|names| !names.is_empty()) {
        return None;
    }
    let program = program.replace("$$", "$");
    if program.contains('/') {
        // An absolute path takes the place of the folder.
        return file_fault(&Path::new(&spec.working_dir).join(&program), &program);
    }
    // The host looks where the instance's environment says.
    let path = spec.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(&program)).any(|file| is_executable(&file));
    if found {
        return None;
    }
    let here: PathBuf = Path::new(&spec.working_dir).join(&program);
    let hint = if here.exists() {
        format!("; for the one in the manifest's folder write `./{program}`")
    } else {
        String::new()
    };
    Some(format!("no program `{program}` is in PATH{hint}"))
}

fn file_fault(file: &Path, shown: &str) -> Option<String> {
    if is_executable(file) {
        return None;
    }
    Some(match std::fs::metadata(file) {
        Err(error) => format!("the program `{shown}` can't be used ({}): {error}", file.display()),
        Ok(facts) if facts.is_dir() => format!("`{shown}` is a folder, not a program"),
        Ok(_) => format!("`{shown}` is not executable; `chmod +x` makes it so"),
    })
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use atoll_model::Protocol;
    use std::collections::BTreeMap;

    fn fault(program: &str, folder: &Path) -> Option<String> {
        program_fault(&ServiceSpec {
            run: vec![program.to_owned()],
            working_dir: folder.display().to_string(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            protocol: Protocol::Http,
            public: false,
            drain_ms: 0,
            checks: Vec::new(),
            regions: BTreeMap::new(),
            ..ServiceSpec::default()
        })
    }

    #[test]
    fn programs_are_looked_for_as_the_host_does() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web"), "").unwrap();
        assert_eq!(fault("sh", folder.path()), None);
        assert_eq!(fault("/bin/sh", folder.path()), None);
        assert_eq!(fault("${BIN}/web", folder.path()), None);
        assert!(fault("./web", folder.path()).unwrap().contains("chmod"));
        assert!(fault("web", folder.path()).unwrap().contains("write `./web`"));
        assert!(fault("./none", folder.path()).unwrap().contains("can't be used"));
        assert!(fault("/", folder.path()).unwrap().contains("folder"));
    }
}
