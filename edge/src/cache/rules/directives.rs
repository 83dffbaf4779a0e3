//! `Cache-Control` of requests and responses (RFC 9111, section 5.2), RFC 5861's two, RFC 8246's one, and the targeted fields of
//! RFC 9213.

use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// For our cache alone; goes before the other two (RFC 9213, section 2.2).
pub const ATOLL_CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("atoll-cdn-cache-control");
/// For every cache that works for the origin.
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What a larger number of seconds counts as: 68 years (RFC 9111, section 1.2.2).
pub const SECONDS_MAX: u64 = 1 << 31;
/// Most field names that are listed by `no-cache="…"` or `private="…"`; with more, all are meant.
const FIELDS_MAX: usize = 32;

/// `no-cache` and `private`: not there, of the whole response, or of these fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Applies {
    /// Not there.
    #[default]
    No,
    /// Of all of it.
    Whole,
    /// Of these fields alone.
    Fields(Vec<HeaderName>),
}

/// A response's directives. Where one comes twice, the stricter counts; one whose argument can't be read counts as 0 seconds, which
/// makes the response stale (RFC 9111, section 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseDirectives {
    /// `max-age`, s.
    pub max_age: Option<u64>,
    /// `s-maxage`, s.
    pub s_maxage: Option<u64>,
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache`.
    pub no_cache: Applies,
    /// `private`.
    pub private: Applies,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `no-transform`.
    pub no_transform: bool,
    /// `stale-while-revalidate`, s.
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error`, s.
    pub stale_if_error: Option<u64>,
    /// They come from a targeted field: `Expires` has no say.
    pub targeted: bool,
    /// What a rule of the app puts in the place of all that is said of the lifetime, s ([`super::policy`]).
    pub ruled_lifetime: Option<u64>,
    /// The rule goes over what the response says against being stored.
    pub forced: bool,
}

/// A request's directives, as far as a shared cache on the origin's side heeds them. `max-stale` is not among them: what is served
/// stale is the origin's to decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestDirectives {
    /// `max-age`, s.
    pub max_age: Option<u64>,
    /// `min-fresh`, s.
    pub min_fresh: Option<u64>,
    /// `no-cache`.
    pub no_cache: bool,
    /// `no-store`.
    pub no_store: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
}

impl ResponseDirectives {
    /// Those that hold for this cache: of `Atoll-CDN-Cache-Control`, else of `CDN-Cache-Control`, else of `Cache-Control`. A
    /// targeted field that is empty or no structured field is as if it were not there (RFC 9213, section 2.2).
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        [ATOLL_CDN_CACHE_CONTROL, CDN_CACHE_CONTROL]
            .iter()
            .find_map(|name| targeted(headers, name))
            .unwrap_or_else(|| plain(headers))
    }
}

fn plain(headers: &HeaderMap) -> ResponseDirectives {
    let mut read = ResponseDirectives::default();
    for_each(headers, |name, argument| {
        let stricter = |known: Option<u64>| {
            let new = argument.and_then(seconds).unwrap_or(0);
            Some(known.map_or(new, |known| known.min(new)))
        };
        match name {
            "max-age" => read.max_age = stricter(read.max_age),
            "s-maxage" => read.s_maxage = stricter(read.s_maxage),
            "stale-while-revalidate" => read.stale_while_revalidate = stricter(read.stale_while_revalidate),
            "stale-if-error" => read.stale_if_error = stricter(read.stale_if_error),
            "no-cache" => read.no_cache.add(argument),
            "private" => read.private.add(argument),
            "no-store" => read.no_store = true,
            "public" => read.public = true,
            "must-revalidate" => read.must_revalidate = true,
            "proxy-revalidate" => read.proxy_revalidate = true,
            "must-understand" => read.must_understand = true,
            "no-transform" => read.no_transform = true,
            _ => {}
        }
    });
    read
}

impl Applies {
    /// Whether the whole response is meant.
    #[must_use]
    pub fn whole(&self) -> bool {
        *self == Self::Whole
    }

