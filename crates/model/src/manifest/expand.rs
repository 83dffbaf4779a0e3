//! `$NAME`, `${NAME}` and `$$` in `run`: which names a text uses.

/// Why a text can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// `$` before something that is neither a name nor another `$`.
    #[error("a lone `$`; write `$$` for the character itself")]
    Lone,
    /// `${` without `}`.
    #[error("`${{` is not closed with `}}`")]
    Open,
    /// Between the braces is no name.
    #[error("`${{{0}}}` holds no name; a name is letters, digits and `_`, and starts with no digit")]
    Name(String),
}

/// The names that `text` would have expanded, in order, repeats included.
///
/// # Errors
/// When a `$` is followed by neither a name, a name in braces, nor another `$`.
pub fn variables_of(text: &str) -> Result<Vec<&str>, VariableError> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = after.find('}').ok_or(VariableError::Open)?;
            let name = &after[..end];
            if !is_variable(name) {
                return Err(VariableError::Name(name.escape_debug().take(40).collect()));
            }
            names.push(name);
            rest = &after[end + 1..];
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            if !is_variable(&rest[..end]) {
                return Err(VariableError::Lone);
            }
            names.push(&rest[..end]);
            rest = &rest[end..];
        }
    }
    Ok(names)
}

/// Whether `name` can name an environment variable.
pub(super) fn is_variable(name: &str) -> bool {
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    starts && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        assert_eq!(variables_of("127.0.0.1:$PORT"), Ok(vec!["PORT"]));
        assert_eq!(variables_of("${A}b$C_1-$$D$E"), Ok(vec!["A", "C_1", "E"]));
        assert_eq!(variables_of("$$$$"), Ok(vec![]));
    }

    #[test]
    fn broken_references_are_refused() {
        assert_eq!(variables_of("a$"), Err(VariableError::Lone));
        assert_eq!(variables_of("$1"), Err(VariableError::Lone));
        assert_eq!(variables_of("${A"), Err(VariableError::Open));
        assert_eq!(variables_of("${}"), Err(VariableError::Name(String::new())));
        assert!(variables_of("${A:-b}").is_err());
    }
}
