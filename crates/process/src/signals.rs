//! Signals, as futures.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Terminations {
    term: Signal,
    int: Signal,
}

impl Terminations {
    /// Begins to listen; from here on the signals don't end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// SIGHUP: read the configuration again.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Begins to listen.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}
