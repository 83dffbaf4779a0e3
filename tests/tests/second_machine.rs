//! The operator's page makes a platform of two machines: its steps are followed as they stand there, on two
//! network namespaces joined by a wire. Needs root; without it the test says so and does nothing.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test")]

use atoll_testkit::{atoll_binary, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const PAGE: &str = include_str!("../../docs/operations.md");

/// Two namespaces and the nodes in them; all of it goes when this is dropped.
struct Machines {
    names: [String; 2],
    folder: tempfile::TempDir,
    nodes: Vec<Child>,
}

impl Machines {
    /// Two machines at the page's addresses, or why there can't be any.
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let names = [format!("atoll-first-{id}"), format!("atoll-second-{id}")];
        let machines = Self { names, folder: tempfile::tempdir().unwrap(), nodes: Vec::new() };
        for name in &machines.names {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let [first, second] = &machines.names;
        ip(&[
            "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second,
        ])?;
        for (name, address) in machines.names.iter().zip(["192.0.2.1/24", "192.0.2.2/24"]) {
            ip(&["-n", name, "addr", "add", address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
        }
        for n in 0..2 {
            std::fs::create_dir_all(machines.root(n).join("etc")).unwrap();
        }
        Ok(machines)
    }

    /// Where a machine's `/etc/atoll` and `/var/lib/atoll` are.
    fn root(&self, n: usize) -> PathBuf {
        self.folder.path().join(["first", "second"][n])
    }

    /// A text of the page, with a machine's own folders.
    fn localized(&self, n: usize, text: &str) -> String {
        let root = self.root(n);
        let etc = text.replace("/etc/atoll", &root.join("etc").display().to_string());
        etc.replace("/var/lib/atoll", &root.join("var").display().to_string())
    }

    /// A shell line on a machine, in its folder.
    fn shell(&self, n: usize, line: &str) -> Command {
        let path = format!("{}:{}", self.folder.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[n], "sh", "-c", &self.localized(n, line)])
            .current_dir(self.root(n))
            .env("PATH", path)
            .env("XDG_CONFIG_HOME", self.root(n).join("config"))
            .env("XDG_STATE_HOME", self.root(n).join("state"))
            .env_remove("ATOLL_API")
            .env_remove("ATOLL_TOKEN")
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, n: usize, line: &str) -> String {
        let Output { status, stdout, stderr } = self.shell(n, line).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "`{line}` failed: {status}\n--- stdout\n{out}\n--- stderr\n{err}");
        out.into_owned()
    }

    /// Starts a node by the page's line; its log is in the machine's folder.
    fn start(&mut self, n: usize) {
        let log = std::fs::File::create(self.root(n).join("node.log")).unwrap();
        let line = format!("exec {}", command("atoll node --config"));
        let mut command = self.shell(n, &line);
        self.nodes.push(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for n in 0..2 {
                let log = std::fs::read_to_string(self.root(n).join("node.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(12).collect();
                eprintln!("--- the last of node {n}'s log, newest first\n{}", tail.join("\n"));
            }
        }
        for name in &self.names {
            // Instances outlive their nodes: whatever runs in our namespaces is ours.
            for _ in 0..50 {
                let listed = Command::new("ip").args(["netns", "pids", name]).output();
                let pids = listed.map(|output| output.stdout).unwrap_or_default();
                let pids = String::from_utf8_lossy(&pids);
                if pids.trim().is_empty() {
                    break;
                }
                pids.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .for_each(atoll_testkit::processes::kill);
                std::thread::sleep(Duration::from_millis(20));
            }
            let _gone = ip(&["netns", "del", name]);
        }
        for node in &mut self.nodes {
            let _ended = node.wait();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("`ip`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`ip {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// The page's block that begins with this line, without its indentation.
fn block(first: &str) -> String {
    let start =
        PAGE.find(&format!("\n    {first}\n")).unwrap_or_else(|| panic!("no block begins with {first}"));
    let lines = PAGE[start + 1..].lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    lines.map(|line| line.strip_prefix("    ").unwrap_or("").to_owned() + "\n").collect()
}

/// The page's command that begins so.
fn command(start: &str) -> &'static str {
    let wanted = format!("    {start}");
    PAGE.lines()
        .find(|line| line.starts_with(&wanted))
        .unwrap_or_else(|| panic!("no command `{start}`"))
        .trim()
}

#[test]
fn the_operators_page_makes_a_platform_of_two_machines() {
    let mut machines = match Machines::new() {
        Ok(machines) => machines,
        Err(why) => {
            eprintln!("skipped: two machines need network namespaces, which need root: {why}");
            return;
        }
    };
    let bin = machines.folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(atoll_binary(), bin.join("atoll")).unwrap();
    the_first_machine(&mut machines);
    the_second_machine(&mut machines);
    an_app_runs_on_both(&machines);
}

fn write(machines: &Machines, n: usize, path: &str, text: &str) {
    std::fs::write(machines.root(n).join(path), machines.localized(n, text)).unwrap();
}

fn the_first_machine(machines: &mut Machines) {
    write(machines, 0, "etc/node.toml", &block("name     = \"fra1-a\""));
    machines.run(0, &format!("{} --check", command("atoll node --config")));
    machines.start(0);
    let token = machines.root(0).join("var/admin-token");
    wait_until("control's token", Duration::from_secs(30), || token.exists());
    let add = command("atoll context add first");
    // The API answers a moment after the token is there.
    wait_until("the API", Duration::from_secs(30), || {
        let added = machines.shell(0, add).output().unwrap();
        added.status.success() && machines.shell(0, command("atoll nodes")).output().unwrap().status.success()
    });
}

fn the_second_machine(machines: &mut Machines) {
    machines.run(0, command("atoll tokens create --role host"));
    let token = machines.root(1).join("etc/token");
    std::fs::rename(machines.root(0).join("fra1-b.token"), &token).unwrap();
    Command::new("chmod").arg("600").arg(&token).status().unwrap();
    write(machines, 1, "etc/node.toml", &block("name     = \"fra1-b\""));
    machines.start(1);
    wait_until("the second machine", Duration::from_secs(30), || {
        let nodes = machines.run(0, command("atoll nodes"));
        nodes.lines().any(|line| line.starts_with("fra1-b") && line.contains("alive"))
    });
}

fn an_app_runs_on_both(machines: &Machines) {
    write(machines, 0, "atoll.toml", &block("manifest = 1"));
    write(machines, 0, "index.html", "<p>hello\n");
    machines.run(0, command("atoll deploy"));
    let instances = machines.run(0, command("atoll instances hello"));
    for host in ["fra1-a", "fra1-b"] {
        assert!(instances.lines().any(|line| line.contains(host) && line.contains("healthy")), "{instances}");
    }
    let curl = command("curl --cacert");
    assert_eq!(machines.run(0, curl), "<p>hello\n");
    // With its own host gone the app answers from the second machine.
    let served = || machines.shell(0, curl).output().unwrap().stdout == b"<p>hello\n";
    for pid in instances_of(&machines.root(0)) {
        atoll_testkit::processes::kill(pid);
    }
    assert!(served(), "the second machine's instance answers");
}

/// The instances that run on a machine, by their working directory.
fn instances_of(root: &Path) -> Vec<u32> {
    atoll_testkit::processes::of_folder(root)
        .into_iter()
        .filter(|pid| atoll_testkit::processes::command_line(*pid).contains("http.server"))
        .collect()
}
