#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;

fn header(name: &str) -> Operand {
    Operand::Field(Fields::Headers, name.to_owned())
}

fn literal(text: &str) -> Operand {
    Operand::Literal(text.to_owned())
}

#[test]
fn conditions_are_read() {
    let text = r#"request.headers["X-Beta"] == "1" || request.cookies['team'] == 'qa'"#;
    let condition = Condition::parse(text).unwrap();
    let cookie = Operand::Field(Fields::Cookies, "team".to_owned());
    let tests = vec![Test::Equal(header("x-beta"), literal("1")), Test::Equal(cookie, literal("qa"))];
    assert_eq!(condition.test(), &Test::Any(tests));
    assert_eq!(condition.text(), text);
    for (text, again) in [
        (r#"request.method in["GET",'HEAD']"#, r#"request.method in ["GET", "HEAD"]"#),
        (r#"! request.path . startsWith ( "/a" )"#, r#"!request.path.startsWith("/a")"#),
        (
            r#""x" in request.headers && "y" != request.query["a b"]"#,
            r#""x" in request.headers && "y" != request.query["a b"]"#,
        ),
        (
            r#"!(request.host == "a" || !!"b".contains("c"))"#,
            r#"!(request.host == "a" || !!"b".contains("c"))"#,
        ),
        (
            "request.host == 'a\"\\'\\u00e4\\n'\n&& request.path.endsWith(\"\\\\\")",
            r#"request.host == "a\"'ä\n" && request.path.endsWith("\\")"#,
        ),
        (r#"((request.host == "a"))"#, r#"request.host == "a""#),
        (r#"request.method in []"#, r#"request.method in []"#),
        (
            r#"request.host == "1" || request.host == "2" && request.host == "3""#,
            r#"request.host == "1" || request.host == "2" && request.host == "3""#,
        ),
    ] {
        assert_eq!(Condition::parse(text).unwrap().test().to_string(), again, "{text}");
    }
}

#[test]
fn errors_say_where_and_what() {
    for (text, at, part) in [
        ("", 0, "expected `request.…` or a text in quotes, found the end"),
        ("  true", 2, "found `true`"),
        ("request.headers.x == \"1\"", 15, "`[\"name\"]`"),
        ("request.header[\"x\"] == \"1\"", 8, "`headers`, `cookies`"),
        ("request.host = \"1\"", 13, "expected a comparison"),
        ("request.host == 1", 16, "found `1`"),
        ("request.host == \"1\" &", 20, "expected an operator"),
        ("request.host == \"1", 16, "a quote is missing"),
        ("request.host == \"\\x41\"", 17, "hexadecimal"),
        ("request.host == \"\\u+123\"", 17, "hexadecimal"),
        ("request.host.matches(\"a\")", 13, "`startsWith`"),
        ("request.headers[\"a b\"] == \"\"", 16, "no name of a header"),
        ("(request.host == \"a\"", 20, "expected `)`"),
        ("!request.host == \"a\"", 1, "in parentheses"),
        ("request.host in request.host", 16, "a list"),
        ("request.host in request.headers", 16, "a list"),
        ("request.headers in [\"a\"]", 16, "`[\"name\"]`"),
        ("request.host == \"é\" ü", 21, "found `ü`"),
        ("size(request.host) > 3", 0, "found `size`"),
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn conditions_are_bounded() {
    let problem = |text: &str| Condition::parse(text).unwrap_err().problem;
    let one = "request.path==\"\"";
    assert_eq!(problem(&format!("{one}{}", " ".repeat(1020))), ConditionProblem::TooLong);
    let nested = |n: usize| format!("{}{one}{}", "(".repeat(n), ")".repeat(n));
    assert!(Condition::parse(&nested(16)).is_ok());
    assert_eq!(problem(&nested(17)), ConditionProblem::TooDeep);
    assert_eq!(problem(&"!".repeat(500)), ConditionProblem::TooDeep);
    let list = |n: usize| format!("request.path in [{}]", vec!["\"\""; n].join(","));
    assert!(Condition::parse(&list(63)).is_ok());
    assert_eq!(problem(&list(64)), ConditionProblem::TooManyNodes);
}

#[test]
fn conditions_are_stored_as_their_text() {
    let condition = Condition::parse("request.path == '/'").unwrap();
    let json = serde_json::to_string(&condition).unwrap();
    assert_eq!(json, "\"request.path == '/'\"");
    assert_eq!(serde_json::from_str::<Condition>(&json).unwrap(), condition);
    assert!(serde_json::from_str::<Condition>("\"nonsense\"").is_err());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,4}", "[\"'\\\\\n\r\t\u{1}äß ]{0,4}"]
}

fn operand() -> impl Strategy<Value = Operand> {
    prop_oneof![
        text().prop_map(Operand::Literal),
        Just(Operand::Method),
        Just(Operand::Path),
        Just(Operand::Host),
        "[a-z-]{1,5}".prop_map(|name| Operand::Field(Fields::Headers, name)),
        "[a-zA-Z_]{1,5}".prop_map(|name| Operand::Field(Fields::Cookies, name)),
        text().prop_map(|name| Operand::Field(Fields::Query, name)),
    ]
}

fn test() -> impl Strategy<Value = Test> {
    let leaf = prop_oneof![
        (operand(), operand()).prop_map(|(a, b)| Test::Equal(a, b)),
        (operand(), operand()).prop_map(|(a, b)| Test::Differ(a, b)),
        (operand(), prop::collection::vec(text(), 0..3)).prop_map(|(a, b)| Test::OneOf(a, b)),
        (operand(), text()).prop_map(|(a, b)| Test::StartsWith(a, b)),
        (operand(), text()).prop_map(|(a, b)| Test::EndsWith(a, b)),
        (operand(), text()).prop_map(|(a, b)| Test::Contains(a, b)),
        text().prop_map(|name| Test::Present(Fields::Query, name)),
        "[a-z]{1,3}".prop_map(|name| Test::Present(Fields::Headers, name)),
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Test::Any),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Test::All),
            inner.prop_map(|test| Test::Not(Box::new(test))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(test in test()) {
        let text = test.to_string();
        prop_assume!(text.len() <= CONDITION_BYTES_MAX);
        let read = Condition::parse(&text).unwrap();
        prop_assert_eq!(read.test(), &test, "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(
        text in "\\PC{0,60}",
        parts in prop::collection::vec(prop_oneof![
            Just("request"), Just("."), Just("headers"), Just("["), Just("]"), Just("\"a\""), Just("'"), Just("\\"),
            Just("("), Just(")"), Just("!"), Just("="), Just("in "), Just("&&"), Just("||"), Just("path"), Just("ä"), Just(" "),
            Just("contains"), Just("\\u"), Just("="),
        ], 0..30),
    ) {
        for text in [text, parts.concat()] {
            match Condition::parse(&text) {
                Ok(condition) => {
                    let again = condition.test().to_string();
                    prop_assume!(again.len() <= CONDITION_BYTES_MAX);
                    let again = Condition::parse(&again).unwrap();
                    prop_assert_eq!(again.test(), condition.test());
                }
                Err(error) => prop_assert!(text.is_char_boundary(error.at), "{} {}", error.at, text),
            }
        }
    }
}
