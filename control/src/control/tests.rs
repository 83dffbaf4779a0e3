#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::local::{issue_record_locally, renew_locally};
use crate::testing::{mesh_ca, shop};
use atoll_gossip::Scope;
use atoll_mesh_ca::NodeSubject;
use atoll_model::{Kind, Role, Roles};
use atoll_process::drain::{self, DrainTrigger};
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::TcpStream;

struct Running {
    bound: SocketAddr,
    token: String,
    gossip: Gossip,
    trigger: DrainTrigger,
    task: tokio::task::JoinHandle<()>,
}

/// Control with real gossip on `folder`, alone in its mesh.
async fn start(folder: &Path) -> Running {
    let ca = mesh_ca(folder);
    let subject = NodeSubject {
        node: "fra1-control".parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: Roles::NONE.with(Role::Control),
        epoch: unix_ms(),
    };
    let identity = Identity::new(renew_locally(&ca, &subject, unix_ms()).unwrap()).unwrap();
    let record = issue_record_locally(&ca, &subject, unix_ms()).unwrap();
    let (trigger, drain) = drain::channel();
    let metrics = Metrics::new();
    let scopes = vec![Scope::Global, Scope::Region("fra".parse().unwrap())];
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let gossip_config =
        atoll_gossip::Config::new(subject.node.clone(), scopes, listen, folder.join("gossip"), record);
    let gossip = Gossip::start(gossip_config, identity.clone(), &metrics, drain.clone()).await.unwrap();
    let config = Config {
        api_listen: listen,
        node_plane_listen: listen,
        regions: vec!["fra".parse().unwrap()],
        ..Config::default()
    };
    let handles = Handles {
        name: subject.node,
        site: subject.site,
        region: subject.region,
        data_dir: folder.join("control"),
        identity,
        gossip: gossip.clone(),
        metrics,
        drain: drain.clone(),
        trust_domain: ca.trust_domain().clone(),
        mesh_ca: ca,
    };
    let control = Control::bind(config, handles).await.unwrap();
    let (bound, token) = (control.api_addr, control.admin_token.clone());
    let task = tokio::spawn(control.run(drain));
    Running { bound, token, gossip, trigger, task }
}

impl Running {
    async fn deploy(&self) -> u16 {
        let stream = TcpStream::connect(self.bound).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::put("/v1/apps/shop")
            .header("host", "control")
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::<bytes::Bytes>::from(shop(&[("fra", 1)]).to_string()))
            .unwrap();
        sender.send_request(request).await.unwrap().status().as_u16()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Gossip) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while !condition(&self.gossip) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}");
    }

    async fn stop(self) {
        self.trigger.start();
        self.task.await.unwrap();
        self.gossip.close().await;
        self.trigger.force();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_reaches_gossip_also_after_gossip_has_lost_it() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(folder.path()).await;
    assert_eq!(running.deploy().await, 202);
    let published = |gossip: &Gossip| {
        [Kind::VIRTUAL_HOST, Kind::CLUSTER, Kind::CERTIFICATE]
            .iter()
            .all(|kind| gossip.entries(*kind).len() == 1)
    };
    running.until("published", published).await;
    let before = running.gossip.entries(Kind::CLUSTER)[0].version;
    let token = running.token.clone();
    running.stop().await;
    std::fs::remove_dir_all(folder.path().join("gossip")).unwrap();

    let again = start(folder.path()).await;
    assert_eq!(again.token, token);
    again.until("published again", published).await;
    assert_eq!(again.gossip.entries(Kind::CLUSTER)[0].version, before);
    assert_eq!(again.deploy().await, 409, "the deploy goes on after a restart");
    again.stop().await;
}

/// Waits until nobody has the store open: its thread ends a moment after the role.
async fn closed(store: &Path) {
    let free = async {
        while redb::Database::open(store).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_put_back_goes_on_after_what_gossip_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(folder.path()).await;
    running.stop().await;
    let store = folder.path().join("control/control.redb");
    closed(&store).await;
    let copy = folder.path().join("copy.redb");
    std::fs::copy(&store, &copy).unwrap();
    let running = start(folder.path()).await;
    assert_eq!(running.deploy().await, 202);
    running.until("published", |gossip| gossip.entries(Kind::CLUSTER).len() == 1).await;
    let before = running.gossip.entries(Kind::CLUSTER)[0].version;
    running.stop().await;
    closed(&store).await;
    std::fs::copy(&copy, &store).unwrap();
    let again = start(folder.path()).await;
    // The deploy is forgotten: it can be made again, and is heard.
    assert_eq!(again.deploy().await, 202);
    again
        .until("heard", |gossip| gossip.entries(Kind::CLUSTER).first().is_some_and(|e| e.version > before))
        .await;
    again.stop().await;
}
