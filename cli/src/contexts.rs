//! Which platform the CLI talks to: `$XDG_CONFIG_HOME/atoll/contexts.toml`, mode 0600, changed under a
//! lock and replaced whole.

use crate::failure::{self, Exit, Failure, Outcome};
use atoll_process::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a change waits for another process's change.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// One platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The API's address: `https://…`, or `http://…` on loopback.
    pub api: String,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The only CA, in PEM, that the API's certificate may come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// All platforms that are known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contexts {
    /// The one that is used when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(rename = "context")]
    pub contexts: BTreeMap<String, Context>,
}

/// The file.
#[derive(Debug, Clone)]
pub struct ContextsFile {
    path: PathBuf,
}

impl ContextsFile {
    /// The user's own.
    pub fn of_user() -> Outcome<Self> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let base =
            std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
        let base = base.ok_or_else(|| {
            Failure::failed("there is no folder for contexts: neither XDG_CONFIG_HOME nor HOME is set")
                .fix("set HOME, or name the platform with ATOLL_API and ATOLL_TOKEN")
        })?;
        Ok(Self::at(base.join("atoll").join("contexts.toml")))
    }

    /// A file of a given path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads it; one that is not there is empty.
    pub fn read(&self) -> Outcome<Contexts> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => return Err(failure::io(format!("cannot read {}", self.path.display()), &error)),
        };
        toml::from_str(&text).map_err(|error| {
            Failure::failed(format!("the contexts are not readable: {}", error.message()))
                .place(self.path.display().to_string())
                .fix("mend the file, or remove it and add the contexts again")
        })
    }

    /// Changes it: reads, lets `edit` change, writes; no other process's change comes between.
    pub fn change<T>(&self, edit: impl FnOnce(&mut Contexts) -> Outcome<T>) -> Outcome<T> {
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        files::private_dir(folder)
            .map_err(|error| failure::io(format!("cannot make {}", folder.display()), &error))?;
        let _lock = self.lock()?;
        let mut contexts = self.read()?;
        let answer = edit(&mut contexts)?;
        let text = toml::to_string(&contexts).map_err(|error| Failure::failed(error.to_string()))?;
        files::write_atomic(&self.path, text.as_bytes(), 0o600)
            .map_err(|error| failure::io(format!("cannot write {}", self.path.display()), &error))?;
        Ok(answer)
    }

    fn lock(&self) -> Outcome<files::FileLock> {
        let path = self.path.with_extension("lock");
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match files::lock(&path) {
                Ok(lock) => return Ok(lock),
                // Changes take milliseconds: whoever holds it will be done soon.
                Err(files::LockError::Held { .. }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(Failure::failed(error.to_string())),
            }
        }
    }
}

/// A platform that was chosen, and what it is called in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The context's name, or `ATOLL_API`.
    pub name: String,
    /// The platform.
    pub context: Context,
}

/// What the user said about which platform is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// `--context`.
    pub flag: Option<String>,
    /// `ATOLL_CONTEXT`.
    pub variable: Option<String>,
    /// `ATOLL_API`.
    pub api: Option<String>,
    /// `ATOLL_TOKEN`.
    pub token: Option<String>,
    /// What is in the file that `ATOLL_CA` names.
    pub ca: Option<String>,
}

impl Choice {
    /// The platform: `--context`, else `ATOLL_API`, else `ATOLL_CONTEXT`, else the current context.
    /// `ATOLL_TOKEN` takes the place of a context's token, `ATOLL_CA` that of its CA.
    pub fn resolve(&self, contexts: &Contexts) -> Outcome<Chosen> {
        if let (None, Some(api)) = (&self.flag, &self.api) {
            let ca = self.ca.clone().or_else(|| pinned_for(api, contexts));
            let context = Context { api: api.clone(), token: self.token.clone(), ca };
            return Ok(Chosen { name: "ATOLL_API".to_owned(), context });
        }
        let name = self.flag.as_ref().or(self.variable.as_ref()).or(contexts.current.as_ref()).ok_or_else(|| {
            Failure::new(Exit::Usage, "no platform is chosen")
                .fix("start one with `atoll dev`, choose one with `atoll context use NAME`, or set ATOLL_API and ATOLL_TOKEN")
        })?;
        let mut context = contexts.contexts.get(name).cloned().ok_or_else(|| unknown(name, contexts))?;
        if self.token.is_some() {
            context.token.clone_from(&self.token);
        }
        if self.ca.is_some() {
            context.ca.clone_from(&self.ca);
        }
        Ok(Chosen { name: name.clone(), context })
    }
}

