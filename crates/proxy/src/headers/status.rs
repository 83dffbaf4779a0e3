//! Fields about what happened on the way.

use atoll_model::{Hop, Reason};
use http::HeaderValue;
use std::fmt;

/// `Proxy-Status` (RFC 9209) for an answer that `hop` made.
#[must_use]
pub fn proxy_status(hop: Hop, reason: Reason) -> HeaderValue {
    let text = format!("atoll-{hop}; error={}; details=\"{}\"", reason.proxy_error(), reason.code());
    HeaderValue::try_from(text).expect("names and codes are plain ASCII")
}

/// Microseconds from head in to head out at each hop, as `atoll-hops` carries them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hops {
    /// At the gateway.
    pub gateway_us: Option<u64>,
    /// At the sidecar.
    pub sidecar_us: Option<u64>,
    /// At the instance.
    pub app_us: Option<u64>,
}

impl Hops {
    /// Reads a field; what is not understood is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut hops = Self::default();
        for part in text.split(',').take(8) {
            let Some((name, value)) = part.trim().split_once('=') else {
                continue;
            };
            let value = value.parse().ok();
            match name {
                "gw" => hops.gateway_us = value,
                "sc" => hops.sidecar_us = value,
                "app" => hops.app_us = value,
                _ => {}
            }
        }
        hops
    }

    /// The field.
    #[must_use]
    pub fn to_value(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("letters, digits and = are a valid value")
    }
}

impl fmt::Display for Hops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("gw", self.gateway_us), ("sc", self.sidecar_us), ("app", self.app_us)];
        let mut separator = "";
        for (name, value) in parts {
            if let Some(value) = value {
                write!(f, "{separator}{name}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_proxy_status_that_names_hop_and_code() {
        for reason in Reason::ALL {
            let value = proxy_status(Hop::Sidecar, *reason);
            let text = value.to_str().unwrap_or_default();
            assert!(text.starts_with("atoll-sidecar; error="), "{text}");
            assert!(text.ends_with(&format!("details=\"{}\"", reason.code())), "{text}");
        }
    }

    #[test]
    fn hops_round_trip() {
        let hops = Hops { gateway_us: Some(1), sidecar_us: Some(2), app_us: None };
        assert_eq!(hops.to_string(), "gw=1,sc=2");
        assert_eq!(Hops::parse("gw=1, sc=2,x,future=3"), hops);
    }
}
