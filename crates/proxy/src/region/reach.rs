//! Which instances can't be connected to from here, as all workers see it: first-hand knowledge that
//! outranks what a host says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Clones share it. Written only when an instance is ejected or is back.
#[derive(Debug, Clone, Default)]
pub struct Reach(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Instance → how many workers leave it out. Bounded by the instances of the region.
    ejected: Mutex<HashMap<Arc<str>, u32>>,
    changed: Notify,
}

/// A worker leaves an instance out as long as it holds this.
#[derive(Debug)]
pub struct Ejection {
    reach: Reach,
    key: Arc<str>,
}

impl Reach {
    /// A worker leaves `key` out from now on.
    pub(crate) fn eject(&self, key: &Arc<str>) -> Ejection {
        *self.ejected().entry(Arc::clone(key)).or_default() += 1;
        self.0.changed.notify_one();
        Ejection { reach: self.clone(), key: Arc::clone(key) }
    }

    /// Whether some worker can't reach the instance.
    #[must_use]
    pub fn is_ejected(&self, key: &str) -> bool {
        self.ejected().contains_key(key)
    }

    /// Resolves after a change. One task waits.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn ejected(&self) -> MutexGuard<'_, HashMap<Arc<str>, u32>> {
        // Whole whenever the lock is free: no section can panic half-way.
        self.0.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ejection {
    fn drop(&mut self) {
        let mut ejected = self.reach.ejected();
        if let Some(count) = ejected.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                ejected.remove(&self.key);
            }
        }
        drop(ejected);
        self.reach.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_back_when_every_worker_has_it_back() {
        let reach = Reach::default();
        let key: Arc<str> = "h/i".into();
        let (first, second) = (reach.eject(&key), reach.eject(&key));
        drop(first);
        assert!(reach.is_ejected("h/i"));
        drop(second);
        assert!(!reach.is_ejected("h/i"));
    }
}
