//! One form of a request's path, for everything that is decided by it and for what is passed on: route,
//! authorization, cache key, forwarding. Two readers of a path in this form agree on its segments.

use std::borrow::Cow;

/// A path that can be read in two ways, or in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It doesn't begin with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A `%` without two hexadecimal digits.
    #[error("the path has a percent sign that begins no escape")]
    Escape,
    /// `\`, which some read as `/`.
    #[error("the path has a backslash")]
    Backslash,
    /// A control character, also escaped: some end the path there.
    #[error("the path has a control character")]
    Control,
    /// `..` above the root.
    #[error("the path leaves the root by `..`")]
    AboveRoot,
    /// A segment that is `.` or `..` to those who read `;`, `%2F` or `%5C` in another way: `..;`, `..%2F`.
    #[error("the path hides `.` or `..` in a segment")]
    HiddenDots,
}

/// A path in its normal form (RFC 3986, section 6.2.2): what needs no escape is not escaped, escapes
/// are in upper case, and there is no segment `.` or `..`. Empty segments and the escapes of `/` stay: they
/// are a path's own, see [`Self::is_ambiguous`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath<'a>(Cow<'a, str>);

/// Brings `path` (without the query) into its normal form. Most are in it already: then nothing is copied.
///
/// # Errors
/// Why it has none.
pub fn normalise(path: &str) -> Result<NormalPath<'_>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err(PathError::Backslash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            _ => {}
        }
    }
    let path = unescape(path)?;
    let may_have_dots = path.contains("/.") || (path.contains('%') && path.contains('.'));
    if !may_have_dots {
        return Ok(NormalPath(path));
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut dots_last = false;
    for segment in path.split('/').skip(1) {
        dots_last = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop().ok_or(PathError::AboveRoot)?;
            }
            other if hides_dots(other) => return Err(PathError::HiddenDots),
            other => kept.push(other),
        }
    }
    if dots_last {
        // What ends in a dot segment names a folder.
        kept.push("");
    }
    let normal: String = kept.iter().flat_map(|segment| ["/", segment]).collect();
    Ok(NormalPath(if normal == path { path } else { Cow::Owned(normal) }))
}

impl NormalPath<'_> {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is other than what was given.
    #[must_use]
    pub const fn is_changed(&self) -> bool {
        matches!(self.0, Cow::Owned(_))
    }

    /// Whether a program may see other segments than we do, so that rules on paths must not be decided by
    /// it: empty segments, which some leave out; `;`, at which some cut a segment; escapes of `/`, `\`, `;` and of
    /// another escape; bytes that are no UTF-8, which some read as other characters.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        let path = self.as_str();
        if path.contains("//") || path.contains(';') {
            return true;
        }
        path.contains('%')
            && (["%2F", "%5C", "%3B", "%25"].iter().any(|escape| path.contains(escape))
                || std::str::from_utf8(&decoded(path)).is_err())
    }
}

/// `.` or `..` beside `;`, `%2F` or `%5C`. Escapes are in upper case.
fn hides_dots(segment: &str) -> bool {
    let dots = |part: &str| matches!(part, "." | "..");
    if segment.contains("%2F") || segment.contains("%5C") {
        let parts = segment.split("%2F").flat_map(|part| part.split("%5C"));
        return parts.map(before_parameter).any(dots);
    }
    dots(before_parameter(segment))
}

fn before_parameter(segment: &str) -> &str {
    let end = [segment.find(';'), segment.find("%3B")].into_iter().flatten().min();
    end.map_or(segment, |end| &segment[..end])
}

