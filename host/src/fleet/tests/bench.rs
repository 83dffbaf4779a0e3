//! A host without gossip and without a CA's network: orders go in, records come out.

use super::super::*;
use crate::bundles::Bundles;
use crate::bundles::tests::FakeControl;
use crate::config::Config;
use crate::instance::{Report, Reporter};
use crate::logs::{Janitor, LogFile};
use crate::metrics::HostMetrics;
use crate::ports::Ports;
use crate::program::base_environment;
use crate::sidecars::Sidecars;
use crate::state::SavedCall;
use crate::workload::{Issue, Workloads};
use atoll_model::{Bundle, Check, CheckKind, Protocol};
use atoll_process::{DrainTrigger, Metrics, drain};
use atoll_wire::node::IdentityReply;
use futures_util::FutureExt;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

/// Listens on $PORT, and accepts for ever.
pub(super) const LISTENER: &str = "\
import socket,os
s=socket.create_server(('127.0.0.1',int(os.environ['PORT'])))
while True: s.accept()[0].close()
";

/// Listens once it has a certificate, also for calls, and says that it has drained when it is told to.
const SIDECAR: &str = r"
import socket,struct,sys,time
path,instance=sys.argv[sys.argv.index('--socket')+1],sys.argv[sys.argv.index('--instance')+1]
listener,opened=None,{}
def field(n,b): return bytes([n<<3|2,len(b)])+b
def varint(n): return bytes([n]) if n<128 else bytes([n&127|128])+varint(n>>7)
def parse(b):
  out,i=[],0
  def number():
    nonlocal i
    n=shift=0
    while True:
      c=b[i]; i+=1; n|=(c&127)<<shift; shift+=7
      if c<128: return n
  while i<len(b):
    key=number(); value=number()
    if key&7==2: value,i=b[i:i+value],i+value
    out.append((key>>3,value))
  return out
def listen(port):
  if port not in opened:
    try: opened[port]=socket.create_server(('127.0.0.1',port))
    except OSError: return False
  return True
def once():
  global listener
  s=socket.socket(socket.AF_UNIX); s.connect(path)
  f=s.makefile('rb')
  while True:
    state=parse(f.read(struct.unpack('>I',f.read(4))[0]))
    if listener is None: listener=socket.create_server(('127.0.0.1',0))
    said=field(1,instance.encode())+field(3,('127.0.0.1:%d'%listener.getsockname()[1]).encode())
    if (11,1) in state: said+=b'\x28\x01'
    ports=[port for n,call in state if n==15 for m,port in parse(call) if m==3]
    ports+=[port for n,port in state if n==17]
    for taken in ports:
      said+=field(7 if listen(taken) else 6,varint(taken))
    s.sendall(struct.pack('>I',len(said))+said)
while True:
  try: once()
  except (OSError,struct.error): time.sleep(0.02)
";

/// The interpreter itself: a wrapper of it would only be slower.
pub(super) fn python() -> String {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let asked = std::process::Command::new("python3")
                .args(["-c", "import sys;print(sys.executable)"])
                .output();
            String::from_utf8(asked.unwrap().stdout).unwrap().trim().to_owned()
        })
        .clone()
}

pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"));
}

#[derive(Default)]
struct Seen {
    all: Vec<record::Instance>,
    now: BTreeMap<String, record::Instance>,
}

struct Running {
    ground: Arc<Ground>,
    orders: mpsc::Sender<Order>,
    trigger: DrainTrigger,
    fleet: tokio::task::JoinHandle<()>,
    sidecars: tokio::task::JoinHandle<()>,
}

