//! Real processes, each test with a host of its own.

mod bench;
mod files;

use super::*;
use crate::state::SavedCall;
use atoll_model::Protocol;
use bench::{Bench, LISTENER, python, until};
use record::instance::State;
use std::os::unix::fs::{FileExt, MetadataExt};

fn run(code: &str) -> Vec<String> {
    vec![python(), "-c".to_owned(), code.to_owned()]
}

#[tokio::test]
async fn an_instance_is_started_drained_and_removed() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(
        run(&format!("import os,time\nassert os.environ['ATOLL_REGION'] == 'fra'\n{LISTENER}")),
        30_000,
    );
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert!(healthy.sidecar_address.starts_with("127.0.0.1:"));
    let group = procfs::stat(healthy.pid).unwrap().group;
    assert_eq!(group, healthy.pid, "it leads a group of its own");

    bench.order(&instance, Want::Drain);
    bench.wait(&instance, |record| record.state() == State::Draining).await;
    bench.wait(&instance, |record| record.state() == State::Stopped && record.sidecar_pid == 0).await;
    assert!(procfs::stat(healthy.pid).is_none_or(|stat| stat.ended));
    assert!(procfs::stat(healthy.sidecar_pid).is_none_or(|stat| stat.ended));

    bench.remove(&instance);
    bench.wait_gone(&instance).await;
    assert!(!bench.ground().folder_of(&instance).exists());
}

#[tokio::test]
async fn a_port_that_opens_late_is_waited_for() {
    let mut bench = Bench::new();
    bench.begin();
    let go = bench.path("go");
    let code = format!("import os,time\nwhile not os.path.exists({go:?}): time.sleep(0.02)\n{LISTENER}");
    let instance = bench.place(run(&code), 30_000);
    let waiting = bench.wait(&instance, |record| record.detail.contains("nothing listens")).await;
    assert_eq!(waiting.state(), State::Starting);
    std::fs::write(&go, "").unwrap();
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!((healthy.pid, healthy.restarts), (waiting.pid, 0));
}

#[tokio::test]
async fn a_forked_listener_counts_and_a_stubborn_family_is_killed() {
    let mut bench = Bench::new();
    bench.begin();
    // The leader ignores SIGTERM, the listener is its child, and another child leaves the group.
    let code = format!(
        "import os,signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         if os.fork() == 0:\n  os.setsid()\n  time.sleep(600)\n\
         if os.fork() == 0:\n  pass\n\
         else:\n  time.sleep(600)\n{LISTENER}"
    );
    let instance = bench.place(run(&code), 30_000);
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!(procfs::group_members(healthy.pid).len(), 2);
    let family = || procfs::with_environment(INSTANCE_VARIABLE, instance.as_str());
    assert_eq!(family().len(), 3);
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
    assert_eq!(family(), Vec::<u32>::new());
}

#[tokio::test]
async fn an_exit_is_reported_with_its_status_and_last_words() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(
        run("import sys\nprint('x' * 5000, flush=True)\nprint('no database', file=sys.stderr)\nsys.exit(3)"),
        30_000,
    );
    let exited = bench.wait(&instance, |record| record.state() == State::Exited).await;
    let exit = exited.last_exit.unwrap();
    assert_eq!((exit.status, exit.signal), (3, 0));
    assert!(
        exit.output_tail.ends_with("no database\n") && exit.output_tail.len() <= 2048,
        "{}",
        exit.output_tail.len()
    );
    bench.wait(&instance, |record| record.restarts >= 2).await;
}

#[tokio::test]
async fn a_killed_program_is_reported_and_started_again() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let first = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    signal_group(first.pid, Signal::KILL);
    let second =
        bench.wait(&instance, |record| record.state() == State::Healthy && record.pid != first.pid).await;
    assert_eq!(second.last_exit.unwrap().signal, 9);
    assert_eq!(second.sidecar_pid, first.sidecar_pid);
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(vec!["./absent".to_owned()], 30_000);
    let exited = bench.wait(&instance, |record| record.state() == State::Exited).await;
    let why = exited.last_exit.unwrap().start_error;
    assert!(why.contains("absent does not exist"), "{why}");
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
}

#[tokio::test]
async fn somebody_elses_port_is_not_the_instances() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(vec!["sleep".to_owned(), "600".to_owned()], 300);
    let started = bench.wait(&instance, |record| record.port != 0).await;
    let port = u16::try_from(started.port).unwrap();
    let _other = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let unhealthy = bench.wait(&instance, |record| record.state() == State::Unhealthy).await;
    assert!(unhealthy.detail.contains("belongs to another program"), "{}", unhealthy.detail);
}

