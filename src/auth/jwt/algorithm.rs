//! The algorithms that tokens are signed with (RFC 7518, RFC 8037).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, RsaParameters, VerificationAlgorithm};
use serde::{Deserialize, Serialize};

/// An algorithm that a token may be signed with. There is none for tokens that are not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    /// HMAC with SHA-256 and a shared secret.
    Hs256,
    /// HMAC with SHA-384 and a shared secret.
    Hs384,
    /// HMAC with SHA-512 and a shared secret.
    Hs512,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    Rs256,
    /// RSA (PKCS #1 v1.5) with SHA-384.
    Rs384,
    /// RSA (PKCS #1 v1.5) with SHA-512.
    Rs512,
    /// RSA (PSS) with SHA-256.
    Ps256,
    /// RSA (PSS) with SHA-384.
    Ps384,
    /// RSA (PSS) with SHA-512.
    Ps512,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// ECDSA over P-384 with SHA-384.
    Es384,
    /// ECDSA over P-521 with SHA-512.
    Es512,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// What an algorithm asks of its key.
#[derive(Clone, Copy)]
pub(super) enum Family {
    /// A secret.
    Hmac(hmac::Algorithm),
    /// An RSA key.
    Rsa(&'static RsaParameters),
    /// A point on a curve, which is named in keys, with coordinates of so many bytes.
    Ec { verifies: &'static EcdsaVerificationAlgorithm, curve: &'static str, coordinate: usize },
    /// An Ed25519 key.
    Ed,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 13] = [
        Algorithm::Hs256,
        Algorithm::Hs384,
        Algorithm::Hs512,
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::Es512,
        Algorithm::EdDsa,
    ];

    /// As it stands in tokens and keys.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Hs384 => "HS384",
            Algorithm::Hs512 => "HS512",
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Ps256 => "PS256",
            Algorithm::Ps384 => "PS384",
            Algorithm::Ps512 => "PS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::Es512 => "ES512",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of this name, in exactly these letters.
    pub fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The least bytes of its secret, as many as the hash has (RFC 7518, section 3.2); nothing if its keys are public.
    pub fn min_secret(self) -> Option<usize> {
        match self.family() {
            Family::Hmac(algorithm) => Some(algorithm.tag_len()),
            Family::Rsa(_) | Family::Ec { .. } | Family::Ed => None,
        }
    }

    pub(super) fn family(self) -> Family {
        let ec = |verifies, curve, coordinate| Family::Ec { verifies, curve, coordinate };
        match self {
            Algorithm::Hs256 => Family::Hmac(hmac::HMAC_SHA256),
            Algorithm::Hs384 => Family::Hmac(hmac::HMAC_SHA384),
            Algorithm::Hs512 => Family::Hmac(hmac::HMAC_SHA512),
            Algorithm::Rs256 => Family::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::Rs384 => Family::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::Rs512 => Family::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::Ps256 => Family::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::Ps384 => Family::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::Ps512 => Family::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED, "P-256", 32),
            Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED, "P-384", 48),
            Algorithm::Es512 => ec(&signature::ECDSA_P521_SHA512_FIXED, "P-521", 66),
            Algorithm::EdDsa => Family::Ed,
        }
    }
}

impl Family {
    /// How signatures are verified with a public key.
    pub(super) fn verifies(self) -> Option<&'static dyn VerificationAlgorithm> {
        match self {
            Family::Hmac(_) => None,
            Family::Rsa(algorithm) => Some(algorithm),
            Family::Ec { verifies, .. } => Some(verifies),
            Family::Ed => Some(&signature::ED25519),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_written_in_the_configuration_as_in_a_token() {
        for algorithm in Algorithm::ALL {
            let written = serde_json::to_value(algorithm).expect("JSON");
            assert_eq!(written, algorithm.name());
            assert_eq!(Algorithm::named(algorithm.name()), Some(algorithm));
        }
        for wrong in
            ["none", "None", "NONE", "", "hs256", "HS256 ", "ES256K", "HS1", "RSA-OAEP", "dir", "EDDSA", "eddsa"]
        {
            assert_eq!(Algorithm::named(wrong), None, "{wrong:?}");
        }
    }
}