/// Escapes in upper case, and none for what needs none.
fn unescape(path: &str) -> Result<Cow<'_, str>, PathError> {
    let Some(first) = path.find('%') else { return Ok(Cow::Borrowed(path)) };
    let mut text = String::with_capacity(path.len());
    text.push_str(&path[..first]);
    let mut rest = &path[first..];
    let mut changed = false;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let escape = rest.get(at..at + 3).ok_or(PathError::Escape)?;
        let byte = byte_of(escape).ok_or(PathError::Escape)?;
        match byte {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
                changed = true;
            }
            _ => {
                changed |= escape.bytes().any(|b| b.is_ascii_lowercase());
                text.push_str(&escape.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    text.push_str(rest);
    Ok(if changed { Cow::Owned(text) } else { Cow::Borrowed(path) })
}

/// What `%41` stands for.
fn byte_of(escape: &str) -> Option<u8> {
    let digits = escape.strip_prefix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(digits, 16).ok()
}

fn decoded(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        match rest.get(at..at + 3).and_then(byte_of) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[at + 3..];
            }
            None => {
                bytes.push(b'%');
                rest = &rest[at + 1..];
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b/", "/a//b/"),
            ("/%7euser/%41%2d", "/~user/A-"),
            ("/a%2fb", "/a%2Fb"),
            ("/%e4%b8", "/%E4%B8"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2e%2E/c", "/c"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a//..", "/a/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/v1.2%20beta", "/v1.2%20beta"),
        ] {
            let found = normalise(path).unwrap();
            assert_eq!(found.as_str(), normal, "{path}");
            assert_eq!(found.is_changed(), path != normal, "{path}");
        }
        for (path, error) in [
            ("", PathError::NotAbsolute),
            ("a", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("/..", PathError::AboveRoot),
            ("/a/../..", PathError::AboveRoot),
            ("/%2e%2e/x", PathError::AboveRoot),
            ("/a\\b", PathError::Backslash),
            ("/a%00", PathError::Control),
            ("/a%0d%0ab", PathError::Control),
            ("/a\u{1}", PathError::Control),
            ("/%", PathError::Escape),
            ("/%4", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%+1", PathError::Escape),
            ("/%ä", PathError::Escape),
            ("/a/..;/b", PathError::HiddenDots),
            ("/a/%2e%2e%3bx/b", PathError::HiddenDots),
            ("/a/..%2fb", PathError::HiddenDots),
            ("/a/x%5c..%5cb", PathError::HiddenDots),
            ("/a/.%2Fb", PathError::HiddenDots),
            ("/x%2f%2e%2e", PathError::HiddenDots),
        ] {
            assert_eq!(normalise(path), Err(error), "{path}");
        }
        for (path, ambiguous) in [
            ("/a/b", false),
            ("/a/", false),
            ("/%C3%A4", false),
            ("/a%20b", false),
            ("/a//b", true),
            ("/a;b", true),
            ("/a%2Fb", true),
            ("/a%5Cb", true),
            ("/a%3Bb", true),
            ("/a%252fb", true),
            ("/%C0%AF", true),
        ] {
            assert_eq!(normalise(path).unwrap().is_ambiguous(), ambiguous, "{path}");
        }
    }

    /// RFC 3986, section 5.2.4, as it is written there.
    fn without_dots(path: &str) -> String {
        let (mut input, mut output) = (path.to_owned(), String::new());
        while !input.is_empty() {
            if input.starts_with("/./") || input == "/." {
                input.replace_range(..input.len().min(3), "/");
            } else if input.starts_with("/../") || input == "/.." {
                input.replace_range(..input.len().min(4), "/");
                output.truncate(output.rfind('/').unwrap_or(0));
            } else {
                let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
                output.push_str(&input[..end]);
                input.replace_range(..end, "");
            }
        }
        output
    }

    proptest! {
        #[test]
        fn the_form_is_one_and_has_no_dots(path in "/([ab.]|/|%2[eEfF]|%41|%7e|%5[cC]|;|%3b|%25|\\\\|%0|%c3){0,12}") {
            if let Ok(normal) = normalise(&path) {
                let text = normal.as_str();
                prop_assert!(text.starts_with('/'));
                prop_assert!(!text.split('/').any(|s| s == "." || s == ".."), "{text}");
                let again = normalise(text).unwrap();
                prop_assert!(again.as_str() == text && !again.is_changed(), "{text}");
                // Whoever decodes all of it and then takes dots away sees no other folder, unless we say so.
                if !normal.is_ambiguous() {
                    let seen = String::from_utf8(decoded(text)).unwrap();
                    prop_assert_eq!(without_dots(&seen), seen);
                }
            }
        }

        #[test]
        fn plain_paths_follow_the_rfc(path in "(/[ab.]{0,3}){1,8}") {
            match normalise(&path) {
                Ok(normal) => prop_assert_eq!(normal.as_str(), without_dots(&path)),
                Err(error) => prop_assert_eq!(error, PathError::AboveRoot),
            }
        }

        #[test]
        fn nothing_makes_it_panic(path in "\\PC{0,30}|/[%a-f0-9ä/.;]{0,20}") {
            let _either = normalise(&path).map(|normal| normal.is_ambiguous());
        }
    }
}
