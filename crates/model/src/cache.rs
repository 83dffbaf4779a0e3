//! What an app says of its domains: `[[host]]`, and how edges cache their answers: `[[host.cache]]`.

use crate::condition::Condition;
use crate::pattern::PathPattern;
use serde::{Deserialize, Serialize};

/// Most `[[host]]` of an app.
pub const HOSTS_MAX: usize = 16;
/// Most domains of one `[[host]]`.
pub const HOST_DOMAINS_MAX: usize = 64;
/// Most `[[host.cache]]` of an app.
pub const CACHE_RULES_MAX: usize = 64;
/// Longest lifetime that a rule gives, in seconds: 365 days.
pub const LIFETIME_S_MAX: u64 = 365 * 24 * 3600;
/// Most names of query parameters of a rule.
pub const QUERY_NAMES_MAX: usize = 64;
/// Longest name of a query parameter in a rule, in bytes.
pub const QUERY_NAME_BYTES_MAX: usize = 128;
/// Longest name of a rule's field of tags, in bytes.
pub const TAGS_FIELD_BYTES_MAX: usize = 64;

/// What an app says of some of its domains.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Which; in their normal form, `*.` as first label stands for one label. None: all that the app has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// How edges cache. The first rule that matches a path decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<CacheRule>,
}

/// How edges cache the answers of some paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheRule {
    /// Of which paths.
    pub path: PathPattern,
    /// Not at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub off: bool,
    /// How long an answer is fresh, in seconds; nothing: as long as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// Also what says that it is not to be stored; its `Set-Cookie` is removed. Needs [`Self::ttl_s`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// How long clients are told that an answer is fresh, in seconds; nothing: what the answer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub browser_ttl_s: Option<u64>,
    /// Which query parameters make answers differ.
    #[serde(default, skip_serializing_if = "QueryKey::is_all")]
    pub query: QueryKey,
    /// Their order does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sort_query: bool,
    /// The field that holds an answer's tags, in lower case; nothing: the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Clients see that field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub show_tags: bool,
    /// How long after its life an answer is used while the instance is asked, in seconds; nothing: what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate_s: Option<u64>,
    /// How long after its life an answer is used where the instance fails, in seconds; nothing: what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error_s: Option<u64>,
    /// Who is asked before the region is.
    #[serde(default, skip_serializing_if = "Tier::is_local")]
    pub tier: Tier,
    /// Requests for which it holds neither read nor write the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Condition>,
    /// Answers may be stored and sent compressed.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub compress: bool,
}

/// Which query parameters make answers differ. Names are compared as they stand in the URL, without decoding; `*` at the
/// end of one stands for any rest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryKey {
    /// Every one.
    #[default]
    All,
    /// These; with none, no parameter does.
    Only(Vec<String>),
    /// Every one but these.
    AllBut(Vec<String>),
}

/// Which other edges are asked for an answer before the region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// None.
    None,
    /// Those of the same location.
    #[default]
    Local,
    /// Also one near the region.
    Regional,
}

/// What is wrong with a rule, by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheRuleError {
    /// `off` with anything beside it.
    #[error("a rule with `off` has no other key than `match`")]
    Off,
    /// `force` without a lifetime.
    #[error(
        "`force` stores what says no lifetime, or that it is not to be stored: give it a `ttl` such as \"1h\""
    )]
    Force,
    /// More than [`LIFETIME_S_MAX`].
    #[error("{0} s are more than 365 days")]
    Lifetime(u64),
    /// More than [`QUERY_NAMES_MAX`].
    #[error("a rule names at most {QUERY_NAMES_MAX} query parameters")]
    QueryNames,
    /// No name of a query parameter.
    #[error(
        "`{0}` is no name of a query parameter: write it as it stands in the URL, at most {QUERY_NAME_BYTES_MAX} characters; `*` at its end stands for any rest"
    )]
    QueryName(String),
    /// No name of a header field.
    #[error("`{0}` is no name of a header field")]
    TagsField(String),
    /// A field with another meaning.
    #[error("`{0}` has a meaning of its own; tags are in a field such as Surrogate-Key or Cache-Tag")]
    TagsMeaning(String),
    /// `show_tags` without `tags`.
    #[error("there is no field of tags to show: set `tags`")]
    ShowTags,
}