/// The CA that some context pins for the same address.
fn pinned_for(api: &str, contexts: &Contexts) -> Option<String> {
    contexts.contexts.values().find(|context| context.api == api).and_then(|context| context.ca.clone())
}

/// There is no context of that name.
pub fn unknown(name: &str, contexts: &Contexts) -> Failure {
    let known: Vec<&str> = contexts.contexts.keys().map(String::as_str).collect();
    let fix = if known.is_empty() {
        "add one with `atoll context add`, or start one with `atoll dev`".to_owned()
    } else {
        format!("the contexts are {}", known.join(", "))
    };
    Failure::usage(format!("there is no context `{}`", crate::out::harmless(name))).fix(fix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn context(api: &str) -> Context {
        Context { api: api.to_owned(), token: Some("t".to_owned()), ca: None }
    }

    #[test]
    fn a_change_is_kept_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = ContextsFile::at(folder.path().join("atoll/contexts.toml"));
        assert_eq!(file.read().unwrap(), Contexts::default());
        file.change(|contexts| {
            contexts.contexts.insert("dev".to_owned(), context("http://127.0.0.1:1"));
            contexts.current = Some("dev".to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(file.read().unwrap().current.as_deref(), Some("dev"));
        assert_eq!(std::fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused: Outcome = file.change(|contexts| {
            contexts.contexts.clear();
            Err(Failure::failed("no"))
        });
        assert!(refused.is_err());
        assert_eq!(file.read().unwrap().contexts.len(), 1);
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = ContextsFile::at(folder.path().join("contexts.toml"));
        std::thread::scope(|scope| {
            for i in 0..8 {
                let file = file.clone();
                scope.spawn(move || {
                    file.change(|contexts| {
                        contexts.contexts.insert(format!("c{i}"), context("http://127.0.0.1:1"));
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(file.read().unwrap().contexts.len(), 8);
    }

    #[test]
    fn a_broken_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = ContextsFile::at(folder.path().join("contexts.toml"));
        std::fs::write(&file.path, "curent = \"x\"").unwrap();
        assert!(file.change(|_| Ok(())).unwrap_err().what.contains("not readable"));
        assert_eq!(std::fs::read_to_string(&file.path).unwrap(), "curent = \"x\"");
    }

    #[test]
    fn the_nearest_choice_wins() {
        let mut contexts = Contexts { current: Some("a".to_owned()), ..Contexts::default() };
        contexts.contexts.insert("a".to_owned(), context("http://127.0.0.1:1"));
        contexts.contexts.insert("b".to_owned(), context("http://127.0.0.1:2"));
        let name = |choice: &Choice| choice.resolve(&contexts).map(|chosen| chosen.name);
        assert_eq!(name(&Choice::default()).unwrap(), "a");
        let variable = Choice { variable: Some("b".to_owned()), ..Choice::default() };
        assert_eq!(name(&variable).unwrap(), "b");
        let api = Choice { api: Some("http://127.0.0.1:3".to_owned()), ..variable };
        assert_eq!(name(&api).unwrap(), "ATOLL_API");
        let flag = Choice { flag: Some("a".to_owned()), token: Some("u".to_owned()), ..api };
        let chosen = flag.resolve(&contexts).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.context.token.as_deref()), ("a", Some("u")));
        let pinned = Choice { ca: Some("pem".to_owned()), ..flag };
        assert_eq!(pinned.resolve(&contexts).unwrap().context.ca.as_deref(), Some("pem"));
        let wrong = Choice { flag: Some("c".to_owned()), ..Choice::default() };
        let failure = wrong.resolve(&contexts).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.fix.unwrap().contains("a, b"));
        assert_eq!(Choice::default().resolve(&Contexts::default()).unwrap_err().exit, Exit::Usage);
    }
}
