//! Rules of the cache.

use crate::record;
use atoll_model::cache::LIFETIME_S_MAX;
use atoll_model::{CacheRule, ConditionError, PathPattern, PatternError, QueryKey, Tier};

/// A rule from the wire that this version does not understand, and that can't be left out in parts: what it protects
/// from being stored would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheRuleError {
    /// Its paths.
    #[error("which paths the rule is for")]
    Path(#[source] PatternError),
    /// Its condition.
    #[error("when the rule is bypassed")]
    Bypass(#[source] ConditionError),
}

impl From<&CacheRule> for record::CacheRule {
    /// The domains are those of the `[[host]]`: control fills them in.
    fn from(rule: &CacheRule) -> Self {
        let mut body = Self {
            domains: Vec::new(),
            path: rule.path.to_string(),
            off: rule.off,
            ttl_s: rule.ttl_s,
            force: rule.force,
            browser_ttl_s: rule.browser_ttl_s,
            query: query_record(&rule.query),
            sort_query: rule.sort_query,
            tags: rule.tags.clone().unwrap_or_default(),
            show_tags: rule.show_tags,
            stale_while_revalidate_s: rule.stale_while_revalidate_s,
            stale_if_error_s: rule.stale_if_error_s,
            tier: 0,
            bypass: rule.bypass.as_ref().map(|condition| condition.text().to_owned()).unwrap_or_default(),
            uncompressed: !rule.compress,
        };
        body.set_tier(match rule.tier {
            Tier::Local => record::Tier::Local,
            Tier::None => record::Tier::None,
            Tier::Regional => record::Tier::Regional,
        });
        body
    }
}

impl TryFrom<record::CacheRule> for CacheRule {
    type Error = CacheRuleError;
    /// The domains are not a part of the rule: take them from the record before. What a later version adds to the enums
    /// reads as what they are without it.
    fn try_from(body: record::CacheRule) -> Result<Self, CacheRuleError> {
        // An unknown value reads as 0.
        let tier = match body.tier() {
            record::Tier::Local => Tier::Local,
            record::Tier::None => Tier::None,
            record::Tier::Regional => Tier::Regional,
        };
        let path: PathPattern = body.path.parse().map_err(CacheRuleError::Path)?;
        let bypass = match body.bypass.as_str() {
            "" => None,
            text => Some(text.parse().map_err(CacheRuleError::Bypass)?),
        };
        let bounded = |seconds: Option<u64>| seconds.map(|seconds| seconds.min(LIFETIME_S_MAX));
        Ok(Self {
            path,
            off: body.off,
            ttl_s: bounded(body.ttl_s),
            force: body.force,
            browser_ttl_s: bounded(body.browser_ttl_s),
            query: body.query.map(query_key).unwrap_or_default(),
            sort_query: body.sort_query,
            tags: Some(body.tags.to_ascii_lowercase()).filter(|field| !field.is_empty()),
            show_tags: body.show_tags,
            stale_while_revalidate_s: bounded(body.stale_while_revalidate_s),
            stale_if_error_s: bounded(body.stale_if_error_s),
            tier,
            bypass,
            compress: !body.uncompressed,
        })
    }
}

fn query_record(key: &QueryKey) -> Option<record::QueryKey> {
    use record::query_key::Keep;
    let keep = match key {
        QueryKey::All => return None,
        QueryKey::Only(_) => Keep::Only,
        QueryKey::AllBut(_) => Keep::AllBut,
    };
    Some(record::QueryKey { keep: keep.into(), names: key.names().to_vec() })
}

fn query_key(body: record::QueryKey) -> QueryKey {
    use record::query_key::Keep;
    match body.keep() {
        Keep::All => QueryKey::All,
        Keep::Only => QueryKey::Only(body.names),
        Keep::AllBut => QueryKey::AllBut(body.names),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use prost::Message;

    fn rules() -> Vec<CacheRule> {
        let plain = CacheRule::new("/a/**".parse().unwrap());
        let full = CacheRule {
            ttl_s: Some(0),
            force: true,
            browser_ttl_s: Some(60),
            query: QueryKey::Only(vec!["v".into(), "p_*".into()]),
            sort_query: true,
            tags: Some("surrogate-key".into()),
            show_tags: true,
            stale_while_revalidate_s: Some(1),
            stale_if_error_s: Some(2),
            tier: Tier::Regional,
            bypass: Some(r#"request.cookies["session"] != """#.parse().unwrap()),
            compress: false,
            ..plain.clone()
        };
        let off = CacheRule { off: true, ..plain.clone() };
        let nothing_keyed =
            CacheRule { query: QueryKey::Only(Vec::new()), tier: Tier::None, ..plain.clone() };
        let all_but = CacheRule { query: QueryKey::AllBut(vec!["utm_*".into()]), ..plain.clone() };
        vec![plain, full, off, nothing_keyed, all_but]
    }

    #[test]
    fn rules_are_the_same_behind_the_wire() {
        for rule in rules() {
            let bytes = record::CacheRule::from(&rule).encode_to_vec();
            let read = record::CacheRule::decode(bytes.as_slice()).unwrap();
            assert_eq!(CacheRule::try_from(read), Ok(rule));
        }
    }

    #[test]
    fn what_a_later_version_says_is_read_with_care() {
        let body = record::CacheRule::from(&rules()[0]);
        let query = record::QueryKey { keep: 77, names: vec!["x".into()] };
        let later = record::CacheRule { tier: 99, query: Some(query), ttl_s: Some(u64::MAX), ..body.clone() };
        let read = CacheRule::try_from(later).unwrap();
        assert_eq!((read.tier, read.query, read.ttl_s), (Tier::Local, QueryKey::All, Some(LIFETIME_S_MAX)));
        let unreadable = record::CacheRule { bypass: "request.body != ''".into(), ..body.clone() };
        assert!(matches!(CacheRule::try_from(unreadable), Err(CacheRuleError::Bypass(_))));
        let nowhere = record::CacheRule { path: String::new(), ..body };
        assert!(matches!(CacheRule::try_from(nowhere), Err(CacheRuleError::Path(_))));
    }
}
