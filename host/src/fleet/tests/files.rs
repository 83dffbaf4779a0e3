//! Instances whose service has a bundle.

use super::*;
use crate::supervisor::Want;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Says where it runs, and that it was here before; then listens.
const WRITER: &str = "import os\nprint(os.getcwd(), os.path.exists('mine'), flush=True)\nopen('mine','w')\n";

fn program() -> Vec<u8> {
    format!("#!{}\n{WRITER}{LISTENER}", python()).into_bytes()
}

#[tokio::test]
async fn a_program_runs_in_a_folder_of_its_own_that_is_made_anew() {
    let mut bench = Bench::new();
    bench.begin();
    let bundle = bench.control.bundle(&[("bin/web", &program())], &[("web", "bin/web")]);
    let run = vec!["./web".to_owned()];
    let one = bench.place_bundle(run.clone(), bundle.clone());
    let two = bench.place_bundle(run, bundle);
    let healthy = bench.wait(&one, |record| record.state() == State::Healthy).await;
    bench.wait(&two, |record| record.state() == State::Healthy).await;
    let files = bench.ground().folder_of(&one).join("files");
    assert_eq!(
        std::fs::read_link(format!("/proc/{}/cwd", healthy.pid)).unwrap(),
        files.canonicalize().unwrap()
    );
    assert!(files.join("mine").exists());
    // A restart needs no control.
    bench.control.away.store(true, Ordering::Relaxed);
    signal_group(healthy.pid, Signal::KILL);
    bench.wait(&one, |record| record.state() == State::Healthy && record.restarts == 1).await;
    let output = std::fs::read_to_string(bench.log_of(&one).path()).unwrap();
    assert_eq!(output.matches(" False").count(), 2, "{output}");
    for instance in [one, two] {
        bench.remove(&instance);
        bench.wait_gone(&instance).await;
    }
}

#[tokio::test]
async fn a_host_that_ends_takes_its_instance_over_with_its_folder() {
    let mut bench = Bench::new();
    bench.begin();
    let bundle = bench.control.bundle(&[("web", &program())], &[]);
    let instance = bench.place_bundle(vec!["./web".to_owned()], bundle);
    let before = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    bench.stop_host().await;
    bench.control.away.store(true, Ordering::Relaxed);
    bench.begin();
    bench.place_again(&instance);
    let after = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!((before.pid, after.restarts), (after.pid, 0));
    assert!(bench.ground().folder_of(&instance).join("files/mine").exists());
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
}

#[tokio::test]
async fn an_instance_that_waits_for_its_files_says_so_and_can_go() {
    let mut bench = Bench::new();
    bench.begin();
    let bundle = bench.control.bundle(&[("web", &program())], &[]);
    bench.control.away.store(true, Ordering::Relaxed);
    let instance = bench.place_bundle(vec!["./web".to_owned()], bundle.clone());
    let waiting = bench.wait(&instance, |record| record.detail.contains("it waits for its files")).await;
    assert_eq!(waiting.state(), State::Starting);
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
    let instance = bench.place_bundle(vec!["./web".to_owned()], bundle);
    bench.wait(&instance, |record| record.detail.contains("it waits for its files")).await;
    bench.order(&instance, Want::Drain);
    bench.wait(&instance, |record| record.state() == State::Stopped).await;
    bench.order(&instance, Want::Run);
    bench.control.away.store(false, Ordering::Relaxed);
    bench.wait(&instance, |record| record.state() == State::Healthy).await;
}

#[tokio::test]
async fn files_that_cannot_be_had_fail_the_start_at_once() {
    let mut bench = Bench::new();
    bench.begin();
    let bundle = bench.control.bundle(&[("web", &program())], &[]);
    bench.control.refuses.store(true, Ordering::Relaxed);
    let instance = bench.place_bundle(vec!["./web".to_owned()], bundle);
    let failed = bench.wait(&instance, |record| record.state() == State::Exited).await;
    assert_eq!(failed.last_exit.unwrap().start_error, "not for you");
    assert_eq!(failed.detail, "not for you");
    bench.control.refuses.store(false, Ordering::Relaxed);
    bench.wait(&instance, |record| record.state() == State::Healthy).await;
}

/// What an instance does to its own folder, the host undoes without following it.
#[tokio::test]
async fn an_instance_that_plays_with_links_harms_nobody() {
    let mut bench = Bench::new();
    bench.begin();
    let outside = bench.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("web"), "mine").unwrap();
    let play = format!(
        "#!{}\nimport os,shutil\nhere=os.getcwd()\nos.chdir('/')\nshutil.rmtree(here)\nos.symlink({outside:?}, here)\n\
         os.symlink({outside:?}, here+'.new')\n{LISTENER}",
        python()
    );
    let bundle = bench.control.bundle(&[("web", play.as_bytes()), ("data/x", b"data")], &[]);
    let instance = bench.place_bundle(vec!["./web".to_owned()], bundle);
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    let files = bench.ground().folder_of(&instance).join("files");
    let is_link = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
    assert!(is_link(&files));
    signal_group(healthy.pid, Signal::KILL);
    bench.wait(&instance, |record| record.state() == State::Healthy && record.restarts == 1).await;
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
    assert_eq!(std::fs::read(outside.join("web")).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}