#[tokio::test]
async fn a_lot_of_output_stays_within_its_bound() {
    const MIB: u64 = 1 << 20;
    let mut bench = Bench::new();
    bench.begin();
    let code = "import os\nline=b'y'*1023+b'\\n'\nblock=line*64\nfor _ in range(3200): os.write(1,block)\nimport time\nwhile True:\n  os.write(1,b'the end\\n')\n  time.sleep(0.05)";
    let instance = bench.place(run(code), 30_000);
    let log = bench.ground().folder_of(&instance).join("output.log");
    // How far it grows between two looks depends on the machine; what stays does not.
    until("the end of 200 MiB", || {
        let last = std::fs::File::open(&log).and_then(|file| {
            let mut last = [0; 8];
            file.read_exact_at(&mut last, file.metadata()?.len().saturating_sub(8))?;
            Ok(last)
        });
        last.is_ok_and(|last| &last == b"the end\n")
    })
    .await;
    until("within the bound", || log.metadata().is_ok_and(|data| data.blocks() * 512 <= 10 * MIB)).await;
    assert!(log.metadata().unwrap().len() > 200 * MIB, "no byte is lost from the count");
}

#[tokio::test]
async fn a_host_that_comes_back_takes_over_what_runs() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let before = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    bench.stop_host().await;
    assert!(procfs::stat(before.pid).is_some_and(|stat| !stat.ended));

    let seen = bench.records();
    bench.begin();
    bench.place_again(&instance);
    let after = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!((after.pid, after.port, after.sidecar_pid), (before.pid, before.port, before.sidecar_pid));
    assert_eq!(after.sidecar_address, before.sidecar_address);
    assert!(
        bench.records()[seen.len()..].iter().all(|record| record.state() == State::Healthy),
        "never out of service"
    );

    // Its end is seen, although it is no child of the host that came back.
    signal_group(before.pid, Signal::KILL);
    let again = bench.wait(&instance, |record| record.pid != 0 && record.pid != before.pid).await;
    assert_eq!(again.restarts, before.restarts + 1);
    bench.remove(&instance);
    bench.wait_gone(&instance).await;
}

#[tokio::test]
async fn what_is_not_placed_any_more_is_ended_after_its_grace() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let before = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    bench.stop_host().await;
    bench.config.orphan_grace_ms = 200;
    bench.begin();
    bench.wait_gone(&instance).await;
    assert!(procfs::stat(before.pid).is_none_or(|stat| stat.ended));
    assert!(procfs::stat(before.sidecar_pid).is_none_or(|stat| stat.ended));
}

#[tokio::test]
async fn a_host_that_takes_its_instances_along_leaves_nothing() {
    let mut bench = Bench::new();
    bench.config.stop_instances_on_exit = true;
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let before = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    bench.stop_host().await;
    for pid in [before.pid, before.sidecar_pid] {
        assert!(procfs::stat(pid).is_none_or(|stat| stat.ended));
    }
    bench.begin();
    bench.place_again(&instance);
    let after = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_ne!(after.pid, before.pid);
}

#[tokio::test]
async fn a_crashed_sidecar_is_replaced() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let before = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    signal_group(before.sidecar_pid, Signal::KILL);
    let after = bench
        .wait(&instance, |record| {
            record.state() == State::Healthy && record.sidecar_pid != before.sidecar_pid
        })
        .await;
    assert_eq!(after.pid, before.pid, "the program went on");
    assert_ne!(after.sidecar_address, before.sidecar_address);
}

#[tokio::test]
async fn certificates_are_shared_and_outlive_the_ca() {
    let mut bench = Bench::new();
    bench.begin();
    let one = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    bench.wait(&one, |record| record.state() == State::Healthy).await;
    bench.stop_host().await;
    bench.ca_is_away();
    bench.begin();
    let two = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    // The sidecar listens only once it has a certificate.
    bench.wait(&two, |record| record.state() == State::Healthy).await;
    assert_eq!(bench.certificates_issued(), 1);
}

