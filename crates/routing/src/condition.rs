//! Whether a condition holds for a request.

use atoll_model::condition::{Condition, Fields, Operand, Test};
use std::borrow::Cow;

/// What conditions look at. Texts are bytes: a header need not be UTF-8.
pub trait Facts {
    /// The values of a header, whose name is in lower case, in the order of the lines. For `cookie`, too.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
    /// The method, as it was sent.
    fn method(&self) -> &str;
    /// The path in its normal form, without the query.
    fn path(&self) -> &str;
    /// The query as it was sent, without `?`; empty where there is none.
    fn query(&self) -> &str;
    /// The host in its normal form: lower case, without a port.
    fn host(&self) -> &str;
}

/// Whether the condition holds.
#[must_use]
pub fn holds(condition: &Condition, facts: &impl Facts) -> bool {
    test(condition.test(), facts)
}

fn test(what: &Test, facts: &impl Facts) -> bool {
    let text = |operand| text_of(operand, facts);
    match what {
        Test::Any(tests) => tests.iter().any(|one| test(one, facts)),
        Test::All(tests) => tests.iter().all(|one| test(one, facts)),
        Test::Not(inner) => !test(inner, facts),
        Test::Equal(left, right) => text(left) == text(right),
        Test::Differ(left, right) => text(left) != text(right),
        Test::OneOf(operand, texts) => {
            let found = text(operand);
            texts.iter().any(|wanted| wanted.as_bytes() == &*found)
        }
        Test::StartsWith(operand, start) => text(operand).starts_with(start.as_bytes()),
        Test::EndsWith(operand, end) => text(operand).ends_with(end.as_bytes()),
        Test::Contains(operand, part) => contains(&text(operand), part.as_bytes()),
        Test::Present(fields, name) => field(*fields, name, facts).is_some(),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// Copied only where several header lines are one text, or a parameter has escapes.
fn text_of<'f>(operand: &'f Operand, facts: &'f impl Facts) -> Cow<'f, [u8]> {
    match operand {
        Operand::Literal(text) => text.as_bytes().into(),
        Operand::Method => facts.method().as_bytes().into(),
        Operand::Path => facts.path().as_bytes().into(),
        Operand::Host => facts.host().as_bytes().into(),
        Operand::Field(fields, name) => field(*fields, name, facts).unwrap_or_default(),
    }
}

fn field<'f>(fields: Fields, name: &'f str, facts: &'f impl Facts) -> Option<Cow<'f, [u8]>> {
    match fields {
        Fields::Headers => header(name, facts),
        Fields::Cookies => cookie(name, facts).map(Cow::Borrowed),
        Fields::Query => parameter(name, facts.query()),
    }
}

/// Several lines of a name are one, with `, ` between them (RFC 9110, section 5.3).
fn header<'f>(name: &'f str, facts: &'f impl Facts) -> Option<Cow<'f, [u8]>> {
    let mut lines = facts.header(name);
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(first.into()) };
    let mut text = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        text.extend_from_slice(b", ");
        text.extend_from_slice(line);
    }
    Some(text.into())
}

/// The first cookie of that name (RFC 6265, section 5.4), with the quotes that its value has. HTTP/2 may bring each in
/// a line of its own.
fn cookie<'f>(name: &str, facts: &'f impl Facts) -> Option<&'f [u8]> {
    let pairs = facts.header("cookie").flat_map(|line| line.split(|b| *b == b';'));
    pairs
        .filter_map(|pair| split(pair, b'='))
        .find_map(|(found, value)| (found.trim_ascii() == name.as_bytes()).then(|| value.trim_ascii()))
}

/// The first parameter of that name, decoded as forms are: `+` is a space.
fn parameter<'q>(name: &str, query: &'q str) -> Option<Cow<'q, [u8]>> {
    query.as_bytes().split(|b| *b == b'&').find_map(|pair| {
        let (found, value) = split(pair, b'=').unwrap_or((pair, b""));
        (!pair.is_empty() && *decoded(found) == *name.as_bytes()).then(|| decoded(value))
    })
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == at)?;
    Some((&text[..at], &text[at + 1..]))
}

