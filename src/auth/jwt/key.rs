//! The keys that vouch for tokens. Each has the algorithms that it is for.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use rustls::pki_types::pem::{PemObject, SectionKind};
use secrecy::{ExposeSecret, SecretSlice};
use serde::Deserialize;
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::algorithm::{Algorithm, Family};
use super::token::Token;

/// The most keys of an issuer; those behind them are left out. Issuers have a handful.
pub(super) const MAX_KEYS: usize = 64;
/// The most keys that one token is tried with, so that it costs little to find out that none has signed it.
const MAX_TRIES: usize = 16;
/// The sizes of RSA keys, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key that vouches for tokens.
pub(super) struct Key {
    /// How tokens name it. One without a name is tried with every token of its algorithms.
    id: Option<Box<str>>,
    material: Material,
}

enum Material {
    Secret(SecretSlice<u8>, Vec<Algorithm>),
    /// The same key for each of its algorithms.
    Public(Vec<(Algorithm, ParsedPublicKey)>),
}

/// What keys say of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One of them has signed it.
    Signed,
    /// The one that it names has not signed it so.
    Forged,
    /// None of them has signed it, and it does not name one of them.
    UnknownKey,
}

/// Whether one of the keys has signed the token.
pub(super) fn verify(keys: &[Key], token: &Token<'_>) -> Verdict {
    let is_named = |key: &&Key| key.id.is_some() && key.id.as_deref() == token.key_id.as_deref();
    let may_be_meant = |key: &&Key| key.id.is_none() || token.key_id.is_none() || is_named(key);
    let mut tries = keys.iter().filter(may_be_meant).filter(|key| key.is_for(token.algorithm)).take(MAX_TRIES);
    if tries.any(|key| key.has_signed(token)) {
        Verdict::Signed
    } else if keys.iter().any(|key| is_named(&key)) {
        Verdict::Forged
    } else {
        Verdict::UnknownKey
    }
}

impl Key {
    /// A secret that is shared with the issuer, for those of the algorithms that take one.
    pub(super) fn secret(bytes: SecretSlice<u8>, algorithms: &[Algorithm]) -> Key {
        let algorithms = algorithms.iter().copied().filter(|algorithm| algorithm.min_secret().is_some()).collect();
        Key { id: None, material: Material::Secret(bytes, algorithms) }
    }

