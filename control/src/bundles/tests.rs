use super::*;
use crate::testing::shop;
use atoll_bundle::Entry;
use atoll_process::Metrics;
use bytes::Bytes;

fn bundles(config: BundlesConfig) -> (tempfile::TempDir, Bundles) {
    let folder = tempfile::tempdir().unwrap();
    let bundles = Bundles::new(folder.path(), config, &Metrics::new());
    (folder, bundles)
}

fn small() -> BundlesConfig {
    BundlesConfig { keep_free_bytes: 0, ..BundlesConfig::default() }
}

fn list(contents: &[&[u8]]) -> List {
    let entry = |(n, content): (usize, &&[u8])| Entry::File {
        path: format!("f{n}"),
        executable: false,
        size: content.len() as u64,
        sha256: Digest::of(content),
    };
    List::new(contents.iter().enumerate().map(entry).collect()).unwrap()
}

async fn upload(
    bundles: &Bundles,
    org: &OrgName,
    digest: Digest,
    pieces: &[&[u8]],
) -> Result<u64, BundleError> {
    let pieces: Vec<Result<Bytes, ()>> =
        pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    bundles.receive(org, digest, futures_util::stream::iter(pieces)).await
}

fn org(name: &str) -> OrgName {
    name.parse().unwrap()
}

#[tokio::test]
async fn only_what_is_missing_is_asked_for() {
    let (_folder, bundles) = bundles(small());
    let acme = org("acme");
    let first = list(&[b"one", b"two", b"two"]);
    assert_eq!(bundles.offer(&acme, &first).unwrap().missing, [Digest::of(b"one"), Digest::of(b"two")]);
    assert!(bundles.list(&acme, &first.digest()).is_none());
    for content in [b"one", b"two"] {
        assert_eq!(
            upload(&bundles, &acme, Digest::of(content), &[&content[..1], &content[1..]]).await.unwrap(),
            3
        );
    }
    assert!(bundles.offer(&acme, &first).unwrap().missing.is_empty());
    assert_eq!(bundles.list(&acme, &first.digest()), Some(first.clone()));
    let second = list(&[b"one", b"three"]);
    assert_eq!(bundles.offer(&acme, &second).unwrap().missing, [Digest::of(b"three")]);
    let bundle = |size| Bundle { digest: first.digest().to_string(), size };
    assert_eq!(bundles.fault(&acme, &bundle(9)), None);
    assert!(bundles.fault(&acme, &bundle(8)).unwrap().contains("9 bytes"));
    let other = Bundle { digest: second.digest().to_string(), size: 8 };
    assert!(bundles.fault(&acme, &other).unwrap().contains("no bundle"));
    assert!(bundles.fault(&acme, &Bundle { digest: "../x".into(), size: 8 }).is_some());
}

#[tokio::test]
async fn another_organization_learns_nothing() {
    let (_folder, bundles) = bundles(small());
    let (acme, evil) = (org("acme"), org("evil"));
    let one = list(&[b"secret"]);
    upload(&bundles, &acme, Digest::of(b"secret"), &[b"secret"]).await.unwrap();
    assert!(bundles.offer(&acme, &one).unwrap().missing.is_empty());
    assert_eq!(bundles.offer(&evil, &one).unwrap().missing.len(), 1);
    assert!(bundles.list(&evil, &one.digest()).is_none());
    assert!(bundles.content(&evil, &Digest::of(b"secret")).is_err());
    let bundle = Bundle { digest: one.digest().to_string(), size: 6 };
    assert!(bundles.fault(&evil, &bundle).is_some());
}