    /// The fields that are meant, if only some are.
    #[must_use]
    pub fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(names) => names,
            Self::No | Self::Whole => &[],
        }
    }

    fn add(&mut self, argument: Option<&str>) {
        let names = argument.unwrap_or("").split(',').map(|name| name.trim_matches([' ', '\t']));
        let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        let parsed: Result<Vec<HeaderName>, _> = names.iter().map(|name| name.parse()).collect();
        match (&mut *self, parsed) {
            (Self::No, Ok(new)) if !new.is_empty() && new.len() <= FIELDS_MAX => *self = Self::Fields(new),
            (Self::Fields(known), Ok(new)) if !new.is_empty() && known.len() + new.len() <= FIELDS_MAX => {
                known.extend(new);
            }
            // Without names, with too many or with what is none: all of it, which is the stricter.
            _ => *self = Self::Whole,
        }
    }
}

fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let mut joined = Vec::new();
    for line in lines {
        if !joined.is_empty() {
            joined.extend_from_slice(b", ");
        }
        joined.extend_from_slice(line.as_bytes());
    }
    let dictionary: Dictionary = Parser::new(&joined).parse().ok()?;
    let mut read = ResponseDirectives { targeted: true, ..ResponseDirectives::default() };
    let mut says_something = false;
    for (name, member) in &dictionary {
        let ListEntry::Item(item) = member else { continue };
        says_something |= read.take(name.as_str(), &item.bare_item);
    }
    // One that says nothing that we know must not make Cache-Control be forgotten.
    says_something.then_some(read)
}

impl ResponseDirectives {
    /// Takes a member of a targeted field; says whether it means anything. A value of the wrong type is passed over.
    fn take(&mut self, name: &str, value: &BareItem) -> bool {
        if let BareItem::Integer(number) = value {
            let slot = match name {
                "max-age" => &mut self.max_age,
                "s-maxage" => &mut self.s_maxage,
                "stale-while-revalidate" => &mut self.stale_while_revalidate,
                "stale-if-error" => &mut self.stale_if_error,
                _ => return false,
            };
            *slot = Some(u64::try_from(i64::from(*number)).unwrap_or(0).min(SECONDS_MAX));
            return true;
        }
        if let (BareItem::String(names), "no-cache" | "private") = (value, name) {
            let applies = if name == "private" { &mut self.private } else { &mut self.no_cache };
            applies.add(Some(names.as_str()));
            return true;
        }
        let BareItem::Boolean(true) = value else { return false };
        match name {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = Applies::Whole,
            "private" => self.private = Applies::Whole,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "no-transform" => self.no_transform = true,
            _ => return false,
        }
        true
    }
}

impl RequestDirectives {
    /// A request's. `Pragma: no-cache` counts where there is no `Cache-Control` (RFC 9111, section 5.4).
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            let mut pragmas = headers.get_all(PRAGMA).iter().filter_map(|line| line.to_str().ok());
            read.no_cache =
                pragmas.any(|line| line.split(',').any(|word| word.trim().eq_ignore_ascii_case("no-cache")));
            return read;
        }
        for_each(headers, |name, argument| {
            let number = || argument.and_then(seconds);
            match name {
                "max-age" => read.max_age = number().or(read.max_age),
                "min-fresh" => read.min_fresh = number().or(read.min_fresh),
                "no-cache" => read.no_cache = true,
                "no-store" => read.no_store = true,
                "only-if-cached" => read.only_if_cached = true,
                _ => {}
            }
        });
        read
    }
}

/// Calls `take` with each directive of `Cache-Control`: its name in lower case, and its argument without quotes.
fn for_each(headers: &HeaderMap, mut take: impl FnMut(&str, Option<&str>)) {
    for line in headers.get_all(CACHE_CONTROL) {
        let mut rest = line.as_bytes();
        while let Some((directive, after)) = next_directive(rest) {
            rest = after;
            let Ok(directive) = std::str::from_utf8(directive) else { continue };
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name, Some(argument)),
                None => (directive, None),
            };
            let name = name.to_ascii_lowercase();
            match argument.map(unquoted) {
                Some(argument) => take(&name, Some(&argument)),
                None => take(&name, None),
            }
        }
    }
}

