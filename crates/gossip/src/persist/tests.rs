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
    assert_eq!(again.restore(kept, 9), 3);
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
    assert!(kept.records.is_empty());
    assert!(dir.path().join("gossip.damaged-77").exists());
    assert!(disk.write(&filled(&TestNode::new("ctl", "fra", &[Role::Control]))));
    drop(disk);
    assert_eq!(Disk::open(dir.path(), stats(), 78).1.records.len(), 3);
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
    assert_eq!(Disk::open(&dir, stats(), 6).1.records.len(), 3);
}
