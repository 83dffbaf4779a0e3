//! Join tokens: single-use, expiring, bound to roles and site, and holding the fingerprint of the CA
//! that the joining node must find.

use crate::error::CaError;
use crate::issue::random;
use atoll_identity::fingerprint;
use atoll_model::{NodeName, RegionName, Roles, SiteName};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const VERSION: &str = "atl1";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token as the operator hands it over: `atl1.<id>.<secret>.<CA fingerprint>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token's record; hexadecimal. Not secret.
    pub id: String,
    /// 32 random bytes.
    secret: [u8; SECRET_BYTES],
    /// SHA-256 of the CA's root certificate.
    pub ca_fingerprint: [u8; 32],
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    /// The whole token, with the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = BASE64URL_NOPAD.encode(&self.secret);
        write!(f, "{VERSION}.{}.{secret}.{}", self.id, HEXLOWER.encode(&self.ca_fingerprint))
    }
}

/// A text that is no join token. It does not repeat the text, which may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: it has the form atl1.<id>.<secret>.<CA fingerprint>; was all of it copied?"
)]
pub struct TokenFormatError;

impl FromStr for JoinToken {
    type Err = TokenFormatError;

    fn from_str(text: &str) -> Result<Self, TokenFormatError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [VERSION, id, secret, fingerprint] = parts.as_slice() else {
            return Err(TokenFormatError);
        };
        let is_id = HEXLOWER.decode(id.as_bytes()).is_ok_and(|bytes| bytes.len() == ID_BYTES);
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let fingerprint =
            HEXLOWER.decode(fingerprint.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        match (secret, fingerprint) {
            (Some(secret), Some(ca_fingerprint)) if is_id => {
                Ok(Self { id: (*id).to_owned(), secret, ca_fingerprint })
            }
            _ => Err(TokenFormatError),
        }
    }
}

/// What a token is to allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenGrant {
    /// The roles that the node gets.
    pub roles: Roles,
    /// The site that it is at.
    pub site: SiteName,
    /// The site's region.
    pub region: RegionName,
    /// The only name that may join with it, if it is bound to one.
    pub node: Option<NodeName>,
    /// When it ends, ms since 1970.
    pub expires_ms: u64,
}

/// What the store keeps of a token. The secret is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Hexadecimal.
    pub id: String,
    /// SHA-256 of the secret, hexadecimal.
    pub secret_hash: String,
    /// The roles that the node gets.
    pub roles: Roles,
    /// The site that it is at.
    pub site: SiteName,
    /// The site's region.
    pub region: RegionName,
    /// The only name that may join with it, if it is bound to one.
    pub node: Option<NodeName>,
    /// When it was made, ms since 1970.
    pub created_ms: u64,
    /// When it ends, ms since 1970.
    pub expires_ms: u64,
    /// Who has joined with it. Set in the same transaction that reads it as unset.
    pub used_by: Option<TokenUse>,
}

/// The one use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Who.
    pub node: NodeName,
    /// When, ms since 1970.
    pub at_ms: u64,
}

/// What a joining node asks for. `None`: it takes what the token says.
#[derive(Debug, Clone, Copy)]
pub struct JoinWish<'a> {
    /// Its name.
    pub node: &'a NodeName,
    /// Its roles, as it is configured.
    pub roles: Option<Roles>,
    /// Its site, as it is configured.
    pub site: Option<&'a SiteName>,
}

/// Why a token is refused. For the log; whoever presents one is told [`TokenRefusal::PUBLIC`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// There is no token with this id.
    #[error("no token has this id")]
    Unknown,
    /// The id is right, the secret is not.
    #[error("the secret is wrong")]
    Secret,
    /// A node has joined with it.
    #[error("the token was used by {0}")]
    Used(NodeName),
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It is for a node of another name.
    #[error("the token is for the node {0}")]
    Node(NodeName),
    /// It doesn't give all the roles asked for.
    #[error("the token is for the roles {0}")]
    Roles(Roles),
    /// It is for another site.
    #[error("the token is for the site {0}")]
    Site(SiteName),
}

impl TokenRefusal {
    /// What every refused joiner is told, so that tokens can't be probed.
    pub const PUBLIC: &'static str = "the join token is not valid for this node: it is wrong, used, expired, or for another node, site or role; control's log says which";
}

/// A new token, and the record to keep of it.
pub fn create(
    grant: TokenGrant,
    ca_fingerprint: [u8; 32],
    now_ms: u64,
) -> Result<(JoinToken, TokenRecord), CaError> {
    let id = HEXLOWER.encode(&random::<ID_BYTES>()?);
    let token = JoinToken { id, secret: random()?, ca_fingerprint };
    let TokenGrant { roles, site, region, node, expires_ms } = grant;
    let record = TokenRecord {
        id: token.id.clone(),
        secret_hash: HEXLOWER.encode(&fingerprint(&token.secret)),
        roles,
        site,
        region,
        node,
        created_ms: now_ms,
        expires_ms,
        used_by: None,
    };
    Ok((token, record))
}

/// Whether `presented` lets a node join. `record` is what the store has for its id. The caller sets
/// [`TokenRecord::used_by`] in the transaction in which it read the record.
pub fn check(
    record: Option<&TokenRecord>,
    presented: &JoinToken,
    wish: &JoinWish<'_>,
    now_ms: u64,
) -> Result<(), TokenRefusal> {
    // Hashed also where there is nothing to compare with: ids can't be told apart by time.
    let hash = HEXLOWER.encode(&fingerprint(&presented.secret));
    let Some(record) = record.filter(|record| record.id == presented.id) else {
        return Err(TokenRefusal::Unknown);
    };
    verify_slices_are_equal(hash.as_bytes(), record.secret_hash.as_bytes())
        .map_err(|_| TokenRefusal::Secret)?;
    if let Some(used_by) = &record.used_by {
        return Err(TokenRefusal::Used(used_by.node.clone()));
    }
    if now_ms >= record.expires_ms {
        return Err(TokenRefusal::Expired);
    }
    match (&record.node, wish.roles, wish.site) {
        (Some(node), _, _) if node != wish.node => Err(TokenRefusal::Node(node.clone())),
        (_, Some(roles), _) if !record.roles.covers(roles) => Err(TokenRefusal::Roles(record.roles)),
        (_, _, Some(site)) if *site != record.site => Err(TokenRefusal::Site(record.site.clone())),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use atoll_model::Role;

    fn made(node: Option<&str>) -> (JoinToken, TokenRecord) {
        let grant = TokenGrant {
            roles: Roles::NONE.with(Role::Edge),
            site: "fra1".parse().unwrap(),
            region: "fra".parse().unwrap(),
            node: node.map(|node| node.parse().unwrap()),
            expires_ms: 2_000,
        };
        create(grant, [7; 32], 1_000).unwrap()
    }

    fn wish(node: &NodeName) -> JoinWish<'_> {
        JoinWish { node, roles: None, site: None }
    }

    #[test]
    fn tokens_come_back_and_hide_their_secret() {
        let (token, record) = made(None);
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        let secret = text.split('.').nth(2).unwrap();
        assert!(!format!("{token:?} {record:?}").contains(secret));
        assert!(!serde_json::to_string(&record).unwrap().contains(secret));
        for bad in [
            "",
            "atl1",
            "atl2.0011223344556677.x.y",
            &text[..text.len() - 1],
            &format!("{text}.x"),
            &text.to_uppercase(),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_text_is_a_token_only_as_it_is_written(text in "(atl1\\.[0-9a-f]{15,17}\\.[A-Za-z0-9_-]{42,44}\\.[0-9a-f]{63,65})|.{0,80}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                proptest::prop_assert_eq!(token.to_string(), text.trim());
            }
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let (token, record) = made(Some("fra1-edge"));
        let (other, other_record) = made(None);
        let edge: NodeName = "fra1-edge".parse().unwrap();
        let host: NodeName = "fra1-host".parse().unwrap();
        assert_eq!(check(Some(&record), &token, &wish(&edge), 1_999), Ok(()));
        assert_eq!(check(None, &token, &wish(&edge), 0), Err(TokenRefusal::Unknown));
        assert_eq!(check(Some(&other_record), &token, &wish(&edge), 0), Err(TokenRefusal::Unknown));
        let forged = JoinToken { id: token.id.clone(), ..other };
        assert_eq!(check(Some(&record), &forged, &wish(&edge), 0), Err(TokenRefusal::Secret));
        assert_eq!(check(Some(&record), &token, &wish(&edge), 2_000), Err(TokenRefusal::Expired));
        assert_eq!(check(Some(&record), &token, &wish(&host), 0), Err(TokenRefusal::Node(edge.clone())));
        let more = Roles::NONE.with(Role::Edge).with(Role::Control);
        let wanted = JoinWish { roles: Some(more), ..wish(&edge) };
        assert_eq!(check(Some(&record), &token, &wanted, 0), Err(TokenRefusal::Roles(record.roles)));
        let was = "was1".parse().unwrap();
        let wanted = JoinWish { site: Some(&was), ..wish(&edge) };
        assert_eq!(check(Some(&record), &token, &wanted, 0), Err(TokenRefusal::Site(record.site.clone())));
        let used = TokenRecord { used_by: Some(TokenUse { node: edge.clone(), at_ms: 1 }), ..record };
        assert_eq!(check(Some(&used), &token, &wish(&edge), 0), Err(TokenRefusal::Used(edge.clone())));
    }
}