/// What is no escape stays as it is.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|b| matches!(b, b'%' | b'+')) {
        return text.into();
    }
    let digit =
        |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            (b'+', ..) => {
                bytes.push(b' ');
                rest = after;
            }
            (other, ..) => {
                bytes.push(*other);
                rest = after;
            }
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default)]
    struct Request {
        headers: Vec<(&'static str, Vec<u8>)>,
        query: String,
    }

    impl Facts for Request {
        fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_slice())
        }
        fn method(&self) -> &str {
            "GET"
        }
        fn path(&self) -> &str {
            "/shop/a"
        }
        fn query(&self) -> &str {
            &self.query
        }
        fn host(&self) -> &str {
            "shop.example.com"
        }
    }

    fn check(facts: &Request, condition: &str) -> bool {
        holds(&Condition::parse(condition).unwrap(), facts)
    }

    #[test]
    fn conditions_hold_or_not() {
        let facts = Request {
            headers: vec![
                ("x-beta", b"1".to_vec()),
                ("accept", b"a".to_vec()),
                ("accept", b"b".to_vec()),
                ("x-odd", b"\xff\xfe".to_vec()),
                ("x-empty", Vec::new()),
                ("cookie", b"team=qa; a=1 ;flag; b=\"x=y\"; team=other".to_vec()),
                ("cookie", b"session=s1".to_vec()),
            ],
            query: "v=1&a%20b=c+d%2f&v=2&flag&=x&&bad=%zz%".to_owned(),
        };
        for condition in [
            r#"request.headers["X-Beta"] == "1""#,
            r#"request.headers["accept"] == "a, b""#,
            r#"request.headers["none"] == """#,
            r#"!("none" in request.headers) && "x-empty" in request.headers"#,
            r#""x-odd" in request.headers && request.headers["x-odd"] != """#,
            r#"request.cookies["team"] == "qa" && request.cookies["a"] == "1""#,
            r#"request.cookies["session"] == "s1" && request.cookies["flag"] == """#,
            r#"request.cookies["b"] == "\"x=y\"""#,
            r#"!("flag" in request.cookies) && "flag" in request.query"#,
            r#"request.query["v"] == "1" && request.query["a b"] == "c d/" && request.query["bad"] == "%zz%""#,
            r#"request.method in ["POST", "GET"] && !(request.method in [])"#,
            r#"request.path.startsWith("/shop/") && request.path.endsWith("a") && request.host.contains("example")"#,
            r#"request.host.contains("") && !request.host.contains("examples")"#,
            r#"request.path == "/" || request.host == "shop.example.com""#,
        ] {
            assert!(check(&facts, condition), "{condition}");
        }
        for condition in [
            r#"request.cookies["none"] != """#,
            r#"request.method == "get""#,
            r#"request.path == "/" && request.host == "shop.example.com""#,
            r#""flag" in request.cookies"#,
        ] {
            assert!(!check(&facts, condition), "{condition}");
        }
    }

    proptest! {
        #[test]
        fn a_parameter_is_what_was_written(name in "[a-z %+&=ä]{1,4}", value in "[a-z %+&=ä]{0,4}") {
            let escaped = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
            let query = format!("x1=y&{}={}", escaped(&name), escaped(&value));
            prop_assert_eq!(parameter(&name, &query).unwrap(), value.as_bytes());
        }

        #[test]
        fn no_request_makes_it_panic(cookie in prop::collection::vec(any::<u8>(), 0..30), query in "[a=&%+ä0-9]{0,20}") {
            let facts = Request { headers: vec![("cookie", cookie)], query };
            let _either = check(&facts, r#"request.cookies["a"] == "" || request.query["a"].contains("a")"#);
        }
    }
}