impl CacheRule {
    /// A rule for these paths that changes nothing.
    #[must_use]
    pub const fn new(path: PathPattern) -> Self {
        Self {
            path,
            off: false,
            ttl_s: None,
            force: false,
            browser_ttl_s: None,
            query: QueryKey::All,
            sort_query: false,
            tags: None,
            show_tags: false,
            stale_while_revalidate_s: None,
            stale_if_error_s: None,
            tier: Tier::Local,
            bypass: None,
            compress: true,
        }
    }

    /// Everything that is wrong, each with the name of its field.
    #[must_use]
    pub fn errors(&self) -> Vec<(&'static str, CacheRuleError)> {
        let mut errors = Vec::new();
        if self.off && *self != (Self { off: true, ..Self::new(self.path.clone()) }) {
            errors.push(("off", CacheRuleError::Off));
        }
        if self.force && self.ttl_s.is_none() {
            errors.push(("force", CacheRuleError::Force));
        }
        for (field, seconds) in [
            ("ttl_s", self.ttl_s),
            ("browser_ttl_s", self.browser_ttl_s),
            ("stale_while_revalidate_s", self.stale_while_revalidate_s),
            ("stale_if_error_s", self.stale_if_error_s),
        ] {
            if let Some(seconds) = seconds.filter(|seconds| *seconds > LIFETIME_S_MAX) {
                errors.push((field, CacheRuleError::Lifetime(seconds)));
            }
        }
        let names = self.query.names();
        if names.len() > QUERY_NAMES_MAX {
            errors.push(("query", CacheRuleError::QueryNames));
        }
        let wrong = names.iter().take(QUERY_NAMES_MAX).find_map(|name| check_query_name(name).err());
        errors.extend(wrong.map(|error| ("query", error)));
        if let Some(Err(error)) = self.tags.as_deref().map(check_tags_field) {
            errors.push(("tags", error));
        }
        if self.show_tags && self.tags.is_none() {
            errors.push(("show_tags", CacheRuleError::ShowTags));
        }
        errors
    }
}

impl QueryKey {
    /// Whether the parameter makes answers differ.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        let is_named = |names: &[String]| {
            names.iter().any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => known == name,
            })
        };
        match self {
            Self::All => true,
            Self::Only(names) => is_named(names),
            Self::AllBut(names) => !is_named(names),
        }
    }

    /// The names in it.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::Only(names) | Self::AllBut(names) => names,
        }
    }

    const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

impl Tier {
    /// As manifests name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Regional => "regional",
        }
    }

    /// The tier of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Local, Self::Regional].into_iter().find(|tier| tier.as_str() == name)
    }

    const fn is_local(&self) -> bool {
        matches!(self, Self::Local)
    }
}

/// Checks the name of a query parameter, which may end in `*`.
///
/// # Errors
/// When no URL has it as it is written.
pub fn check_query_name(name: &str) -> Result<(), CacheRuleError> {
    let plain = name.strip_suffix('*').unwrap_or(name);
    let clean = plain.bytes().all(|b| b.is_ascii_graphic() && !b"&=#*\"<>".contains(&b));
    match (1..=QUERY_NAME_BYTES_MAX).contains(&name.len()) && clean {
        true => Ok(()),
        false => Err(CacheRuleError::QueryName(shown(name))),
    }
}

/// Checks the name of a field for tags, in lower case.
///
/// # Errors
/// When it is no name, or that of a field with another meaning.
pub fn check_tags_field(name: &str) -> Result<(), CacheRuleError> {
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !(1..=TAGS_FIELD_BYTES_MAX).contains(&name.len()) || !name.bytes().all(token) {
        return Err(CacheRuleError::TagsField(shown(name)));
    }
    if WITH_A_MEANING.contains(&name) || MEANING_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(CacheRuleError::TagsMeaning(name.to_owned()));
    }
    Ok(())
}

