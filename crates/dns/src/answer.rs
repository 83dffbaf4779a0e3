//! What a question is answered with: a pure function of the zone.

use crate::edges::Serving;
use crate::zone::{ADDRESS_TTL, Found, NEGATIVE_TTL, NameServer, ZONE_TTL, Zone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;

/// An answer, before it is put into a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether and why not.
    pub code: ResponseCode,
    /// Whether it is said with authority: for whatever is in the zone.
    pub authoritative: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The SOA, where there is nothing (RFC 2308).
    pub authorities: Vec<Record>,
    /// The name servers' addresses.
    pub additionals: Vec<Record>,
}

impl Answer {
    fn error(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: vec![], authorities: vec![], additionals: vec![] }
    }

    fn records(answers: Vec<Record>) -> Self {
        Self { authoritative: true, answers, ..Self::error(ResponseCode::NoError) }
    }

    /// There is nothing: no such name, or not of that type.
    fn nothing(zone: &Zone, code: ResponseCode) -> Self {
        let soa = Record::from_rdata(zone.origin.clone(), NEGATIVE_TTL, RData::SOA(zone.soa()));
        Self { authoritative: true, authorities: vec![soa], ..Self::error(code) }
    }
}

/// Answers a question. Owner names are written as the client wrote them.
#[must_use]
pub fn answer(zone: &Zone, name: &Name, kind: RecordType, class: DNSClass) -> Answer {
    if !matches!(class, DNSClass::IN | DNSClass::ANY) || !zone.origin.zone_of(name) {
        return Answer::error(ResponseCode::Refused);
    }
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return Answer::error(ResponseCode::Refused);
    }
    let found = zone.find(name);
    match found {
        Found::Unknown => Answer::error(ResponseCode::ServFail),
        Found::Absent => Answer::nothing(zone, ResponseCode::NXDomain),
        // RFC 8482: all there is would only serve those who want to make others receive much.
        _ if kind == RecordType::ANY => {
            let nothing = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
            Answer::records(vec![Record::from_rdata(name.clone(), ZONE_TTL, nothing)])
        }
        Found::Empty => Answer::nothing(zone, ResponseCode::NoError),
        Found::Server(server) => of_addresses(zone, name, kind, &server.addresses),
        Found::Host => of_edges(zone, name, kind),
        Found::Apex { host } => match kind {
            RecordType::SOA => {
                Answer::records(vec![Record::from_rdata(name.clone(), ZONE_TTL, RData::SOA(zone.soa()))])
            }
            RecordType::NS => name_servers(zone, name),
            _ if host => of_edges(zone, name, kind),
            _ => Answer::nothing(zone, ResponseCode::NoError),
        },
    }
}

fn of_edges(zone: &Zone, name: &Name, kind: RecordType) -> Answer {
    let Serving { v4, v6, .. } = &zone.serving;
    let asked = matches!(kind, RecordType::A | RecordType::AAAA);
    if asked && zone.serving.is_empty() {
        // No edge is known at all. That there were no address would be kept; this is asked again elsewhere.
        return Answer::error(ResponseCode::ServFail);
    }
    let all: Vec<IpAddr> =
        v4.iter().copied().map(IpAddr::V4).chain(v6.iter().copied().map(IpAddr::V6)).collect();
    of_addresses(zone, name, kind, &all)
}

fn of_addresses(zone: &Zone, name: &Name, kind: RecordType, addresses: &[IpAddr]) -> Answer {
    let records: Vec<Record> = addresses
        .iter()
        .map(|address| address_record(name, *address, ADDRESS_TTL))
        .filter(|record| record.record_type() == kind)
        .collect();
    if records.is_empty() {
        return Answer::nothing(zone, ResponseCode::NoError);
    }
    Answer::records(records)
}

fn name_servers(zone: &Zone, name: &Name) -> Answer {
    let names = zone.servers.iter().map(|server| RData::NS(NS(server.name.clone())));
    let records: Vec<Record> =
        names.map(|server| Record::from_rdata(name.clone(), ZONE_TTL, server)).collect();
    if records.is_empty() {
        return Answer::error(ResponseCode::ServFail);
    }
    let glue = |server: &NameServer| {
        let records = server.addresses.iter().map(|address| address_record(&server.name, *address, ZONE_TTL));
        records.collect::<Vec<_>>()
    };
    Answer { additionals: zone.servers.iter().flat_map(glue).collect(), ..Answer::records(records) }
}

fn address_record(name: &Name, address: IpAddr, ttl: u32) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), ttl, data)
}

#[cfg(test)]
mod tests;
