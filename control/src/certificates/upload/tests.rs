#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

const NOW_MS: u64 = 1_900_000_000_000;

struct Made {
    chain: Vec<String>,
    key: KeyPair,
}

fn ca(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    (params, KeyPair::generate().unwrap())
}

/// A root, an intermediate, and a leaf for those names: leaf first.
fn made(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm, until: i32) -> Made {
    let (root, root_key) = ca("root");
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, root_key);
    let (middle, middle_key) = ca("middle");
    let middle_pem = middle.signed_by(&middle_key, &root).unwrap().pem();
    let middle = Issuer::new(middle, middle_key);
    let mut leaf = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    leaf.not_after = date_time_ymd(until, 1, 1);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(algorithm).unwrap();
    let leaf_pem = leaf.signed_by(&key, &middle).unwrap().pem();
    Made { chain: vec![leaf_pem, middle_pem, root_pem], key }
}

fn good() -> Made {
    made(&["www.example.com", "*.example.org"], &rcgen::PKCS_ECDSA_P256_SHA256, 2040)
}

fn fault(domain: &str, chain: &[&str], key: &str) -> UploadFault {
    check(domain, &chain.concat(), key, NOW_MS).unwrap_err()
}

#[test]
fn every_kind_of_key_is_taken() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let Made { chain, key } = made(&["www.example.com"], algorithm, 2040);
        let uploaded = check("www.example.com", &chain.concat(), &key.serialize_pem(), NOW_MS).unwrap();
        assert_eq!(uploaded.chain.len(), 3);
        assert!(uploaded.not_after_ms > NOW_MS);
    }
}

#[test]
fn names_are_covered_exactly_or_by_one_label() {
    let Made { chain, key } = good();
    let (chain, key) = (chain.concat(), key.serialize_pem());
    let covers = |domain: &str| check(domain, &chain, &key, NOW_MS);
    assert!(covers("www.example.com").is_ok());
    assert!(covers("a.example.org").is_ok());
    assert!(covers("*.example.org").is_ok());
    for domain in ["example.com", "a.b.example.org", "example.org", "*.example.com"] {
        assert!(matches!(covers(domain), Err(UploadFault::Names { .. })), "{domain}");
    }
}

#[test]
fn what_clients_would_stumble_over_is_refused() {
    let Made { chain, key } = good();
    let [leaf, middle, root] = chain.as_slice() else { panic!() };
    let key = key.serialize_pem();
    let domain = "www.example.com";
    assert!(
        check(domain, &[leaf.as_str(), middle].concat(), &key, NOW_MS).is_ok(),
        "the root may be left out"
    );
    assert!(check(domain, leaf, &key, NOW_MS).is_ok(), "it may be trusted as such");
    assert_eq!(fault(domain, &[middle, leaf], &key), UploadFault::KeyMismatch);
    assert_eq!(fault(domain, &[leaf, root, middle], &key), UploadFault::Order { next: 2 });
    let other = good();
    assert_eq!(fault(domain, &[leaf, middle], &other.key.serialize_pem()), UploadFault::KeyMismatch);
    // The same names, another key: only the signature tells.
    assert!(matches!(fault(domain, &[leaf, &other.chain[1]], &key), UploadFault::Chain(_)));
    assert_eq!(fault(domain, &["no PEM"], &key), UploadFault::NoCertificate);
    assert_eq!(fault(domain, &[leaf], "no PEM"), UploadFault::NoKey);
    let expired = made(&[domain], &rcgen::PKCS_ECDSA_P256_SHA256, 2029);
    assert_eq!(fault(domain, &[&expired.chain[0]], &expired.key.serialize_pem()), UploadFault::Expired(1));
}

/// What OpenSSL writes by `-traditional` and `ecparam`: the bare forms.
#[test]
fn bare_keys_get_their_frame() {
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let Made { chain, key } = made(&["www.example.com"], algorithm, 2040);
        let pkcs8 = key.serialize_der();
        // Version, algorithm, then the octet string that holds the bare key.
        let (_, content) = element(&pkcs8).unwrap();
        let (version, _) = element(content).unwrap();
        let (named, _) = element(&content[version.len()..]).unwrap();
        let (_, bare) = element(&content[version.len() + named.len()..]).unwrap();
        let label = if algorithm == &rcgen::PKCS_RSA_SHA256 { "RSA PRIVATE KEY" } else { "EC PRIVATE KEY" };
        let text = data_encoding::BASE64.encode(bare);
        let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        check("www.example.com", &chain.concat(), &pem, NOW_MS).unwrap();
    }
}

#[test]
fn only_domains_of_ones_own() {
    let zone = "apps.example.net";
    assert_eq!(own_domain("WWW.Example.com.", zone).unwrap(), "www.example.com");
    assert_eq!(own_domain("*.example.com", zone).unwrap(), "*.example.com");
    assert_eq!(own_domain("example.net", zone).unwrap(), "example.net");
    for wrong in [
        "",
        "com",
        "*.com",
        "*",
        "a.*.com",
        "-a.com",
        "10.0.0.1",
        "[::1]",
        "a..b",
        "ex ample.com",
        "bücher.de",
    ] {
        assert!(matches!(own_domain(wrong, zone), Err(DomainFault::Name(_))), "{wrong}");
    }
    for taken in ["apps.example.net", "x.apps.example.net", "*.apps.example.net"] {
        assert!(matches!(own_domain(taken, zone), Err(DomainFault::Zone(..))), "{taken}");
    }
    assert!(matches!(own_domain("api.shop.internal", zone), Err(DomainFault::Internal(_))));
}