/// Fields of answers that say something to clients, caches or hops.
const WITH_A_MEANING: &[&str] = &[
    "accept-ranges",
    "age",
    "allow",
    "alt-svc",
    "cache-control",
    "cache-status",
    "cdn-cache-control",
    "connection",
    "date",
    "etag",
    "expires",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "pragma",
    "proxy-authenticate",
    "proxy-connection",
    "proxy-status",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-request-id",
];
const MEANING_PREFIXES: &[&str] = &["access-control-", "atoll-", "content-", "grpc-", "sec-"];

fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

const fn yes() -> bool {
    true
}

/// By reference, as serde calls it.
const fn is_yes(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn rule() -> CacheRule {
        CacheRule::new("/a/**".parse().unwrap())
    }

    #[test]
    fn rules_are_short_as_json() {
        let json = |rule: &CacheRule| serde_json::to_string(rule).unwrap();
        assert_eq!(json(&rule()), r#"{"path":"/a/**"}"#);
        let full = CacheRule {
            ttl_s: Some(60),
            query: QueryKey::Only(vec!["v".into()]),
            tier: Tier::None,
            bypass: Some("request.path == '/a'".parse().unwrap()),
            compress: false,
            ..rule()
        };
        assert_eq!(
            json(&full),
            r#"{"path":"/a/**","ttl_s":60,"query":{"only":["v"]},"tier":"none","bypass":"request.path == '/a'","compress":false}"#
        );
        assert_eq!(serde_json::from_str::<CacheRule>(&json(&full)).unwrap(), full);
        assert!(serde_json::from_str::<CacheRule>(r#"{"path":"/","ttl":3}"#).is_err());
        assert_eq!(serde_json::from_str::<HostSpec>("{}").unwrap(), HostSpec::default());
    }

    #[test]
    fn query_keys_keep_what_they_name() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(QueryKey::All.keeps("x") && !QueryKey::Only(Vec::new()).keeps("x"));
        let only = QueryKey::Only(names(&["v", "p_*"]));
        assert!(
            only.keeps("v") && only.keeps("p_") && only.keeps("p_x") && !only.keeps("V") && !only.keeps("vv")
        );
        let all_but = QueryKey::AllBut(names(&["utm_*"]));
        assert!(all_but.keeps("v") && !all_but.keeps("utm_source"));
    }

    #[test]
    fn what_is_wrong_has_its_field() {
        let fields = |rule: CacheRule| rule.errors().into_iter().map(|(field, _)| field).collect::<Vec<_>>();
        assert_eq!(fields(rule()), [""; 0]);
        assert_eq!(fields(CacheRule { off: true, ..rule() }), [""; 0]);
        assert_eq!(fields(CacheRule { off: true, ttl_s: Some(1), ..rule() }), ["off"]);
        assert_eq!(fields(CacheRule { force: true, show_tags: true, ..rule() }), ["force", "show_tags"]);
        let long = Some(LIFETIME_S_MAX + 1);
        assert_eq!(
            fields(CacheRule { ttl_s: long, browser_ttl_s: long, ..rule() }),
            ["ttl_s", "browser_ttl_s"]
        );
        for name in ["", "a b", "a&b", "a*b", "a=", "ä"] {
            let query = QueryKey::AllBut(vec![name.to_owned()]);
            assert_eq!(fields(CacheRule { query, ..rule() }), ["query"], "{name}");
        }
        for name in ["", "Tags", "a b", "set-cookie", "content-length", "atoll-x"] {
            assert_eq!(fields(CacheRule { tags: Some(name.to_owned()), ..rule() }), ["tags"], "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_two_kinds_of_keys_are_opposites(
            names in prop::collection::vec("[ab]{0,3}\\*?", 0..4), name in "[ab]{0,4}",
        ) {
            prop_assert_ne!(QueryKey::Only(names.clone()).keeps(&name), QueryKey::AllBut(names).keeps(&name));
        }
    }
}
