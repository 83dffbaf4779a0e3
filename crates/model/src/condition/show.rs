//! Tests as text, in the language that conditions are written in.

use super::{Operand, Test};
use std::fmt;

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(tests) => joined(f, tests, " || ", |test| !matches!(test, Self::Any(_))),
            Self::All(tests) => joined(f, tests, " && ", |test| !matches!(test, Self::Any(_) | Self::All(_))),
            Self::Not(test) => {
                f.write_str("!")?;
                let called = matches!(**test, Self::StartsWith(..) | Self::EndsWith(..) | Self::Contains(..));
                test.fmt_within(f, called || matches!(**test, Self::Not(_)))
            }
            Self::Equal(left, right) => write!(f, "{left} == {right}"),
            Self::Differ(left, right) => write!(f, "{left} != {right}"),
            Self::OneOf(operand, texts) => {
                write!(f, "{operand} in [")?;
                for (i, text) in texts.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { ", " })?;
                    quoted(f, text)?;
                }
                f.write_str("]")
            }
            Self::StartsWith(operand, text) => called(f, operand, "startsWith", text),
            Self::EndsWith(operand, text) => called(f, operand, "endsWith", text),
            Self::Contains(operand, text) => called(f, operand, "contains", text),
            Self::Present(fields, name) => {
                quoted(f, name)?;
                write!(f, " in request.{}", fields.as_str())
            }
        }
    }
}

impl Test {
    /// In parentheses, unless it may stand bare.
    fn fmt_within(&self, f: &mut fmt::Formatter<'_>, bare: bool) -> fmt::Result {
        if bare { write!(f, "{self}") } else { write!(f, "({self})") }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, tests: &[Test], by: &str, bare: impl Fn(&Test) -> bool) -> fmt::Result {
    for (i, test) in tests.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { by })?;
        test.fmt_within(f, bare(test))?;
    }
    Ok(())
}

fn called(f: &mut fmt::Formatter<'_>, operand: &Operand, name: &str, text: &str) -> fmt::Result {
    write!(f, "{operand}.{name}(")?;
    quoted(f, text)?;
    f.write_str(")")
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(text) => quoted(f, text),
            Self::Method => f.write_str("request.method"),
            Self::Path => f.write_str("request.path"),
            Self::Host => f.write_str("request.host"),
            Self::Field(fields, name) => {
                write!(f, "request.{}[", fields.as_str())?;
                quoted(f, name)?;
                f.write_str("]")
            }
        }
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}
