//! `atoll dev`: the whole platform on this machine.
//!
//! It starts the nodes, each its own process, watches them, and stops them; it does nothing itself
//! that a node does. What it knows of the platform it learns from the API and the public listeners.

pub mod demo;
mod https;
mod layout;
mod leftovers;
mod logs;
mod ports;
pub mod probe;
mod procfs;
mod run;
mod settings;
mod start;
mod state;
mod supervisor;

use crate::args::DevArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::out;
use atoll_process::files;
use atoll_process::signals::Terminations;
use layout::Layout;
use run::Platform;
use settings::Settings;
use state::RunFile;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long we wait for the lock of an `atoll dev` that is just ending.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// Runs the platform until SIGTERM or Ctrl-C.
pub async fn run(args: DevArgs) -> Outcome {
    let mut signals =
        Terminations::listen().map_err(|error| crate::failure::io("cannot listen to signals", &error))?;
    let settings = Settings::check(args)?;
    let _lock = lock(&settings.data).await?;
    let last = RunFile::load(&settings.data);
    state::remove_dev_json(&settings.data);
    let left = leftovers::end_all(&settings.data, Some(&last))?;
    if left > 0 {
        out::note(&format!("ended {left} processes that an earlier `atoll dev` had left"));
    }
    let layout = Layout::new(&settings, last.addresses)?;
    layout.write(&settings.data)?;
    let program =
        std::env::current_exe().map_err(|error| crate::failure::io("cannot find our own program", &error))?;

    let mut platform = Platform::new(&settings, layout, program);
    let result = tokio::select! {
        ended = platform.start_and_watch(&settings) => ended,
        name = signals.next() => {
            out::note(&format!("{name}: stopping"));
            Ok(())
        }
    };
    tokio::select! {
        () = platform.stop() => {}
        _ = signals.next() => out::note("stopping at once"),
    }
    state::remove_dev_json(&settings.data);
    // Whatever did not end by itself, and what instances left behind.
    leftovers::end_all(&settings.data, Some(platform.run_file()))?;
    result
}

async fn lock(data: &Path) -> Outcome<files::FileLock> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match files::lock(&data.join("lock")) {
            Ok(lock) => return Ok(lock),
            Err(files::LockError::Held { .. }) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(files::LockError::Held { holder, .. }) => {
                let pid = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                return Err(Failure::new(Exit::Failed, format!("another `atoll dev`{pid} runs on this data folder"))
                    .place(data.display().to_string())
                    .fix("stop it, or give this one another folder with --data and other ports with --https-port and --http-port"));
            }
            Err(error) => return Err(Failure::failed(error.to_string())),
        }
    }
}
