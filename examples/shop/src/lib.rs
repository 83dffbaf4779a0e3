//! The example app: a shop of two services, `web` and `api`, in one program.
//!
//! It shows where a request ended up and what reached it, and it can be told over HTTP to become
//! unhealthy or slow, or to exit. The web asks the api for the products. It knows nothing of Atoll but the
//! environment it gets.

mod answer;
mod api;
mod bodies;
mod page;
mod server;
mod whims;

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;

const USAGE: &str = "usage: atoll-shop web|api --listen ADDRESS:PORT";

/// Which of the two services this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Web,
    Api,
}

/// Runs the service that `words` name: `web` or `api`, `--listen`, and an address with a port. Ends at
/// SIGTERM, after what is under way.
pub fn run(words: impl Iterator<Item = String>) -> Result<()> {
    let (service, address) = arguments(words)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(server::run(service, address))
}

fn arguments(words: impl Iterator<Item = String>) -> Result<(Service, SocketAddr)> {
    let words: Vec<String> = words.collect();
    let [service, flag, address] = words.as_slice() else { bail!(USAGE) };
    let service = match service.as_str() {
        "web" => Service::Web,
        "api" => Service::Api,
        _ => bail!(USAGE),
    };
    if flag != "--listen" {
        bail!(USAGE);
    }
    let address = address.parse().with_context(|| format!("`{address}` is no address and port; {USAGE}"))?;
    Ok((service, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(Service, SocketAddr)> {
        arguments(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn the_manifest_is_good() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(folder.join("atoll.toml")).unwrap();
        let manifest = atoll_model::manifest::parse(&text, "atoll.toml", folder).unwrap();
        assert_eq!(
            manifest.regions().map(|region| region.as_str()).collect::<Vec<_>>(),
            ["fra", "sin", "was"]
        );
        let app = manifest.compile();
        let public = |name: &str| app.services.iter().find(|(key, _)| key.as_str() == name).unwrap().1.public;
        assert!(public("web") && !public("api"));
        let calls = &app.services.values().find(|spec| spec.public).unwrap().calls;
        assert_eq!(calls[0].variable(), "API_URL");
    }

    #[test]
    fn arguments_are_read() {
        assert_eq!(
            parse("web --listen 127.0.0.1:80").unwrap(),
            (Service::Web, "127.0.0.1:80".parse().unwrap())
        );
        for bad in ["", "web", "cart --listen 127.0.0.1:80", "web --port 127.0.0.1:80", "api --listen 80"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
