//! How a node gets its identity: from its data folder, by a join token, by recovery of an expired
//! certificate, or (a control node that holds the CA) from itself.

use super::config::NodeConfig;
use super::node_plane::anonymous_channel;
use anyhow::{Context, bail};
use atoll_identity::{
    Identity, Material, PeerPolicy, RecordIdentity, RecordKey, SpiffeId, TlsKey, TrustDomain,
    anonymous_client_config, join_client_config, load_material, load_record, save_material, save_record,
    sign_recovery,
};
use atoll_mesh_ca::MeshCa;
use atoll_mesh_ca::client::JoinKeys;
use atoll_mesh_ca::token::JoinToken;
use atoll_model::{Role, Roles};
use atoll_process::clock::unix_ms;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use atoll_wire::node::{ChallengeRequest, IdentityReply, JoinRequest, RecoverRequest, RenewRequest};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use std::time::Duration;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{error, info, warn};

/// What a node needs to take part in the mesh.
pub struct Membership {
    /// The TLS identity; it rotates in place.
    pub identity: Identity,
    /// What signs the node's records.
    pub record: RecordIdentity,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// For a control node that holds the CA: what was kept, with a new certificate if that one is past
/// half of its life.
pub fn from_own_ca(config: &NodeConfig, ca: &MeshCa) -> anyhow::Result<Membership> {
    let dir = config.data_dir.join("identity");
    let kept = load_material(&dir)?;
    let material = match kept {
        Some(material) if !past_half(&material)? => material,
        _ => {
            let material = issue_locally(config, ca, unix_ms())?;
            keep(&dir, &material);
            material
        }
    };
    let record = match load_record(&dir)? {
        Some(record) => record,
        None => {
            let key = RecordKey::generate()?;
            // Later than any epoch this node had before it lost its folder.
            let chain = ca.issue_record(&subject(config, unix_ms()), &key.csr()?, unix_ms())?;
            let record = RecordIdentity::new(key, chain)?;
            save_record(&dir, &record)?;
            record
        }
    };
    Ok(Membership { identity: Identity::new(material)?, record })
}

/// A certificate for the control node itself, with a new key.
pub fn issue_locally(config: &NodeConfig, ca: &MeshCa, now_ms: u64) -> anyhow::Result<Material> {
    let key = TlsKey::generate()?;
    let chain = ca.issue_node(&subject(config, 1), &key.csr()?, now_ms)?;
    Ok(Material { chain, key: key.to_pkcs8(), roots: ca.roots(), trust_domain: ca.trust_domain().clone() })
}

fn past_half(material: &Material) -> anyhow::Result<bool> {
    let own = material.check()?;
    Ok(unix_ms() >= own.not_before_ms.midpoint(own.not_after_ms))
}

fn subject(config: &NodeConfig, epoch: u64) -> atoll_mesh_ca::NodeSubject {
    atoll_mesh_ca::NodeSubject {
        node: config.name.clone(),
        site: config.site.clone(),
        region: config.region.clone(),
        roles: config.roles,
        epoch,
    }
}

/// For every other node: what was kept, recovered if it has expired; else a join by token.
pub async fn from_control(config: &NodeConfig) -> anyhow::Result<Membership> {
    let dir = config.data_dir.join("identity");
    match (load_material(&dir)?, load_record(&dir)?) {
        (Some(material), Some(record)) => {
            check_is_ours(config, &material)?;
            let expired = material.check()?.not_after_ms <= unix_ms();
            let material = if expired { recover(config, &dir, material).await? } else { material };
            Ok(Membership { identity: Identity::new(material)?, record })
        }
        _ => join(config, &dir).await,
    }
}

fn check_is_ours(config: &NodeConfig, material: &Material) -> anyhow::Result<()> {
    let own = material.check()?;
    let expected = SpiffeId::node(&material.trust_domain, &config.site, &config.name);
    if own.id != expected || own.roles != config.roles || own.region.as_ref() != Some(&config.region) {
        bail!(
            "the identity in {} is for {} in region {} with the roles {}, but the configuration says {} in region \
             {} with {}: use another data_dir, or remove the node and join again with a new token",
            config.data_dir.display(),
            own.id,
            own.region.as_ref().map_or("-", |region| region.as_str()),
            own.roles,
            expected,
            config.region,
            config.roles
        );
    }
    Ok(())
}

async fn join(config: &NodeConfig, dir: &Path) -> anyhow::Result<Membership> {
    let Some(token_file) = &config.join.token_file else {
        bail!(
            "{} has no identity yet and `join.token_file` is not set: make a token with `atoll tokens create \
             --role … --site {}` and put it in a file",
            config.name,
            config.site
        );
    };
    let text = std::fs::read_to_string(token_file)
        .with_context(|| format!("cannot read the join token {}", token_file.display()))?;
    let token: JoinToken =
        text.trim().parse().with_context(|| format!("{} holds no join token", token_file.display()))?;
    let channel =
        anonymous_channel(config.join.control.clone(), join_client_config(token.ca_fingerprint, &[b"h2"]));
    let JoinKeys { tls: key, record: record_key } = JoinKeys::generate()?;
    let request = JoinRequest {
        token: text.trim().to_owned(),
        node: config.name.to_string(),
        csr: key.csr()?,
        record_csr: record_key.csr()?,
        site: config.site.to_string(),
        region: config.region.to_string(),
        roles: config.roles.iter().map(|role| role.to_string()).collect(),
    };
    let reply = until_reached("join", || {
        let (channel, request) = (channel.clone(), request.clone());
        async move { NodePlaneClient::new(channel).join(timed(request)).await }
    })
    .await?;
    let record_chain = reply.record_chain.iter().cloned().map(CertificateDer::from).collect();
    let record = RecordIdentity::new(record_key, record_chain)?;
    let material = material(reply, &key)?;
    check_is_ours(config, &material)?;
    save_record(dir, &record)?;
    save_material(dir, &material)?;
    info!(node = %config.name, id = %material.check()?.id, "joined the mesh");
    Ok(Membership { identity: Identity::new(material)?, record })
}

/// A new certificate for one that has expired, by proof that its key is still ours.
pub async fn recover(config: &NodeConfig, dir: &Path, expired: Material) -> anyhow::Result<Material> {
    warn!("the node's certificate has expired; asking control to exchange it");
    let old_key = TlsKey::from_pkcs8(&expired.key)?;
    let old_leaf = expired.chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
    let trust = atoll_identity::TrustStore::new(expired.trust_domain.clone(), &expired.roots)?;
    let policy = PeerPolicy::NodeWithAny(Roles::NONE.with(Role::Control));
    let channel =
        anonymous_channel(config.join.control.clone(), anonymous_client_config(trust, &[b"h2"], policy));
    let key = TlsKey::generate()?;
    let csr = key.csr()?;
    let reply = until_reached("recovery", || {
        let (channel, csr, old_leaf, old_key) = (channel.clone(), csr.clone(), old_leaf.clone(), &old_key);
        async move {
            let mut client = NodePlaneClient::new(channel);
            let nonce = client.challenge(timed(ChallengeRequest {})).await?.into_inner().nonce;
            let proof = sign_recovery(old_key, &nonce, &csr)
                .map_err(|cause| tonic::Status::invalid_argument(cause.to_string()))?;
            client.recover(timed(RecoverRequest { expired_certificate: old_leaf, csr, nonce, proof })).await
        }
    })
    .await?;
    let material = material(reply, &key)?;
    check_is_ours(config, &material)?;
    keep(dir, &material);
    info!("the expired certificate was exchanged");
    Ok(material)
}

/// Keeps a certificate on disk, for the next start. On a disk that takes nothing the node goes on with what it
/// has in memory; what is on disk then serves the next start, or is recovered. False where it was not kept.
pub fn keep(dir: &Path, material: &Material) -> bool {
    let kept = save_material(dir, material);
    if let Err(cause) = &kept {
        error!(
            dir = %dir.display(), %cause,
            "the node's new certificate is used and could not be kept on disk; check space and permissions"
        );
    }
    kept.is_ok()
}

/// A new certificate and key over the mesh, while the present one is valid.
pub async fn renew(channel: Channel) -> anyhow::Result<Material> {
    let key = TlsKey::generate()?;
    let request = timed(RenewRequest { csr: key.csr()? });
    let reply = NodePlaneClient::new(channel).renew(request).await.context("control did not renew")?;
    material(reply.into_inner(), &key)
}

fn material(reply: IdentityReply, key: &TlsKey) -> anyhow::Result<Material> {
    let trust_domain = TrustDomain::new(&reply.trust_domain)?;
    let material = Material::from_der(
        reply.chain,
        key.to_pkcs8().secret_pkcs8_der().to_vec(),
        reply.roots,
        trust_domain,
    );
    material.check()?;
    Ok(material)
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Calls until control answers. A refusal is final; control that can't be reached is waited for.
async fn until_reached<T, F, C>(what: &str, call: C) -> anyhow::Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    C: Fn() -> F,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match call().await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable
                        | Code::DeadlineExceeded
                        | Code::Cancelled
                        | Code::Unknown
                        | Code::ResourceExhausted
                ) =>
            {
                warn!(code = ?status.code(), cause = status.message(), what, "control does not answer; trying again");
            }
            Err(status) => bail!("control refused the {what}: {}", status.message()),
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
