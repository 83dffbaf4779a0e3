//! The documents are complete where they promise to be.
#![allow(clippy::unwrap_used, reason = "a test")]

use atoll_model::Reason;
use std::path::Path;

#[test]
fn every_reason_code_has_its_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
    let text = std::fs::read_to_string(path).unwrap();
    for reason in Reason::ALL {
        let section =
            format!("## `{}`\n\nHTTP {}, `{}`", reason.code(), reason.status(), reason.proxy_error());
        assert!(text.contains(&section), "docs/reasons.md has no section that begins with {section}");
        assert!(text.contains(reason.text()), "docs/reasons.md does not say: {}", reason.text());
    }
}

/// Links between the documents lead somewhere.
#[test]
fn links_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let entries = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages =
        entries.filter(|path| path.extension().is_some_and(|e| e == "md")).chain([root.join("README.md")]);
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            let is_elsewhere = link.contains("://") || target.is_empty();
            assert!(
                is_elsewhere || page.parent().unwrap().join(target).exists(),
                "{}: {link}",
                page.display()
            );
        }
    }
}
