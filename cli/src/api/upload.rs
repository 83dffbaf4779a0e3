//! Uploads: files as bodies, one after another over one connection.

use super::{Api, read};
use crate::failure::{Exit, Failure, Outcome};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::client::conn::http1::SendRequest;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

type FileBody = UnsyncBoxBody<Bytes, io::Error>;

const PIECE: usize = 128 * 1024;
/// Pieces between the disk and the connection.
const PIECES: usize = 4;
/// A control that takes nothing for this long has gone.
const STALLED: Duration = Duration::from_secs(60);

/// Uploads over a connection of its own, which is made anew when it breaks.
#[derive(Debug)]
pub struct Uploader {
    api: Api,
    connection: Option<SendRequest<FileBody>>,
    /// Bytes handed to the connection, counted for progress.
    sent: Arc<AtomicU64>,
}

impl Uploader {
    /// For that platform; adds to `sent` what it sends.
    pub fn new(api: &Api, sent: Arc<AtomicU64>) -> Self {
        Self { api: api.clone(), connection: None, sent }
    }

    /// Puts `size` bytes of a file. `None`: control found that they are not what they were said to be.
    pub async fn put(&mut self, path: &str, file: File, size: u64) -> Outcome<Option<()>> {
        let request = self.request(path, file, size)?;
        let mut connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.api.transport.connect().await.map_err(|what| self.api.unreachable(&what))?,
        };
        connection.ready().await.map_err(|error| self.api.unreachable(&error.to_string()))?;
        let answer = self.watched(connection.send_request(request)).await?;
        let status = answer.status();
        let read = read(path, answer).await;
        if status == StatusCode::UNPROCESSABLE_ENTITY {
            return Ok(None);
        }
        read?;
        self.connection = Some(connection);
        Ok(Some(()))
    }

    fn request(&self, path: &str, file: File, size: u64) -> Outcome<Request<FileBody>> {
        let mut request = self.api.request(Method::PUT, path, None, None)?.map(|_| self.body(file, size));
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Ok(request)
    }

    fn body(&self, file: File, size: u64) -> FileBody {
        let (pieces, arriving) = mpsc::channel(PIECES);
        let sent = Arc::clone(&self.sent);
        tokio::task::spawn_blocking(move || {
            // No more than was announced: a file that grows is found by its hash.
            let mut file = file.take(size);
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let frame = match (&mut file).take(PIECE as u64).read_to_end(&mut piece) {
                    Ok(0) => return,
                    Ok(count) => {
                        sent.fetch_add(count as u64, Ordering::Relaxed);
                        Ok(Frame::data(Bytes::from(piece)))
                    }
                    Err(error) => Err(error),
                };
                if pieces.blocking_send(frame).is_err() {
                    return;
                }
            }
        });
        let frames = futures_util::stream::unfold(arriving, |mut arriving| async {
            let frame = arriving.recv().await?;
            Some((frame, arriving))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Waits for the answer for as long as bytes go out.
    async fn watched<T>(&self, answer: impl Future<Output = Result<T, hyper::Error>>) -> Outcome<T> {
        tokio::pin!(answer);
        let mut before = self.sent.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(STALLED, &mut answer).await {
                Ok(answered) => return answered.map_err(|error| self.api.unreachable(&error.to_string())),
                Err(_) if self.sent.load(Ordering::Relaxed) == before => {
                    let what = format!("it takes no bytes for {} s", STALLED.as_secs());
                    return Err(Failure::new(Exit::Unreachable, what));
                }
                Err(_) => before = self.sent.load(Ordering::Relaxed),
            }
        }
    }
}
