#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::core::tests::{TestNode, core_for, desired};
use crate::records::Limits;
use crate::scope::Scope;
use atoll_model::{Kind, Role};
use atoll_process::metrics::Metrics;
use bytes::Bytes;
use tempfile::TempDir;

fn stats() -> Arc<Stats> {
    Arc::new(Stats::new(&Metrics::new()))
}

fn count(disk: &Disk) -> usize {
    let mut count = 0;
    assert!(disk.read_records(&mut |some| count += some.len()));
    count
}

fn filled(node: &TestNode) -> Core {
    let core = core_for(node, Limits::default(), 1);
    core.publish(Kind::NODE, &Scope::Global, "ctl", Bytes::from_static(b"facts"));
    assert!(!core.flush(1));
    core.publish_desired(
        3,
        vec![desired("a", 1, Some(b"x")), desired("b", 2, Some(b"y")), desired("a", 3, None)],
        1,
    )
    .unwrap();
    core
}

#[test]
fn what_was_written_is_read_back_and_verified() {
    let dir = TempDir::new().unwrap();
    let node = TestNode::new("ctl", "fra", &[Role::Control]);
    let core = filled(&node);
    let (mut disk, _) = Disk::open(dir.path(), stats(), 5);
    disk.reserve(&core);
    assert!(disk.write(&core));
    let generation = disk.counters().generation();
    drop(disk);
    let (disk, kept) = Disk::open(dir.path(), stats(), 5);
    assert!(disk.counters().generation() > generation);
    let next = disk.counters().next_version().unwrap();
    assert!(next > core.last_version());
    let again = core_for(&node, Limits::default(), next);
    assert_eq!(again.restore(kept, |each| disk.read_records(each), 9), 3);
    assert_eq!(again.desired_version(&Scope::Global), (3, 3));
    assert!(again.find(Kind::CLUSTER, &Scope::Global, "a").is_none());
    assert_eq!(again.find(Kind::CLUSTER, &Scope::Global, "b").unwrap().body, Bytes::from_static(b"y"));
    assert!(again.find(Kind::NODE, &Scope::Global, "ctl").is_some());
    // The same said again is no news; another is a version that was never used.
    again.publish(Kind::NODE, &Scope::Global, "ctl", Bytes::from_static(b"facts"));
    again.flush(9);
    assert_eq!(again.find(Kind::NODE, &Scope::Global, "ctl").unwrap().version, 1);
    again.publish(Kind::NODE, &Scope::Global, "ctl", Bytes::from_static(b"other"));
    again.flush(9);
    assert_eq!(again.find(Kind::NODE, &Scope::Global, "ctl").unwrap().version, next);
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join(FILE), b"this is no database at all, only some text that is long enough")
        .unwrap();
    let (mut disk, kept) = Disk::open(dir.path(), stats(), 77);
    assert_eq!(count(&disk), 0);
    assert!(kept.logs.is_empty());
    assert!(dir.path().join("gossip.damaged-77").exists());
    assert!(disk.write(&filled(&TestNode::new("ctl", "fra", &[Role::Control]))));
    drop(disk);
    assert_eq!(count(&Disk::open(dir.path(), stats(), 78).0), 3);
}

#[test]
fn a_disk_that_can_not_be_written_is_tried_again_with_nothing_lost() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("later");
    let core = filled(&TestNode::new("ctl", "fra", &[Role::Control]));
    let (mut disk, _) = Disk::open(&dir, stats(), 5);
    assert!(!disk.write(&core));
    assert!(core.find(Kind::CLUSTER, &Scope::Global, "b").is_some());
    std::fs::create_dir(&dir).unwrap();
    assert!(disk.write(&core));
    drop(disk);
    assert_eq!(count(&Disk::open(&dir, stats(), 6).0), 3);
}

#[test]
fn a_file_that_is_removed_meanwhile_is_written_anew_with_all() {
    let dir = TempDir::new().unwrap();
    let node = TestNode::new("ctl", "fra", &[Role::Control]);
    let core = filled(&node);
    let (mut disk, _) = Disk::open(dir.path(), stats(), 5);
    assert!(disk.write(&core));
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    // Nothing has changed since, and yet all is to be there.
    assert!(disk.write(&core));
    drop(disk);
    let (disk, kept) = Disk::open(dir.path(), stats(), 6);
    assert_eq!((count(&disk), kept.certificates.len()), (3, 1));
    assert_eq!(core_for(&node, Limits::default(), 1).restore(kept, |each| disk.read_records(each), 9), 3);
}

#[test]
fn what_an_unread_file_holds_does_not_come_back() {
    let dir = TempDir::new().unwrap();
    let (file, away) = (dir.path().join(FILE), dir.path().join("away"));
    let node = TestNode::new("ctl", "fra", &[Role::Control]);
    let (mut disk, _) = Disk::open(dir.path(), stats(), 5);
    assert!(disk.write(&filled(&node)));
    drop(disk);
    std::fs::rename(&file, &away).unwrap();
    std::fs::create_dir(&file).unwrap();
    let (mut disk, kept) = Disk::open(dir.path(), stats(), 6);
    assert!(kept.logs.is_empty() && disk.database.is_none());
    // What has become of "b" was collected before this node heard anything.
    let core = core_for(&node, Limits::default(), 1);
    core.publish_desired(3, vec![desired("c", 9, Some(b"z"))], 1).unwrap();
    assert!(!disk.write(&core));
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&away, &file).unwrap();
    assert!(disk.write(&core));
    drop(disk);
    let again = core_for(&node, Limits::default(), 1);
    let (disk, kept) = Disk::open(dir.path(), stats(), 7);
    again.restore(kept, |each| disk.read_records(each), 9);
    assert!(again.find(Kind::CLUSTER, &Scope::Global, "b").is_none());
    assert!(again.find(Kind::CLUSTER, &Scope::Global, "c").is_some());
}

#[test]
fn a_file_that_breaks_off_while_it_is_read_is_told_again_in_full() {
    let dir = TempDir::new().unwrap();
    let node = TestNode::new("ctl", "fra", &[Role::Control]);
    let (mut disk, _) = Disk::open(dir.path(), stats(), 5);
    assert!(disk.write(&filled(&node)));
    drop(disk);
    let (disk, kept) = Disk::open(dir.path(), stats(), 6);
    let again = core_for(&node, Limits::default(), 1);
    let half = |each: &mut dyn FnMut(Vec<SignedRecord>)| {
        disk.read_records(&mut |mut some| {
            some.truncate(1);
            each(some);
        });
        false
    };
    again.restore(kept, half, 9);
    assert_eq!(again.desired_version(&Scope::Global).1, 0, "what it has is not taken for all");
}