    /// The public keys of a file in PEM, as such or in certificates: at least one for each algorithm. The error is what follows the
    /// file's name.
    pub(super) fn of_pem(pem: &[u8], algorithms: &[Algorithm]) -> Result<Vec<Key>, String> {
        const FORM: &str = "holds no public key: it is to have PEM sections PUBLIC KEY or CERTIFICATE";
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|error| format!("holds no usable PEM: {error}"))?;
            keys.push(match kind {
                SectionKind::PublicKey => Key::of_spki(&der, algorithms)?,
                SectionKind::Certificate => {
                    let (_, certificate) =
                        X509Certificate::from_der(&der).map_err(|_| "holds a certificate that can't be read")?;
                    Key::of_spki(certificate.public_key().raw, algorithms)?
                }
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                    return Err("holds a private key, which is the issuer's alone: put the public key there".to_owned());
                }
                _ => return Err(FORM.to_owned()),
            });
        }
        if keys.is_empty() {
            return Err(FORM.to_owned());
        }
        match algorithms.iter().find(|algorithm| !keys.iter().any(|key| key.is_for(**algorithm))) {
            Some(algorithm) => Err(format!("holds no key for {} (auth.jwt.algorithms)", algorithm.name())),
            None => Ok(keys),
        }
    }

    fn of_spki(der: &[u8], algorithms: &[Algorithm]) -> Result<Key, String> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| "holds a public key that can't be read")?;
        if let Ok(PublicKey::RSA(key)) = info.parsed()
            && !RSA_BITS.contains(&key.key_size())
        {
            let (bits, least, most) = (key.key_size(), RSA_BITS.start(), RSA_BITS.end());
            return Err(format!("holds an RSA key of {bits} bits: use one of {least} to {most}"));
        }
        let public: Vec<_> = algorithms
            .iter()
            .filter_map(|algorithm| Some((*algorithm, ParsedPublicKey::new(algorithm.family().verifies()?, der).ok()?)))
            .collect();
        if public.is_empty() {
            return Err("holds a public key that is for none of auth.jwt.algorithms".to_owned());
        }
        Ok(Key { id: None, material: Material::Public(public) })
    }

    /// A key of the issuer's set, if it is one that signs, for those of the algorithms that it is for. Secrets are no keys to publish.
    pub(super) fn of_jwk(jwk: &Value, algorithms: &[Algorithm]) -> Option<Key> {
        let jwk = Jwk::deserialize(jwk).ok()?;
        let is_to_sign = jwk.intended.is_none_or(|intended| intended == "sig")
            && jwk.key_ops.is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        let is_for = |algorithm: &&Algorithm| jwk.alg.as_deref().is_none_or(|name| name == algorithm.name());
        let public: Vec<_> = algorithms
            .iter()
            .filter(|_| is_to_sign)
            .filter(is_for)
            .filter_map(|algorithm| Some((*algorithm, jwk.material.parse(algorithm.family())?)))
            .collect();
        (!public.is_empty()).then(|| Key { id: jwk.kid.map(Into::into), material: Material::Public(public) })
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        match &self.material {
            Material::Secret(_, algorithms) => algorithms.contains(&algorithm),
            Material::Public(keys) => keys.iter().any(|(of, _)| *of == algorithm),
        }
    }

    fn has_signed(&self, token: &Token<'_>) -> bool {
        let signed = token.signed.as_bytes();
        match (&self.material, token.algorithm.family()) {
            (Material::Secret(secret, algorithms), Family::Hmac(algorithm)) => {
                let key = hmac::Key::new(algorithm, secret.expose_secret());
                algorithms.contains(&token.algorithm) && hmac::verify(&key, signed, &token.signature).is_ok()
            }
            (Material::Public(keys), Family::Rsa(_) | Family::Ec { .. } | Family::Ed) => keys
                .iter()
                .filter(|(algorithm, _)| *algorithm == token.algorithm)
                .any(|(_, key)| key.verify_sig(signed, &token.signature).is_ok()),
            (Material::Secret(..), Family::Rsa(_) | Family::Ec { .. } | Family::Ed)
            | (Material::Public(_), Family::Hmac(_)) => false,
        }
    }
}

/// What is read of a JSON Web Key (RFC 7517).
#[derive(Deserialize)]
struct Jwk {
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    intended: Option<String>,
    key_ops: Option<Vec<String>>,
    #[serde(flatten)]
    material: JwkMaterial,
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum JwkMaterial {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Ec { crv: String, x: String, y: String },
    #[serde(rename = "OKP")]
    Okp { crv: String, x: String },
}

impl JwkMaterial {
    /// The key as algorithms of this family take it.
    fn parse(&self, family: Family) -> Option<ParsedPublicKey> {
        let decoded = |text: &str| base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok();
        match (self, family) {
            (JwkMaterial::Rsa { n, e }, Family::Rsa(parameters)) => {
                let (n, e) = (decoded(n)?, decoded(e)?);
                let is_in_range = RSA_BITS.contains(&(8 * n.len()));
                is_in_range.then(|| RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters).ok()).flatten()
            }
            (JwkMaterial::Ec { crv, x, y }, Family::Ec { verifies, curve, coordinate }) if crv == curve => {
                let (x, y) = (decoded(x)?, decoded(y)?);
                // Uncompressed (SEC 1, section 2.3.3); whoever parses it looks whether the point is on the curve.
                let point = [&[4], x.as_slice(), y.as_slice()].concat();
                let has_its_size = x.len() == coordinate && y.len() == coordinate;
                has_its_size.then(|| ParsedPublicKey::new(verifies, point).ok()).flatten()
            }
            (JwkMaterial::Okp { crv, x }, Family::Ed) if crv == "Ed25519" => {
                let x = decoded(x).filter(|x| x.len() == 32)?;
                ParsedPublicKey::new(family.verifies()?, x).ok()
            }
            (
                JwkMaterial::Rsa { .. } | JwkMaterial::Ec { .. } | JwkMaterial::Okp { .. },
                Family::Hmac(_) | Family::Rsa(_) | Family::Ec { .. } | Family::Ed,
            ) => None,
        }
    }
}
