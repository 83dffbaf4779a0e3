//! Conditions on requests, such as `request.cookies["session"] != ""`: a subset of CEL, the Common Expression
//! Language. Whether one holds for a request is decided in `atoll-routing`.
//!
//! Other than in CEL, a header, cookie or query parameter that is not there reads as the empty text.

mod parse;
mod show;

pub use parse::{ConditionError, ConditionProblem};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest condition, in bytes.
pub const CONDITION_BYTES_MAX: usize = 1024;
/// Most comparisons, operators and entries of lists of a condition together.
pub const CONDITION_NODES_MAX: usize = 64;
/// How deep parentheses and `!` may be within each other.
pub const CONDITION_DEPTH_MAX: usize = 16;

/// A condition that has been checked, with its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Condition {
    text: Box<str>,
    test: Test,
}

/// What holds or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// `a || b`: one of them holds. At least two.
    Any(Vec<Self>),
    /// `a && b`: all of them hold. At least two.
    All(Vec<Self>),
    /// `!a`.
    Not(Box<Self>),
    /// `a == b`.
    Equal(Operand, Operand),
    /// `a != b`.
    Differ(Operand, Operand),
    /// `a in ["x", "y"]`.
    OneOf(Operand, Vec<String>),
    /// `a.startsWith("x")`.
    StartsWith(Operand, String),
    /// `a.endsWith("x")`.
    EndsWith(Operand, String),
    /// `a.contains("x")`.
    Contains(Operand, String),
    /// `"name" in request.headers`: it is there, even if empty.
    Present(Fields, String),
}

/// A text that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// Itself.
    Literal(String),
    /// `request.method`, as the client wrote it.
    Method,
    /// `request.path`, in its normal form, without the query.
    Path,
    /// `request.host`: lower case, without a port.
    Host,
    /// `request.headers["name"]` and the like; empty where it is not there.
    Field(Fields, String),
}

/// Named values of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// `request.headers`; names are lower case, and several lines of a name are one, with `, ` between them.
    Headers,
    /// `request.cookies`; of several of a name the first.
    Cookies,
    /// `request.query`: the first parameter of that name, decoded.
    Query,
}

impl Fields {
    const ALL: [Self; 3] = [Self::Headers, Self::Cookies, Self::Query];

    /// As conditions name it, after `request.`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::Cookies => "cookies",
            Self::Query => "query",
        }
    }
}

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        Ok(Self { test: parse::parse(text)?, text: text.into() })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    #[must_use]
    pub const fn test(&self) -> &Test {
        &self.test
    }
}

impl FromStr for Condition {
    type Err = ConditionError;
    fn from_str(text: &str) -> Result<Self, ConditionError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Condition {
    type Error = ConditionError;
    fn try_from(text: String) -> Result<Self, ConditionError> {
        Self::parse(&text)
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.text.into()
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
