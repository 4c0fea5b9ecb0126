//! What the scenes of this module stand on: an issuer of tokens, whose tokens another implementation makes, and a server that answers as it is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use jsonwebtoken::EncodingKey;
use rcgen::{KeyPair, RsaKeySize};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;

use super::jwt::Algorithm;
use super::{Visitor, unix_now};

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

pub fn visitor() -> Visitor {
    Visitor { address: IpAddr::V4(Ipv4Addr::LOCALHOST), client_id: None }
}

/// Claims of anna that are good for an hour, and these.
pub fn claims(more: Value) -> Value {
    let mut claims = json!({"sub": "anna", "exp": unix_now() + 3600});
    let all = claims.as_object_mut().expect("an object");
    all.extend(more.as_object().expect("an object").clone());
    claims
}

/// Three parts, the last of them as it is given.
pub fn token(header: &Value, claims: &Value, signature: impl AsRef<[u8]>) -> String {
    format!("{}.{}.{}", base64url(header.to_string()), base64url(claims.to_string()), base64url(signature))
}

/// Who has a key and signs tokens.
pub struct Issuer {
    pub algorithm: Algorithm,
    pub id: Option<&'static str>,
    key: SigningKey,
}

enum SigningKey {
    Secret(Vec<u8>),
    Pair(KeyPair),
}

impl Issuer {
    /// With a new key for this algorithm. A secret is made of as many letters as it has to have.
    pub fn new(algorithm: Algorithm, id: impl Into<Option<&'static str>>) -> Issuer {
        let pair = |algorithm| SigningKey::Pair(KeyPair::generate_for(algorithm).expect("a key"));
        let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
        let key = match algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                SigningKey::Secret(vec![b's'; algorithm.min_secret().expect("it has one")])
            }
            Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512 => SigningKey::Pair(rsa()),
            Algorithm::Es256 => pair(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::Es384 => pair(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::Es512 => pair(&rcgen::PKCS_ECDSA_P521_SHA512),
            Algorithm::EdDsa => pair(&rcgen::PKCS_ED25519),
        };
        Issuer { algorithm, id: id.into(), key }
    }

    /// The same key, used with another algorithm.
    pub fn with(self, algorithm: Algorithm) -> Issuer {
        Issuer { algorithm, ..self }
    }

    pub fn secret(&self) -> String {
        match &self.key {
            SigningKey::Secret(bytes) => String::from_utf8(bytes.clone()).expect("letters"),
            SigningKey::Pair(_) => panic!("it has a key pair"),
        }
    }

    fn pair(&self) -> &KeyPair {
        match &self.key {
            SigningKey::Secret(_) => panic!("it has a secret"),
            SigningKey::Pair(pair) => pair,
        }
    }

    /// The public key, in PEM.
    pub fn pem(&self) -> String {
        self.pair().public_key_pem()
    }

    /// The private key, in PEM.
    pub fn private_pem(&self) -> String {
        self.pair().serialize_pem()
    }

    /// The public key as the issuer's set has it.
    pub fn jwk(&self) -> Value {
        let raw = self.pair().public_key_raw();
        let ec = |curve| {
            let (x, y) = raw[1..].split_at(raw.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)})
        };
        let mut jwk = match self.algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => panic!("a secret is not published"),
            Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512 => {
                let (_, RSAPublicKey { modulus, exponent }) = RSAPublicKey::from_der(raw).expect("an RSA key");
                json!({"kty": "RSA", "n": base64url(&modulus[1..]), "e": base64url(exponent)})
            }
            Algorithm::Es256 => ec("P-256"),
            Algorithm::Es384 => ec("P-384"),
            Algorithm::Es512 => ec("P-521"),
            Algorithm::EdDsa => json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(raw)}),
        };
        if let Some(id) = self.id {
            jwk["kid"] = json!(id);
        }
        jwk
    }

    /// The header that its tokens have.
    pub fn header(&self) -> Value {
        match self.id {
            Some(id) => json!({"alg": self.algorithm.name(), "typ": "JWT", "kid": id}),
            None => json!({"alg": self.algorithm.name(), "typ": "JWT"}),
        }
    }

    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }

    /// A token whose header is as it is given, signed as this issuer does.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        format!("{signed}.{}", self.signature(signed.as_bytes()))
    }

    fn signature(&self, signed: &[u8]) -> String {
        let pem = |pair: &KeyPair| pair.serialize_pem().into_bytes();
        let key = match &self.key {
            SigningKey::Secret(bytes) => EncodingKey::from_secret(bytes),
            SigningKey::Pair(pair) if self.algorithm == Algorithm::Es512 => {
                // The other implementation has not got this one.
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA512_FIXED_SIGNING, pair.serialized_der());
                return base64url(key.expect("a key").sign(&SystemRandom::new(), signed).expect("signed"));
            }
            SigningKey::Pair(pair) => match self.algorithm {
                Algorithm::EdDsa => EncodingKey::from_ed_pem(&pem(pair)).expect("a key"),
                Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                    EncodingKey::from_ec_pem(&pem(pair)).expect("a key")
                }
                _ => EncodingKey::from_rsa_pem(&pem(pair)).expect("a key"),
            },
        };
        let algorithm = self.algorithm.name().parse().expect("it has this one");
        jsonwebtoken::crypto::sign(signed, &key, algorithm).expect("signed")
    }
}

/// A server on loopback, which answers every request alike and remembers it.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    reply: Reply,
    seen: Vec<Seen>,
}

/// How it answers.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
    pub location: Option<String>,
    pub after: Duration,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply { status, body: body.to_string().into_bytes(), location: None, after: Duration::ZERO }
    }

    /// A set of the issuers' keys.
    pub fn keys(issuers: &[&Issuer]) -> Reply {
        Reply::json(200, &json!({"keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>()}))
    }
}

impl Server {
    pub async fn start(reply: Reply) -> Server {
        Server::start_at((Ipv4Addr::LOCALHOST, 0).into(), reply).await
    }

    pub async fn start_at(address: SocketAddr, reply: Reply) -> Server {
        let shared = Arc::new(Mutex::new(Shared { reply, seen: Vec::new() }));
        let listener = tokio::net::TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let remembers = shared.clone();
        let app = Router::new().fallback(move |request| answer(remembers.clone(), request));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Server { address, shared }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// It answers like this from now on.
    pub fn replies(&self, reply: Reply) {
        self.shared.lock().expect("no panic").reply = reply;
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().expect("no panic").seen.clone()
    }

    pub fn count(&self) -> usize {
        self.shared.lock().expect("no panic").seen.len()
    }
}

async fn answer(shared: Arc<Mutex<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get("authorization").map(|value| value.to_str().expect("text").to_owned());
    let body = to_bytes(body, usize::MAX).await.expect("a body").to_vec();
    let seen = Seen { method: head.method.to_string(), path: head.uri.path().to_owned(), authorization, body };
    let reply = {
        let mut shared = shared.lock().expect("no panic");
        shared.seen.push(seen);
        shared.reply.clone()
    };
    tokio::time::sleep(reply.after).await;
    let response = Response::builder().status(reply.status);
    let response = match reply.location {
        Some(location) => response.header("location", location),
        None => response,
    };
    response.body(Body::from(reply.body)).expect("a response")
}

/// A place where nobody listens.
pub async fn nowhere() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("bound")
}
