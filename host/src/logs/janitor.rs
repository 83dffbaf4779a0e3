//! Keeps output files within their bound, and notes when they were written.

use super::LogFile;
use crate::metrics::HostMetrics;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tracing::warn;

/// The longest time between two looks. A program that begins to print as fast as memory takes it writes
/// some 1 GB/s: until the next look the file is over its bound by 25 MB or so.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The shortest, while a program prints fast.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// On a full disk every look may fail: it is always counted, and said this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Looks at all output files, on a thread of its own: a busy runtime must not let them grow.
#[derive(Debug)]
pub struct Janitor {
    files: Arc<Mutex<Vec<Weak<LogFile>>>>,
}

impl Janitor {
    /// Starts the thread; it ends with the last handle.
    pub fn start(metrics: HostMetrics) -> io::Result<Self> {
        let files: Arc<Mutex<Vec<Weak<LogFile>>>> = Arc::default();
        let seen = Arc::downgrade(&files);
        let look = move || {
            let mut looks = Looks::default();
            while let Some(files) = seen.upgrade() {
                let pause = looks.once(&files, &metrics);
                drop(files);
                std::thread::sleep(pause);
            }
        };
        std::thread::Builder::new().name("host-logs".to_owned()).spawn(look)?;
        Ok(Self { files })
    }

    /// Keeps `file` within its bound for as long as somebody else holds it.
    pub fn watch(&self, file: &Arc<LogFile>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(file));
    }
}

/// What is kept from one look to the next.
#[derive(Debug, Default)]
struct Looks {
    ends: Vec<u64>,
    warned: Option<Instant>,
}

impl Looks {
    /// Trims what is over its bound; says when to look again: sooner while a file grows by much.
    fn once(&mut self, files: &Mutex<Vec<Weak<LogFile>>>, metrics: &HostMetrics) -> Duration {
        let watched: Vec<Arc<LogFile>> = {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.retain(|file| file.strong_count() > 0);
            files.iter().filter_map(Weak::upgrade).collect()
        };
        self.ends.resize(watched.len(), 0);
        let mut pause = LOOK_EVERY;
        for (file, before) in watched.iter().zip(&mut self.ends) {
            let looked = file.look();
            let (end, trimmed) =
                looked.as_ref().map_or((*before, false), |looked| (looked.end, looked.trimmed));
            // An eighth of the bound since the last look: at this rate it would soon be over it.
            if end > before.saturating_add(file.bytes_max() / 8) {
                pause = LOOK_AGAIN;
            }
            *before = end;
            metrics.log_trims.inc_by(u64::from(trimmed));
            if let Err(cause) = looked {
                metrics.log_errors.inc();
                if self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    warn!(path = %file.path().display(), %cause, "output, or when it came, could not be kept");
                }
            }
        }
        pause
    }
}
