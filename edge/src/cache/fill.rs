//! A response on its way from the origin: one task fetches it, all who want it read it as it comes, from the start. It outlives whoever
//! asked first. One that grows beyond what is stored becomes a window that its readers pull along.

use super::object::{Head, Object, compact};
use atoll_model::{Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use bytes::Bytes;
use http::header::HeaderMap;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::watch;

/// What is kept for the slowest reader of a response that is not stored, bytes.
const WINDOW_BYTES: u64 = 256 * 1024;
/// Readers of one fill; more fetch for themselves.
pub const READERS_MAX: usize = 100_000;

/// What those who wait know of the head.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The origin is asked.
    Asking,
    /// It came, and it is for all whose requests have this in the fields of its `Vary`.
    Here(Arc<Head>, Arc<[u8]>),
    /// A stored response is the answer: the origin says that it holds.
    Validated(Arc<Object>),
    /// A stored response stands in for an origin that fails.
    StandsIn(Arc<Object>),
    /// It is for the one who asked alone: the others are to ask for themselves, at once.
    NotShared,
    /// There is none, and what is to be answered instead.
    Failed(InternalAnswer),
}

impl Progress {
    /// Whoever fetched went away without a word.
    #[must_use]
    pub const fn lost() -> Self {
        Self::Failed(InternalAnswer { hop: Hop::Edge, reason: Reason::Internal, sent: true })
    }
}

/// How it ended.
#[derive(Debug, Clone)]
enum End {
    Complete(Option<HeaderMap>),
    Broken,
}

/// What a reader gets next.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// The end, with trailers where there were some.
    End(Option<HeaderMap>),
    /// The origin broke off: the response must not look whole.
    Broken,
}

