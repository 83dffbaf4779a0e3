//! What a test does to the nodes of a platform: restart one, keep one down, run one in its place, change
//! its settings; and seeing that all is well again.

use crate::platform::Node;
use crate::{Platform, curl::Curl, processes, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How long a node may take to end, and to be ready again. `atoll dev` starts one that ended early again
/// after up to ten seconds.
const NODE_WAIT: Duration = Duration::from_secs(60);

/// A node that `atoll dev` can't start, until this is dropped.
#[derive(Debug)]
pub struct HeldDown {
    config: PathBuf,
    aside: PathBuf,
    node: Node,
}

impl HeldDown {
    /// The node as it was.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }
}

impl Drop for HeldDown {
    fn drop(&mut self) {
        // The folder may be gone already.
        let _gone = fs::rename(&self.aside, &self.config);
    }
}

/// A node that the test runs itself, in place of one that it holds down. Killed when dropped.
#[derive(Debug)]
pub struct OwnNode {
    child: Child,
    /// Its output.
    log: PathBuf,
    held: HeldDown,
}

impl OwnNode {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and runs it again with another environment.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn again(&mut self, platform: &Platform, environment: &[(&str, &str)]) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        // What it says from now on.
        fs::write(&self.log, "").unwrap();
        self.child = spawn_node(platform, &self.held, &self.log, environment);
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When nobody can tell.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.held.node()
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Platform {
    /// A node by its name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Node {
        let found = self.nodes().into_iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("no node {name}: {}", self.dev_json()))
    }

    fn config_of(&self, node: &str) -> PathBuf {
        self.data().join("nodes").join(format!("{node}.toml"))
    }

    /// Sets a value of a node's configuration file, as TOML; it holds from the node's next start.
    ///
    /// # Panics
    /// When the file does not have the section.
    pub fn set(&self, node: &str, section: &str, key: &str, value: &str) {
        let path = self.config_of(node);
        let text = fs::read_to_string(&path).unwrap();
        let (mut inside, mut found) = (false, false);
        let mut changed = String::new();
        for line in text.lines() {
            inside = if line.starts_with('[') { line == format!("[{section}]") } else { inside };
            if inside && line.starts_with(&format!("{key} = ")) {
                found = true;
                changed.push_str(&format!("{key} = {value}\n"));
            } else {
                changed.push_str(&format!("{line}\n"));
            }
        }
        if !found {
            let header = format!("[{section}]\n");
            assert!(changed.contains(&header), "no {section} in {}", path.display());
            changed = changed.replacen(&header, &format!("{header}{key} = {value}\n"), 1);
        }
        fs::write(&path, changed).unwrap();
    }

    /// Sends a node the signal and waits until another process stands in its place and takes part: it is
    /// ready, as far as its role can be.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn restart(&self, name: &str, signal: Signal) {
        let before = self.node_named(name);
        processes::signal(before.pid, signal);
        wait_until(&format!("{name} is started again"), NODE_WAIT, || {
            let now = self.node_named(name);
            now.pid != 0 && now.pid != before.pid
        });
        self.wait_until_ready_node(name);
    }

    /// Waits until a node says on its admin address that it is ready.
    ///
    /// # Panics
    /// With what it lacks, when it does not.
    pub fn wait_until_ready_node(&self, name: &str) {
        let admin = self.node_named(name).admin;
        wait_until(&format!("{name} is ready"), NODE_WAIT, || {
            Curl::new(format!("http://{admin}/readyz")).run().status == 200
        });
    }

    /// Ends a node by the signal, and keeps `atoll dev` from starting it again for as long as what is
    /// returned lives. After that it takes up to ten seconds until the node is started.
    ///
    /// # Panics
    /// When the node does not end.
    #[must_use]
    pub fn hold_down(&self, name: &str, signal: Signal) -> HeldDown {
        let node = self.node_named(name);
        let config = self.config_of(name);
        let aside = aside(&config);
        fs::rename(&config, &aside).unwrap();
        processes::signal(node.pid, signal);
        wait_until(&format!("{name} has ended"), NODE_WAIT, || !processes::is_alive(node.pid));
        HeldDown { config, aside, node }
    }

    /// Ends a node by SIGKILL and runs it as a child of the test, with a further environment, for as long
    /// as what is returned lives.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn run_in_place_of(&self, name: &str, environment: &[(&str, &str)]) -> OwnNode {
        let held = self.hold_down(name, Signal::KILL);
        let log = self.scratch("own-nodes").join(format!("{name}.log"));
        OwnNode { child: spawn_node(self, &held, &log, environment), log, held }
    }

    /// A value from a node's `/metrics`: the sum over all labels. 0 where it is not there.
    #[must_use]
    pub fn metric(&self, node: &Node, name: &str) -> f64 {
        let text = Curl::new(format!("http://{}/metrics", node.admin)).run().text();
        let is_it = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        text.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The processes of an app's instances and of their sidecars, in order.
    #[must_use]
    pub fn instance_processes(&self, app: &str) -> Vec<u32> {
        let ids: Vec<String> = self.instances(app).iter().filter_map(id_of).collect();
        let is_one = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let line = processes::command_line(*pid);
            let is_sidecar = |id: &String| line.contains(" sidecar ") && line.contains(id);
            let is_program = |id: &String| environment.contains(&format!("ATOLL_INSTANCE={id}\0"));
            ids.iter().any(|id| is_sidecar(id) || is_program(id))
        };
        let mut found: Vec<u32> = self.processes().into_iter().filter(is_one).collect();
        found.sort_unstable();
        found
    }

    /// Waits until every node that `atoll dev` runs has a process, each region has that many healthy
    /// instances of the app, and each edge is answered from its own region where that has any.
    ///
    /// # Panics
    /// When that takes longer than a minute.
    pub fn wait_until_whole(&self, app: &str, regions: &[(&str, usize)]) {
        let is_held = |node: &Node| aside(&self.config_of(&node.name)).exists();
        wait_until("every node runs that is not held down", NODE_WAIT, || {
            let runs = |node: &Node| node.pid != 0 && processes::is_alive(node.pid);
            self.nodes().iter().all(|node| runs(node) || is_held(node))
        });
        for (region, count) in regions {
            wait_until(&format!("{count} instances are healthy in {region}"), NODE_WAIT, || {
                self.healthy(app, region) >= Some(*count)
            });
        }
        for edge in self.edges() {
            let at_home = regions.iter().find(|(region, _)| edge.site.starts_with(region));
            wait_until(&format!("{} is answered from its region", edge.site), NODE_WAIT, || {
                let answer = self.curl(&edge, app, "/json").run();
                let region = answer.header("atoll-region");
                answer.status == 200 && at_home.is_none_or(|(home, _)| region == Some(home))
            });
        }
    }

    /// Nothing while control does not answer.
    fn healthy(&self, app: &str, region: &str) -> Option<usize> {
        let listed = self.atoll().run(&["instances", app, "-o", "json"]);
        if listed.code != 0 {
            return None;
        }
        let listed = listed.json();
        let is_healthy = |instance: &&Value| instance["region"] == region && instance["state"] == "healthy";
        Some(listed.as_array().unwrap().iter().filter(is_healthy).count())
    }
}

/// Where a node's configuration is while it is held down.
fn aside(config: &Path) -> PathBuf {
    config.with_extension("aside")
}

fn spawn_node(platform: &Platform, held: &HeldDown, log: &Path, environment: &[(&str, &str)]) -> Child {
    let output = fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = platform.anonymous().command();
    command.arg("node").arg("--config").arg(&held.aside).envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    command.spawn().unwrap()
}

/// An instance's id, as the API lists it.
fn id_of(instance: &Value) -> Option<String> {
    instance["id"].as_str().or_else(|| instance["instance"].as_str()).map(str::to_owned)
}
