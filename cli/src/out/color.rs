//! Colours: on a terminal, where nobody has said that they are not wanted.

use std::io::IsTerminal;
use std::sync::OnceLock;

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What is painted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// What went wrong.
    Error,
    /// What matters less.
    Dim,
    /// One of a few that are told apart by their numbers.
    Number(usize),
}

static CHOICE: OnceLock<Color> = OnceLock::new();

/// Takes what the command line says; the first time counts.
pub fn choose(color: Color) {
    let _chosen_before = CHOICE.set(color);
}

/// Text for stdout.
pub fn for_stdout(paint: Paint, text: &str) -> String {
    painted(wanted(std::io::stdout().is_terminal()), paint, text)
}

/// Text for stderr.
pub fn for_stderr(paint: Paint, text: &str) -> String {
    painted(wanted(std::io::stderr().is_terminal()), paint, text)
}

fn wanted(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let dumb = set("TERM").is_some_and(|term| term == "dumb");
    decide(CHOICE.get().copied().unwrap_or_default(), is_terminal, set("NO_COLOR").is_some() || dumb)
}

fn decide(choice: Color, is_terminal: bool, unwanted: bool) -> bool {
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && !unwanted,
    }
}

fn painted(wanted: bool, paint: Paint, text: &str) -> String {
    if !wanted {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Error => "1;31",
        Paint::Dim => "2",
        // Without red, which means that something is wrong.
        Paint::Number(number) => ["36", "32", "33", "35", "34", "96", "92", "93", "95", "94"][number % 10],
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_users_want_them() {
        assert!(decide(Color::Auto, true, false));
        assert!(!decide(Color::Auto, true, true));
        assert!(!decide(Color::Auto, false, false));
        assert!(decide(Color::Always, false, true));
        assert!(!decide(Color::Never, true, false));
        assert_eq!(painted(true, Paint::Error, "x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(painted(false, Paint::Number(11), "x"), "x");
    }
}