/// The memory of all fills; what it refuses is passed on without being stored.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    most: AtomicU64,
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { used: AtomicU64::new(0), most: AtomicU64::new(most) }
    }

    /// From now on so many. What is in use stays so.
    pub fn set_max(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Bytes that fills may take.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Bytes in fills now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether all of it, or more, is in use.
    fn is_spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.most.load(Ordering::Relaxed)
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A response on its way.
#[derive(Debug)]
pub struct Fill {
    progress: watch::Sender<Progress>,
    body: Mutex<BodyState>,
    budget: Arc<Budget>,
    /// What the head takes of it, bytes.
    head_bytes: AtomicU64,
    /// Longest body that is stored.
    stored_max: u64,
}

#[derive(Debug)]
struct BodyState {
    chunks: VecDeque<Bytes>,
    /// Number of the first of `chunks`.
    first: usize,
    kept_bytes: u64,
    /// All of it is here from the start.
    whole: bool,
    end: Option<End>,
    readers: Vec<Option<ReaderState>>,
    reading: usize,
    /// The fetching task waits for readers.
    fetcher: Option<Waker>,
    /// It must not be stored: what it is of has changed meanwhile.
    outdated: bool,
}

#[derive(Debug)]
struct ReaderState {
    next: usize,
    /// Bytes of that one that it has already.
    had: usize,
    waker: Option<Waker>,
}

impl Fill {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(budget: Arc<Budget>, stored_max: u64) -> Arc<Self> {
        let body = BodyState {
            chunks: VecDeque::new(),
            first: 0,
            kept_bytes: 0,
            whole: true,
            end: None,
            readers: Vec::new(),
            reading: 0,
            fetcher: None,
            outdated: false,
        };
        Arc::new(Self {
            progress: watch::Sender::new(Progress::Asking),
            body: Mutex::new(body),
            budget,
            head_bytes: AtomicU64::new(0),
            stored_max,
        })
    }

    /// Says what became of the head. Only the first word counts.
    pub fn tell(&self, news: Progress) {
        self.progress.send_if_modified(|progress| {
            let first = matches!(progress, Progress::Asking);
            if first {
                if let Progress::Here(head, variant) = &news {
                    let bytes = (head.bytes() + variant.len()) as u64;
                    self.head_bytes.store(bytes, Ordering::Relaxed);
                    // There is nothing to refuse: it is here.
                    let _within = self.budget.take(bytes);
                }
                *progress = news;
            }
            first
        });
    }

    /// What became of the head, once that is known.
    pub async fn head(&self) -> Progress {
        let mut progress = self.progress.subscribe();
        let known = progress.wait_for(|progress| !matches!(progress, Progress::Asking)).await;
        known.map_or(Progress::lost(), |known| known.clone())
    }

    fn state(&self) -> MutexGuard<'_, BodyState> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from the start; nothing where that is gone, or too many read.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state();
        if !state.whole || state.reading >= READERS_MAX {
            return None;
        }
        state.reading += 1;
        let new = ReaderState { next: 0, had: 0, waker: None };
        let slot = match state.readers.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                state.readers.push(None);
                state.readers.len() - 1
            }
        };
        state.readers[slot] = Some(new);
        Some(Reader { fill: Arc::clone(self), slot })
    }

    /// Whether nobody reads it now, and nobody is about to.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.progress.receiver_count() == 0 && self.state().reading == 0
    }

    /// Bytes that have come, as long as all of them are kept.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.state().kept_bytes
    }

    /// Adds what has come.
    pub fn push(&self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        let bytes = chunk.len() as u64;
        let has_room = self.budget.take(bytes);
        let mut state = self.state();
        state.kept_bytes += bytes;
        state.chunks.push_back(chunk);
        if state.whole && (!has_room || state.kept_bytes > self.stored_max) {
            state.whole = false;
        }
        self.trim(&mut state);
        state.wake_readers();
    }

    /// Resolves when nobody waits for the head any more.
    pub async fn abandoned(&self) {
        self.progress.closed().await;
    }

    /// Until more may be pushed. False when nobody will ever read it: it is neither stored nor read.
    pub async fn room(&self) -> bool {
        poll_fn(|cx| {
            let mut state = self.state();
            if state.whole || (state.reading > 0 && self.has_window(&state)) {
                return Poll::Ready(true);
            }
            if state.reading == 0 {
                return Poll::Ready(false);
            }
            state.fetcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// It came whole. Gives the body where it is to be stored.
    pub fn finish(&self, trailers: Option<HeaderMap>) -> Option<Arc<[Bytes]>> {
        let mut state = self.state();
        let stored = (state.whole && !state.outdated && trailers.is_none())
            .then(|| compact(state.chunks.iter().cloned(), usize::try_from(state.kept_bytes).unwrap_or(0)));
        if let Some(pieces) = &stored {
            state.go_over_to(pieces);
        }
        if state.end.is_none() {
            state.end = Some(End::Complete(trailers));
        }
        state.wake_readers();
        stored
    }

    /// What [`Self::finish`] gave is stored, and counted there: that others read it yet, however slowly, takes nothing of the fills' memory.
    pub fn note_stored(&self) {
        let mut state = self.state();
        self.budget.give(std::mem::take(&mut state.kept_bytes));
    }

    /// The origin broke off.
    pub fn break_off(&self) {
        self.tell(Progress::lost());
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(End::Broken);
        }
        state.wake_readers();
    }

    /// What it is of has changed: it goes to those who read it, and is not stored.
    pub fn outdate(&self) {
        self.state().outdated = true;
    }

    /// Whether more may come for the slowest reader. Where the memory of all fills is spent, no more than one piece at a time.
    fn has_window(&self, state: &BodyState) -> bool {
        state.kept_bytes == 0 || (state.kept_bytes < WINDOW_BYTES && !self.budget.is_spent())
    }

    /// Whether what it is of has changed since.
    pub fn is_outdated(&self) -> bool {
        self.state().outdated
    }

    /// Drops what every reader has, of a response that is not stored.
    fn trim(&self, state: &mut BodyState) {
        if state.whole {
            return;
        }
        let slowest = state.readers.iter().flatten().map(|reader| reader.next).min().unwrap_or(usize::MAX);
        while state.first < slowest {
            let Some(chunk) = state.chunks.pop_front() else { break };
            state.first += 1;
            state.kept_bytes -= chunk.len() as u64;
            self.budget.give(chunk.len() as u64);
        }
        if (state.reading == 0 || self.has_window(state))
            && let Some(fetcher) = state.fetcher.take()
        {
            fetcher.wake();
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let state = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.budget.give(state.kept_bytes + *self.head_bytes.get_mut());
    }
}

impl BodyState {
    /// Readers go on at the same byte in the same body in other pieces. All of it is here.
    fn go_over_to(&mut self, pieces: &Arc<[Bytes]>) {
        let ends = |pieces: &mut dyn Iterator<Item = &Bytes>| -> Vec<usize> {
            pieces
                .scan(0, |end, piece| {
                    *end += piece.len();
                    Some(*end)
                })
                .collect()
        };
        let before = ends(&mut self.chunks.iter());
        let after = ends(&mut pieces.iter());
        for reader in self.readers.iter_mut().flatten() {
            let at = reader.next.checked_sub(1).and_then(|last| before.get(last)).copied().unwrap_or(0);
            reader.next = after.partition_point(|end| *end <= at);
            reader.had = at - reader.next.checked_sub(1).map_or(0, |last| after[last]);
        }
        self.chunks = pieces.iter().cloned().collect();
    }

    fn wake_readers(&mut self) {
        for reader in self.readers.iter_mut().flatten() {
            if let Some(waker) = reader.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Reads a response as it comes.
#[derive(Debug)]
pub struct Reader {
    fill: Arc<Fill>,
    slot: usize,
}

impl Reader {
    /// The next piece. After the end it says so again.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        let fill = Arc::clone(&self.fill);
        let mut guard = fill.state();
        let state = &mut *guard;
        let Some(reader) = state.readers[self.slot].as_mut() else { return Poll::Ready(Piece::Broken) };
        if let Some(mut chunk) =
            reader.next.checked_sub(state.first).and_then(|at| state.chunks.get(at)).cloned()
        {
            reader.next += 1;
            let had = std::mem::take(&mut reader.had).min(chunk.len());
            let chunk = chunk.split_off(had);
            fill.trim(state);
            return Poll::Ready(Piece::Data(chunk));
        }
        match &state.end {
            Some(End::Complete(trailers)) => Poll::Ready(Piece::End(trailers.clone())),
            Some(End::Broken) => Poll::Ready(Piece::Broken),
            None => {
                match &mut reader.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.fill.state();
        state.readers[self.slot] = None;
        state.reading -= 1;
        while state.readers.last().is_some_and(Option::is_none) {
            state.readers.pop();
        }
        self.fill.trim(&mut state);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::task::Wake;

    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn next(reader: &mut Reader, count: &Arc<Count>) -> Option<Piece> {
        let waker = Waker::from(Arc::clone(count));
        match reader.poll_piece(&mut Context::from_waker(&waker)) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        }
    }

    fn data(piece: Option<Piece>) -> Bytes {
        match piece {
            Some(Piece::Data(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn fill(stored_max: u64) -> (Arc<Fill>, Arc<Budget>, Arc<Count>) {
        let budget = Arc::new(Budget::new(1 << 20));
        (Fill::new(Arc::clone(&budget), stored_max), budget, Arc::new(Count(AtomicU64::new(0))))
    }

    #[test]
    fn a_late_reader_gets_the_start() {
        let (fill, budget, count) = fill(100);
        let mut first = fill.reader().unwrap();
        assert!(next(&mut first, &count).is_none());
        fill.push(Bytes::from_static(b"ab"));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(data(next(&mut first, &count)), "ab");
        let mut late = fill.reader().unwrap();
        drop(first);
        fill.push(Bytes::from_static(b"c"));
        assert_eq!(data(next(&mut late, &count)), "ab");
        assert_eq!(data(next(&mut late, &count)), "c");
        assert_eq!(fill.finish(None).unwrap().concat(), b"abc");
        assert!(matches!(next(&mut late, &count), Some(Piece::End(None))));
        assert_eq!(budget.used(), 3);
        drop((fill, late));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_reads_slowly_reads_what_is_stored() {
        let (fill, budget, count) = fill(1 << 20);
        let text: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let mut readers: Vec<_> = (0..50).map(|_| (fill.reader().unwrap(), Vec::new())).collect();
        for (number, chunk) in text.chunks(1_500).enumerate() {
            fill.push(Bytes::copy_from_slice(chunk));
            // Each has come another way when it ends; the first has nothing, the last all.
            for (index, (reader, had)) in readers.iter_mut().enumerate() {
                if index * 3 >= number + 14 {
                    had.extend_from_slice(&data(next(reader, &count)));
                }
            }
        }
        let stored = fill.finish(None).unwrap();
        assert_eq!(budget.used(), 200_000);
        fill.note_stored();
        assert_eq!(budget.used(), 0, "it is counted where it is stored");
        for (reader, had) in &mut readers {
            while let Some(Piece::Data(more)) = next(reader, &count) {
                had.extend_from_slice(&more);
            }
            assert!(*had == text);
        }
        assert!(stored.concat() == text);
        let mut late = fill.reader().unwrap();
        assert_eq!(data(next(&mut late, &count)).as_ptr(), stored[0].as_ptr(), "the very same bytes");
    }

    #[test]
    fn what_breaks_off_never_looks_whole() {
        let (fill, _, count) = fill(100);
        let mut reader = fill.reader().unwrap();
        fill.push(Bytes::from_static(b"ab"));
        fill.break_off();
        assert_eq!(data(next(&mut reader, &count)), "ab");
        assert!(matches!(next(&mut reader, &count), Some(Piece::Broken)));
    }

    #[tokio::test]
    async fn too_much_becomes_a_window() {
        let (fill, budget, count) = fill(WINDOW_BYTES * 2);
        let chunk = Bytes::from(vec![7; WINDOW_BYTES as usize]);
        let (mut fast, mut slow) = (fill.reader().unwrap(), fill.reader().unwrap());
        for _ in 0..3 {
            assert!(fill.room().await);
            fill.push(chunk.clone());
        }
        assert!(fill.reader().is_none(), "the start is not kept for others");
        for _ in 0..3 {
            data(next(&mut fast, &count));
        }
        let room = fill.room();
        tokio::pin!(room);
        assert!(futures_poll(room.as_mut()).is_none(), "the slow one holds it up");
        for _ in 0..3 {
            data(next(&mut slow, &count));
        }
        assert_eq!(futures_poll(room.as_mut()), Some(true));
        assert_eq!(budget.used(), 0, "what all have is dropped");
        drop((fast, slow));
        assert!(!fill.room().await, "nobody reads it");
        assert!(fill.finish(None).is_none());
    }

    #[tokio::test]
    async fn where_memory_is_spent_one_piece_comes_at_a_time() {
        let budget = Arc::new(Budget::new(1_000));
        let fills: Vec<_> = (0..50).map(|_| Fill::new(Arc::clone(&budget), 1 << 20)).collect();
        let mut readers: Vec<_> = fills.iter().map(|fill| fill.reader().unwrap()).collect();
        let (piece, count) = (Bytes::from(vec![7; 100]), Arc::new(Count(AtomicU64::new(0))));
        let mut pushed = vec![0; fills.len()];
        for _ in 0..20 {
            for (fill, pushed) in fills.iter().zip(&mut pushed) {
                if futures_poll(std::pin::pin!(fill.room())) == Some(true) {
                    fill.push(piece.clone());
                    *pushed += 1;
                }
            }
        }
        assert!(budget.used() <= 1_000 + 50 * 100, "{} bytes for readers who read nothing", budget.used());
        // All of it comes, as they read.
        for ((fill, reader), pushed) in fills.iter().zip(&mut readers).zip(&mut pushed) {
            while *pushed < 20 {
                match futures_poll(std::pin::pin!(fill.room())) {
                    Some(room) => {
                        assert!(room);
                        fill.push(piece.clone());
                        *pushed += 1;
                    }
                    None => drop(data(next(reader, &count))),
                }
            }
        }
        drop((fills, readers));
        assert_eq!(budget.used(), 0);
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn the_first_word_about_the_head_counts() {
        let (fill, _, _) = fill(100);
        fill.tell(Progress::NotShared);
        fill.tell(Progress::lost());
        assert!(matches!(fill.head().await, Progress::NotShared));
    }

    #[test]
    fn an_outdated_one_is_read_and_not_stored() {
        let (fill, _, count) = fill(100);
        let mut reader = fill.reader().unwrap();
        fill.push(Bytes::from_static(b"ab"));
        fill.outdate();
        assert!(fill.finish(None).is_none());
        assert_eq!(data(next(&mut reader, &count)), "ab");
    }
}
