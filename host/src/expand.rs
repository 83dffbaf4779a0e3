//! `$NAME`, `${NAME}` and `$$` in the words of `run`. There is no shell.

use std::collections::BTreeMap;

/// Why a word of `run` has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A name that is in no environment.
    #[error(
        "`{word}` in `run` names ${name}, which is not set; set it under [env], or write $$ for a dollar sign"
    )]
    Unknown {
        /// The word.
        word: String,
        /// The name.
        name: String,
    },
    /// A dollar sign that starts nothing.
    #[error("`{word}` in `run` has a `$` without a name after it; write $$ for a dollar sign")]
    Dangling {
        /// The word.
        word: String,
    },
    /// A `${` without its end.
    #[error("`{word}` in `run` has a `${{` without its `}}`")]
    Unclosed {
        /// The word.
        word: String,
    },
}

/// The word with each name replaced by its value in `environment`. Values are not expanded again.
pub fn expand(word: &str, environment: &BTreeMap<String, String>) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (name, after) = name_at(word, rest)?;
        let value = environment
            .get(name)
            .ok_or_else(|| ExpandError::Unknown { word: word.to_owned(), name: name.to_owned() })?;
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The name that `rest`, what follows a dollar sign, starts with, and what follows the name.
fn name_at<'a>(word: &str, rest: &'a str) -> Result<(&'a str, &'a str), ExpandError> {
    let dangling = || ExpandError::Dangling { word: word.to_owned() };
    if let Some(braced) = rest.strip_prefix('{') {
        let end = braced.find('}').ok_or_else(|| ExpandError::Unclosed { word: word.to_owned() })?;
        let name = &braced[..end];
        return if is_name(name) { Ok((name, &braced[end + 1..])) } else { Err(dangling()) };
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let name = &rest[..end];
    if is_name(name) { Ok((name, &rest[end..])) } else { Err(dangling()) }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> BTreeMap<String, String> {
        [("PORT", "4000"), ("A_1", "$PORT")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn names_are_replaced_once() {
        for (word, value) in [
            ("plain", "plain"),
            ("127.0.0.1:$PORT", "127.0.0.1:4000"),
            ("${PORT}0", "40000"),
            ("$PORT.$PORT", "4000.4000"),
            ("$$PORT", "$PORT"),
            ("$A_1", "$PORT"),
            ("ä$PORT", "ä4000"),
        ] {
            assert_eq!(expand(word, &environment()).as_deref(), Ok(value), "{word}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_says_so() {
        for (word, part) in [
            ("$NOPE", "names $NOPE"),
            ("a$", "without a name"),
            ("$1", "without a name"),
            ("${PORT", "without its `}`"),
            ("${}", "without a name"),
            ("${a b}", "without a name"),
        ] {
            let why = expand(word, &environment()).unwrap_err().to_string();
            assert!(why.contains(part), "{word}: {why}");
        }
    }
}
