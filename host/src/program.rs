//! From a specification to a command: environment, words, and the file to run.

use crate::expand::{ExpandError, expand};
use atoll_model::ServiceSpec;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What instances and sidecars keep of the node's own environment.
const KEPT: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a program can't be started. The text is for the developer of the app.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A word of `run` can't be expanded.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// Nothing to run.
    #[error("`run` is empty; it must name a program")]
    Empty,
    /// The working directory is not there.
    #[error("the working directory {} does not exist on this host; list what the service needs under `files`, and a deploy brings it here", .0.display())]
    WorkingDir(PathBuf),
    /// A bare name that no directory of PATH has.
    #[error("program `{0}` was not found in PATH ({1})")]
    NotInPath(String, String),
    /// A path that is no file.
    #[error("program {} does not exist on this host; `files` in the manifest says what a deploy brings here", .0.display())]
    NoFile(PathBuf),
    /// A file without the right to run it.
    #[error("program {} is not executable; try chmod +x", .0.display())]
    NotExecutable(PathBuf),
}

/// The clean base that every process of ours starts with. Reads this process's environment.
#[must_use]
pub fn base_environment() -> BTreeMap<String, String> {
    let kept = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let mut base: BTreeMap<String, String> = kept.collect();
    base.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    base
}

/// What a sidecar has beside that of this process's environment: the log level, and the variables that an operator names in
/// `ATOLL_SIDECAR_ENV`, with commas between: what is to be loaded into it as into the node, say.
#[must_use]
pub fn sidecar_environment() -> BTreeMap<String, String> {
    let named = std::env::var("ATOLL_SIDECAR_ENV").unwrap_or_default();
    let names = named.split(',').map(str::trim).filter(|name| !name.is_empty());
    let known =
        names.chain(["ATOLL_LOG"]).filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    known.collect()
}

/// The command that runs `spec` in `folder` with `environment`, which also fills the words of `run`.
pub fn command(
    spec: &ServiceSpec,
    folder: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Command, ProgramError> {
    let words = spec.run.iter().map(|word| expand(word, environment)).collect::<Result<Vec<_>, _>>()?;
    let (name, arguments) = words.split_first().ok_or(ProgramError::Empty)?;
    if !folder.is_dir() {
        return Err(ProgramError::WorkingDir(folder.to_owned()));
    }
    let mut command = Command::new(find(name, folder, environment)?);
    command.args(arguments).env_clear().envs(environment).current_dir(folder);
    Ok(command)
}

fn find(name: &str, folder: &Path, environment: &BTreeMap<String, String>) -> Result<PathBuf, ProgramError> {
    if name.is_empty() {
        return Err(ProgramError::Empty);
    }
    if name.contains('/') {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(ProgramError::NoFile(path));
        }
        return if is_executable(&path) { Ok(path) } else { Err(ProgramError::NotExecutable(path)) };
    }
    let path = environment.get("PATH").map_or(PATH_DEFAULT, String::as_str);
    // An empty entry means the working directory, as a shell has it; so does a relative one.
    std::env::split_paths(path)
        .map(|entry| folder.join(entry).join(name))
        .find(|file| file.is_file() && is_executable(file))
        .ok_or_else(|| ProgramError::NotInPath(name.to_owned(), path.to_owned()))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(folder: &Path, run: &[&str]) -> ServiceSpec {
        ServiceSpec {
            run: run.iter().map(|word| (*word).to_owned()).collect(),
            working_dir: folder.to_str().unwrap().to_owned(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            protocol: atoll_model::Protocol::Http,
            public: false,
            drain_ms: 0,
            checks: Vec::new(),
            regions: BTreeMap::new(),
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn a_program_is_found_as_a_person_would() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let base = base_environment();
        let why =
            |run: &[&str]| command(&spec(folder.path(), run), folder.path(), &base).unwrap_err().to_string();
        assert!(why(&["./web"]).contains("not executable"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = command(&spec(folder.path(), &["./web"]), folder.path(), &base).unwrap();
        assert_eq!(Path::new(found.get_program()), folder.path().join("./web"));
        assert!(
            command(&spec(folder.path(), &["sh"]), folder.path(), &base)
                .unwrap()
                .get_program()
                .to_str()
                .unwrap()
                .ends_with("/sh")
        );
        assert!(why(&["web"]).contains("not found in PATH"));
        assert!(why(&["./absent"]).contains("does not exist"));
        assert!(why(&["sh", "$ABSENT"]).contains("$ABSENT"));
        assert!(why(&[]).contains("empty"));
    }
}
