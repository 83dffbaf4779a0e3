//! Which codings a request accepts (RFC 9110, section 12.5.3).

use super::Coding;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};

/// Best first among those that a client likes the same: what makes the smallest answers for the time that they take.
const PREFERRED: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];
/// The weight of what comes without one, in thousandths.
const WHOLE: u16 = 1000;

/// Which of our codings a request accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// A bit for each, at its index.
    codings: u8,
    best: Option<Coding>,
    identity_refused: bool,
}

/// What becomes of `Accept-Encoding` where the request is forwarded, and where it is part of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Canonical {
    /// None of our codings is accepted: no field.
    Absent,
    /// One text for all requests that accept the same of ours, whatever else they say.
    Value(HeaderValue),
    /// The client refuses an answer that is not encoded, perhaps for a coding that only the origin knows: it stays as it is.
    AsSent,
}

impl Accepted {
    /// None of them.
    pub const NONE: Self = Self { codings: 0, best: None, identity_refused: false };

    /// What a request accepts. Without the field that is nothing, though the RFC would allow everything: who says nothing mostly
    /// cannot decode either. Parts that do not follow the grammar are passed over.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut weights = Weights::default();
        for line in headers.get_all(ACCEPT_ENCODING) {
            line.as_bytes().split(|byte| *byte == b',').filter_map(part).for_each(|part| weights.take(part));
        }
        weights.accepted()
    }

    /// The coding to answer in: the one that the client likes most; of several the best one. None where the client likes an answer
    /// that is not encoded better than each of ours.
    #[must_use]
    pub const fn best(self) -> Option<Coding> {
        self.best
    }

    /// Whether an answer may be in this coding.
    #[must_use]
    pub const fn accepts(self, coding: Coding) -> bool {
        self.codings & bit(coding) != 0
    }

    /// Whether an answer must be encoded.
    #[cfg(test)]
    const fn identity_refused(self) -> bool {
        self.identity_refused
    }

    /// The field in its one form.
    #[must_use]
    pub fn canonical(self) -> Canonical {
        if self.identity_refused {
            return Canonical::AsSent;
        }
        let [gzip, brotli, zstd] = Coding::ALL.map(|coding| self.accepts(coding));
        let text = match (brotli, gzip, zstd) {
            (false, false, false) => return Canonical::Absent,
            (true, false, false) => "br",
            (false, true, false) => "gzip",
            (false, false, true) => "zstd",
            (true, true, false) => "br, gzip",
            (true, false, true) => "br, zstd",
            (false, true, true) => "gzip, zstd",
            (true, true, true) => "br, gzip, zstd",
        };
        Canonical::Value(HeaderValue::from_static(text))
    }
}

impl Canonical {
    /// Puts a request's field into this form.
    pub fn apply(self, headers: &mut HeaderMap) {
        match self {
            Self::Absent => drop(headers.remove(ACCEPT_ENCODING)),
            Self::Value(value) => drop(headers.insert(ACCEPT_ENCODING, value)),
            Self::AsSent => {}
        }
    }
}

const fn bit(coding: Coding) -> u8 {
    1 << coding.index()
}

/// What the parts of a field say, in thousandths. Of a coding that comes twice the lower one counts: a refusal holds.
#[derive(Debug, Default)]
struct Weights {
    ours: [Option<u16>; 3],
    identity: Option<u16>,
    others: Option<u16>,
}

impl Weights {
    fn take(&mut self, (name, weight): (&[u8], u16)) {
        let is = |token: &str| name.eq_ignore_ascii_case(token.as_bytes());
        let slot = if let Some(coding) = Coding::ALL.into_iter().find(|coding| is(coding.token())) {
            &mut self.ours[coding.index()]
        } else if is("x-gzip") {
            &mut self.ours[Coding::Gzip.index()]
        } else if is("identity") {
            &mut self.identity
        } else if is("*") {
            &mut self.others
        } else {
            return;
        };
        *slot = Some(slot.map_or(weight, |before| before.min(weight)));
    }

    fn accepted(&self) -> Accepted {
        let weight = |coding: Coding| self.ours[coding.index()].or(self.others).unwrap_or(0);
        let accepted = || PREFERRED.into_iter().filter(|coding| weight(*coding) > 0);
        let codings = accepted().fold(0, |codings, coding| codings | bit(coding));
        // Of equal ones the last is taken, so that the preferred one has to come last.
        let best = accepted().rev().max_by_key(|coding| weight(*coding));
        let likes = |coding: &Coding| self.identity.is_none_or(|identity| identity <= weight(*coding));
        Accepted {
            codings,
            best: best.filter(likes),
            identity_refused: self.identity.or(self.others) == Some(0),
        }
    }
}

/// A coding, and how much it is liked.
fn part(text: &[u8]) -> Option<(&[u8], u16)> {
    let mut fields = text.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = fields.next().filter(|name| !name.is_empty())?;
    let weight = match fields.next() {
        None => WHOLE,
        Some(field) => thousandths(field.strip_prefix(b"q=").or_else(|| field.strip_prefix(b"Q="))?)?,
    };
    fields.next().is_none().then_some((name, weight))
}

/// A weight (RFC 9110, section 12.4.2): 0 to 1, with at most three digits after the point.
fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, rest) = text.split_first()?;
    let decimals = match rest.split_first() {
        None => rest,
        Some((b'.', decimals)) => decimals,
        Some(_) => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let scales = [100, 10, 1];
    let fraction: u16 =
        decimals.iter().zip(scales).map(|(digit, scale)| u16::from(digit - b'0') * scale).sum();
    match whole {
        b'0' => Some(fraction),
        b'1' if fraction == 0 => Some(WHOLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
