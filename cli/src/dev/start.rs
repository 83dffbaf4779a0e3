//! From nothing to `ready`: control, tokens, the other nodes, a request through every hop, the example.

use super::layout::{Layout, NodePlan};
use super::run::not_up;
use super::settings::Settings;
use super::{demo, probe};
use crate::api::Api;
use crate::args::TokenArgs;
use crate::commands::mesh::token_request;
use crate::contexts::{Chosen, Context, ContextsFile};
use crate::failure::{self, Failure, Outcome};
use crate::out;
use atoll_model::Role;
use atoll_process::files;
use http::Method;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long control may take to serve its API.
const CONTROL_WAIT: Duration = Duration::from_secs(60);
/// How long the other nodes may take to join and be ready.
const NODES_WAIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for a node's admin listener.
const ADMIN_WAIT: Duration = Duration::from_secs(2);
/// After this long a wait is explained.
const EXPLAIN_AFTER: Duration = Duration::from_secs(5);

/// What is to be brought up.
#[derive(Debug)]
pub struct Plan<'p> {
    /// As the user asked.
    pub settings: &'p Settings,
    /// The nodes.
    pub layout: &'p Layout,
    /// Our own program.
    pub program: &'p Path,
}

/// Brings the platform up. `start_others` is set once the nodes may be started; `ready` gets the API's
/// token when a request has passed all hops.
pub async fn bring_up(
    plan: &Plan<'_>,
    start_others: watch::Sender<bool>,
    ready: mpsc::Sender<String>,
) -> Outcome {
    let Plan { settings, layout, program } = plan;
    out::note(&format!("starting {} nodes in {}", layout.nodes.len(), settings.data.display()));
    let (token, api) = control_up(plan).await?;
    copy_public_ca(layout)?;
    write_join_tokens(&api, layout).await?;
    start_others.send_replace(true);
    nodes_up(&api, layout).await?;
    out::note("every node is up; sending a request through every hop");
    probe::pass_all_hops(&api, layout, program, &settings.data).await?;
    if settings.demo {
        demo::deploy(&api, layout, program, &settings.data).await?;
    }
    if settings.context {
        register_context(layout, &token)?;
    }
    show_urls(&api, layout).await;
    // The receiver lives as long as this future is polled.
    let _stopping = ready.send(token).await;
    Ok(())
}

