//! What a path in a bundle may be.

/// Longest path, and longest target of a link, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Most folders above a file.
const DEPTH_MAX: usize = 32;

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// It starts at the root.
    #[error("it starts with `/`")]
    Absolute,
    /// `a//b`, `a/`.
    #[error("a name in it is empty")]
    EmptyName,
    /// `.` or `..`.
    #[error("it holds `.` or `..`")]
    Dots,
    /// Characters that no terminal should see, NUL and newline among them.
    #[error("it holds a control character")]
    Control,
    /// More than [`PATH_BYTES_MAX`], or a name that no file system takes.
    #[error("it is too long")]
    TooLong,
    /// More folders than anybody needs.
    #[error("it is too deep")]
    TooDeep,
}

/// Whether `path` names something below the folder that a bundle is unpacked into, in the one way in which
/// that can be written.
pub(crate) fn check(path: &str) -> Result<(), PathFault> {
    if path.is_empty() {
        return Err(PathFault::Empty);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(PathFault::TooLong);
    }
    if path.starts_with('/') {
        return Err(PathFault::Absolute);
    }
    if path.chars().any(char::is_control) {
        return Err(PathFault::Control);
    }
    let mut depth = 0;
    for name in path.split('/') {
        match name {
            "" => return Err(PathFault::EmptyName),
            "." | ".." => return Err(PathFault::Dots),
            _ if name.len() > NAME_BYTES_MAX => return Err(PathFault::TooLong),
            _ => depth += 1,
        }
    }
    if depth > DEPTH_MAX + 1 { Err(PathFault::TooDeep) } else { Ok(()) }
}

/// Whether a link may say `target`, as far as the text alone tells.
pub(crate) fn check_target(target: &str) -> Result<(), PathFault> {
    if target.is_empty() {
        Err(PathFault::Empty)
    } else if target.len() > PATH_BYTES_MAX {
        Err(PathFault::TooLong)
    } else if target.starts_with('/') {
        Err(PathFault::Absolute)
    } else if target.chars().any(char::is_control) {
        Err(PathFault::Control)
    } else {
        Ok(())
    }
}

/// The folders above `path`, the nearest last; `a/b/c` gives `a`, `a/b`.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_pass() {
        for good in ["a", "a/b", ".env", "a b/ü", "...", "a\\b", "c:", "CON"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "a".repeat(256);
        let deep = ["a"; 40].join("/");
        let cases = [
            ("", PathFault::Empty),
            ("/etc", PathFault::Absolute),
            ("a//b", PathFault::EmptyName),
            ("a/", PathFault::EmptyName),
            ("..", PathFault::Dots),
            ("a/../b", PathFault::Dots),
            ("a/./b", PathFault::Dots),
            ("a\0b", PathFault::Control),
            ("a\nb", PathFault::Control),
            (long.as_str(), PathFault::TooLong),
            (deep.as_str(), PathFault::TooDeep),
        ];
        for (bad, fault) in cases {
            assert_eq!(check(bad), Err(fault), "{bad:?}");
        }
    }

    #[test]
    fn ancestors_are_the_folders_above() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(ancestors("a").count(), 0);
    }
}
