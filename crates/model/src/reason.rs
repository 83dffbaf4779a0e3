//! Why a request did not get an instance's answer: one list for log, metric and `Proxy-Status`.

use std::fmt;

/// The hop that made an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The public listener.
    Edge,
    /// The region's ingress.
    Gateway,
    /// Beside the instance.
    Sidecar,
}

impl Hop {
    /// The hop's name in `Proxy-Status`, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
        }
    }

    /// The hop with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Edge, Self::Gateway, Self::Sidecar].into_iter().find(|hop| hop.as_str() == name)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal, $proxy_error:literal, $text:literal;)+) => {
        /// A stable reason code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code, as users see it.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The HTTP status that the edge answers with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The error type of RFC 9209, section 2.3.
            #[must_use]
            pub const fn proxy_error(self) -> &'static str {
                match self { $(Self::$variant => $proxy_error,)+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// The request is not well-formed HTTP.
    BadRequest = "bad-request", 400, "http_request_error", "The request is not well-formed.";
    /// Head over the limit.
    HeadTooLarge = "head-too-large", 431, "http_request_error", "The request's header fields are larger than the edge takes.";
    /// Target over the limit.
    UriTooLong = "uri-too-long", 414, "http_request_error", "The request's target is longer than the edge takes.";
    /// CONNECT, TRACE and what is no method.
    MethodRefused = "method-refused", 405, "http_request_denied", "This method is not served here.";
    /// The client did not send its request in time.
    RequestTimeout = "request-timeout", 408, "http_request_error", "The request did not arrive in time.";
    /// The path can be read in more than one way.
    AmbiguousPath = "ambiguous-path", 400, "http_request_denied", "The request's path can be read in more than one way.";
    /// No virtual host has this name.
    UnknownHost = "unknown-host", 404, "http_request_denied", "No app on this platform has this name.";
    /// No route of the virtual host matches.
    NoRoute = "no-route", 404, "http_request_denied", "No route of the app matches this path.";
    /// The connection's certificate does not cover the host.
    Misdirected = "misdirected", 421, "http_request_denied", "This connection's certificate does not cover the requested host.";
    /// The request came through here too often.
    Loop = "loop", 508, "proxy_loop_detected", "The request has passed this platform too many times.";
    /// The edge is at its limit of requests.
    EdgeFull = "edge-full", 503, "connection_limit_reached", "The edge has as many requests as it takes.";
    /// The request said `only-if-cached`, and nothing fresh is stored.
    NotCached = "not-cached", 504, "destination_unavailable", "The request asked for a stored answer, and there is none that is fresh.";
    /// It waited for another request's fetch of the same, which failed, and so did one more.
    FetchFailed = "fetch-failed", 503, "proxy_internal_response", "The same was being fetched for another request; that failed, and so did one more try.";
    /// No region has a healthy instance that can be reached.
    NoRegion = "no-region", 503, "destination_unavailable", "No region has a healthy instance of the service.";
    /// The tunnel to the gateway broke, or none is open.
    TunnelLost = "tunnel-lost", 502, "connection_terminated", "The connection to the region's gateway was lost.";
    /// The gateway did not answer in time.
    GatewayTimeout = "gateway-timeout", 504, "connection_timeout", "The region's gateway did not answer in time.";
    /// An edge asked a gateway for a cluster that is not public, or that it does not know.
    NotPublic = "not-public", 403, "http_request_denied", "The service is not public.";
    /// The peer's identity may not do this.
    NotAuthorized = "not-authorized", 403, "http_request_denied", "The caller may not call this service.";
    /// The forward proxy of a sidecar was asked for something outside the mesh.
    NotInternal = "not-internal", 403, "http_request_denied", "This proxy serves only plain HTTP to services of the platform, by names such as api.shop.internal.";
    /// The gateway knows no healthy instance.
    NoInstance = "no-instance", 503, "destination_unavailable", "The region has no healthy instance of the service.";
    /// The gateway is at its limit.
    GatewayFull = "gateway-full", 503, "connection_limit_reached", "The region's gateway has as many requests as it takes.";
    /// The hop is shutting down.
    Draining = "draining", 503, "connection_limit_reached", "The hop is shutting down.";
    /// The sidecar could not be reached.
    SidecarUnreachable = "sidecar-unreachable", 502, "connection_refused", "The instance's sidecar could not be reached.";
    /// The connection to the sidecar broke before it answered.
    SidecarReset = "sidecar-reset", 502, "connection_terminated", "The connection to the instance's sidecar was lost before an answer.";
    /// The instance's port does not accept.
    InstanceUnreachable = "instance-unreachable", 502, "connection_refused", "The instance does not accept connections.";
    /// The instance closed the connection before it answered.
    InstanceReset = "instance-reset", 502, "connection_terminated", "The instance closed the connection before it answered.";
    /// The instance's answer is not HTTP.
    InstanceProtocol = "instance-protocol", 502, "http_protocol_error", "The instance's answer is not valid HTTP.";
    /// The instance did not answer in time.
    InstanceTimeout = "instance-timeout", 504, "http_response_timeout", "The instance did not answer in time.";
    /// The sidecar is at its limit.
    InstanceFull = "instance-full", 503, "connection_limit_reached", "The instance has as many requests as it takes.";
    /// The client went away.
    ClientGone = "client-gone", 499, "connection_terminated", "The client closed the connection.";
    /// A defect of ours.
    Internal = "internal", 500, "proxy_internal_error", "The platform failed to handle the request.";
}

impl Reason {
    /// The reason with that code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// Whether the request certainly did not reach an instance, so that it may be sent again
    /// whatever its method is.
    #[must_use]
    pub const fn is_unsent(self) -> bool {
        matches!(
            self,
            Self::NoInstance
                | Self::GatewayFull
                | Self::Draining
                | Self::SidecarUnreachable
                | Self::InstanceUnreachable
                | Self::InstanceFull
        )
    }

    /// Whether another instance or region may do better, given that it may be asked at all.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        self.is_unsent() || matches!(self, Self::TunnelLost | Self::SidecarReset | Self::InstanceReset)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_found() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
        }
    }
}
