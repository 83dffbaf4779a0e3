//! What the service manager is told (sd_notify(3)). Without one, nothing.

use sd_notify::NotifyState;
use std::time::Duration;
use tracing::{debug, info};

/// The process serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process drains, and will end by itself.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that this runtime is alive, twice as often as the manager asks for. It never ends, not even while the process drains;
/// where nobody asks it waits.
pub async fn watchdog() {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    info!(?within, "the service manager watches over this process");
    let mut ticks = tokio::time::interval((within / 2).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(state) {
        debug!(%cause, "the service manager was not told");
    }
}
