//! Structured logs on stderr: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The environment variable that sets the level, in the syntax of `tracing_subscriber::EnvFilter`.
pub const LEVEL_VARIABLE: &str = "ATOLL_LOG";

/// Begins to log. A second call does nothing.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env(LEVEL_VARIABLE)
        .unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,foca=warn,h2=warn,hyper=warn,rustls=warn"));
    let human = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Human => true,
        Format::Json => false,
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = if human {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
    if done.is_err() {
        tracing::debug!("logs were set up before");
    }
}
