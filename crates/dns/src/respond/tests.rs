use super::*;
use crate::testing::{name, zone};
use crate::zone::NameServer;
use hickory_proto::op::Query;
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;

fn query(text: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn ask(zone: &Zone, query: &Message, transport: Transport) -> (Reply, Message) {
    let reply = respond(zone, &query.to_vec().unwrap(), transport, false).unwrap();
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!((message.id, message.message_type), (query.id, MessageType::Response));
    assert_eq!(message.queries, query.queries);
    (reply, message)
}

/// A zone whose name servers do not fit 512 bytes.
fn crowded(servers: usize) -> Zone {
    let mut zone = zone(&["shop.zone.test"]);
    let server = |n: usize| {
        let addresses = vec![std::net::IpAddr::from([10, 0, 1, u8::try_from(n).unwrap()])];
        NameServer::new(&format!("region{n}-with-a-long-name-edge"), &zone.origin, addresses).unwrap()
    };
    zone.servers = (0..servers).map(server).collect();
    zone
}

#[test]
fn the_answer_carries_what_was_asked_and_says_who_answers() {
    let (reply, message) =
        ask(&zone(&["shop.zone.test"]), &query("sHop.zone.test.", RecordType::A, None), Transport::Udp);
    assert_eq!(message.answers.len(), 2);
    assert!(message.authoritative && message.recursion_desired && !message.recursion_available);
    assert!(message.edns.is_none(), "OPT answers OPT only");
    assert!(message.queries[0].name.eq_case(&name("sHop.zone.test.")), "letters as the client wrote them");
    assert!(!reply.nodata && !reply.truncated);
}

#[test]
fn edns_is_answered_with_our_size() {
    let asked = query("shop.zone.test.", RecordType::AAAA, Some(4096));
    let (reply, message) = ask(&zone(&["shop.zone.test"]), &asked, Transport::Udp);
    assert_eq!(message.edns.map(|edns| (edns.max_payload(), edns.version())), Some((UDP_BYTES_MAX, 0)));
    assert!(reply.nodata);
}

#[test]
fn an_unknown_version_of_edns_is_said_so() {
    let mut asked = query("shop.zone.test.", RecordType::A, Some(1232));
    asked.edns.as_mut().unwrap().set_version(1);
    let (_, message) = ask(&zone(&["shop.zone.test"]), &asked, Transport::Udp);
    // 16 is BADSIG, too.
    assert_eq!(u16::from(message.response_code), u16::from(ResponseCode::BADVERS));
    assert!(message.answers.is_empty() && message.edns.is_some());
}

#[test]
fn what_is_only_helpful_goes_first_then_the_answer_is_cut_whole() {
    let asked = |payload| query("zone.test.", RecordType::NS, payload);
    let (reply, all) = ask(&crowded(13), &asked(None), Transport::Tcp);
    assert!(reply.bytes.len() > 512 && all.answers.len() == 13 && all.additionals.len() == 13);
    let (reply, fewer) = ask(&crowded(9), &asked(None), Transport::Udp);
    assert!(reply.bytes.len() <= 512 && !reply.truncated);
    assert_eq!((fewer.answers.len(), fewer.additionals.len()), (9, 0));
    let (reply, cut) = ask(&crowded(13), &asked(None), Transport::Udp);
    assert!(reply.bytes.len() <= 512 && reply.truncated && cut.truncation);
    assert_eq!((cut.answers.len(), cut.authorities.len()), (0, 0));
    let (reply, wide) = ask(&crowded(13), &asked(Some(1232)), Transport::Udp);
    assert_eq!((reply.truncated, wide.answers.len()), (false, 13));
    let (reply, _) = ask(&crowded(13), &asked(Some(100)), Transport::Udp);
    assert!(reply.truncated && reply.bytes.len() <= 512, "a size below 512 is 512");
}

#[test]
fn over_the_limit_the_client_is_sent_to_tcp() {
    let packet = query("shop.zone.test.", RecordType::A, Some(1232)).to_vec().unwrap();
    let reply = respond(&zone(&["shop.zone.test"]), &packet, Transport::Udp, true).unwrap();
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert!(reply.truncated && message.truncation && message.answers.is_empty());
    assert!(reply.bytes.len() <= packet.len(), "nothing is amplified");
}

#[test]
fn other_operations_are_not_implemented() {
    for op_code in [1_u8, 2, 4, 5, 6, 15] {
        let mut packet = query("shop.zone.test.", RecordType::A, None).to_vec().unwrap();
        packet[2] |= op_code << 3;
        let reply = respond(&zone(&[]), &packet, Transport::Udp, false).unwrap();
        assert_eq!(reply.code, ResponseCode::NotImp, "{op_code}");
        assert_eq!((&reply.bytes[..2], reply.bytes[2] >> 3 & 0xf), (&packet[..2], op_code));
    }
}

#[test]
fn answers_and_scraps_are_not_answered() {
    let mut packet = query("shop.zone.test.", RecordType::A, None).to_vec().unwrap();
    packet[2] |= 0x80;
    assert_eq!(respond(&zone(&[]), &packet, Transport::Udp, false), Err(NotAQuery));
    assert_eq!(respond(&zone(&[]), &packet[..11], Transport::Udp, false), Err(NotAQuery));
    assert_eq!(respond(&zone(&[]), &[], Transport::Udp, false), Err(NotAQuery));
}

#[test]
fn a_query_of_no_sense_is_said_so() {
    let good = query("shop.zone.test.", RecordType::A, None).to_vec().unwrap();
    let with_byte = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    // No question, two, 65,280; an answer; more records than there are; a name that points to itself; cut off.
    let mut pointing = good.clone();
    pointing.splice(12..14, [0xc0, 12]);
    let packets = [
        with_byte(5, 0),
        with_byte(5, 2),
        with_byte(4, 255),
        with_byte(7, 1),
        with_byte(11, 4),
        with_byte(10, 255),
        pointing,
        good[..20].to_vec(),
    ];
    for packet in packets {
        let reply = respond(&zone(&["shop.zone.test"]), &packet, Transport::Udp, false).unwrap();
        assert_eq!(reply.code, ResponseCode::FormErr, "{packet:?}");
        assert_eq!(reply.bytes.len(), 12, "{packet:?}");
    }
}

#[test]
fn the_longest_name_gets_an_answer_that_can_be_read() {
    let label = "x".repeat(63);
    let long = format!("{label}.{label}.{label}.{}.zone.test.", "y".repeat(50));
    let (reply, message) = ask(&zone(&[]), &query(&long, RecordType::A, Some(1232)), Transport::Udp);
    assert_eq!(message.response_code, ResponseCode::NXDomain);
    assert!(matches!(message.authorities[0].data, RData::SOA(_)) && reply.bytes.len() <= 512);
}

proptest! {
    #[test]
    fn no_bytes_break_it(packet in proptest::collection::vec(any::<u8>(), 0..600), truncate: bool) {
        let zone = zone(&["shop.zone.test"]);
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Ok(reply) = respond(&zone, &packet, transport, truncate) {
                prop_assert!(Message::from_vec(&reply.bytes).is_ok());
            }
        }
    }

    #[test]
    fn a_damaged_query_breaks_nothing(
        damage in proptest::collection::vec((0..200_usize, any::<u8>()), 0..6), cut in 0..80_usize,
    ) {
        let mut packet = query("a.shop.zone.test.", RecordType::ANY, Some(1232)).to_vec().unwrap();
        for (at, value) in damage {
            let at = at % packet.len();
            packet[at] = value;
        }
        packet.truncate(packet.len().saturating_sub(cut));
        if let Ok(reply) = respond(&crowded(13), &packet, Transport::Udp, false) {
            prop_assert!(reply.bytes.len() <= usize::from(UDP_BYTES_MAX));
            prop_assert!(Message::from_vec(&reply.bytes).is_ok());
        }
    }
}
