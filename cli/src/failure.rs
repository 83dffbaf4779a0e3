//! How a command fails: an exit code that scripts rely on, and what is wrong, where, and what to do.

use crate::out::{self, Paint};
use std::fmt;

/// Exit codes. They are a contract: never change what one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// Wrong usage, or an invalid manifest.
    Usage = 2,
    /// The deploy failed; what ran before still runs.
    RolledBack = 3,
    /// The deploy failed and what ran before does not run whole.
    NotRolledBack = 4,
    /// Nothing failed, but it was not done in time.
    TimedOut = 5,
    /// Control can't be reached.
    Unreachable = 6,
    /// The token is missing, wrong, or may not do this.
    NotAuthorized = 7,
    /// `plan --exit-code`: a deploy would change something.
    Changes = 10,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command ended without having done what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong; empty to say nothing.
    pub what: String,
    /// File and line, field, region, instance: where it is wrong.
    pub place: Option<Box<str>>,
    /// What to do about it.
    pub fix: Option<Box<str>>,
    /// Lines that belong to it, such as a program's last output.
    pub details: Vec<String>,
    /// Faults of what was sent: the field, and what is wrong with it.
    pub faults: Vec<(String, String)>,
    /// Another deploy of the app is running.
    pub busy: bool,
}

impl Failure {
    /// A failure of which only `what` is known yet.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            place: None,
            fix: None,
            details: Vec::new(),
            faults: Vec::new(),
            busy: false,
        }
    }

    /// Ends with a code and says nothing.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Something failed ([`Exit::Failed`]).
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// The user asked for something that can't be ([`Exit::Usage`]).
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// Says what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into().into());
        self
    }

    /// Says where.
    #[must_use]
    pub fn place(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into().into());
        self
    }

    /// Adds lines.
    #[must_use]
    pub fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// Prints it to stderr.
    pub fn print(&self) {
        if !self.what.is_empty() {
            let text = self.to_string();
            let text = text.strip_prefix("error:").unwrap_or(&text);
            out::note(&format!("{}{text}", out::for_stderr(Paint::Error, "error:")));
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  where: {place}")?;
        }
        for (field, message) in &self.faults {
            write!(f, "\n  {field}: {message}")?;
        }
        for line in &self.details {
            write!(f, "\n    {}", out::harmless(line))?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n  fix: {fix}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A cause from the system, with what we were doing: `cannot read x: no such file`.
pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{doing}: {error}"))
}

/// What commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_contract() {
        let codes = [
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::RolledBack, 3),
            (Exit::NotRolledBack, 4),
            (Exit::TimedOut, 5),
            (Exit::Unreachable, 6),
            (Exit::NotAuthorized, 7),
            (Exit::Changes, 10),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code);
        }
    }

    #[test]
    fn a_failure_says_what_where_and_what_to_do() {
        let failure = Failure::failed("no").place("a:1").fix("try b").details(["x\u{7}".to_owned()]);
        assert_eq!(failure.to_string(), "error: no\n  where: a:1\n    x\\u{7}\n  fix: try b");
    }
}
