//! Text to [`Test`], by recursive descent. In the order of how tightly they bind:
//!
//! ```text
//! any     = all *("||" all)
//! all     = one *("&&" one)
//! one     = "!" one | "(" any ")" | operand [("==" | "!=") operand | "in" (list | fields) | call]
//! operand = text | "request." ("method" | "path" | "host") | fields "[" text "]"
//! fields  = "request." ("headers" | "cookies" | "query")
//! call    = "." ("startsWith" | "endsWith" | "contains") "(" text ")"
//! list    = "[" [text *("," text)] "]"
//! ```

use super::{CONDITION_BYTES_MAX, CONDITION_DEPTH_MAX, CONDITION_NODES_MAX, Fields, Operand, Test};

const SUPPORTED: &str = "a condition is made of `request.headers[\"name\"]`, `request.cookies[\"name\"]`, `request.query[\"name\"]`, \
     `request.method`, `request.path`, `request.host`, texts in quotes, `==`, `!=`, `in [\"a\", \"b\"]`, `\"name\" in request.headers`, \
     `.startsWith(\"a\")`, `.endsWith(\"a\")`, `.contains(\"a\")`, `&&`, `||`, `!` and parentheses";

/// A text that is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ConditionError {
    /// Where, in bytes from its start.
    pub at: usize,
    /// What.
    pub problem: ConditionProblem,
}

/// What is wrong with a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionProblem {
    /// More than [`CONDITION_BYTES_MAX`].
    #[error("a condition has at most {CONDITION_BYTES_MAX} bytes")]
    TooLong,
    /// More than [`CONDITION_NODES_MAX`].
    #[error("a condition has at most {CONDITION_NODES_MAX} comparisons, operators and entries of lists")]
    TooManyNodes,
    /// More than [`CONDITION_DEPTH_MAX`].
    #[error("parentheses and `!` are at most {CONDITION_DEPTH_MAX} deep")]
    TooDeep,
    /// Something else belongs here.
    #[error("expected {expected}, found {found}; {SUPPORTED}")]
    Expected {
        /// What does.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// No quote ends it.
    #[error("the text that begins here does not end: a quote is missing")]
    Unterminated,
    /// An escape that is not read.
    #[error(
        "in a text, `\\` stands before `\\`, `\"`, `'`, `n`, `r`, `t` or `u` and four hexadecimal digits"
    )]
    Escape,
    /// No header field has it.
    #[error("`{0}` is no name of a header or cookie")]
    Name(String),
    /// `!a == b`.
    #[error("`!` is for all of a comparison only in parentheses: write `!(a == b)`, or `a != b`")]
    NotComparison,
}

use ConditionProblem as Problem;

type Read<T> = Result<T, ConditionError>;

pub(super) fn parse(text: &str) -> Read<Test> {
    if text.len() > CONDITION_BYTES_MAX {
        return Err(ConditionError { at: CONDITION_BYTES_MAX, problem: Problem::TooLong });
    }
    let mut parser = Parser { text, at: 0, nodes: 0, depth: 0 };
    let test = parser.any()?;
    parser.skip_space();
    if parser.at < text.len() { parser.expected("an operator such as `&&`, or the end") } else { Ok(test) }
}

/// What stands beside an operator.
enum Term {
    Operand(Operand),
    /// `request.headers` without a name.
    Fields(Fields),
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    nodes: usize,
    depth: usize,
}

