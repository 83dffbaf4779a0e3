//! Host names and domains in the one form in which they are compared.

use std::borrow::Cow;

/// Longest host name, in bytes (RFC 1035), without the trailing dot.
pub const HOST_BYTES_MAX: usize = 253;

/// A host name in the form that tables use: no port, no trailing dot, lower case. `None` when it is
/// no host name. An IP address is one (an IPv6 address in brackets): it just has no virtual host.
#[must_use]
pub fn normalise_host(authority: &str) -> Option<Cow<'_, str>> {
    let host = without_port(authority)?;
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return None;
    }
    if host.starts_with('[') {
        return Some(host.into());
    }
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !host.split('.').all(good) {
        return None;
    }
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Some(host.to_ascii_lowercase().into())
    } else {
        Some(host.into())
    }
}

fn without_port(authority: &str) -> Option<&str> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']')? + 1;
        let inside = authority.get(1..end - 1)?;
        if inside.is_empty() || !inside.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b)) {
            return None;
        }
        (&authority[..end], &authority[end..])
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    match port.strip_prefix(':') {
        None => port.is_empty().then_some(host),
        // RFC 3986 allows an empty port.
        Some(digits) => (digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit())).then_some(host),
    }
}

/// A domain in the form that tables use: a host name by [`normalise_host`], or `*.` and one, which stands for one label
/// more. `None` when it is neither, or has a port.
#[must_use]
pub fn normalise_domain(domain: &str) -> Option<String> {
    let (wildcard, rest) = match domain.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", domain),
    };
    if rest.contains([':', '[']) {
        return None;
    }
    normalise_host(rest).map(|host| format!("{wildcard}{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_have_one_form() {
        for (text, normal) in [
            ("Shop.Example.com.", Some("shop.example.com")),
            ("*.Shop.example.com", Some("*.shop.example.com")),
            ("localhost", Some("localhost")),
            ("shop.example.com:8443", None),
            ("*", None),
            ("*.", None),
            ("a.*.b", None),
            ("a b", None),
            ("[::1]", None),
            ("", None),
        ] {
            assert_eq!(normalise_domain(text).as_deref(), normal, "{text}");
        }
    }
}
