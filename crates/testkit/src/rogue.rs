//! A node that has real keys and tells other nodes what it likes.

use anyhow::{Context, Result};
use atoll_gossip::Scope;
use atoll_gossip::batch::BatchSigner;
use atoll_identity::{Identity, PeerPolicy, load_material, load_record, mesh_server_name};
use atoll_model::{Kind, NodeName};
use atoll_wire::Message;
use atoll_wire::gossip::{Delta, Exchange, Member};
use atoll_wire::record::Record;
use quinn::crypto::rustls::QuicClientConfig;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ALPN: &[u8] = b"atoll-gossip/1";
const WAIT: Duration = Duration::from_secs(10);

/// A node's stolen keys.
#[derive(Debug)]
pub struct RogueNode {
    name: NodeName,
    identity: Identity,
    signer: BatchSigner,
    epoch: u64,
}

/// What the rogue says.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// Whose record it claims to be; its own, or `control`.
    pub owner: &'a str,
    /// What it is about.
    pub kind: Kind,
    /// How far it is to spread.
    pub scope: Scope,
    /// Which one.
    pub key: &'a str,
    /// The body.
    pub body: Vec<u8>,
}

impl RogueNode {
    /// Takes the keys from a node's `identity` folder.
    pub fn with_keys_of(identity_folder: &Path) -> Result<Self> {
        let material = load_material(identity_folder)?.context("no identity")?;
        let record = load_record(identity_folder)?.context("no record key")?;
        let identity = Identity::new(material)?;
        let name = identity.own_id().node_name().context("not a node")?;
        let (leaf, rest) = record.chain.split_first().context("no record certificate")?;
        let epoch = identity.trust().verify_record_certificate(leaf, rest)?.epoch;
        Ok(Self { name, identity, signer: record.into(), epoch })
    }

    /// Tells the node at `to` a record that is properly signed with the stolen key, as a peer would in an
    /// exchange. An `Ok` means that it was told, not that it was believed.
    pub fn tell(&self, to: SocketAddr, claim: &Claim<'_>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(WAIT, self.exchange(to, claim)).await? })
    }

    async fn exchange(&self, to: SocketAddr, claim: &Claim<'_>) -> Result<()> {
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let tls = self.identity.client_config(&[ALPN], PeerPolicy::AnyNode);
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        let name = mesh_server_name().to_str().into_owned();
        let connection = endpoint.connect_with(config, to, &name)?.await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        let opening = Exchange {
            scopes: vec![claim.scope.as_str().to_owned()],
            sender: Some(Member {
                name: self.name.to_string(),
                address: endpoint.local_addr()?.to_string(),
                generation: 1,
                ..Member::default()
            }),
            ..Exchange::default()
        };
        write(&mut send, &opening).await?;
        let answer = read(&mut receive).await?;
        write(&mut send, &self.delta(claim, &answer)).await?;
        send.finish()?;
        // The other side ends its half when it has taken all in, or closes the connection over it.
        let _told = receive.read_to_end(1 << 20).await;
        connection.close(0_u32.into(), b"done");
        endpoint.wait_idle().await;
        Ok(())
    }

    fn delta(&self, claim: &Claim<'_>, answer: &Exchange) -> Exchange {
        let scope = claim.scope.as_str();
        let held = answer.watermarks.iter().find(|mark| mark.owner == claim.owner && mark.scope == scope);
        let (epoch, after) = held.map_or((self.epoch, 0), |mark| (mark.epoch, mark.version));
        let record = Record {
            owner: claim.owner.to_owned(),
            kind: claim.kind.0,
            scope: scope.to_owned(),
            key: claim.key.to_owned(),
            epoch,
            version: after + 1,
            deleted: false,
            body: claim.body.clone().into(),
            written_ms: unix_ms(),
        };
        let delta = Delta {
            owner: claim.owner.to_owned(),
            scope: scope.to_owned(),
            epoch,
            records: self.signer.sign(&[record]),
            upto: after + 1,
            after,
            ..Delta::default()
        };
        Exchange {
            deltas: vec![delta],
            certificates: vec![self.signer.certificate().clone()],
            ..Exchange::default()
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

async fn write(send: &mut quinn::SendStream, message: &Exchange) -> Result<()> {
    let bytes = message.encode_to_vec();
    send.write_all(&u32::try_from(bytes.len())?.to_be_bytes()).await?;
    Ok(send.write_all(&bytes).await?)
}

async fn read(receive: &mut quinn::RecvStream) -> Result<Exchange> {
    let mut length = [0; 4];
    receive.read_exact(&mut length).await?;
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    receive.read_exact(&mut bytes).await?;
    Ok(Exchange::decode(bytes.as_slice())?)
}