impl Parser<'_> {
    fn any(&mut self) -> Read<Test> {
        self.several("||", Self::all, Test::Any)
    }

    fn all(&mut self) -> Read<Test> {
        self.several("&&", Self::one, Test::All)
    }

    fn several(
        &mut self,
        operator: &str,
        mut next: impl FnMut(&mut Self) -> Read<Test>,
        joined: impl FnOnce(Vec<Test>) -> Test,
    ) -> Read<Test> {
        let first = next(self)?;
        if !self.take(operator) {
            return Ok(first);
        }
        self.count()?;
        let mut tests = vec![first, next(self)?];
        while self.take(operator) {
            tests.push(next(self)?);
        }
        Ok(joined(tests))
    }

    fn one(&mut self) -> Read<Test> {
        if self.take("!") {
            return self.deeper(Self::negated);
        }
        if self.take("(") {
            return self.deeper(Self::parenthesized);
        }
        let left = self.operand()?;
        self.comparison(left)
    }

    fn parenthesized(&mut self) -> Read<Test> {
        let test = self.any()?;
        self.need(")", "`)`")?;
        Ok(test)
    }

    /// `!` binds tighter than comparisons do.
    fn negated(&mut self) -> Read<Test> {
        self.count()?;
        let start = self.at;
        let test = self.one()?;
        match test {
            Test::Equal(..) | Test::Differ(..) | Test::OneOf(..) | Test::Present(..)
                if !self.text[start..].trim_start().starts_with('(') =>
            {
                Err(ConditionError { at: start, problem: Problem::NotComparison })
            }
            test => Ok(Test::Not(Box::new(test))),
        }
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        self.depth += 1;
        if self.depth > CONDITION_DEPTH_MAX {
            return self.fail(Problem::TooDeep);
        }
        let read = read(self)?;
        self.depth -= 1;
        Ok(read)
    }

    fn comparison(&mut self, left: Operand) -> Read<Test> {
        self.count()?;
        if self.take("==") {
            return Ok(Test::Equal(left, self.operand()?));
        }
        if self.take("!=") {
            return Ok(Test::Differ(left, self.operand()?));
        }
        if self.take_word("in") {
            return self.membership(left);
        }
        if self.take(".") {
            return self.call(left);
        }
        self.expected("a comparison: `==`, `!=`, `in`, `.startsWith(…)`, `.endsWith(…)` or `.contains(…)`")
    }

    fn membership(&mut self, left: Operand) -> Read<Test> {
        if self.take("[") {
            let mut texts = Vec::new();
            while !self.take("]") {
                if !texts.is_empty() {
                    self.need(",", "`,` or `]`")?;
                }
                self.count()?;
                texts.push(self.literal()?);
            }
            return Ok(Test::OneOf(left, texts));
        }
        let at = self.at;
        match (self.term()?, left) {
            (Term::Fields(fields), Operand::Literal(name)) => {
                Ok(Test::Present(fields, self.name(fields, name)?))
            }
            _ => {
                self.at = at;
                self.expected("a list such as `[\"a\", \"b\"]`, or `request.headers` after a name in quotes")
            }
        }
    }

    fn call(&mut self, operand: Operand) -> Read<Test> {
        let made: fn(Operand, String) -> Test = if self.take_word("startsWith") {
            Test::StartsWith
        } else if self.take_word("endsWith") {
            Test::EndsWith
        } else if self.take_word("contains") {
            Test::Contains
        } else {
            return self.expected("`startsWith`, `endsWith` or `contains`");
        };
        self.need("(", "`(`")?;
        let text = self.literal()?;
        self.need(")", "`)`")?;
        Ok(made(operand, text))
    }

    fn operand(&mut self) -> Read<Operand> {
        match self.term()? {
            Term::Operand(operand) => Ok(operand),
            Term::Fields(_) => self.expected("`[\"name\"]`"),
        }
    }

    fn term(&mut self) -> Read<Term> {
        if self.peek().is_some_and(|c| c == '"' || c == '\'') {
            return Ok(Term::Operand(Operand::Literal(self.literal()?)));
        }
        if !self.take_word("request") {
            return self.expected("`request.…` or a text in quotes");
        }
        self.need(".", "`.`")?;
        for (word, operand) in [("method", Operand::Method), ("path", Operand::Path), ("host", Operand::Host)]
        {
            if self.take_word(word) {
                return Ok(Term::Operand(operand));
            }
        }
        let Some(fields) = Fields::ALL.into_iter().find(|fields| self.take_word(fields.as_str())) else {
            return self.expected("`headers`, `cookies`, `query`, `method`, `path` or `host`");
        };
        if !self.take("[") {
            return Ok(Term::Fields(fields));
        }
        let at = self.at;
        let name = self.literal()?;
        let name = self.name(fields, name).map_err(|error| ConditionError { at, ..error })?;
        self.need("]", "`]`")?;
        Ok(Term::Operand(Operand::Field(fields, name)))
    }

    /// A name in the form in which it is looked for.
    fn name(&self, fields: Fields, name: String) -> Read<String> {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let is_token = !name.is_empty() && name.bytes().all(token);
        match fields {
            Fields::Headers if is_token => Ok(name.to_ascii_lowercase()),
            Fields::Cookies if is_token => Ok(name),
            Fields::Query => Ok(name),
            Fields::Headers | Fields::Cookies => {
                self.fail(Problem::Name(name.escape_debug().take(40).collect()))
            }
        }
    }

    fn literal(&mut self) -> Read<String> {
        let Some(quote @ ('"' | '\'')) = self.peek() else { return self.expected("a text in quotes") };
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let unterminated = || ConditionError { at: start, problem: Problem::Unterminated };
            let c = self.rest().chars().next().ok_or_else(unterminated)?;
            match c {
                '\n' | '\r' => return Err(unterminated()),
                '\\' => text.push(self.escape()?),
                c => {
                    self.at += c.len_utf8();
                    if c == quote {
                        return Ok(text);
                    }
                    text.push(c);
                }
            }
        }
    }

    fn escape(&mut self) -> Read<char> {
        let rest = &self.rest()[1..];
        let (c, bytes) = match rest.chars().next() {
            Some(c @ ('\\' | '"' | '\'')) => (Some(c), 2),
            Some('n') => (Some('\n'), 2),
            Some('r') => (Some('\r'), 2),
            Some('t') => (Some('\t'), 2),
            Some('u') => (rest.get(1..5).and_then(code_point), 6),
            _ => (None, 0),
        };
        let Some(c) = c else { return self.fail(Problem::Escape) };
        self.at += bytes;
        Ok(c)
    }

    fn count(&mut self) -> Read<()> {
        self.nodes += 1;
        if self.nodes > CONDITION_NODES_MAX { self.fail(Problem::TooManyNodes) } else { Ok(()) }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_space();
        self.rest().chars().next()
    }

    fn take(&mut self, symbol: &str) -> bool {
        self.skip_space();
        let rest = self.rest();
        // `!` is not the beginning of `!=`.
        let is_there = rest.starts_with(symbol) && !(symbol == "!" && rest.starts_with("!="));
        self.at += if is_there { symbol.len() } else { 0 };
        is_there
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.skip_space();
        let after = self.rest().strip_prefix(word);
        let is_there = after.is_some_and(|rest| !rest.starts_with(is_word));
        self.at += if is_there { word.len() } else { 0 };
        is_there
    }

    fn need(&mut self, symbol: &str, expected: &'static str) -> Read<()> {
        if self.take(symbol) { Ok(()) } else { self.expected(expected) }
    }

    fn expected<T>(&mut self, expected: &'static str) -> Read<T> {
        self.skip_space();
        let rest = self.rest();
        let found = match rest.chars().next() {
            None => "the end".to_owned(),
            Some(c) => {
                let word_end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                let word = &rest[..word_end.max(c.len_utf8())];
                format!("`{}`", word.escape_debug().take(40).collect::<String>())
            }
        };
        self.fail(Problem::Expected { expected, found })
    }

    fn fail<T>(&self, problem: Problem) -> Read<T> {
        Err(ConditionError { at: self.at, problem })
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn code_point(digits: &str) -> Option<char> {
    let all = digits.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| all).and_then(char::from_u32)
}
