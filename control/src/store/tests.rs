#![allow(clippy::unwrap_used, reason = "tests")]

use super::objects::{Domain, Node};
use super::*;
use atoll_model::{Kind, OrgName, Role, Roles};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend};
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

fn node(name: &str) -> Node {
    Node {
        org: OrgName::default_org(),
        name: name.parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: Roles::NONE.with(Role::Host),
        epoch: 1,
        joined_ms: 0,
        removed: false,
    }
}

async fn put(store: &Store, name: &str) -> Result<u64, StoreError> {
    let object = node(name);
    store.change(move |change| change.put(&object)).await.map(|(_, revision)| revision)
}

#[tokio::test]
async fn an_accepted_change_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _feed) = Store::open(folder.path(), 5_000).unwrap();
    let revision = put(&store, "one").await.unwrap();
    // What is on disk at the moment of the answer is what a kill -9 leaves.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("control.redb"), copy.path().join("control.redb")).unwrap();
    let (after, _feed) = Store::open(copy.path(), 9_000_000).unwrap();
    assert_eq!(after.get::<Node>("default/one"), Some(node("one")));
    assert_eq!(*after.revisions().borrow(), revision);
    assert_eq!(after.epoch(), 5);
    assert!(put(&after, "two").await.unwrap() > revision);
}

#[tokio::test]
async fn the_store_is_locked_and_a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, feed) = Store::open(folder.path(), 0).unwrap();
    assert!(matches!(Store::open(folder.path(), 0), Err(StoreError::InUse(_))));
    drop((store, feed));
    let database = Database::open(folder.path().join("control.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("schema", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = Store::open(folder.path(), 0).map(|_| ()).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 99, .. }), "{refused}");
}

#[tokio::test]
async fn an_error_undoes_its_own_writes_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _feed) = Store::open(folder.path(), 0).unwrap();
    let failing = store.change(|change| {
        change.put(&node("bad"))?;
        Err::<(), _>(StoreError::Busy)
    });
    let (good, bad) = tokio::join!(put(&store, "good"), failing);
    good.unwrap();
    assert!(matches!(bad, Err(StoreError::Busy)));
    assert!(store.get::<Node>("default/bad").is_none());
    assert!(store.get::<Node>("default/good").is_some());
}

#[tokio::test]
async fn a_panic_in_a_change_is_an_error_and_the_store_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _feed) = Store::open(folder.path(), 0).unwrap();
    let failed = store.change(|_| -> Result<(), StoreError> { panic!("on purpose") }).await;
    assert!(matches!(failed, Err(StoreError::Broken(_))));
    put(&store, "after").await.unwrap();
}

#[tokio::test]
async fn desired_records_have_revisions_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut feed) = Store::open(folder.path(), 0).unwrap();
    let denial = |why: &str| atoll_wire::record::Denial {
        spiffe_id: "spiffe://x/y".into(),
        why: why.into(),
        ..Default::default()
    };
    let (first, second) = (denial("a"), denial("b"));
    store
        .change(move |change| {
            change.desire(Kind::DENIAL, "", "n1", &first);
            change.desire(Kind::DENIAL, "", "n2", &second);
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let Some(Feed::Batch(batch)) = feed.next().await else { panic!("no batch") };
    assert_eq!(batch.len(), 2);
    assert!(batch[0].revision < batch[1].revision);
    assert_eq!(store.desired(), batch);
    let same = denial("a");
    let before = *store.revisions().borrow();
    let (revision, after) = store
        .change(move |change| Ok::<_, StoreError>(change.desire(Kind::DENIAL, "", "n1", &same)))
        .await
        .unwrap();
    assert_eq!((revision, after), (batch[0].revision, before));
    let undesired = store.change(|change| {
        change.undesire(Kind::DENIAL, "", "n1");
        Ok::<_, StoreError>(())
    });
    undesired.await.unwrap();
    let Some(Feed::Batch(batch)) = feed.next().await else { panic!("no batch") };
    assert_eq!(batch[0].body, None);
    assert_eq!(store.desired().len(), 1);
}

/// A file whose writes fail with "no space left" while `full` is set.
#[derive(Debug)]
struct FillingDisk {
    path: PathBuf,
    full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FillingFile(FileBackend, Arc<AtomicBool>);

impl FillingFile {
    fn room(&self) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for FillingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.0.try_lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.0.unlock_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), redb::BackendError> {
        self.0.lock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.0.query_lock_range(start, end)
    }
}

impl Backing for FillingDisk {
    fn open(&self) -> Result<Database, DatabaseError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(redb::StorageError::from)?;
        Database::builder().create_with_backend(FillingFile(FileBackend::new(file)?, self.full.clone()))
    }
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    fn path(&self) -> &Path {
        &self.path
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_keeps_reads_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let disk = FillingDisk { path: folder.path().join("control.redb"), full: full.clone() };
    let (store, _feed) = Store::open_on(Arc::new(disk), 0).unwrap();
    put(&store, "before").await.unwrap();
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let refused = put(&store, "refused").await.unwrap_err();
        assert!(matches!(refused, StoreError::Full), "{refused:?}");
        assert!(store.get::<Node>("default/before").is_some());
        assert!(store.get::<Node>("default/refused").is_none());
    }
    full.store(false, Ordering::SeqCst);
    put(&store, "after").await.unwrap();
    assert!(store.get::<Node>("default/refused").is_none());
    assert_eq!(store.list::<Node>("default/").len(), 2);
}

