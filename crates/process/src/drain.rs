//! Draining: a process first stops taking work, then finishes what it has, then is forced.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    Running,
    Draining,
    Forced,
}

/// Starts the drain, and forces its end.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Phase>);

/// Tells a task when to stop taking work and when to give up.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<Phase>);

/// A trigger and what it moves.
#[must_use]
pub fn channel() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(Phase::Running);
    (DrainTrigger(sender), Drain(receiver))
}

impl DrainTrigger {
    /// Take no new work.
    pub fn start(&self) {
        self.advance(Phase::Draining);
    }

    /// The deadline has passed: end now.
    pub fn force(&self) {
        self.advance(Phase::Forced);
    }

    /// Another view of the same drain.
    #[must_use]
    pub fn subscribe(&self) -> Drain {
        Drain(self.0.subscribe())
    }

    fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let moves = *phase < to;
            if moves {
                *phase = to;
            }
            moves
        });
    }
}

impl Drain {
    /// Resolves once no new work is to be taken. Cancel-safe. A dropped trigger counts as forced.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves once what is left is to be dropped. Cancel-safe.
    pub async fn forced(&self) {
        self.reached(Phase::Forced).await;
    }

    /// Whether no new work is to be taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// Whether what is left is to be dropped.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        *self.0.borrow() >= Phase::Forced
    }

    async fn reached(&self, wanted: Phase) {
        let mut phases = self.0.clone();
        // An error means that the trigger is gone: nobody could force us any more.
        let _gone = phases.wait_for(|phase| *phase >= wanted).await.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_move_on() {
        let (trigger, drain) = channel();
        assert!(!drain.is_draining());
        trigger.start();
        drain.draining().await;
        assert!(!drain.is_forced());
        trigger.force();
        trigger.start();
        drain.forced().await;
        assert!(drain.is_forced());
    }

    #[tokio::test]
    async fn a_lost_trigger_does_not_hang() {
        let (trigger, drain) = channel();
        drop(trigger);
        drain.forced().await;
    }
}
