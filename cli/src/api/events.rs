//! Server-sent events.

use crate::failure::{Exit, Failure, Outcome};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Longest event that is read.
const EVENT_BYTES_MAX: usize = 256 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// `event:`; empty for a plain message.
    pub name: String,
    /// `data:`, its lines joined.
    pub data: String,
    /// `id:`, if it has one.
    pub id: Option<String>,
}

/// Reads a stream of events.
#[derive(Debug)]
pub struct EventReader {
    body: Incoming,
    parser: Parser,
}

impl EventReader {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The next event; nothing when the stream has ended. A broken connection is [`Exit::Unreachable`].
    pub async fn next(&mut self) -> Outcome<Option<Event>> {
        loop {
            if let Some(event) = self.parser.next()? {
                return Ok(Some(event));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.parser.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Failure::new(Exit::Unreachable, format!("the stream broke off: {error}")));
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    event: Event,
    any: bool,
}

impl Parser {
    fn next(&mut self) -> Outcome<Option<Event>> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if std::mem::take(&mut self.any) {
                    return Ok(Some(std::mem::take(&mut self.event)));
                }
                self.event = Event::default();
            } else {
                self.field(line);
            }
        }
        if self.buffer.len() + self.event.data.len() > EVENT_BYTES_MAX {
            return Err(Failure::failed("the API sent an event that is too long"));
        }
        Ok(None)
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.any, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments keep the connection alive; what we don't know we leave out, as the standard says.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_were_cut() {
        let text = b": hello\n\nevent: progress\r\nid: 7\r\ndata: a\r\ndata: b\r\n\r\nretry: 5\n\ndata:c\n\n";
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for byte in text {
            parser.buffer.push(*byte);
            events.extend(parser.next().unwrap());
        }
        let first = Event { name: "progress".to_owned(), data: "a\nb".to_owned(), id: Some("7".to_owned()) };
        assert_eq!(events, [first, Event { data: "c".to_owned(), ..Event::default() }]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser { buffer: vec![b'x'; EVENT_BYTES_MAX + 1], ..Parser::default() };
        assert!(parser.next().is_err());
    }
}