#[tokio::test]
async fn what_is_not_what_it_says_leaves_nothing() {
    let (folder, bundles) = bundles(BundlesConfig { org_bytes_max: 10, ..small() });
    let acme = org("acme");
    let digest = Digest::of(b"one");
    let wrong = upload(&bundles, &acme, digest, &[b"two"]).await;
    assert!(matches!(wrong, Err(BundleError::Store(StoreError::Mismatch { .. }))));
    let broken: Vec<Result<Bytes, ()>> = vec![Ok(Bytes::from_static(b"on")), Err(())];
    let broken = bundles.receive(&acme, digest, futures_util::stream::iter(broken)).await;
    assert!(matches!(broken, Err(BundleError::Broken)));
    let long = upload(&bundles, &acme, digest, &[b"0123456789", b"1"]).await;
    assert!(matches!(long, Err(BundleError::OrgFull(10))));
    assert_eq!(bundles.of(&acme).unwrap().used(), 0);
    let incoming = folder.path().join("uploads/acme/contents/incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
    upload(&bundles, &acme, digest, &[b"one"]).await.unwrap();
    upload(&bundles, &acme, digest, &[b"one"]).await.unwrap();
    assert_eq!(bundles.of(&acme).unwrap().used(), 3);
    assert!(matches!(bundles.offer(&acme, &list(&[b"12345678"])), Err(BundleError::OrgFull(10))));
    let lie = Entry::File { path: "f".into(), executable: false, size: 4, sha256: digest };
    let lie = bundles.offer(&acme, &List::new(vec![lie]).unwrap());
    assert!(matches!(lie, Err(BundleError::Size { has: 3, says: 4, .. })));
}

#[tokio::test]
async fn a_disk_without_room_takes_nothing() {
    let (_folder, bundles) = bundles(BundlesConfig { keep_free_bytes: u64::MAX / 2, ..small() });
    let acme = org("acme");
    assert!(matches!(bundles.offer(&acme, &list(&[b"x"])), Err(BundleError::Store(StoreError::Full))));
    let refused = upload(&bundles, &acme, Digest::of(b"x"), &[b"x"]).await;
    assert!(matches!(refused, Err(BundleError::Store(StoreError::Full))));
}

#[tokio::test]
async fn what_no_revision_uses_goes_after_a_while() {
    let (_folder, bundles) = bundles(small());
    let folder = tempfile::tempdir().unwrap();
    let (store, _feed) = ControlStore::open(folder.path(), 1).unwrap();
    let own = org("default");
    for content in [&b"old"[..], b"both", b"new"] {
        upload(&bundles, &own, Digest::of(content), &[content]).await.unwrap();
    }
    let (old, new) = (list(&[b"old", b"both"]), list(&[b"both", b"new"]));
    bundles.offer(&own, &old).unwrap();
    bundles.offer(&own, &new).unwrap();
    let mut spec: atoll_model::ServiceSpec =
        serde_json::from_value(shop(&[("fra", 1)])["services"]["web"].clone()).unwrap();
    spec.bundle = Some(Bundle { digest: new.digest().to_string(), size: new.size() });
    let revision = Revision {
        id: atoll_model::RevisionId::from_parts(1, 1),
        cluster: "default/shop/web".parse().unwrap(),
        number: 1,
        spec,
        created_ms: 1,
        failed: false,
        by: String::new(),
    };
    store.change(move |change| change.put(&revision)).await.unwrap();
    let now = SystemTime::now();
    bundles.sweep(&store, now).unwrap();
    assert!(bundles.list(&own, &old.digest()).is_some(), "it was just used");
    let later = now + Duration::from_secs(25 * 3_600);
    bundles.sweep(&store, later).unwrap();
    assert!(bundles.list(&own, &old.digest()).is_none());
    assert!(bundles.content(&own, &Digest::of(b"old")).is_err());
    assert!(bundles.content(&own, &Digest::of(b"both")).is_ok());
    assert!(bundles.list(&own, &new.digest()).is_some());
    assert_eq!(bundles.of(&own).unwrap().used(), 7);
    // An organization that is gone leaves nothing, used lately or not.
    let gone = org("gone");
    upload(&bundles, &gone, Digest::of(b"both"), &[b"both"]).await.unwrap();
    bundles.sweep(&store, now).unwrap();
    assert!(bundles.content(&gone, &Digest::of(b"both")).is_err());
}

#[tokio::test]
async fn a_slow_organization_leaves_room_for_others() {
    let (_folder, bundles) = bundles(small());
    let (slow, quick) = (org("slow"), org("quick"));
    let mut held = Vec::new();
    for _ in 0..OF_ORG_MAX {
        held.push(bundles.place(&slow).await.unwrap());
    }
    upload(&bundles, &quick, Digest::of(b"x"), &[b"x"]).await.unwrap();
    let content = upload(&bundles, &slow, Digest::of(b"x"), &[b"x"]);
    tokio::pin!(content);
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut content).await;
    assert!(waits.is_err(), "it has as many as it may");
    held.pop();
    content.await.unwrap();
}
