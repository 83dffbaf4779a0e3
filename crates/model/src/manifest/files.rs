//! `files`: what of the manifest's folder travels to the hosts.

use super::error::Problems;
use super::section::Section;
use std::fmt;
use std::str::FromStr;
use toml::de::DeValue;

/// Most patterns of a service.
const PATTERNS_MAX: usize = 64;
const PATTERN_BYTES_MAX: usize = 1024;

/// One entry of `files`: a file, a folder (with `/` at its end; all that is in it), or either with `*` and `?`
/// in its names. `./` is the manifest's own folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePattern {
    parts: Vec<String>,
    folder: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilePatternError {
    /// Nothing.
    #[error("an entry of `files` is empty; `\"./\"` is the manifest's whole folder")]
    Empty,
    /// It starts at the root.
    #[error("an entry of `files` is a path from the manifest's folder; it can't start with `/`")]
    Absolute,
    /// It leaves the manifest's folder.
    #[error(
        "an entry of `files` can't leave the manifest's folder: put the manifest further up, or copy the files"
    )]
    Outside,
    /// `a//b`, `a/./b`.
    #[error("an entry of `files` has an empty name or a `.` within it")]
    Name,
    /// `**`.
    #[error("`**` is not supported: name the folder, with `/` at its end, for all that is in it")]
    Everywhere,
    /// A control character.
    #[error("an entry of `files` holds a control character")]
    Control,
    /// More than 1024 bytes.
    #[error("an entry of `files` has at most 1024 bytes")]
    TooLong,
}

impl FilePattern {
    /// Its names, from the manifest's folder down; none for that folder itself.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Whether it names folders.
    #[must_use]
    pub const fn is_folder(&self) -> bool {
        self.folder
    }

    /// Whether a part stands for several names.
    #[must_use]
    pub fn is_glob(part: &str) -> bool {
        part.contains(['*', '?'])
    }

    /// Whether a part of a pattern matches a name: `*` is any characters, `?` is one. A leading dot must be
    /// written, as in a shell.
    #[must_use]
    pub fn matches(part: &str, name: &str) -> bool {
        if name.starts_with('.') && !part.starts_with('.') {
            return false;
        }
        let (part, name): (Vec<char>, Vec<char>) = (part.chars().collect(), name.chars().collect());
        let (mut p, mut n) = (0, 0);
        // Where the last `*` was, and how much of the name it has taken so far.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            if p < part.len() && part[p] == '*' {
                star = Some((p, n));
                p += 1;
            } else if p < part.len() && (part[p] == '?' || part[p] == name[n]) {
                p += 1;
                n += 1;
            } else if let Some((at, taken)) = star {
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            } else {
                return false;
            }
        }
        part[p..].iter().all(|c| *c == '*')
    }
}

impl FromStr for FilePattern {
    type Err = FilePatternError;
    fn from_str(text: &str) -> Result<Self, FilePatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(FilePatternError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(FilePatternError::Control);
        }
        if text.starts_with('/') {
            return Err(FilePatternError::Absolute);
        }
        let folder = text.ends_with('/');
        let path = text.strip_suffix('/').unwrap_or(text);
        if path.is_empty() {
            return Err(FilePatternError::Empty);
        }
        if path == "." {
            return Ok(Self { parts: Vec::new(), folder: true });
        }
        let path = path.strip_prefix("./").unwrap_or(path);
        let parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        for part in &parts {
            match part.as_str() {
                ".." => return Err(FilePatternError::Outside),
                "" | "." => return Err(FilePatternError::Name),
                part if part.contains("**") => return Err(FilePatternError::Everywhere),
                _ => {}
            }
        }
        Ok(Self { parts, folder })
    }
}

impl fmt::Display for FilePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return f.write_str("./");
        }
        write!(f, "{}{}", self.parts.join("/"), if self.folder { "/" } else { "" })
    }
}

/// Reads `files`; nothing where the service has none.
pub(super) fn read(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<FilePattern> {
    let key = table.path_of("files");
    let Some(value) = table.get("files") else { return Vec::new() };
    let DeValue::Array(items) = value.get_ref() else {
        let what = "`files` is a list of files and folders, such as [\"bin/\", \"app.py\"]";
        problems.add(value.span(), &key, what);
        return Vec::new();
    };
    if items.is_empty() || items.len() > PATTERNS_MAX {
        let what = if items.is_empty() {
            "`files` is empty; leave it out to run in the manifest's own folder, on this machine alone"
                .to_owned()
        } else {
            format!(
                "`files` has at most {PATTERNS_MAX} entries; a folder, with `/` at its end, stands for all that is in it"
            )
        };
        problems.add(value.span(), &key, what);
        return Vec::new();
    }
    let mut patterns = Vec::new();
    for item in items.iter() {
        let Some(text) = table.text_of("files", item, problems) else { continue };
        match text.parse() {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let error: FilePatternError = error;
                problems.add(item.span(), &key, error.to_string());
            }
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_one_meaning() {
        let pattern = |text: &str| text.parse::<FilePattern>();
        for (text, shown) in
            [("bin/", "bin/"), ("./bin/", "bin/"), (".", "./"), ("./", "./"), ("a/*.py", "a/*.py")]
        {
            assert_eq!(pattern(text).unwrap().to_string(), shown, "{text}");
        }
        for (text, error) in [
            ("", FilePatternError::Empty),
            ("/bin/", FilePatternError::Absolute),
            ("/", FilePatternError::Absolute),
            ("../x", FilePatternError::Outside),
            ("a/../..", FilePatternError::Outside),
            ("a//b", FilePatternError::Name),
            ("a/./b", FilePatternError::Name),
            ("a//", FilePatternError::Name),
            ("a/**/b", FilePatternError::Everywhere),
            ("a\nb", FilePatternError::Control),
        ] {
            assert_eq!(pattern(text), Err(error), "{text:?}");
        }
        assert_eq!(pattern(&"a".repeat(1025)), Err(FilePatternError::TooLong));
    }

    #[test]
    fn globs_match_as_in_a_shell() {
        let matches = FilePattern::matches;
        assert!(
            matches("*.py", "a.py") && matches("*", "a") && matches("a*c*e", "abcde") && matches("?", "é")
        );
        assert!(matches(".*", ".env") && matches("a**", "a"));
        assert!(!matches("*", ".env") && !matches("?env", ".env"));
        assert!(!matches("*.py", "a.pyc") && !matches("?", "") && !matches("a*c", "ab"));
    }
}
