//! Against a control that is made up, and breaks off when it is told to.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use atoll_bundle::Entry;
use atoll_wire::node::{BundlePiece, FetchBundleRequest};
use futures_util::{FutureExt, StreamExt, stream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Has everything, and answers as it is set to.
#[derive(Debug, Default)]
pub(crate) struct FakeControl {
    contents: Mutex<HashMap<Digest, Vec<u8>>>,
    lists: Mutex<HashMap<String, String>>,
    /// It does not answer.
    pub(crate) away: AtomicBool,
    /// It refuses.
    pub(crate) refuses: AtomicBool,
    /// It sends other bytes than it should.
    pub(crate) lies: AtomicBool,
    /// Each answer breaks off after this many bytes; 0: never.
    pub(crate) breaks_after: AtomicU64,
    /// Bytes of contents sent.
    pub(crate) sent: AtomicU64,
}

impl FakeControl {
    /// Makes a bundle of executable files and of links.
    pub(crate) fn bundle(&self, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Bundle {
        let mut entries = Vec::new();
        for (path, content) in files {
            let sha256 = Digest::of(content);
            self.contents.lock().unwrap().insert(sha256, content.to_vec());
            let (path, size) = ((*path).to_owned(), content.len() as u64);
            entries.push(Entry::File { path, executable: true, size, sha256 });
        }
        for (path, target) in links {
            entries.push(Entry::Link { path: (*path).to_owned(), target: (*target).to_owned() });
        }
        let list = List::new(entries).unwrap();
        self.announce(list.text(), list.size())
    }

    /// A list as it is, checked or not.
    fn announce(&self, text: &str, size: u64) -> Bundle {
        let digest = Digest::of(text.as_bytes()).to_string();
        self.lists.lock().unwrap().insert(digest.clone(), text.to_owned());
        Bundle { digest, size }
    }

    pub(crate) fn fetch(self: &Arc<Self>) -> Fetch {
        let control = Arc::clone(self);
        Arc::new(move |request| {
            let answer = control.answer(&request);
            async move { Ok(stream::iter(answer?).boxed()) }.boxed()
        })
    }

    fn answer(
        &self,
        request: &FetchBundleRequest,
    ) -> Result<Vec<Result<BundlePiece, FetchError>>, FetchError> {
        if self.away.load(Relaxed) {
            return Err(FetchError::Away("it sleeps".to_owned()));
        }
        if self.refuses.load(Relaxed) {
            return Err(FetchError::Refused("not for you".to_owned()));
        }
        let mut pieces = Vec::new();
        if request.contents.is_empty() {
            let text = self.lists.lock().unwrap()[&request.digest].clone();
            pieces.push(Ok(BundlePiece { index: 0, data: text.into_bytes() }));
            return Ok(pieces);
        }
        let mut left = match self.breaks_after.load(Relaxed) {
            0 => u64::MAX,
            bytes => bytes,
        };
        for (index, want) in (0..).zip(&request.contents) {
            let content = self.contents.lock().unwrap()[&want.sha256.parse().unwrap()].clone();
            for chunk in content[want.offset as usize..].chunks(1000) {
                if left == 0 {
                    pieces.push(Err(FetchError::Away("it fell over".to_owned())));
                    return Ok(pieces);
                }
                let take = chunk.len().min(left as usize);
                left -= take as u64;
                self.sent.fetch_add(take as u64, Relaxed);
                let mut data = chunk[..take].to_vec();
                if self.lies.load(Relaxed) {
                    data[0] ^= 1;
                }
                pieces.push(Ok(BundlePiece { index, data }));
            }
        }
        Ok(pieces)
    }
}

struct Ground {
    folder: tempfile::TempDir,
    control: Arc<FakeControl>,
    bundles: Arc<Bundles>,
}

fn ground() -> Ground {
    let folder = tempfile::tempdir().unwrap();
    let control = Arc::<FakeControl>::default();
    let bundles = Bundles::open(folder.path(), 0, control.fetch(), &Metrics::new()).unwrap();
    std::fs::create_dir(folder.path().join("instance")).unwrap();
    Ground { bundles: Arc::new(bundles), control, folder }
}

impl Ground {
    async fn prepare(&self, bundle: &Bundle, say: &Say) -> Result<(), String> {
        let cluster = "default/shop/web".parse().unwrap();
        let above = self.folder.path().join("instance");
        self.bundles.prepare(&cluster, bundle, say, &above, "files", || ()).await
    }

    fn file(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join("instance/files").join(path)).unwrap()
    }

    /// Again with what is on the disk.
    fn restart(&mut self) {
        let bundles = Bundles::open(self.folder.path(), 0, self.control.fetch(), &Metrics::new()).unwrap();
        self.bundles = Arc::new(bundles);
    }
}

fn say() -> Say {
    watch::channel(String::new()).0
}

#[tokio::test]
async fn only_what_is_new_is_fetched_and_control_is_not_needed_again() {
    let mut ground = ground();
    let large = vec![3; 50_000];
    let first = ground.control.bundle(&[("a", b"one"), ("sub/b", &large), ("empty", b"")], &[("l", "sub/b")]);
    ground.prepare(&first, &say()).await.unwrap();
    assert_eq!(ground.file("l"), large);
    assert_eq!(ground.file("empty"), b"");
    assert_eq!(ground.control.sent.load(Relaxed), 50_003);
    let second = ground.control.bundle(&[("a", b"two"), ("sub/b", &large)], &[]);
    ground.prepare(&second, &say()).await.unwrap();
    assert_eq!(ground.file("a"), b"two");
    assert_eq!(ground.control.sent.load(Relaxed), 50_006);
    ground.control.away.store(true, Relaxed);
    ground.restart();
    ground.prepare(&first, &say()).await.unwrap();
    assert_eq!(ground.file("a"), b"one");
}

#[tokio::test]
async fn a_fetch_goes_on_where_it_broke_off() {
    let ground = ground();
    let (a, b) = (vec![1; 7_000], vec![2; 9_000]);
    let bundle = ground.control.bundle(&[("a", &a), ("b", &b), ("c", b"")], &[]);
    ground.control.breaks_after.store(2_500, Relaxed);
    ground.prepare(&bundle, &say()).await.unwrap();
    assert_eq!((ground.file("a"), ground.file("b")), (a, b));
    assert_eq!(ground.control.sent.load(Relaxed), 16_000, "nothing came twice");
}

#[tokio::test]
async fn control_that_is_away_is_waited_for() {
    let ground = ground();
    let bundle = ground.control.bundle(&[("a", b"one")], &[]);
    ground.control.away.store(true, Relaxed);
    let (say, mut said) = watch::channel(String::new());
    let waking = async {
        said.wait_for(|said| said.contains("it waits for its files") && said.contains("it sleeps"))
            .await
            .unwrap();
        ground.control.away.store(false, Relaxed);
    };
    let (prepared, ()) = tokio::join!(ground.prepare(&bundle, &say), waking);
    prepared.unwrap();
    assert_eq!(*said.borrow(), "");
}

#[tokio::test]
async fn what_is_wrong_is_said_and_leaves_nothing() {
    let mut ground = ground();
    let bundle = ground.control.bundle(&[("a", b"one")], &[]);
    ground.control.refuses.store(true, Relaxed);
    assert_eq!(ground.prepare(&bundle, &say()).await.unwrap_err(), "not for you");
    ground.control.refuses.store(false, Relaxed);
    ground.control.lies.store(true, Relaxed);
    assert!(ground.prepare(&bundle, &say()).await.unwrap_err().contains("another content"));
    ground.control.lies.store(false, Relaxed);
    let full = Bundles::open(ground.folder.path(), u64::MAX / 2, ground.control.fetch(), &Metrics::new());
    ground.bundles = Arc::new(full.unwrap());
    assert!(ground.prepare(&bundle, &say()).await.unwrap_err().contains("no room"));
    ground.restart();
    for (text, size) in [
        ("atoll bundle 1\nfolder\t../x\n", 0),
        ("atoll bundle 1\nlink\t/etc\tx\n", 0),
        ("atoll bundle 1\nlink\t..\tx\n", 0),
        ("nonsense", 0),
        ("atoll bundle 1\nfolder\tx\n", 1),
    ] {
        let hostile = ground.control.announce(text, size);
        ground.prepare(&hostile, &say()).await.unwrap_err();
    }
    assert_eq!(std::fs::read_dir(ground.folder.path().join("instance")).unwrap().count(), 0);
    assert_eq!(ground.bundles.lists.contents().unwrap().len(), 1);
    ground.prepare(&bundle, &say()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_content_is_fetched_again() {
    let ground = ground();
    let bundle = ground.control.bundle(&[("a", b"one")], &[]);
    ground.prepare(&bundle, &say()).await.unwrap();
    let digest = Digest::of(b"one").to_string();
    let path = ground.folder.path().join("bundles/contents").join(&digest[..2]).join(&digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "evil, and longer").unwrap();
    ground.prepare(&bundle, &say()).await.unwrap();
    assert_eq!(ground.file("a"), b"one");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "two").unwrap();
    ground.prepare(&bundle, &say()).await.unwrap();
    assert_eq!(ground.file("a"), b"one");
}

#[tokio::test]
async fn instances_of_one_bundle_fetch_it_once() {
    let ground = ground();
    let bundle = ground.control.bundle(&[("a", &[9; 4_000])], &[]);
    for name in ["i", "j", "k"] {
        std::fs::create_dir(ground.folder.path().join(name)).unwrap();
    }
    let prepare = |name: &'static str| {
        let (bundles, bundle) = (Arc::clone(&ground.bundles), bundle.clone());
        let above = ground.folder.path().join(name);
        async move {
            let cluster = "default/shop/web".parse().unwrap();
            bundles.prepare(&cluster, &bundle, &say(), &above, "files", || ()).await.unwrap();
        }
    };
    tokio::join!(prepare("i"), prepare("j"), prepare("k"));
    assert_eq!(ground.control.sent.load(Relaxed), 4_000);
}

#[tokio::test]
async fn what_no_instance_uses_goes_after_a_while() {
    let ground = ground();
    let old = ground.control.bundle(&[("a", b"old"), ("b", b"both")], &[]);
    let new = ground.control.bundle(&[("a", b"new"), ("b", b"both")], &[]);
    ground.prepare(&old, &say()).await.unwrap();
    ground.prepare(&new, &say()).await.unwrap();
    let in_use = HashSet::from([new.digest.parse().unwrap()]);
    ground.bundles.sweep(&in_use, Duration::from_secs(60)).unwrap();
    assert_eq!(ground.bundles.contents.contents().unwrap().len(), 3);
    ground.bundles.sweep(&in_use, Duration::ZERO).unwrap();
    assert_eq!(ground.bundles.lists.contents().unwrap().len(), 1);
    assert_eq!(ground.bundles.contents.contents().unwrap().len(), 2);
    ground.control.away.store(true, Relaxed);
    ground.prepare(&new, &say()).await.unwrap();
}
