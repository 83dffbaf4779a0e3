#![allow(clippy::unwrap_used)]
use super::*;

fn received(domain: &str, names: &[&str]) -> DomainCertificate {
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
    all.insert("*.a.example", Certificate::new(&wildcard).unwrap());
    all.insert("x.a.example", Certificate::new(&exact).unwrap());
    assert_eq!(all.find("X.a.example.").unwrap().fingerprint, exact.fingerprint);
    assert_eq!(all.find("y.a.example").unwrap().fingerprint, wildcard.fingerprint);
    assert!(all.find("a.example").is_none() && all.find("y.x.a.example").is_none());
    let certificate = all.find("y.a.example").unwrap();
    assert!(certificate.covers("z.a.example") && !certificate.covers("a.example"));
    all.remove("x.a.example");
    assert_eq!(all.find("x.a.example").unwrap().fingerprint, wildcard.fingerprint);
}
