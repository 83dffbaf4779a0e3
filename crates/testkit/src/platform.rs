//! The platform as its users start it: `atoll dev` in a folder of its own.

use crate::{Atoll, CliOutput, Curl, CurlAnswer, LoadTarget, Version, processes, wait, watchdog};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start may take.
const READY_WAIT: Duration = Duration::from_secs(90);
/// How long a stop may take: longer than `atoll dev` gives its nodes.
const STOP_WAIT: Duration = Duration::from_secs(40);
/// Of each log, in the message of a failed test.
const TAIL_LINES: usize = 25;

/// What `atoll dev` is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The regions.
    pub regions: Vec<&'static str>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Options {
    /// With those regions.
    #[must_use]
    pub fn regions(regions: &[&'static str]) -> Self {
        Self { regions: regions.to_vec(), arguments: Vec::new() }
    }

    /// With further arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }
}

/// One edge, from `dev.json`.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Its node.
    pub name: String,
    /// Its site.
    pub site: String,
    /// Plain HTTP.
    pub http: SocketAddr,
    /// HTTPS.
    pub https: SocketAddr,
    /// Its process.
    pub pid: u32,
}

/// One node, from `dev.json`.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its process.
    pub pid: u32,
    /// `/livez`, `/readyz`, `/metrics`.
    pub admin: SocketAddr,
}

/// A running platform. When it is dropped everything of it is ended, also when the test panics, and when the
/// test has not ended after a quarter of an hour.
#[derive(Debug)]
pub struct Platform {
    folder: TempDir,
    options: Options,
    environment: Vec<(String, String)>,
    dev: Option<Child>,
}