#[tokio::test]
async fn output_is_followed_while_its_front_is_let_go() {
    use atoll_wire::node::ReadLogs;
    use futures_util::StreamExt;
    let mut bench = Bench::new();
    bench.config.log_bytes_max = 4_000;
    bench.begin();
    let code = "import time\nfor i in range(2000):\n  print(f'line {i:04} of the output', flush=True)\n  time.sleep(0.001)\ntime.sleep(600)";
    let instance = bench.place(run(code), 30_000);
    bench.wait(&instance, |record| record.pid != 0).await;
    let log = bench.log_of(&instance);
    let question = ReadLogs { tail_lines: 10_000, follow: true, ..ReadLogs::default() };
    let mut stream = crate::logs::read(&log, question);
    let (mut lines, mut lost) = (Vec::<String>::new(), 0);
    let read = async {
        while !lines.last().is_some_and(|line| line.contains("line 1999")) {
            let answer = stream.next().await.unwrap().unwrap();
            lost += answer.lost;
            lines.extend(answer.lines.into_iter().map(|line| line.text));
        }
    };
    tokio::time::timeout(Duration::from_secs(15), read).await.unwrap();
    let numbers: Vec<u32> =
        lines.iter().filter_map(|line| line.strip_prefix("line ")?.get(..4)?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "in order, none twice");
    // What a slow reader misses is let go; nothing else is.
    assert!(numbers.len() as u64 + lost >= 2_000, "{} lines were seen, {lost} told as lost", numbers.len());
}

#[tokio::test]
async fn an_instance_goes_on_when_its_state_cannot_be_kept() {
    let mut bench = Bench::new();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let first = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    // Stands in for a full disk: the file can't be replaced.
    let file = bench.ground().folder_of(&instance).join("state.json");
    until("the state file", || file.exists()).await;
    // The host may write it once more in between.
    until("a folder in its way", || {
        let _gone = std::fs::remove_file(&file);
        std::fs::create_dir_all(file.join("in the way")).is_ok()
    })
    .await;
    signal_group(first.pid, Signal::KILL);
    bench.wait(&instance, |record| record.state() == State::Healthy && record.pid != first.pid).await;
    assert!(bench.ground().metrics.state_errors.get() > 0);
}

#[tokio::test]
async fn without_a_certificate_it_says_what_it_waits_for() {
    let mut bench = Bench::new();
    bench.ca_is_away();
    bench.begin();
    let instance = bench.place(run(&format!("import time\n{LISTENER}")), 30_000);
    let waiting = bench.wait(&instance, |record| record.detail.contains("workload certificate")).await;
    assert_eq!(waiting.state(), State::Starting);
}

fn call(variable: &str, protocol: Protocol) -> SavedCall {
    let cluster = format!("default/shop/{}", variable.to_lowercase()).parse().unwrap();
    SavedCall { variable: format!("{variable}_URL"), cluster, protocol, port: 0 }
}

/// Fails unless somebody listens at what `API_URL` and `DB_URL` name, then listens itself.
fn caller() -> Vec<String> {
    run(&format!(
        "import os,socket\nfrom urllib.parse import urlparse\n\
         a,d=urlparse(os.environ['API_URL']),urlparse(os.environ['DB_URL'])\n\
         assert (a.scheme,d.scheme)==('http','tcp')\n\
         for u in (a,d): socket.create_connection((u.hostname,u.port)).close()\n\
         print('called',a.port,d.port,flush=True)\n{LISTENER}"
    ))
}

#[tokio::test]
async fn a_program_finds_the_listeners_for_its_calls_also_after_a_restart_of_the_host() {
    let mut bench = Bench::new();
    bench.begin();
    let calls = vec![call("API", Protocol::Http), call("DB", Protocol::Tcp)];
    let instance = bench.place_that_calls(caller(), 30_000, calls);
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!(healthy.restarts, 0, "it was not started before it could call");
    let ports = |bench: &Bench| -> Vec<u16> {
        bench.ground().board.lock().unwrap()[&instance].saved.calls.iter().map(|call| call.port).collect()
    };
    let before = ports(&bench);
    assert!(before.iter().all(|port| *port != 0) && before[0] != before[1]);
    bench.stop_host().await;
    bench.begin();
    bench.place_again(&instance);
    let after = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!((after.pid, after.sidecar_pid), (healthy.pid, healthy.sidecar_pid));
    assert_eq!(ports(&bench), before);
    // A new program, and a new sidecar, find the same.
    signal_group(after.sidecar_pid, Signal::KILL);
    signal_group(after.pid, Signal::KILL);
    bench.wait(&instance, |record| record.state() == State::Healthy && record.pid != after.pid).await;
    assert_eq!(ports(&bench), before);
}

#[tokio::test]
async fn a_listener_whose_port_is_taken_gets_another_before_the_program_starts() {
    let mut bench = Bench::new();
    bench.begin();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let api = SavedCall { port, ..call("API", Protocol::Http) };
    let instance = bench.place_that_calls(caller(), 30_000, vec![api, call("DB", Protocol::Tcp)]);
    let healthy = bench.wait(&instance, |record| record.state() == State::Healthy).await;
    assert_eq!(healthy.restarts, 0);
    let log = std::fs::read_to_string(bench.log_of(&instance).path()).unwrap();
    assert!(log.contains("called") && !log.contains(&format!(" {port} ")), "{log}");
}
