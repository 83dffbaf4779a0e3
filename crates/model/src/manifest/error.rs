//! Errors that say where in the file something is wrong.

use std::fmt;
use std::ops::Range;

/// Most errors that are kept; a file with more has one cause or is not a manifest.
pub const PROBLEMS_MAX: usize = 50;

/// A place in a text; both count from 1, columns in characters. 0 where there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// The file's name, as the user gave it.
    pub file: String,
    /// Where.
    pub position: Position,
    /// The key with its tables, such as `service.web.run`; empty when it is about the file.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.position;
        write!(f, "{}:{line}:{column}: ", self.file)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// A text with its name, in which byte offsets become lines and columns.
#[derive(Debug)]
pub(super) struct Source<'a> {
    text: &'a str,
    file: String,
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str, file: &str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, file: file.to_owned(), line_starts: std::iter::once(0).chain(newlines).collect() }
    }

    fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts[line - 1];
        let before = self.text.as_bytes()[start..offset].iter();
        // Bytes that continue a character don't count.
        let column = before.filter(|byte| (**byte & 0xc0) != 0x80).count() + 1;
        Position { line, column }
    }
}

/// Collects what is wrong.
#[derive(Debug)]
pub(super) struct Problems<'a> {
    source: Source<'a>,
    errors: Vec<ManifestError>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Self { source, errors: Vec::new() }
    }

    pub(super) fn add(&mut self, at: Range<usize>, key: &str, what: impl Into<String>) {
        if self.errors.len() < PROBLEMS_MAX {
            let position = self.source.position(at.start);
            self.errors.push(ManifestError {
                file: self.source.file.clone(),
                position,
                key: key.to_owned(),
                what: what.into(),
            });
        }
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        self.source.position(offset)
    }

    /// The place of a byte of a string's value in the file: that of the string where it is written with escapes.
    pub(super) fn within(&self, string: Range<usize>, value: &str, offset: usize) -> Range<usize> {
        let written = self.source.text.get(string.clone()).and_then(|text| text.find(value));
        match written.filter(|_| !value.is_empty()) {
            Some(quotes) => {
                let at = string.start + quotes + offset;
                at..at
            }
            None => string,
        }
    }

    pub(super) fn file(&self) -> &str {
        &self.source.file
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    pub(super) fn into_errors(mut self) -> Vec<ManifestError> {
        self.errors.sort_by_key(|error| error.position);
        self.errors
    }
}