fn domain(name: &str, cluster: &str) -> Domain {
    Domain {
        org: OrgName::default_org(),
        domain: name.to_owned(),
        cluster: cluster.parse().unwrap(),
        chain: Vec::new(),
        sealed_key: String::new(),
        fingerprint: String::new(),
        issued_ms: 0,
        not_after_ms: 0,
        own: false,
    }
}

#[tokio::test]
async fn domains_are_found_by_their_cluster_in_a_change_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, feed) = Store::open(folder.path(), 0).unwrap();
    let names = |found: Vec<Domain>| found.into_iter().map(|domain| domain.domain).collect::<Vec<_>>();
    let first = store.change(move |change| {
        for (name, cluster) in
            [("a", "o/shop/web"), ("b", "o/shop/api"), ("c", "o/shop2/web"), ("d", "o/shop/web2")]
        {
            change.put(&domain(name, cluster))?;
        }
        Ok::<_, StoreError>(names(change.filed("o/shop/")))
    });
    assert_eq!(first.await.unwrap().0, ["a", "b", "d"]);
    assert_eq!(names(store.filed("o/shop/web/")), ["a"]);
    let moved = store.change(move |change| {
        change.put(&domain("a", "o/shop2/web"))?;
        change.remove::<Domain>("default/c");
        Ok::<_, StoreError>((names(change.filed("o/shop/")), names(change.filed("o/shop2/"))))
    });
    assert_eq!(moved.await.unwrap().0, (vec!["b".to_owned(), "d".to_owned()], vec!["a".to_owned()]));
    drop((store, feed));
    let (store, _feed) = Store::open(folder.path(), 0).unwrap();
    assert_eq!(
        (names(store.filed("o/shop/")), names(store.filed("o/shop2/"))),
        (vec!["b".to_owned(), "d".to_owned()], vec!["a".to_owned()])
    );
}

#[tokio::test]
async fn pages_cover_a_list_and_changes_since_a_revision_are_told() {
    let (store, _feed) = Store::open(tempfile::tempdir().unwrap().path(), 0).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        put(&store, name).await.unwrap();
    }
    let mut after = None;
    let mut seen = Vec::new();
    loop {
        let page: Page<Node> = store.page("default/", after.as_deref(), 2);
        assert!(page.items.len() <= 2);
        seen.extend(page.items.into_iter().map(|node| node.name.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    assert_eq!(store.page::<Node>("default/", Some("default/e"), 2), Page { items: vec![], next: None });

    let (before, _) = store.changed_since(0);
    put(&store, "b").await.unwrap();
    store
        .change(|change| {
            change.remove::<Node>("default/d");
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let (now, changed) = store.changed_since(before);
    assert_eq!(changed.unwrap().into_iter().collect::<Vec<_>>(), ["node/default/b", "node/default/d"]);
    assert_eq!(store.changed_since(now), (now, Some(BTreeSet::new())));
    assert_eq!(store.changed_since(now + 1).1, None, "what was never reached");
}
