use super::*;
use crate::testing::{name, zone};
use crate::zone::Zone;
use proptest::prelude::*;

fn ask(zone: &Zone, text: &str, kind: RecordType) -> Answer {
    answer(zone, &name(text), kind, DNSClass::IN)
}

fn addresses(answer: &Answer) -> Vec<String> {
    let text = |record: &Record| match &record.data {
        RData::A(A(v4)) => v4.to_string(),
        RData::AAAA(AAAA(v6)) => v6.to_string(),
        other => other.to_string(),
    };
    answer.answers.iter().map(text).collect()
}

fn soa_ttl(answer: &Answer) -> Option<u32> {
    let record = answer.authorities.first()?;
    matches!(record.data, RData::SOA(_)).then_some(record.ttl)
}

#[test]
fn a_host_has_the_edges_addresses() {
    let zone = zone(&["shop.zone.test"]);
    let found = ask(&zone, "Shop.zone.test.", RecordType::A);
    assert_eq!(addresses(&found), ["10.0.0.1", "10.0.0.2"]);
    assert!(found.authoritative && found.answers.iter().all(|record| record.ttl == ADDRESS_TTL));
    assert_eq!(found.answers[0].name.to_ascii(), "Shop.zone.test.", "as the client wrote it");
}

#[test]
fn another_type_of_a_name_is_nodata_with_the_soa() {
    let zone = zone(&["shop.zone.test"]);
    for kind in [RecordType::AAAA, RecordType::TXT, RecordType::MX, RecordType::NS, RecordType::SOA] {
        let found = ask(&zone, "shop.zone.test.", kind);
        assert_eq!(found.code, ResponseCode::NoError, "{kind}");
        assert!(found.answers.is_empty() && found.authoritative, "{kind}");
        assert_eq!(soa_ttl(&found), Some(NEGATIVE_TTL), "{kind}");
    }
}

#[test]
fn an_unknown_name_does_not_exist() {
    let found = ask(&zone(&["shop.zone.test"]), "ship.zone.test.", RecordType::A);
    assert_eq!((found.code, soa_ttl(&found)), (ResponseCode::NXDomain, Some(NEGATIVE_TTL)));
    assert!(found.authoritative);
}

#[test]
fn a_name_with_only_names_below_is_nodata() {
    let zone = zone(&["a.deep.zone.test"]);
    assert_eq!(ask(&zone, "deep.zone.test.", RecordType::A).code, ResponseCode::NoError);
    assert_eq!(ask(&zone, "ns.zone.test.", RecordType::A).code, ResponseCode::NoError);
    assert_eq!(ask(&zone, "x.ns.zone.test.", RecordType::A).code, ResponseCode::NXDomain);
}

#[test]
fn nothing_is_denied_before_desired_state_has_come() {
    let mut zone = zone(&["shop.zone.test"]);
    zone.known = false;
    assert_eq!(ask(&zone, "ship.zone.test.", RecordType::A).code, ResponseCode::ServFail);
    assert_eq!(ask(&zone, "shop.zone.test.", RecordType::A).code, ResponseCode::NoError);
    assert_eq!(ask(&zone, "zone.test.", RecordType::SOA).code, ResponseCode::NoError);
}

#[test]
fn without_any_edge_it_is_a_failure_and_never_an_empty_answer() {
    let mut zone = zone(&["shop.zone.test"]);
    zone.serving = Serving::default();
    for kind in [RecordType::A, RecordType::AAAA] {
        assert_eq!(ask(&zone, "shop.zone.test.", kind).code, ResponseCode::ServFail);
    }
    assert_eq!(ask(&zone, "shop.zone.test.", RecordType::TXT).code, ResponseCode::NoError);
}

#[test]
fn the_apex_has_soa_and_name_servers_with_their_addresses() {
    let zone = zone(&[]);
    let soa = ask(&zone, "zone.test.", RecordType::SOA);
    let RData::SOA(data) = &soa.answers[0].data else { panic!("{soa:?}") };
    assert_eq!((data.serial, data.minimum), (7, NEGATIVE_TTL));
    assert_eq!(data.mname.to_ascii(), "fra1-edge.ns.zone.test.");
    let servers = ask(&zone, "zone.test.", RecordType::NS);
    assert_eq!(addresses(&servers), ["fra1-edge.ns.zone.test.", "was1-edge.ns.zone.test."]);
    assert_eq!(servers.additionals.len(), 3, "glue: an IPv4 address each, and an IPv6 address of one");
    let glue = ask(&zone, "WAS1-edge.ns.zone.test.", RecordType::AAAA);
    assert_eq!(addresses(&glue), ["2001:db8::2"]);
    assert_eq!(ask(&zone, "zone.test.", RecordType::A).answers, []);
}

#[test]
fn a_virtual_host_may_be_at_the_apex() {
    let found = ask(&zone(&["zone.test"]), "zone.test.", RecordType::A);
    assert_eq!(addresses(&found).len(), 2);
}

#[test]
fn any_is_answered_with_almost_nothing() {
    let zone = zone(&["shop.zone.test"]);
    for text in ["shop.zone.test.", "zone.test."] {
        let found = ask(&zone, text, RecordType::ANY);
        assert!(matches!(&found.answers[..], [Record { data: RData::HINFO(_), .. }]), "{found:?}");
    }
    assert_eq!(ask(&zone, "ship.zone.test.", RecordType::ANY).code, ResponseCode::NXDomain);
}

#[test]
fn what_is_not_ours_is_refused() {
    let zone = zone(&["shop.zone.test", "shop.example"]);
    for text in ["shop.example.", "test.", ".", "notzone.test.", "zone.test.evil."] {
        let found = ask(&zone, text, RecordType::A);
        assert_eq!((found.code, found.authoritative), (ResponseCode::Refused, false), "{text}");
        assert!(found.authorities.is_empty(), "{text}");
    }
    assert_eq!(ask(&zone, "zone.test.", RecordType::AXFR).code, ResponseCode::Refused);
    let chaos = answer(&zone, &name("version.bind."), RecordType::TXT, DNSClass::CH);
    assert_eq!(chaos.code, ResponseCode::Refused);
}

proptest! {
    #[test]
    fn addresses_for_what_exists_and_a_soa_for_what_does_not(
        below in "[a-c](\\.[a-c]){0,2}", asked in "[a-cA-C](\\.[a-cA-C]){0,2}",
    ) {
        let zone = zone(&[&format!("{below}.zone.test")]);
        let found = ask(&zone, &format!("{asked}.zone.test."), RecordType::A);
        let lower = asked.to_ascii_lowercase();
        let inside = below.ends_with(&format!(".{lower}"));
        prop_assert_eq!(!found.answers.is_empty(), lower == below);
        prop_assert_eq!(found.code == ResponseCode::NXDomain, lower != below && !inside);
        prop_assert_eq!(found.answers.is_empty(), soa_ttl(&found) == Some(NEGATIVE_TTL));
    }
}
