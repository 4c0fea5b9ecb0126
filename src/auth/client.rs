//! Asking others over HTTP: the issuer for its keys, the hook for its judgement.
//!
//! Redirections are not followed and proxies of the environment not used: credentials and keys go where the configuration says, and come from
//! there. What is read of an answer is bounded; how long it may take is for the caller to say.

use std::path::Path;
use std::sync::Arc;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::{ExposeSecret, SecretString};

use super::StartError;
use super::endpoint::Endpoint;

/// Idle connections that are kept to each server.
const MAX_IDLE: usize = 8;

/// A client of HTTP/1.1, with TLS.
pub struct Client(reqwest::Client);

/// What came back.
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Client {
    /// Believes servers that the certificates of this file vouch for, or those of the operating system. The file comes with the name of the
    /// setting that names it.
    pub fn new(ca: Option<(&'static str, &Path)>) -> Result<Client, StartError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| StartError::Tls(error.to_string()))?;
        let builder = match ca {
            None => builder.with_platform_verifier().map_err(|error| StartError::Tls(error.to_string()))?,
            Some((setting, path)) => builder.with_root_certificates(roots(path).map_err(|why| StartError::File {
                setting,
                path: path.to_owned(),
                why,
            })?),
        };
        reqwest::Client::builder()
            .tls_backend_preconfigured(builder.with_no_client_auth())
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .http1_only()
            .pool_max_idle_per_host(MAX_IDLE)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map(Client)
            .map_err(|error| StartError::Tls(reason(error)))
    }

    /// Reads what is there. The error is for people.
    pub async fn get(&self, url: &Endpoint, max_body: usize) -> Result<Answer, String> {
        send(self.0.get(url.as_str()), max_body).await
    }

    /// Posts JSON, with a bearer token if there is one.
    pub async fn post(
        &self,
        url: &Endpoint,
        json: Vec<u8>,
        bearer: Option<&SecretString>,
        max_body: usize,
    ) -> Result<Answer, String> {
        let request = self.0.post(url.as_str()).header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = match bearer {
            Some(secret) => request.bearer_auth(secret.expose_secret()),
            None => request,
        };
        send(request.body(json), max_body).await
    }
}

async fn send(request: reqwest::RequestBuilder, max_body: usize) -> Result<Answer, String> {
    let mut response = request.send().await.map_err(reason)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reason)? {
        if body.len() + chunk.len() > max_body {
            return Err(format!("the answer has more than {max_body} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status: response.status().as_u16(), body })
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| format!("holds no usable PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| format!("holds a certificate that can't be used: {error}"))?;
    }
    Ok(roots)
}

/// What went wrong, down to its cause.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut causes = vec![error.to_string()];
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}