pub(super) struct Bench {
    pub(super) config: Config,
    pub(super) control: Arc<FakeControl>,
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Seen>>,
    issued: Arc<AtomicU32>,
    away: Arc<AtomicBool>,
    placed: BTreeMap<InstanceId, Assignment>,
    running: Option<Running>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let config = Config { stop_grace_ms: 300, drain_min_ms: 50, ..Config::default() };
        Self {
            config,
            control: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            seen: Arc::default(),
            issued: Arc::default(),
            away: Arc::default(),
            placed: BTreeMap::new(),
            running: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the host, with what was there before it on its disk.
    pub(super) fn begin(&mut self) {
        let data_dir = self.path("data");
        let folder = data_dir.join("workloads");
        atoll_process::files::private_dir(&folder).unwrap();
        let metrics = HostMetrics::new(&Metrics::new());
        let (sidecars, listener) = Sidecars::bind(&data_dir, metrics.clone()).unwrap();
        let bundles = Bundles::open(&data_dir, 0, self.control.fetch(), &Metrics::new()).unwrap();
        let ground = Arc::new(Ground {
            config: self.config.clone(),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            data_dir,
            base_environment: base_environment(),
            sidecar_command: vec![python(), "-c".to_owned(), SIDECAR.to_owned()],
            sidecars: Arc::clone(&sidecars),
            workloads: Workloads::new(
                folder,
                self.issue(),
                metrics.clone(),
                atoll_identity::Clock::default(),
            ),
            ports: Ports::default(),
            janitor: Janitor::start(metrics.clone()).unwrap(),
            reporter: self.reporter(),
            metrics,
            board: Arc::default(),
            denied: tokio::sync::watch::channel(Vec::new()).1,
            bundles: Arc::new(bundles),
            neighbourhood: Arc::default(),
        });
        let (trigger, drain) = drain::channel();
        let (orders, inbox) = mpsc::channel(64);
        let fleet = Fleet::open(Arc::clone(&ground), Vec::new()).unwrap();
        let fleet = tokio::spawn(fleet.run(inbox, drain));
        let sidecars = tokio::spawn(sidecars.serve(listener));
        self.running = Some(Running { ground, orders, trigger, fleet, sidecars });
    }

    /// Ends the host as a stop of the node would.
    pub(super) async fn stop_host(&mut self) {
        let running = self.running.take().unwrap();
        running.trigger.start();
        running.fleet.await.unwrap();
        running.sidecars.abort();
    }

    pub(super) fn ground(&self) -> Arc<Ground> {
        Arc::clone(&self.running.as_ref().unwrap().ground)
    }

    pub(super) fn log_of(&self, instance: &InstanceId) -> Arc<LogFile> {
        Arc::clone(&self.ground().board.lock().unwrap()[instance].log)
    }

    pub(super) fn place(&mut self, run: Vec<String>, grace_ms: u64) -> InstanceId {
        self.place_that_calls(run, grace_ms, Vec::new())
    }

    pub(super) fn place_that_calls(
        &mut self,
        run: Vec<String>,
        grace_ms: u64,
        calls: Vec<SavedCall>,
    ) -> InstanceId {
        let spec = self.spec(run, grace_ms);
        self.place_spec(spec, calls)
    }

    pub(super) fn place_bundle(&mut self, run: Vec<String>, bundle: Bundle) -> InstanceId {
        let spec = ServiceSpec { working_dir: String::new(), bundle: Some(bundle), ..self.spec(run, 30_000) };
        self.place_spec(spec, Vec::new())
    }

    fn spec(&self, run: Vec<String>, grace_ms: u64) -> ServiceSpec {
        let check = Check { kind: CheckKind::Tcp, every_ms: 50, timeout_ms: 1_000, grace_ms, up: 1, down: 2 };
        ServiceSpec {
            run,
            working_dir: self.folder.path().to_str().unwrap().to_owned(),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            protocol: Protocol::Http,
            public: true,
            drain_ms: 5_000,
            checks: vec![check],
            regions: BTreeMap::new(),
            ..ServiceSpec::default()
        }
    }

    fn place_spec(&mut self, spec: ServiceSpec, calls: Vec<SavedCall>) -> InstanceId {
        let instance = InstanceId::from_parts(clock::unix_ms(), rand::random());
        let assignment = Assignment {
            instance: instance.clone(),
            cluster: "default/shop/web".parse().unwrap(),
            revision: "r-1".to_owned(),
            want: Want::Run,
            spec: Ok(spec),
            calls,
        };
        self.placed.insert(instance.clone(), assignment);
        self.place_again(&instance);
        instance
    }

    pub(super) fn place_again(&self, instance: &InstanceId) {
        self.order(instance, Want::Run);
    }

    pub(super) fn order(&self, instance: &InstanceId, want: Want) {
        let assignment = Assignment { want, ..self.placed[instance].clone() };
        self.send(Order::Place(Box::new(assignment)));
    }

    pub(super) fn remove(&self, instance: &InstanceId) {
        self.send(Order::Remove(instance.clone()));
    }

    fn send(&self, order: Order) {
        self.running.as_ref().unwrap().orders.try_send(order).unwrap();
    }

    pub(super) fn records(&self) -> Vec<record::Instance> {
        self.seen.lock().unwrap().all.clone()
    }

    pub(super) async fn wait(
        &self,
        instance: &InstanceId,
        wanted: impl Fn(&record::Instance) -> bool,
    ) -> record::Instance {
        let now = || self.seen.lock().unwrap().now.get(instance.as_str()).cloned();
        let wait = async {
            loop {
                match now().filter(|record| wanted(record)) {
                    Some(record) => return record,
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        waited.unwrap_or_else(|_| panic!("it never came to be; at last: {:#?}", now()))
    }

    pub(super) async fn wait_gone(&self, instance: &InstanceId) {
        until("the end of the record", || !self.seen.lock().unwrap().now.contains_key(instance.as_str()))
            .await;
        until("the end of the folder", || !self.ground().folder_of(instance).exists()).await;
    }

    pub(super) fn ca_is_away(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    pub(super) fn certificates_issued(&self) -> u32 {
        self.issued.load(Ordering::Relaxed)
    }

    fn reporter(&self) -> Reporter {
        let seen = Arc::clone(&self.seen);
        Arc::new(move |report| {
            let mut seen = seen.lock().unwrap();
            match report {
                Report::Instance(record) => {
                    seen.now.insert(record.instance.clone(), (*record).clone());
                    seen.all.push(*record);
                }
                Report::Withdraw(instance) => {
                    seen.now.remove(instance.as_str());
                }
            }
        })
    }

    fn issue(&self) -> Issue {
        let (issued, away) = (Arc::clone(&self.issued), Arc::clone(&self.away));
        Arc::new(move |_, request| {
            if away.load(Ordering::Relaxed) {
                return async { Err("the CA is away".to_owned()) }.boxed();
            }
            issued.fetch_add(1, Ordering::Relaxed);
            let key = KeyPair::generate().unwrap();
            let ca = CertificateParams::default();
            let root = ca.self_signed(&key).unwrap();
            let leaf = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
            let leaf = leaf.signed_by(&Issuer::new(ca, key)).unwrap();
            let reply = IdentityReply {
                chain: vec![leaf.der().to_vec()],
                roots: vec![root.der().to_vec()],
                trust_domain: "test".to_owned(),
                ..Default::default()
            };
            async { Ok(reply) }.boxed()
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.fleet.abort();
            running.sidecars.abort();
        }
        let _none = kill_leftovers(&self.path("data"));
        // What was started after its last state was written.
        for instance in self.placed.keys() {
            kill_strays(INSTANCE_VARIABLE, instance.as_str());
            kill_strays(SIDECAR_VARIABLE, instance.as_str());
        }
    }
}