async fn control_up(plan: &Plan<'_>) -> Outcome<(String, Api)> {
    let control = plan.layout.control().ok_or_else(|| Failure::failed("no control node"))?;
    let until = Instant::now() + CONTROL_WAIT;
    loop {
        let missing = match std::fs::read_to_string(token_path(control)) {
            Ok(token) => {
                let token = token.trim().to_owned();
                let context = Context { api: plan.layout.api_url(), token: Some(token.clone()), ca: None };
                let api = Api::new(&Chosen { name: "dev".to_owned(), context })?;
                match admin_ready(control.config.admin.listen).await {
                    Ok(()) => return Ok((token, api)),
                    Err(missing) => missing,
                }
            }
            Err(error) => format!("no API token yet: {error}"),
        };
        if Instant::now() > until {
            return Err(not_up(control, &format!("control does not come up: {missing}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where a control node keeps the token that its first start made.
fn token_path(control: &NodePlan) -> std::path::PathBuf {
    control.config.data_dir.join(atoll_control::api::ADMIN_TOKEN_FILE)
}

/// A single-use token for every node that has no identity yet.
async fn write_join_tokens(api: &Api, layout: &Layout) -> Outcome {
    for node in &layout.nodes {
        let Some(path) = node.config.join.token_file.as_ref() else { continue };
        if has_identity(node) {
            continue;
        }
        let request = token_request(&TokenArgs {
            roles: node.config.roles.iter().collect(),
            site: node.config.site.clone(),
            region: Some(node.config.region.clone()),
            node: Some(node.config.name.clone()),
            ttl: "10m".to_owned(),
        })?;
        let made = api.change(Method::POST, "/v1/tokens/join", Some(&request)).await?;
        let token =
            made["token"].as_str().ok_or_else(|| Failure::failed("the API's answer holds no join token"))?;
        files::write_atomic(path, token.as_bytes(), 0o600)
            .map_err(|error| failure::io(format!("cannot write {}", path.display()), &error))?;
    }
    Ok(())
}

/// Whether a node can do without a token: it then renews or recovers what it has.
fn has_identity(node: &NodePlan) -> bool {
    let folder = node.config.data_dir.join("identity");
    let material = atoll_identity::load_material(&folder).is_ok_and(|found| found.is_some());
    material && atoll_identity::load_record(&folder).is_ok_and(|found| found.is_some())
}

/// Puts the public CA's certificate where users look for it.
fn copy_public_ca(layout: &Layout) -> Outcome {
    let Some(control) = layout.control() else { return Ok(()) };
    let made = control.config.data_dir.join("public-ca.pem");
    let wrong = |error: std::io::Error| failure::io(format!("cannot copy {}", made.display()), &error);
    match std::fs::read(&made) {
        Ok(pem) => files::write_atomic(&layout.public_ca, &pem, 0o644).map_err(wrong),
        // The node may have written it there itself.
        Err(_) if layout.public_ca.exists() => Ok(()),
        Err(error) => Err(wrong(error)),
    }
}

/// Waits until control sees every node. Whether a request passes is the probe's question: a gateway
/// without any app is not ready, and can't be.
async fn nodes_up(api: &Api, layout: &Layout) -> Outcome {
    let began = Instant::now();
    let mut explained = false;
    loop {
        let seen = api.list("/v1/nodes").await?;
        let Some(node) = layout.nodes.iter().find(|node| !is_up(node, &seen)) else { return Ok(()) };
        if began.elapsed() > NODES_WAIT {
            return Err(not_up(node, &format!("{} does not join", node.name())));
        }
        if began.elapsed() > EXPLAIN_AFTER && !explained {
            explained = true;
            out::note(&format!("waiting for {} to join", node.name()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether control knows a node as alive, and has a line to it where it needs one.
fn is_up(node: &NodePlan, seen: &[Value]) -> bool {
    let Some(facts) = seen.iter().find(|facts| facts["name"] == node.name()) else { return false };
    let needs_line = node.config.roles.has(Role::Edge) || node.config.roles.has(Role::Host);
    facts["alive"] == true && (!needs_line || facts["attached"] == true)
}

/// `/readyz` of a node: what is missing, if it is not ready.
async fn admin_ready(address: SocketAddr) -> Result<(), String> {
    let ask = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        let request = http::Request::get("/readyz")
            .header(http::header::HOST, address.to_string())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            return Ok(());
        }
        let body =
            Limited::new(answer.into_body(), 4096).collect().await.map_err(|error| error.to_string())?;
        Err(out::harmless(String::from_utf8_lossy(&body.to_bytes()).trim()))
    };
    tokio::time::timeout(ADMIN_WAIT, ask)
        .await
        .unwrap_or_else(|_| Err("its admin listener does not answer".to_owned()))
}

fn register_context(layout: &Layout, token: &str) -> Outcome {
    let context = Context { api: layout.api_url(), token: Some(token.to_owned()), ca: None };
    let current = ContextsFile::of_user()?.change(|contexts| {
        contexts.contexts.insert("dev".to_owned(), context);
        Ok(contexts.current.get_or_insert_with(|| "dev".to_owned()).clone())
    })?;
    if current != "dev" {
        out::note(&format!(
            "context dev is registered; the current one is {current} (`atoll context use dev` changes that)"
        ));
    }
    Ok(())
}

/// Prints the URLs of the apps that run and, for each edge, a line that asks that edge.
async fn show_urls(api: &Api, layout: &Layout) {
    let domains = match api.list("/v1/domains").await {
        Ok(domains) => domains,
        Err(failure) => {
            failure.print();
            return;
        }
    };
    let urls: Vec<String> =
        domains.iter().filter_map(|domain| domain["url"].as_str()).map(str::to_owned).collect();
    for url in &urls {
        out::data(&out::harmless(url));
    }
    let domain = urls.first().and_then(|url| domain_of(url));
    if domain.is_none() {
        out::data("no app runs yet; after a deploy of an app named `shop` each edge answers to:");
    }
    let domain = domain.unwrap_or_else(|| format!("shop.{}", super::layout::ZONE));
    for (_, edge) in layout.edges() {
        out::data(&curl_line(&domain, edge, &layout.public_ca));
    }
}

fn domain_of(url: &str) -> Option<String> {
    url.parse::<http::Uri>().ok()?.host().map(str::to_owned)
}

/// A command that asks one edge, as it can be pasted into a shell.
fn curl_line(domain: &str, edge: SocketAddr, ca: &Path) -> String {
    let (ip, port) = (edge.ip(), edge.port());
    let ca = quoted(&ca.display().to_string());
    format!("curl --cacert {ca} --resolve {domain}:{port}:{ip} https://{domain}:{port}/")
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_curl_line_can_be_pasted() {
        let edge = "127.0.0.2:8443".parse().unwrap();
        assert_eq!(
            curl_line("shop.localhost", edge, Path::new("/a b/it's.pem")),
            r"curl --cacert '/a b/it'\''s.pem' --resolve shop.localhost:8443:127.0.0.2 https://shop.localhost:8443/"
        );
        assert_eq!(domain_of("https://shop.localhost:8443").as_deref(), Some("shop.localhost"));
    }
}
