use super::*;
use proptest::prelude::*;

fn file(path: &str) -> Entry {
    Entry::File { path: path.to_owned(), executable: false, size: 1, sha256: Digest::of(b"x") }
}

fn link(path: &str, target: &str) -> Entry {
    Entry::Link { path: path.to_owned(), target: target.to_owned() }
}

fn refusal(entries: Vec<Entry>) -> ListError {
    List::new(entries).unwrap_err()
}

#[test]
fn the_digest_is_of_what_is_in_it() {
    let one = List::new(vec![file("b"), file("a/c")]).unwrap();
    let two = List::new(vec![file("a/c"), file("b")]).unwrap();
    assert_eq!(one, two);
    assert_eq!(one.digest(), Digest::of(one.text().as_bytes()));
    assert_ne!(one.digest(), List::new(vec![file("b"), file("a/d")]).unwrap().digest());
    let runs = Entry::File { path: "b".to_owned(), executable: true, size: 1, sha256: Digest::of(b"x") };
    assert_ne!(one.digest(), List::new(vec![runs, file("a/c")]).unwrap().digest());
    assert_eq!(one.size(), 2);
    assert_eq!(one.contents(), [(Digest::of(b"x"), 1)]);
    assert_eq!(List::parse(one.text()).unwrap(), one);
}

#[test]
fn names_that_collide_are_refused() {
    assert_eq!(refusal(vec![]), ListError::Empty);
    assert_eq!(refusal(vec![file("a"), file("a")]), ListError::Twice("a".into()));
    assert!(matches!(refusal(vec![file("Bin/a"), file("bin/b")]), ListError::Case(..)));
    assert!(matches!(refusal(vec![file("a"), file("a/b")]), ListError::Below { .. }));
    assert!(matches!(refusal(vec![link("a", "b"), file("a/x"), file("b/y")]), ListError::Below { .. }));
    let folder = Entry::Folder { path: "a".into() };
    assert!(matches!(refusal(vec![folder, file("a/b")]), ListError::Below { .. }));
    // Sorted, `a-b` comes between `a` and `a/b`.
    assert!(matches!(refusal(vec![file("a"), file("a-b"), file("a/b")]), ListError::Below { .. }));
}

#[test]
fn sizes_are_bounded() {
    let large = |path: &str, size| Entry::File {
        path: path.to_owned(),
        executable: false,
        size,
        sha256: Digest::of(b""),
    };
    assert_eq!(refusal(vec![large("a", BYTES_MAX), large("b", 1)]), ListError::TooLarge);
    assert_eq!(refusal(vec![large("a", u64::MAX), large("b", u64::MAX)]), ListError::TooLarge);
    assert_eq!(refusal((0..=ENTRIES_MAX).map(|n| file(&n.to_string())).collect()), ListError::TooMany);
}

#[test]
fn a_content_has_one_size() {
    let other = Entry::File { path: "b".into(), executable: false, size: 2, sha256: Digest::of(b"x") };
    assert_eq!(refusal(vec![file("a"), other.clone(), file("c")]), ListError::Sizes("b".into()));
    let text = text_of(&[file("a"), other]);
    assert_eq!(List::parse(&text).unwrap_err(), ListError::Sizes("b".into()));
}