impl Platform {
    /// Starts one in a new folder and waits until it is ready.
    ///
    /// # Panics
    /// With the ends of all logs, when it does not get ready.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let mut platform = Self::prepare(options);
        platform.start_dev();
        platform.wait_until_ready();
        platform
    }

    /// A folder without anything that runs.
    ///
    /// # Panics
    /// When the folder can't be made.
    #[must_use]
    pub fn prepare(options: Options) -> Self {
        // Short, since the paths of unix sockets are below it.
        let folder = tempfile::Builder::new().prefix("atoll-").tempdir_in("/tmp").unwrap();
        watchdog::watch(folder.path());
        fs::create_dir_all(folder.path().join("home")).unwrap();
        Self { folder, options, environment: Vec::new(), dev: None }
    }

    /// The command that starts it, with all arguments.
    #[must_use]
    pub fn dev_command(&self) -> std::process::Command {
        let mut command = self.anonymous().command();
        command
            .arg("dev")
            .args(["--https-port", "0", "--http-port", "0", "--no-context"])
            .arg("--regions")
            .arg(self.options.regions.join(","))
            .arg("--data")
            .arg(self.data())
            .args(&self.options.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Adds a variable for `atoll dev`, and so for its nodes, from its next start on.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts `atoll dev` and does not wait.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_dev(&mut self) {
        let open = |name: &str| File::create(self.folder.path().join(name)).unwrap();
        let mut command = self.dev_command();
        command.stdout(open("dev.out")).stderr(open("dev.err")).stdin(Stdio::null()).process_group(0);
        self.dev = Some(command.spawn().unwrap());
    }

    /// Waits for the line `ready`.
    ///
    /// # Panics
    /// With the ends of all logs, when it does not come.
    pub fn wait_until_ready(&mut self) {
        let until = Instant::now() + READY_WAIT;
        loop {
            let said = fs::read_to_string(self.folder.path().join("dev.out")).unwrap_or_default();
            if said.lines().any(|line| line == "ready") {
                return;
            }
            let ended = self.dev.as_mut().and_then(|dev| dev.try_wait().unwrap());
            if ended.is_some() || Instant::now() > until {
                panic!("atoll dev is not ready; it has ended: {ended:?}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where the platform keeps everything.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for the test's own files. Processes that run in it are ended with the platform.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join("scratch").join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The pid of `atoll dev`.
    ///
    /// # Panics
    /// When it was not started.
    #[must_use]
    pub fn dev_pid(&self) -> u32 {
        self.dev.as_ref().expect("it was started").id()
    }

    /// What `atoll dev` printed: stdout, stderr.
    #[must_use]
    pub fn said(&self) -> (String, String) {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        (read("dev.out"), read("dev.err"))
    }

    /// `dev.json` as it is now.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn dev_json(&self) -> Value {
        let path = self.data().join("dev.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap()
    }

    /// The edges, in the order of the regions; those of one site by their numbers.
    #[must_use]
    pub fn edges(&self) -> Vec<Edge> {
        let address = |value: &Value| value.as_str().unwrap().parse().unwrap();
        let edge = |value: &Value| Edge {
            name: text(&value["name"]),
            site: text(&value["site"]),
            http: address(&value["http"]),
            https: address(&value["https"]),
            pid: pid(&value["pid"]),
        };
        self.dev_json()["edges"].as_array().unwrap().iter().map(edge).collect()
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let node = |value: &Value| Node {
            name: text(&value["name"]),
            site: text(&value["site"]),
            roles: value["roles"].as_array().unwrap().iter().map(text).collect(),
            pid: pid(&value["pid"]),
            admin: value["admin"].as_str().unwrap().parse().unwrap(),
        };
        self.dev_json()["nodes"].as_array().unwrap().iter().map(node).collect()
    }

    /// The node with that role at that site (`fra1`).
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn node(&self, site: &str, role: &str) -> Node {
        let found =
            self.nodes().into_iter().find(|node| node.site == site && node.roles.iter().any(|r| r == role));
        found.unwrap_or_else(|| panic!("no {role} at {site}: {}", self.dev_json()))
    }

    /// A value of a node's configuration file: the text after `key = ` in `[section]`, without quotes.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn setting(&self, node: &str, section: &str, key: &str) -> String {
        let path = self.data().join("nodes").join(format!("{node}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
        let value = lines
            .by_ref()
            .take_while(|line| !line.starts_with('['))
            .find_map(|line| line.strip_prefix(&format!("{key} = ")));
        value
            .unwrap_or_else(|| panic!("no {section}.{key} in {}", path.display()))
            .trim_matches('"')
            .to_owned()
    }

    /// The CLI, talking to this platform.
    #[must_use]
    pub fn atoll(&self) -> Atoll {
        let dev = self.dev_json();
        self.anonymous().with_api(&text(&dev["api"]), &text(&dev["token"]))
    }

    /// The CLI, talking to no platform.
    #[must_use]
    pub fn anonymous(&self) -> Atoll {
        Atoll::new(&self.folder.path().join("home"))
    }

    /// Writes a manifest into a folder of its own and gives the folder. `$SHOP` in the text is the path
    /// of the example's program.
    ///
    /// # Panics
    /// When it can't be written.
    #[must_use]
    pub fn manifest(&self, name: &str, text: &str) -> PathBuf {
        let folder = self.scratch(name);
        let text = text.replace("$SHOP", &crate::shop_binary().display().to_string());
        fs::write(folder.join("atoll.toml"), text).unwrap();
        folder
    }

    /// Deploys the manifest of a folder and waits until it runs.
    ///
    /// # Panics
    /// With the ends of all logs, when it fails.
    pub fn deploy(&self, folder: &Path) -> CliOutput {
        let output = self.atoll().run_in(folder, &["deploy"]);
        assert_eq!(output.code, 0, "{}\n{}\n{}", output.stdout, output.stderr, self.logs());
        output
    }

    /// What the API says.
    ///
    /// # Panics
    /// When it does not answer with 200.
    #[must_use]
    pub fn api(&self, path: &str) -> Value {
        let dev = self.dev_json();
        let url = format!("{}{path}", text(&dev["api"]));
        let answer = Curl::new(url).header(&format!("Authorization: Bearer {}", text(&dev["token"]))).run();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// The instances of an app, as the API lists them.
    ///
    /// # Panics
    /// When the API does not answer with a list.
    #[must_use]
    pub fn instances(&self, app: &str) -> Vec<Value> {
        let answer = self.api(&format!("/v1/instances?app={app}"));
        let list = answer.as_array().or_else(|| answer["items"].as_array());
        list.unwrap_or_else(|| panic!("no list: {answer}")).clone()
    }

    /// A call of an app at `<label>.localhost` through an edge, over HTTPS.
    #[must_use]
    pub fn curl(&self, edge: &Edge, label: &str, path: &str) -> Curl {
        let (host, port) = (format!("{label}.localhost"), edge.https.port());
        Curl::new(format!("https://{host}:{port}{path}")).cacert(&self.public_ca()).resolve(&host, edge.https)
    }

    /// The answer of an app's `/json` through an edge, once it is 200.
    ///
    /// # Panics
    /// With the ends of all logs, when that takes more than 30 s.
    #[must_use]
    pub fn answer(&self, edge: &Edge, label: &str) -> CurlAnswer {
        wait::wait_for("the app answers", Duration::from_secs(30), || {
            Some(self.curl(edge, label, "/json").run()).filter(|answer| answer.status == 200)
        })
    }

    /// The certificate of the CA that public certificates come from.
    #[must_use]
    pub fn public_ca(&self) -> PathBuf {
        PathBuf::from(text(&self.dev_json()["public_ca"]))
    }

    /// Load on an app's path through every edge, over both versions of HTTP.
    #[must_use]
    pub fn load_targets(&self, label: &str, path: &str) -> Vec<LoadTarget> {
        let target = |edge: &Edge, version| LoadTarget {
            address: edge.https,
            others: Vec::new(),
            host: format!("{label}.localhost"),
            ca: self.public_ca(),
            path: path.to_owned(),
            version,
        };
        let edges = self.edges();
        edges.iter().flat_map(|edge| [target(edge, Version::H1), target(edge, Version::H2)]).collect()
    }

    /// [`Platform::load_targets`] of clients that know every edge.
    #[must_use]
    pub fn roaming_load_targets(&self, label: &str, path: &str) -> Vec<LoadTarget> {
        let edges: Vec<SocketAddr> = self.edges().iter().map(|edge| edge.https).collect();
        let roaming = |mut target: LoadTarget| {
            target.others = edges.iter().copied().filter(|edge| *edge != target.address).collect();
            target
        };
        self.load_targets(label, path).into_iter().map(roaming).collect()
    }

    /// Every process of the platform and of what it runs.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        processes::of_folder(self.folder.path())
    }

    /// SIGTERM to `atoll dev`, and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) -> ExitStatus {
        let mut dev = self.dev.take().expect("it was started");
        processes::signal(dev.id(), Signal::TERM);
        wait::wait_for("atoll dev ends after SIGTERM", STOP_WAIT, || dev.try_wait().unwrap())
    }

    /// SIGKILL to `atoll dev` alone.
    ///
    /// # Panics
    /// When it was not started.
    pub fn kill_dev(&mut self) {
        let mut dev = self.dev.take().expect("it was started");
        dev.kill().unwrap();
        dev.wait().unwrap();
    }

    /// Starts `atoll dev` again on the same folder, and waits until it is ready.
    pub fn start_again(&mut self) {
        self.start_dev();
        self.wait_until_ready();
    }

    /// The ends of all logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut files = vec![self.folder.path().join("dev.out"), self.folder.path().join("dev.err")];
        let folder = fs::read_dir(self.data().join("logs")).into_iter().flatten().flatten();
        let is_log = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".log") && !name.ends_with("access.log")
        };
        files.extend(folder.map(|entry| entry.path()).filter(is_log));
        files.sort();
        let tail = |path: &PathBuf| {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            format!("--- {}\n{}\n", path.display(), lines[from..].join("\n"))
        };
        files.iter().map(tail).collect()
    }

    fn end_everything(&mut self) {
        if let Some(mut dev) = self.dev.take() {
            processes::signal(dev.id(), Signal::TERM);
            let until = Instant::now() + STOP_WAIT;
            while Instant::now() < until && dev.try_wait().is_ok_and(|ended| ended.is_none()) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _gone = dev.kill();
            let _reaped = dev.wait();
        }
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            left.into_iter().for_each(processes::kill);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.end_everything();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// 0 for a node that is being started.
fn pid(value: &Value) -> u32 {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}
