//! Output as a stream.

use super::{LogFile, Mark};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Largest piece, bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Pieces that wait for a slow reader; 512 KiB a stream.
const CHUNKS_MAX: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOST: &[u8] = b"[atoll: output was lost here, it came faster than it could be read]\n";

/// The last `tail_lines` lines of `file`, and with `follow` what comes after, until the stream is dropped
/// or the file is closed. Pieces have at most 32 KiB; after an error
/// nothing comes.
#[must_use]
pub fn read(file: Arc<LogFile>, tail_lines: usize, follow: bool) -> ReceiverStream<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::spawn(async move {
        if let Err(cause) = pump(file, tail_lines, follow, &sender).await {
            // A reader that went away is the usual cause, and isn't there to be told.
            let _gone = sender.send(Err(cause)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn pump(
    file: Arc<LogFile>,
    tail_lines: usize,
    follow: bool,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let (first, older) = blocking({
        let file = Arc::clone(&file);
        move || Ok(file.mark_of_last_lines(tail_lines))
    })
    .await?;
    for piece in older.iter().flat_map(|bytes| bytes.chunks(CHUNK_BYTES)) {
        send(sender, Bytes::copy_from_slice(piece)).await?;
    }
    let mut mark = first;
    loop {
        // Asked first: what was appended before it was closed is still read.
        let closed = file.is_closed();
        let (next, opened) = blocking({
            let file = Arc::clone(&file);
            move || {
                let mut next = mark;
                let opened = file.open_since(&mut next);
                Ok((next, opened))
            }
        })
        .await?;
        mark = next;
        match opened {
            Ok((files, whole)) => {
                if !whole {
                    send(sender, Bytes::from_static(LOST)).await?;
                }
                let last = files.len() - 1;
                for (index, open) in files.into_iter().enumerate() {
                    let sent = drain_file(open, sender).await?;
                    if index == last {
                        mark = Mark { offset: mark.offset + sent, ..mark };
                    }
                }
            }
            // Nothing was written yet: the program could not be started so far.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        if !follow || closed {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Sends all of an open file; says how much that was.
async fn drain_file(mut file: File, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<u64> {
    let mut sent = 0;
    loop {
        let (back, piece) = blocking(move || {
            let mut piece = Vec::with_capacity(CHUNK_BYTES);
            (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut piece)?;
            Ok((file, piece))
        })
        .await?;
        file = back;
        if piece.is_empty() {
            return Ok(sent);
        }
        sent += piece.len() as u64;
        send(sender, piece.into()).await?;
    }
}

async fn send(sender: &mpsc::Sender<io::Result<Bytes>>, piece: Bytes) -> io::Result<()> {
    sender.send(Ok(piece)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
