//! Who asks: Bearer keys (RFC 6750), compared as hashes.

use axum::http::HeaderMap;
use axum_extra::headers::authorization::Bearer;
use axum_extra::headers::{Authorization, HeaderMapExt};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::ApiError;
use crate::config::{ApiKey, Auth, KeyHash};

/// The key that `headers` bring. In open mode everybody is served, as nobody; a key sent all the same counts for its
/// own rate limit when it is known, and for nothing when it is not.
///
/// # Errors
/// `NoKey` without an `Authorization: Bearer` header, `WrongKey` for an unknown one; neither in open mode.
pub fn authenticate<'a>(auth: &'a Auth, headers: &HeaderMap) -> Result<Option<&'a ApiKey>, ApiError> {
    let bearer = headers.typed_get::<Authorization<Bearer>>();
    let known = bearer.as_ref().map(|bearer| find(auth, bearer.token()));
    match known {
        Some(Some(key)) => Ok(Some(key)),
        _ if auth.open_mode => Ok(None),
        Some(None) => Err(ApiError::WrongKey),
        None => Err(ApiError::NoKey),
    }
}

/// Looks at every key in the same time, whichever matches.
fn find<'a>(auth: &'a Auth, token: &str) -> Option<&'a ApiKey> {
    let hash = KeyHash::of(token);
    let mut found = u32::MAX;
    let mut any = Choice::from(0);
    for (index, key) in (0..).zip(&auth.keys) {
        let same = key.hash.bytes().ct_eq(hash.bytes());
        found.conditional_assign(&index, same);
        any |= same;
    }
    bool::from(any).then(|| auth.keys.get(found as usize)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderValue, header};

    fn ask(open_mode: bool, authorization: Option<&'static str>) -> Result<Option<String>, ApiError> {
        let key =
            |name: &str| ApiKey { name: name.into(), hash: KeyHash::of(name), places: None, memory: None, cpus: None };
        let auth = Auth { open_mode, keys: vec![key("one"), key("two")] };
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        authenticate(&auth, &headers).map(|key| key.map(|key| key.name.clone()))
    }

    #[test]
    fn only_a_known_key_is_let_in() {
        assert_eq!(ask(false, Some("Bearer two")), Ok(Some("two".into())));
        assert_eq!(ask(false, Some("bearer one")), Ok(Some("one".into())));
        assert_eq!(ask(false, Some("Bearer three")), Err(ApiError::WrongKey));
        for malformed in [None, Some("Basic dHdv"), Some("two"), Some("")] {
            assert_eq!(ask(false, malformed), Err(ApiError::NoKey), "{malformed:?}");
        }
    }

    #[test]
    fn open_mode_lets_everybody_in() {
        assert_eq!(ask(true, None), Ok(None));
        assert_eq!(ask(true, Some("Bearer your-api-key-here")), Ok(None));
        assert_eq!(ask(true, Some("Bearer two")), Ok(Some("two".into())));
    }
}
