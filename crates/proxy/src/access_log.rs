//! One line of JSON a request, written by a thread of its own so that a slow disk slows no request.

use crate::metrics::ProxyMetrics;
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;
use tracing::error;

/// How many lines may wait for the disk; at about 1 KiB each this is 8 MiB.
const QUEUE_LINES_MAX: usize = 8192;
/// The writer rests after what it found, so that a busy worker does not wake a thread for each line.
/// 8192 lines in this time are 400,000 a second.
const REST: Duration = Duration::from_millis(20);

/// What is known of one request at its end. Absent facts are left out of the line.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are named as in the line, and docs/operations.md explains them")]
pub struct Line {
    pub time_ms: u64,
    pub request_id: String,
    pub client_ip: String,
    pub protocol: &'static str,
    pub method: String,
    pub host: String,
    pub path: String,
    pub status: u16,
    pub duration_us: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub edge: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    pub cache: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop: Option<&'static str>,
    pub tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// Where lines go. Clones share it; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Line>,
    metrics: ProxyMetrics,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(to: impl Write + Send + 'static, metrics: ProxyMetrics) -> std::io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE_LINES_MAX);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&receiver, to))?;
        Ok(Self { lines, metrics })
    }

    /// Queues a line; it is dropped, and counted, when the writer is too far behind.
    pub fn write(&self, line: Line) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(line) {
            self.metrics.access_log_dropped.inc();
        }
    }
}

fn write_lines(lines: &Receiver<Line>, to: impl Write) {
    let mut to = BufWriter::with_capacity(64 * 1024, to);
    let mut failing = false;
    let mut unflushed = false;
    loop {
        let next = match lines.try_recv() {
            Ok(line) => Ok(line),
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {
                std::thread::sleep(REST);
                lines.recv_timeout(Duration::from_millis(200))
            }
        };
        let outcome = match next {
            Ok(line) => {
                unflushed = true;
                // serde_json escapes quotes and control characters, so a line stays a line.
                serde_json::to_writer(&mut to, &line)
                    .map_err(std::io::Error::from)
                    .and_then(|()| to.write_all(b"\n"))
            }
            Err(RecvTimeoutError::Timeout) if unflushed => {
                unflushed = false;
                to.flush()
            }
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                // Nobody is left to tell of an error at the very end.
                let _unheard = to.flush();
                return;
            }
        };
        match outcome {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                error!(%error, "can't write the access log; lines are lost until this is mended");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    struct Sink(mpsc::Sender<Vec<u8>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_stays_a_line() {
        let (sender, written) = mpsc::channel();
        let log = AccessLog::start(Sink(sender), ProxyMetrics::unregistered()).unwrap();
        log.write(Line { path: "/\n\"\u{1b}[31m".to_owned(), ..Line::default() });
        drop(log);
        let bytes: Vec<u8> = written.iter().flatten().collect();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains('\u{1b}'));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["path"], "/\n\"\u{1b}[31m");
    }

    #[test]
    fn a_stuck_writer_drops_lines_and_counts_them() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                // Ends when the test does.
                let _ended = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (hold, held) = mpsc::channel();
        let metrics = ProxyMetrics::unregistered();
        let log = AccessLog::start(Stuck(held), metrics.clone()).unwrap();
        for _ in 0..3 * QUEUE_LINES_MAX {
            log.write(Line::default());
        }
        assert!(metrics.access_log_dropped.get() > 0);
        drop(hold);
    }
}
