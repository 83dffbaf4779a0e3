//! From the bytes of a query to the bytes of its answer, without I/O.

use crate::answer::{Answer, answer};
use crate::zone::Zone;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};

/// The largest answer over UDP that no path splits (DNS flag day 2020), and what clients are told to send.
pub const UDP_BYTES_MAX: u16 = 1232;
/// The largest answer over UDP to a client that says nothing of its size (RFC 1035).
const UDP_BYTES_PLAIN: u16 = 512;
const HEADER_BYTES: usize = 12;
/// Additional records in a query: OPT, a signature, and whatever comes next.
const ADDITIONALS_MAX: u16 = 4;

/// What a query came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// With a limit of bytes.
    Udp,
    /// Up to 65,535 bytes.
    Tcp,
}

/// An answer to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub bytes: Vec<u8>,
    /// Its response code.
    pub code: ResponseCode,
    /// It says that there is more than it holds.
    pub truncated: bool,
    /// There is a name, but nothing of the type that was asked for.
    pub nodata: bool,
}

/// What is not answered at all: too short for a header, or an answer itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a query")]
pub struct NotAQuery;

/// Answers a packet. With `truncate` the answer is left out and to be fetched over TCP.
pub fn respond(zone: &Zone, packet: &[u8], transport: Transport, truncate: bool) -> Result<Reply, NotAQuery> {
    let header = Head::read(packet).ok_or(NotAQuery)?;
    let query = match header.check() {
        Ok(()) => Message::from_vec(packet).map_err(|_| ResponseCode::FormErr),
        Err(code) => Err(code),
    };
    let reply = match query {
        Ok(query) => reply_to(zone, &query, transport, truncate),
        Err(code) => bare(&header, code),
    };
    Ok(reply)
}

/// The header's fixed part, read before anything that the sender says is believed.
#[derive(Debug, Clone, Copy)]
struct Head {
    id: u16,
    op_code: OpCode,
    recursion_desired: bool,
    counts: [u16; 4],
}

impl Head {
    /// Nothing for what is too short or no query.
    fn read(packet: &[u8]) -> Option<Self> {
        let [id0, id1, flags, _, counts @ ..] = packet.first_chunk::<HEADER_BYTES>()?;
        let count = |n: usize| u16::from_be_bytes([counts[2 * n], counts[2 * n + 1]]);
        (flags & 0x80 == 0).then(|| Self {
            id: u16::from_be_bytes([*id0, *id1]),
            op_code: OpCode::from_u8(flags >> 3 & 0x0f),
            recursion_desired: flags & 1 == 1,
            counts: [count(0), count(1), count(2), count(3)],
        })
    }

    fn check(&self) -> Result<(), ResponseCode> {
        if self.op_code != OpCode::Query {
            return Err(ResponseCode::NotImp);
        }
        // One question; IXFR brings one record of authority.
        match self.counts {
            [1, 0, 0..=1, 0..=ADDITIONALS_MAX] => Ok(()),
            _ => Err(ResponseCode::FormErr),
        }
    }
}

/// An answer of a header alone.
fn bare(head: &Head, code: ResponseCode) -> Reply {
    let mut metadata = Metadata::new(head.id, MessageType::Response, head.op_code);
    metadata.recursion_desired = head.recursion_desired;
    metadata.response_code = code;
    let mut message = Message::new(head.id, MessageType::Response, head.op_code);
    message.metadata = metadata;
    // A header always fits.
    Reply { bytes: message.to_vec().unwrap_or_default(), code, truncated: false, nodata: false }
}

fn reply_to(zone: &Zone, query: &Message, transport: Transport, truncate: bool) -> Reply {
    let mut message = Message::new(query.id, MessageType::Response, query.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.queries.clone_from(&query.queries);
    let mut limit = usize::from(if transport == Transport::Tcp { u16::MAX } else { UDP_BYTES_PLAIN });
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_version(0).set_max_payload(UDP_BYTES_MAX);
        message.edns = Some(edns);
        if transport == Transport::Udp {
            limit = usize::from(asked.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX));
        }
        if asked.version() > 0 {
            message.metadata.response_code = ResponseCode::BADVERS;
            return encoded(message, limit);
        }
    }
    let Some(question) = query.queries.first() else {
        message.metadata.response_code = ResponseCode::FormErr;
        return encoded(message, limit);
    };
    let Answer { code, authoritative, answers, authorities, additionals } =
        answer(zone, &question.name, question.query_type, question.query_class);
    message.metadata.response_code = code;
    message.metadata.authoritative = authoritative;
    if truncate {
        return encoded(message.truncate(), limit);
    }
    message.answers = answers;
    message.authorities = authorities;
    message.additionals = additionals;
    encoded(message, limit)
}

/// Encodes within the limit: first without what is only helpful, then empty and marked as truncated, because
/// part of a record set is worth nothing to a resolver.
fn encoded(mut message: Message, limit: usize) -> Reply {
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    let code = message.metadata.response_code;
    let nodata = code == ResponseCode::NoError && message.answers.is_empty() && !message.metadata.truncation;
    if let Some(bytes) = fits(&message) {
        return Reply { bytes, code, truncated: message.metadata.truncation, nodata };
    }
    message.additionals.clear();
    if let Some(bytes) = fits(&message) {
        return Reply { bytes, code, truncated: false, nodata };
    }
    let message = message.truncate();
    // A question of at most 255 bytes and OPT fit the least limit.
    Reply { bytes: message.to_vec().unwrap_or_default(), code, truncated: true, nodata: false }
}

#[cfg(test)]
mod tests;
