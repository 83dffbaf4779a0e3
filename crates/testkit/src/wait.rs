//! Conditions with a deadline.

use std::time::{Duration, Instant};

/// Conditions may start a process each time; on few cores that must not be what is measured.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(300);

/// Waits until `condition` gives something, and gives it.
///
/// # Panics
/// When it has given nothing after `timeout`.
pub fn wait_for<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + timeout;
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "not within {timeout:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold after `timeout`.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, timeout, || condition().then_some(()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_given() {
        let mut n = 0;
        let third = wait_for("the third", Duration::from_secs(5), || {
            n += 1;
            (n == 3).then_some(n)
        });
        assert_eq!(third, 3);
    }

    #[test]
    #[should_panic(expected = "what never comes")]
    fn what_does_not_come_is_named() {
        wait_until("what never comes", Duration::from_millis(60), || false);
    }
}
