#![allow(clippy::unwrap_used)]
use super::*;
use atoll_identity::fingerprint_hex;

pub(super) fn received(domain: &str, names: &[&str]) -> DomainCertificate {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let chain = vec![made.cert.der().to_vec()];
    DomainCertificate {
        domain: domain.to_owned(),
        fingerprint: fingerprint_hex(&chain.concat()),
        chain,
        key: made.signing_key.serialize_der(),
    }
}

#[test]
fn only_what_holds_together_is_taken() {
    let good = received("a.example", &["a.example"]);
    assert!(Certificate::new(&good).is_ok());
    let mut other_key = good.clone();
    other_key.key = received("a.example", &["a.example"]).key;
    assert!(matches!(Certificate::new(&other_key), Err(CertificateError::Key(_))));
    let mut other_chain = good.clone();
    other_chain.chain = received("a.example", &["a.example"]).chain;
    assert!(matches!(Certificate::new(&other_chain), Err(CertificateError::Fingerprint { .. })));
    let mut other_domain = good;
    other_domain.domain = "b.example".to_owned();
    assert!(matches!(Certificate::new(&other_domain), Err(CertificateError::Names)));
    let empty = DomainCertificate { fingerprint: fingerprint_hex(&[]), ..DomainCertificate::default() };
    assert!(matches!(Certificate::new(&empty), Err(CertificateError::Chain)));
}

#[test]
fn the_exact_domain_comes_before_the_wildcard() {
    let all = Certificates::default();
    let wildcard = received("*.a.example", &["*.a.example"]);
    let exact = received("x.a.example", &["x.a.example"]);
    all.insert([wildcard.clone(), exact.clone()]);
    let (wildcard, exact) =
        (kept::parse(&wildcard.fingerprint).unwrap(), kept::parse(&exact.fingerprint).unwrap());
    assert_eq!(all.find("X.a.example.").unwrap().fingerprint, exact);
    assert_eq!(all.find("y.a.example").unwrap().fingerprint, wildcard);
    assert!(all.find("a.example").is_none() && all.find("y.x.a.example").is_none());
    let certificate = all.find("y.a.example").unwrap();
    assert!(certificate.covers("z.a.example") && !certificate.covers("a.example"));
    all.remove("x.a.example");
    assert_eq!(all.find("x.a.example").unwrap().fingerprint, wildcard);
}

#[test]
fn what_is_kept_is_what_came_and_chains_are_shared() {
    let mut first = received("a.example", &["a.example"]);
    let mut second = received("b.example", &["b.example"]);
    let intermediate = received("ca.example", &["ca.example"]).chain.remove(0);
    for certificate in [&mut first, &mut second] {
        certificate.chain.push(intermediate.clone());
        certificate.fingerprint = fingerprint_hex(&certificate.chain.concat());
        assert!(Certificate::new(certificate).is_ok());
    }
    let mut chains = Chains::default();
    let kept = [&first, &second].map(|certificate| Kept::new(certificate, &mut chains).unwrap());
    assert_eq!((kept[0].received("a.example"), kept[1].received("b.example")), (first, second));
    assert!(kept[0].shares_its_chain_with(&kept[1]));
    assert!(!format!("{:?}", kept[0]).contains("bytes"));
}

#[test]
fn few_are_ready_at_a_time_and_all_can_be() {
    let all = Certificates::default();
    let made: Vec<_> =
        (0..3).map(|n| received(&format!("{n}.example"), &[&format!("{n}.example")])).collect();
    all.insert(made);
    for _ in 0..2 {
        for n in 0..3 {
            assert!(all.find(&format!("{n}.example")).unwrap().covers(&format!("{n}.example")));
        }
    }
    let first = all.find("0.example").unwrap();
    assert!(Arc::ptr_eq(&first, &all.find("0.example").unwrap()), "made ready once");
    // As if many others had been asked for.
    let mut ready = all.ready();
    for n in 0..2 * READY_MAX as u64 {
        let fingerprint = std::array::from_fn(|i| n.to_be_bytes()[i % 8]);
        ready.keep(&Arc::new(Certificate { key: Arc::clone(&first.key), fingerprint, names: Vec::new() }));
    }
    assert!(ready.young.len() + ready.old.len() <= 2 * READY_MAX);
    drop(ready);
    assert!(!Arc::ptr_eq(&first, &all.find("0.example").unwrap()));
}
