//! The end of a test that does not come to one.
//!
//! A test that waits for ever keeps all tests after it from being run, and says nothing. So it is ended, with what
//! it started.

use crate::processes;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

/// How long all tests of a program may take: the longest takes some 80 s on two cores.
const TIME_MAX: Duration = Duration::from_secs(900);

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// From now on this process ends in time, and before it does ends what runs in `folder`.
pub(crate) fn watch(folder: &Path) {
    static STARTED: Once = Once::new();
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
    STARTED.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(TIME_MAX);
            end_all();
        });
    });
}

fn end_all() -> ! {
    let me = std::process::id();
    let mut said = format!("these tests have not ended within {TIME_MAX:?}; they run:\n");
    for child in processes::children(me) {
        said += &format!("  {child} {}\n", processes::command_line(child));
    }
    // Not by a macro: what those print in a test is shown after its end.
    let _unheard = std::io::stderr().write_all(said.as_bytes());
    for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        processes::of_folder(folder).into_iter().for_each(processes::kill);
        let _gone = std::fs::remove_dir_all(folder);
    }
    processes::children(me).into_iter().for_each(processes::kill);
    std::process::exit(101)
}
