//! What the CLI writes: data to stdout, everything else to stderr. A reader that went away (a closed
//! pipe) ends the writing, not with an error.

mod color;
mod terminal;

pub use color::{Color, Paint, choose as choose_color, for_stderr, for_stdout};
pub use terminal::{Keys, size};

use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT_GONE: AtomicBool = AtomicBool::new(false);
/// Why data was lost, where that is not the reader's wish (a full disk).
static STDOUT_FAILED: OnceLock<String> = OnceLock::new();

/// How data is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// One line of data, to stdout.
pub fn data(line: &str) {
    raw(&format!("{line}\n"));
}

/// Text as it stands, to stdout.
pub fn raw(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        STDOUT_GONE.store(true, Ordering::Relaxed);
        if error.kind() != ErrorKind::BrokenPipe {
            // The first reason is the one to tell.
            let _told_already = STDOUT_FAILED.set(error.to_string());
        }
    }
}

/// Why what was written to stdout did not get there.
pub fn stdout_failure() -> Option<&'static str> {
    STDOUT_FAILED.get().map(String::as_str)
}

/// Whether nobody reads our stdout any more, so that following something has no use.
pub fn stdout_gone() -> bool {
    STDOUT_GONE.load(Ordering::Relaxed)
}

/// One message, to stderr. Nothing can be done about a stderr that is gone.
pub fn note(line: &str) {
    let _ignored = writeln!(std::io::stderr().lock(), "{line}");
}

/// A value as JSON, to stdout.
pub fn json(value: &Value) {
    // A `Value` always serializes: its keys are strings.
    data(&serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()));
}

/// A column: its heading, and where in each object its value is.
#[derive(Debug, Clone, Copy)]
pub struct Column(pub &'static str, pub &'static str);

/// A table of objects, to stdout; `empty` says what it means that there are none, on stderr.
pub fn table(columns: &[Column], rows: &[Value], empty: &str) {
    if rows.is_empty() {
        note(empty);
        return;
    }
    data(&table_text(columns, rows));
}

/// A table of objects as text, as wide as the terminal at most; in a pipe as wide as it is.
pub fn table_text(columns: &[Column], rows: &[Value]) -> String {
    table_of(columns, rows, size().map(|(columns, _)| columns))
}

fn table_of(columns: &[Column], rows: &[Value], width: Option<usize>) -> String {
    let mut table = comfy_table::Table::new();
    if let Some(width) = width.and_then(|width| u16::try_from(width).ok()) {
        table.set_width(width).set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.0));
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(lookup(row, column.1))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The value at a path of keys, `a.b`; several paths are separated by `|`, the first that is there counts.
pub fn lookup<'v>(row: &'v Value, paths: &str) -> &'v Value {
    let at = |path: &str| path.split('.').try_fold(row, |value, key| value.get(key)).filter(|v| !v.is_null());
    paths.split('|').find_map(at).unwrap_or(&Value::Null)
}

/// A value as a cell. Control characters, which a terminal might obey, are shown escaped.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => harmless(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| format!("{}={}", harmless(key), cell(value)))
            .collect::<Vec<_>>()
            .join(","),
        Value::Number(number) => number.to_string(),
    }
}

/// Text from elsewhere, in which a terminal finds nothing to obey.
pub fn harmless(text: &str) -> String {
    let escape = |c: char| c.is_control() && c != '\t';
    if !text.contains(escape) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| if escape(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// A moment, ms since 1970, as date and time in UTC.
pub fn date(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| unix_ms.to_string())
}

/// How long ago a time was, such as `5m`.
pub fn age(now_ms: u64, then_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length of time, s, such as `7d` or `1h 30m`; units that are zero are left out.
pub fn span(seconds: u64) -> String {
    let units = [("d", 86_400, u64::MAX), ("h", 3_600, 24), ("m", 60, 60), ("s", 1, 60)];
    let parts: Vec<String> = units
        .iter()
        .map(|(unit, length, next)| (seconds / length % next, unit))
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_are_short_and_harmless() {
        assert_eq!(cell(&Value::Null), "-");
        assert_eq!(cell(&json!(["a", 1, true])), "a,1,yes");
        assert_eq!(cell(&json!({"a": "b"})), "a=b");
        assert_eq!(cell(&json!("red\u{1b}[31m")), "red\\u{1b}[31m");
    }

    #[test]
    fn a_table_lines_up() {
        let rows = [json!({"name": "shop", "at": {"region": "fra"}}), json!({"name": "b"})];
        let text = table_of(&[Column("NAME", "name"), Column("REGION", "at.region|region")], &rows, None);
        assert_eq!(text, "NAME  REGION\nshop  fra\nb     -");
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_at_most() {
        let rows = [json!({"name": "shop", "detail": "word ".repeat(40)})];
        let columns = [Column("NAME", "name"), Column("DETAIL", "detail")];
        assert!(table_of(&columns, &rows, None).lines().any(|line| line.len() > 200));
        let narrow = table_of(&columns, &rows, Some(60));
        assert!(narrow.lines().all(|line| line.len() <= 60), "{narrow}");
        assert!(narrow.starts_with("NAME") && narrow.matches("word").count() == 40, "{narrow}");
    }

    #[test]
    fn spans_leave_out_what_is_zero() {
        assert_eq!(span(0), "0s");
        assert_eq!(span(7 * 86_400), "7d");
        assert_eq!(span(5_430), "1h 30m 30s");
        assert_eq!(span(90), "1m 30s");
    }

    #[test]
    fn ages_have_one_unit() {
        assert_eq!(age(10_000, 4_000), "6s");
        assert_eq!(age(0, 4_000), "0s");
        assert_eq!(age(7_200_000, 0), "2h");
    }
}
