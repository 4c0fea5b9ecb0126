//! A token before anybody believes it: its three parts, and which algorithm and key it names.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::refused;
use crate::access::Failure;

/// A token that is well-formed. Nothing that it says is believed yet.
pub struct Token<'t> {
    /// What is signed: the header and the claims, as they came.
    pub(super) signed: &'t str,
    /// Which of the known algorithms it names.
    pub(super) algorithm: Algorithm,
    /// Which key it names. Compared with those of known keys, and used for nothing else.
    pub(super) key_id: Option<String>,
    /// The signature, decoded.
    pub(super) signature: Vec<u8>,
    claims: &'t str,
}

/// What is read of a header. `jku`, `jwk`, `x5u`, `x5c` and all else that would bring a key along are not looked at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None is.
    crit: Option<Value>,
    /// An extension (RFC 7797) by which something else would be signed than what stands there.
    b64: Option<Value>,
}

impl<'t> Token<'t> {
    /// Whether a text is meant as a JSON Web Token: three parts in base64url, of which the first is a JSON object from its first letter on.
    /// It is judged as one then, and by nobody else.
    pub fn is_meant(text: &str) -> bool {
        let mut parts = text.split('.');
        let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let is_base64url = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        is_base64url && decoded(header).is_ok_and(|header| header.first() == Some(&b'{'))
    }

    /// Takes a token apart.
    pub(super) fn parse(text: &'t str) -> Result<Token<'t>, Failure> {
        let (signed, signature) = text.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
        let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| malformed())?;
        if header.crit.is_some() || header.b64.is_some() {
            return Err(refused("the token asks for an extension that is not known here"));
        }
        // Before any key is looked at: also whoever signs nothing names an algorithm.
        let algorithm = Algorithm::named(&header.alg).ok_or_else(not_taken)?;
        Ok(Token { signed, algorithm, key_id: header.kid, signature: decoded(signature)?, claims })
    }

    /// What it says. To be believed when its signature was found good.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, Failure> {
        serde_json::from_slice(&decoded(self.claims)?).map_err(|_| malformed())
    }
}

/// The algorithm is none of those that are taken.
pub(super) fn not_taken() -> Failure {
    refused("the algorithm of the token is not taken here (auth.jwt.algorithms)")
}

fn malformed() -> Failure {
    refused("the token is malformed")
}

fn decoded(part: &str) -> Result<Vec<u8>, Failure> {
    base64_simd::URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| malformed())
}
