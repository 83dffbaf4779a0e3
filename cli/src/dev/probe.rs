//! Whether a request passes every hop in every region: a hidden app with a service for each region, of
//! which each edge is asked over HTTPS, so that every edge, gateway and host has its part; then removed.

use super::https;
use super::layout::{Layout, ZONE};
use crate::api::Api;
use crate::commands::watch;
use crate::failure::{Exit, Failure, Outcome};
use crate::out;
use atoll_model::manifest::CompiledApp;
use atoll_model::{AppName, Check, CheckKind, Protocol, RegionName, Scale, ServiceName, ServiceSpec};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

const APP: &str = "atoll-probe";
/// How long the whole may take to become ready.
const WAIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);
/// What the probe's instances answer.
const ANSWER: &str = "atoll probe";

/// Returns once every edge got an answer from every region, but for those whose hosts an operator has drained.
pub async fn pass_all_hops(api: &Api, layout: &Layout, program: &Path, data: &Path) -> Outcome {
    let nodes = api.list("/v1/nodes").await?;
    let takes_instances = |region: &RegionName| {
        let hosts = nodes.iter().filter(|node| node["region"] == region.as_str());
        let is_host = |node: &Value| node["roles"].as_array().is_some_and(|r| r.iter().any(|r| r == "host"));
        hosts.filter(|node| is_host(node)).any(|node| node["drained"].is_null())
    };
    let regions: Vec<RegionName> = layout.regions().into_iter().filter(takes_instances).collect();
    if regions.is_empty() {
        out::note(
            "every host is drained; nothing is sent through them (`atoll drain` shows what is drained)",
        );
        return Ok(());
    }
    let app = app(&regions, program, data)?;
    watch::deploy_quietly(api, &app).await?;
    let until = Instant::now() + WAIT;
    for (service, label) in app.host_labels() {
        for (_, edge) in layout.edges() {
            pass(service.as_str(), &format!("{label}.{ZONE}"), edge, layout, until).await?;
        }
    }
    watch::delete_quietly(api, &app.app).await
}

async fn pass(region: &str, domain: &str, edge: SocketAddr, layout: &Layout, until: Instant) -> Outcome {
    loop {
        let missing = match https::get(edge, domain, "/", &layout.public_ca).await {
            Ok(answer) if answer.status().is_success() && answer.body() == ANSWER => return Ok(()),
            Ok(answer) => {
                let why = answer.headers().get("proxy-status").and_then(|value| value.to_str().ok());
                format!("answered {} {}", answer.status(), why.unwrap_or_default())
            }
            Err(error) => error,
        };
        if Instant::now() > until {
            return Err(Failure::new(
                Exit::TimedOut,
                format!("no request passes every hop from edge {edge} to region {region}: {missing}"),
            )
            .fix("the logs of that edge, and of the region's gateway and host, say more"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn app(regions: &[RegionName], program: &Path, data: &Path) -> Outcome<CompiledApp> {
    let wrong = |error: atoll_model::NameError| Failure::failed(error.to_string());
    let check = Check {
        kind: CheckKind::Http { path: "/".to_owned() },
        every_ms: 100,
        timeout_ms: 2_000,
        grace_ms: 10_000,
        up: 1,
        down: 3,
    };
    let spec = |region: &RegionName| ServiceSpec {
        run: ["probe-instance", "--listen", "127.0.0.1:$PORT"].into_iter().fold(
            vec![program.display().to_string().replace('$', "$$")],
            |mut run, word| {
                run.push(word.to_owned());
                run
            },
        ),
        working_dir: data.display().to_string(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        protocol: Protocol::Http,
        public: true,
        drain_ms: 0,
        checks: vec![check.clone()],
        regions: BTreeMap::from([(region.clone(), Scale { min: 1, max: 1 })]),
        ..ServiceSpec::default()
    };
    // A region's name is a service's name too: both follow the same rule.
    let service = |region: &RegionName| Ok((ServiceName::new(region.as_str()).map_err(wrong)?, spec(region)));
    let services: Outcome<BTreeMap<_, _>> = regions.iter().map(service).collect();
    Ok(CompiledApp { app: AppName::new(APP).map_err(wrong)?, services: services?, hosts: Vec::new() })
}

/// The probe's server (`atoll probe-instance`).
pub async fn serve(listen: SocketAddr) -> Outcome {
    let failed = |error: std::io::Error| crate::failure::io(format!("cannot listen on {listen}"), &error);
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let open = std::sync::Arc::new(Semaphore::new(64));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&open).acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _permit = permit;
            let answer = service_fn(|_request| async {
                Ok::<_, Infallible>(http::Response::new(Full::new(bytes::Bytes::from_static(
                    ANSWER.as_bytes(),
                ))))
            });
            let served = hyper::server::conn::http1::Builder::new();
            // A client that goes away is no error of ours.
            let _ended = served.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_probe_is_an_app_like_any_other() {
        let regions = ["fra", "was"].map(|name| RegionName::new(name).unwrap());
        let app = app(&regions, Path::new("/a$b/atoll"), Path::new("/data")).unwrap();
        assert_eq!(app.host_labels()["was"], format!("was--{APP}"));
        assert_eq!(app.services["was"].regions.keys().collect::<Vec<_>>(), [&regions[1]]);
        assert_eq!(app.services["fra"].run[0], "/a$$b/atoll");
        assert_eq!(atoll_model::manifest::variables_of(&app.services["fra"].run[0]), Ok(vec![]));
    }
}
