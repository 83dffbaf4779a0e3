#![allow(clippy::unwrap_used)]
use super::*;
use data_encoding::HEXLOWER;
use std::os::unix::fs::PermissionsExt as _;

fn certificate(domain: &str) -> DomainCertificate {
    DomainCertificate {
        domain: domain.to_owned(),
        chain: vec![vec![1; 800]],
        key: b"-- a very private key --".to_vec(),
        fingerprint: "f".to_owned(),
    }
}

/// The journal, and what is left when all that it hands over has been applied.
pub(in super::super) fn open(data: &Path) -> (Journal, Vec<DomainCertificate>) {
    let mut kept = std::collections::BTreeMap::new();
    let journal = Journal::open(data, |certificate| match certificate.chain.is_empty() {
        true => drop(kept.remove(&certificate.domain)),
        false => drop(kept.insert(certificate.domain.clone(), certificate)),
    });
    (journal.unwrap(), kept.into_values().collect())
}

fn put(journal: &mut Journal, domain: &str) {
    journal.append(&[(domain.to_owned(), Some(certificate(domain)))]).unwrap();
}

fn domains(data: &Path) -> Vec<String> {
    open(data).1.into_iter().map(|kept| kept.domain).collect()
}

#[test]
fn what_is_sealed_comes_back_after_a_restart_and_is_never_plain() {
    let data = tempfile::tempdir().unwrap();
    let (mut journal, kept) = open(data.path());
    assert!(kept.is_empty());
    put(&mut journal, "a.example");
    put(&mut journal, "b.example");
    journal.append(&[("b.example".to_owned(), None), ("never.example".to_owned(), None)]).unwrap();
    drop(journal);
    assert_eq!(open(data.path()).1, [certificate("a.example")]);
    for file in [KEY_FILE, FILE] {
        let mode = std::fs::metadata(data.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let content = std::fs::read(data.path().join(FILE)).unwrap();
    assert!(!content.windows(12).any(|part| part == b"very private"));
}

#[test]
fn a_write_that_was_cut_off_costs_only_itself() {
    let data = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(data.path());
    put(&mut journal, "a.example");
    put(&mut journal, "b.example");
    drop(journal);
    let path = data.path().join(FILE);
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() / 2 + 1, whole.len() / 2 + 40, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(domains(data.path()), ["a.example"]);
        let (mut journal, _) = open(data.path());
        put(&mut journal, "c.example");
        assert_eq!(domains(data.path()), ["a.example", "c.example"]);
    }
}

#[test]
fn a_changed_entry_is_left_out_and_the_others_stay() {
    let data = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(data.path());
    put(&mut journal, "a.example");
    put(&mut journal, "b.example");
    let path = data.path().join(FILE);
    let mut content = std::fs::read(&path).unwrap();
    content[100] ^= 1;
    std::fs::write(&path, &content).unwrap();
    assert_eq!(domains(data.path()), ["b.example"]);
}

#[test]
fn a_file_that_is_mostly_past_is_written_anew() {
    let data = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(data.path());
    let many: Vec<_> =
        (0..PAST_MIN + 3).map(|_| ("a.example".to_owned(), Some(certificate("a.example")))).collect();
    assert!(!journal.is_mostly_past(1));
    journal.append(&many).unwrap();
    assert!(journal.is_mostly_past(1));
    let before = std::fs::metadata(data.path().join(FILE)).unwrap().len();
    journal.rewrite(std::iter::once(certificate("a.example"))).unwrap();
    assert!(!journal.is_mostly_past(1));
    assert!(std::fs::metadata(data.path().join(FILE)).unwrap().len() < before / 500);
    put(&mut journal, "b.example");
    assert_eq!(domains(data.path()), ["a.example", "b.example"]);
}

#[test]
fn a_disk_that_refuses_is_tried_again_and_nothing_before_is_lost() {
    let data = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(data.path());
    let path = data.path().join(FILE);
    std::fs::create_dir(&path).unwrap();
    let change = [("a.example".to_owned(), Some(certificate("a.example")))];
    assert!(journal.append(&change).is_err());
    std::fs::remove_dir(&path).unwrap();
    journal.append(&change).unwrap();
    assert_eq!(domains(data.path()), ["a.example"]);
}

#[test]
fn the_folder_of_an_earlier_version_is_taken_over() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = open(data.path());
    let folder = data.path().join(FOLDER_BEFORE);
    std::fs::create_dir(&folder).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"a.example");
    let name = format!("{}{SUFFIX_BEFORE}", HEXLOWER.encode(hash.as_ref()));
    let mut content = certificate("a.example").encode_to_vec();
    let nonce = journal.key.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut content).unwrap();
    std::fs::write(folder.join(&name), [&nonce.as_ref()[..], &content].concat()).unwrap();
    std::fs::write(folder.join("swapped.sealed"), [&nonce.as_ref()[..], &content].concat()).unwrap();
    drop(journal);
    assert_eq!(domains(data.path()), ["a.example"]);
    assert!(!folder.exists());
    assert_eq!(domains(data.path()), ["a.example"], "from the file now");
}