/// The next directive, trimmed, and what follows its comma. Commas in quotes are no ends.
fn next_directive(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    if rest.is_empty() {
        return None;
    }
    let (mut quoted, mut escaped) = (false, false);
    let end = rest.iter().position(|byte| {
        let ends = *byte == b',' && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        ends
    });
    let (directive, after) = match end {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &rest[rest.len()..]),
    };
    Some((directive.trim_ascii(), after))
}

fn unquoted(argument: &str) -> String {
    let Some(inner) = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return argument.to_owned();
    };
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

/// A number of seconds; more than [`SECONDS_MAX`] counts as that.
#[must_use]
pub fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse::<u64>().unwrap_or(u64::MAX).min(SECONDS_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn response(lines: &[&str]) -> ResponseDirectives {
        let lines: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
        ResponseDirectives::of(&headers(&lines))
    }

    #[test]
    fn ages_are_read_strictly() {
        for (text, age) in [
            ("max-age=3600", Some(3600)),
            ("MaX-aGe=3600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age=003600", Some(3600)),
            ("max-age=99999999999999999999999", Some(SECONDS_MAX)),
            ("max-age=1800, max-age=1", Some(1)),
            ("max-age=1, max-age=1800", Some(1)),
            ("extension=\"max-age=3600\", max-age=1", Some(1)),
            ("max-age=1, extension=\"max-age=3600\"", Some(1)),
            ("x=\"a\\\", max-age=5\", max-age=7", Some(7)),
            ("max-age=3600.0", Some(0)),
            ("max-age='3600'", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=", Some(0)),
            ("max-age", Some(0)),
            ("max-age= 3600", Some(0)),
            ("max-age =3600", None),
            ("a", None),
            ("", None),
            (",,,", None),
        ] {
            assert_eq!(response(&[text]).max_age, age, "{text}");
        }
        assert_eq!(response(&["max-age=1800", "max-age=1"]).max_age, Some(1), "over two lines");
    }

    #[test]
    fn fields_are_listed_or_all_are_meant() {
        let names = |text: &str| response(&[text]).private;
        assert_eq!(names("max-age=1"), Applies::No);
        assert_eq!(names("private"), Applies::Whole);
        assert_eq!(names("private=\"\""), Applies::Whole);
        assert_eq!(names("private=\"a b\""), Applies::Whole);
        let listed = names("private=\"Set-Cookie, x-a\", no-cache");
        assert_eq!(listed.fields(), ["set-cookie", "x-a"]);
        assert_eq!(names("private=\"a\", private=\"b\"").fields(), ["a", "b"]);
        assert_eq!(names("private=\"a\", private"), Applies::Whole);
    }

    #[test]
    fn a_targeted_field_goes_first_if_it_is_one() {
        let of = |lines: &[(&'static str, &str)]| ResponseDirectives::of(&headers(lines));
        let both = [("cache-control", "no-store"), ("cdn-cache-control", "max-age=10, foobar")];
        let read = of(&both);
        assert!(read.targeted && !read.no_store && read.max_age == Some(10));
        let ours = [both[0], both[1], ("atoll-cdn-cache-control", "max-age=99999999999")];
        assert_eq!(of(&ours).max_age, Some(SECONDS_MAX));
        for ignored in
            ["max-age=10000, &&&&&", "max-age=\"10000\"", "", "foo", "MaX-aGe=3600", "max-age =100"]
        {
            let read = of(&[("cache-control", "no-store"), ("cdn-cache-control", ignored)]);
            assert!(read.no_store && !read.targeted, "{ignored}");
        }
        let read = of(&[("cdn-cache-control", "private, no-cache=\"a\"")]);
        assert!(read.private.whole() && read.no_cache.fields() == ["a"]);
    }

    #[test]
    fn requests() {
        let of = |lines: &[(&'static str, &str)]| RequestDirectives::of(&headers(lines));
        let read = of(&[
            ("cache-control", "max-age=5, min-fresh=6, no-store, only-if-cached"),
            ("pragma", "no-cache"),
        ]);
        assert_eq!((read.max_age, read.min_fresh), (Some(5), Some(6)));
        assert!(read.no_store && read.only_if_cached && !read.no_cache);
        assert!(of(&[("pragma", "a, No-Cache")]).no_cache);
        assert_eq!(of(&[("cache-control", "max-age=x")]), RequestDirectives::default());
    }
}
