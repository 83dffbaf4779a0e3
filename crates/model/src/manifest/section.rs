//! One table of the file: reads keys as types, and says what is wrong with them.

use super::error::{PROBLEMS_MAX, Problems};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest string value, in bytes.
const STRING_BYTES_MAX: usize = 32 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Section<'a, 'i> {
    table: &'a DeTable<'i>,
    path: String,
    span: Range<usize>,
}

/// A value's type as a person would say it.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let shown: String = text.escape_debug().take(40).collect();
            format!("the string \"{shown}\"")
        }
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => format!("{value}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The entry of `known` that was probably meant.
#[must_use]
pub fn nearest<'k>(key: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(key, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn root(table: &'a DeTable<'i>) -> Self {
        Self { table, path: String::new(), span: 0..0 }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        let shown: String = key.escape_debug().take(60).collect();
        if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) }
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// After the last value, for what is missing from the whole.
    pub(super) fn end(&self) -> Range<usize> {
        let end = self.table.values().map(|value| value.span().end).max().unwrap_or(0);
        end..end
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.table.keys().map(|key| key.get_ref().as_ref())
    }

    pub(super) fn keys_with_spans(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> {
        self.table.keys().map(|key| (key.get_ref().as_ref(), key.span()))
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.table.get(key)
    }

    pub(super) fn span_of(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(name, _)| name.span())
    }

    pub(super) fn is_absent_or_table(&self, key: &str) -> bool {
        self.get(key).is_none_or(|value| value.get_ref().is_table())
    }

    /// Reports every key that is not in `known`; those in `later` as not supported yet.
    pub(super) fn check_keys(&self, known: &[&str], later: &[&str], problems: &mut Problems<'_>) {
        for (key, at) in self.keys_with_spans().filter(|(key, _)| !known.contains(key)).take(PROBLEMS_MAX) {
            let path = self.path_of(key);
            if later.contains(&key) {
                problems.add(at, &path, format!("`{key}` is not supported yet by this version of atoll"));
                continue;
            }
            let shown: String = key.escape_debug().take(60).collect();
            let hint = match nearest(key, known.iter().chain(later).copied()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => format!("; the keys here are {}", list(known)),
            };
            problems.add(at, &path, format!("unknown key `{shown}`{hint}"));
        }
    }

    pub(super) fn table(&self, key: &str, problems: &mut Problems<'_>) -> Option<Self> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => {
                let span = self.span_of(key).unwrap_or_else(|| value.span());
                Some(Self { table, path: self.path_of(key), span })
            }
            other => {
                self.wrong_type(key, value.span(), "a table", other, problems);
                None
            }
        }
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&self, key: &str, problems: &mut Problems<'_>) -> Vec<Self> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let expected = format!("a list of tables, each under `[[{}]]`", self.path_of(key));
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value.span(), &expected, value.get_ref(), problems);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    tables.push(Self { table, path: self.path_of(key), span: item.span() })
                }
                other => self.wrong_type(key, item.span(), &expected, other, problems),
            }
        }
        tables
    }

    /// A string without NUL.
    pub(super) fn string(&self, key: &str, problems: &mut Problems<'_>) -> Option<(String, Range<usize>)> {
        let value = self.get(key)?;
        self.text_of(key, value, problems).map(|text| (text, value.span()))
    }

    pub(super) fn text_of(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        problems: &mut Problems<'_>,
    ) -> Option<String> {
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value.span(), "a string", value.get_ref(), problems);
            return None;
        };
        if text.contains('\0') {
            problems.add(value.span(), &self.path_of(key), "a string can't hold a NUL character");
            return None;
        }
        if text.len() > STRING_BYTES_MAX {
            problems.add(value.span(), &self.path_of(key), "a string has at most 32 KiB");
            return None;
        }
        Some(text.to_string())
    }

    /// A list of texts of a type, with their places; nothing where the key is absent.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        most: usize,
        problems: &mut Problems<'_>,
    ) -> Vec<(T, Range<usize>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value.span(), "a list of strings", value.get_ref(), problems);
            return Vec::new();
        };
        if items.len() > most {
            problems.add(value.span(), &self.path_of(key), format!("at most {most} entries"));
            return Vec::new();
        }
        let mut read = Vec::new();
        for item in items.iter() {
            let Some(text) = self.text_of(key, item, problems) else { continue };
            match text.parse::<T>() {
                Ok(parsed) => read.push((parsed, item.span())),
                Err(error) => problems.add(item.span(), &self.path_of(key), error.to_string()),
            }
        }
        read
    }

    pub(super) fn boolean(&self, key: &str, problems: &mut Problems<'_>) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value.span(), "true or false", value.get_ref(), problems);
        }
        found
    }

    /// A whole number in `least..=most`.
    pub(super) fn integer(
        &self,
        key: &str,
        least: u32,
        most: u32,
        problems: &mut Problems<'_>,
    ) -> Option<(u32, Range<usize>)> {
        let value = self.get(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value.span(), "a whole number", value.get_ref(), problems);
            return None;
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(found) if (least..=most).contains(&found) => Some((found, value.span())),
            _ => {
                let what =
                    format!("{number} is out of bounds: expected a whole number from {least} to {most}");
                problems.add(value.span(), &self.path_of(key), what);
                None
            }
        }
    }

    /// A duration in `least..=most` ms, or `default` where the key is absent. Nothing on an error.
    pub(super) fn duration_ms(
        &self,
        key: &str,
        default: u64,
        least: u64,
        most: u64,
        problems: &mut Problems<'_>,
    ) -> Option<u64> {
        let Some(value) = self.get(key) else {
            return Some(default);
        };
        if let DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
            let what = "a duration is a string with a unit, such as \"5s\"; a bare number says no unit";
            problems.add(value.span(), &self.path_of(key), what);
            return None;
        }
        let (text, at) = self.string(key, problems)?;
        match super::parse_duration_ms(&text) {
            Ok(ms) if (least..=most).contains(&ms) => Some(ms),
            Ok(_) => {
                let what = format!(
                    "\"{text}\" is out of bounds: expected {} to {}",
                    shown_ms(least),
                    shown_ms(most)
                );
                problems.add(at, &self.path_of(key), what);
                None
            }
            Err(error) => {
                problems.add(at, &self.path_of(key), error.to_string());
                None
            }
        }
    }

    pub(super) fn wrong_type(
        &self,
        key: &str,
        at: Range<usize>,
        expected: &str,
        found: &DeValue<'_>,
        problems: &mut Problems<'_>,
    ) {
        problems.add(at, &self.path_of(key), format!("expected {expected}, found {}", describe(found)));
    }
}

fn shown_ms(ms: u64) -> String {
    if ms >= 1_000 && ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{ms}ms") }
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}