#[test]
fn links_stay_inside() {
    let good = vec![
        file("bin/web"),
        file("lib/v1/so"),
        link("web", "bin/web"),
        link("lib/current", "v1"),
        link("bin/so", "../lib/current/so"),
        link("self", "./"),
    ];
    let list = List::new(good).unwrap();
    assert_eq!(list.file("./bin/../web").unwrap().path(), "bin/web");
    assert_eq!(list.file("bin/so").unwrap().path(), "lib/v1/so");
    assert!(list.file("lib").is_none());
    assert!(list.file("../web").is_none());

    let with = |extra: Vec<Entry>| refusal([vec![file("a/b/c")], extra].concat());
    assert!(matches!(with(vec![link("x", "/etc/passwd")]), ListError::Target { .. }));
    assert!(matches!(with(vec![link("x", "")]), ListError::Target { .. }));
    assert!(matches!(with(vec![link("x", "..")]), ListError::Leaves { .. }));
    assert!(matches!(with(vec![link("a/x", "../../etc")]), ListError::Leaves { .. }));
    assert!(matches!(with(vec![link("x", "a/../../y")]), ListError::Leaves { .. }));
    // Written, it stays inside; gone over the link, it does not.
    assert!(matches!(with(vec![link("a/up", ".."), link("x", "a/up/../etc")]), ListError::Leaves { .. }));
    assert!(matches!(with(vec![link("x", "a/b/c/../../../../etc")]), ListError::Dangling { .. }));
    assert!(matches!(with(vec![link("x", "a/none")]), ListError::Dangling { .. }));
    assert!(matches!(with(vec![link("x", "x")]), ListError::Circle(_)));
    assert!(matches!(with(vec![link("x", "y"), link("y", "x")]), ListError::Circle(_)));
}

#[test]
fn what_would_take_long_is_refused() {
    let target = "d/../".repeat(200) + "d";
    let links = (0..19_000).map(|n| link(&format!("l{n}"), &target));
    let began = std::time::Instant::now();
    let refused = refusal(links.chain([file("d/f")]).collect());
    assert!(matches!(refused, ListError::Circle(_)), "{refused}");
    assert!(began.elapsed().as_secs() < 20);
}

#[test]
fn a_text_has_one_form() {
    let text = List::new(vec![file("a"), link("b", "a"), Entry::Folder { path: "c".into() }]).unwrap().text;
    assert!(List::parse(&text).is_ok());
    let swapped = "atoll bundle 1\nfolder\tb\nfolder\ta\n";
    for wrong in [
        "",
        "atoll bundle 1\n",
        "atoll bundle 2\nfolder\ta\n",
        "atoll bundle 1\nfolder\ta",
        "atoll bundle 1\n\nfolder\ta\n",
        "atoll bundle 1\ndevice\ta\n",
        "atoll bundle 1\nfolder\ta\tb\n",
        swapped,
        &text.replace("\t1\t", "\t01\t"),
        &text.replace("\t1\t", "\t+1\t"),
        &text.replace('-', "s"),
    ] {
        assert!(List::parse(wrong).is_err(), "{wrong:?}");
    }
}

/// Names that mean something somewhere, and some that don't.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[ab]",
        1 => prop_oneof![Just(".."), Just("."), Just(""), Just("A"), Just("\0"), Just("é")].prop_map(str::to_owned),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        path().prop_map(|path| file(&path)),
        path().prop_map(|path| Entry::Folder { path }),
        (path(), path()).prop_map(|(path, target)| Entry::Link { path, target }),
    ]
}

proptest! {
    #[test]
    fn what_passes_comes_back_from_its_text(entries in prop::collection::vec(entry(), 1..8)) {
        if let Ok(list) = List::new(entries) {
            prop_assert_eq!(List::parse(list.text()).unwrap(), list);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _no_panic = List::parse(&format!("{HEAD}{text}\n"));
    }

    /// On a real file system: what the checks let pass stays below the folder, links followed.
    #[test]
    fn what_passes_stays_below_its_folder(entries in prop::collection::vec(entry(), 1..8)) {
        let Ok(list) = List::new(entries) else { return Ok(()) };
        let top = tempfile::tempdir().unwrap();
        let store = crate::Store::open(&top.path().join("store"), 0).unwrap();
        let mut incoming = store.incoming(Digest::of(b"x"), 1).unwrap();
        incoming.write(b"x").unwrap();
        incoming.finish().unwrap();
        crate::unpack(&list, &store, top.path(), "files").unwrap();
        let root = top.path().join("files").canonicalize().unwrap();
        for entry in list.entries() {
            let real = root.join(entry.path()).canonicalize().unwrap();
            prop_assert!(real.starts_with(&root), "{} is {}", entry.path(), real.display());
        }
        prop_assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 2);
    }
}
