//! `atoll` as a child process.

use crate::atoll_binary;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a command of the CLI did.
#[derive(Debug, Clone)]
pub struct CliOutput {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Progress and messages.
    pub stderr: String,
}

impl CliOutput {
    /// Itself, if the exit code is `code`.
    ///
    /// # Panics
    /// With all output, when it is not.
    #[must_use]
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// The data as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}\n--- stderr\n{}", self.stdout, self.stderr))
    }
}

/// How `atoll` is called: folders of its own, so that the user's contexts stay as they are.
#[derive(Debug, Clone)]
pub struct Atoll {
    home: PathBuf,
    api: Option<(String, String)>,
}

impl Atoll {
    /// With that folder as home, talking to no platform.
    #[must_use]
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_owned(), api: None }
    }

    /// The same, talking to the platform with that API and token.
    #[must_use]
    pub fn with_api(&self, api: &str, token: &str) -> Self {
        Self { api: Some((api.to_owned(), token.to_owned())), ..self.clone() }
    }

    /// A command that can be changed further.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(atoll_binary());
        for name in ["ATOLL_API", "ATOLL_TOKEN", "ATOLL_CONTEXT", "ATOLL_LOG"] {
            command.env_remove(name);
        }
        command
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("XDG_STATE_HOME", self.home.join("state"))
            .current_dir(&self.home)
            .stdin(Stdio::null());
        if let Some((api, token)) = &self.api {
            command.env("ATOLL_API", api).env("ATOLL_TOKEN", token);
        }
        command
    }

    /// Runs it to its end in the home folder.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> CliOutput {
        self.run_in(&self.home.clone(), arguments)
    }

    /// Runs it to its end in a folder.
    pub fn run_in<S: AsRef<OsStr>>(&self, folder: &Path, arguments: &[S]) -> CliOutput {
        let output = self.command().current_dir(folder).args(arguments).output().unwrap();
        CliOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts it; its output is thrown away.
    pub fn start<S: AsRef<OsStr>>(&self, folder: &Path, arguments: &[S]) -> Child {
        let mut command = self.command();
        command.current_dir(folder).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}
