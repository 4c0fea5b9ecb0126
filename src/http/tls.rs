//! TLS on our own listeners: what is in force, who is believed, and files that change while the gateway runs.

mod config;
mod handshake;
mod hsts;
mod material;
mod plain;
mod stamp;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::HeaderValue;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, interval_at};
use tracing::{error, info, warn};
use x509_parser::time::ASN1Time;

pub use config::Config;
pub use handshake::{Begun, begin};
pub use hsts::hsts;
pub use material::TlsError;
pub use plain::unencrypted;

use config::PlainHttp;
use material::Material;
use stamp::Stamp;

use crate::metrics;

/// How often the files are looked at. What has changed is read when it has not changed again until the next look: who replaces a
/// certificate and its key does so one after the other.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long before its end a certificate is warned of, in seconds: two weeks, when a renewal that works would be long done.
const EXPIRES_SOON: i64 = 14 * DAY.as_secs() as i64;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// TLS as it is now. What changes is for new connections; open ones stay as they are.
pub struct Tls {
    in_force: ArcSwap<InForce>,
    files: Mutex<Files>,
    reloads: AtomicU64,
}

/// What handshakes go by.
struct InForce {
    server: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    not_after: ASN1Time,
    handshake_timeout: Duration,
    plain_http: PlainHttp,
    hsts: HeaderValue,
}

/// Where all that was read from.
struct Files {
    config: Config,
    /// As the files were when they were last read, taken or not.
    read: Stamp,
    /// As they were at the last look, where that was not so.
    unsettled: Option<Stamp>,
}

impl Tls {
    /// Reads the files that the configuration names; nothing where there is no TLS.
    pub fn start(config: &Config) -> Result<Option<Arc<Tls>>, TlsError> {
        let read = Stamp::of(config.files());
        let Some(in_force) = InForce::read(config)? else { return Ok(None) };
        in_force.tell_expiry();
        Ok(Some(Arc::new(Tls {
            in_force: ArcSwap::from_pointee(in_force),
            files: Mutex::new(Files { config: config.clone(), read, unsettled: None }),
            reloads: AtomicU64::new(0),
        })))
    }

    /// Reads the files anew, those that this configuration names. What can't be used changes nothing, and is told.
    pub fn replace(&self, config: &Config) -> Result<(), TlsError> {
        self.reload(&mut self.files(), config)
    }

    fn reload(&self, files: &mut Files, config: &Config) -> Result<(), TlsError> {
        let stamp = Stamp::of(config.files());
        let read = InForce::read(config);
        metrics::tls_reloaded(read.is_ok());
        if read.is_ok() || config.files().eq(files.config.files()) {
            (files.read, files.unsettled) = (stamp, None);
        }
        let read =
            read.inspect_err(|error| error!(%error, "the TLS files can't be used: the old ones stay in force"))?;
        if let Some(in_force) = read {
            info!(expires = %in_force.not_after, "the TLS files were read again");
            in_force.tell_expiry();
            files.config.clone_from(config);
            self.in_force.store(Arc::new(in_force));
            self.reloads.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Looks after the files, and reads them again when they have changed.
    pub async fn watch(self: Arc<Self>) {
        let mut looks = interval(LOOK_EVERY);
        let mut days = interval_at(Instant::now() + DAY, DAY);
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let tls = self.clone();
                    // A file may lie on a network. At the end of the process nobody looks any more.
                    let _ = spawn_blocking(move || tls.look()).await;
                }
                _ = days.tick() => self.in_force.load().tell_expiry(),
            }
        }
    }

    fn look(&self) {
        let mut files = self.files();
        let now = Stamp::of(files.config.files());
        if now == files.read {
            files.unsettled = None;
        } else if files.unsettled.as_ref() == Some(&now) {
            let config = files.config.clone();
            // It was told.
            let _ = self.reload(&mut files, &config);
        } else {
            files.unsettled = Some(now);
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("nobody panics while holding it")
    }

    /// How often something else has come in force: whoever judged a certificate before the last time may judge it again.
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Acquire)
    }

    /// Whether a client that came with this certificate would be believed at that time, by the authorities and the lists of revoked
    /// certificates that are in force now.
    pub fn still_trusts(&self, certificate: &PeerCertificate, at: UnixTime) -> bool {
        let in_force = self.in_force.load();
        let (own, others) = certificate.chain.split_first().expect("who shows a certificate shows one at least");
        in_force.verifier.as_ref().is_some_and(|verifier| verifier.verify_client_cert(own, others, at).is_ok())
    }
}

impl InForce {
    fn read(config: &Config) -> Result<Option<InForce>, TlsError> {
        let Some(Material { server, verifier, not_after, next_update }) = Material::read(config)? else {
            return Ok(None);
        };
        metrics::tls_certificate_not_after(not_after.timestamp());
        if let Some(next_update) = next_update {
            metrics::tls_crl_next_update(next_update.timestamp());
        }
        Ok(Some(InForce {
            server,
            verifier,
            not_after,
            handshake_timeout: config.handshake_timeout,
            plain_http: config.plain_http,
            hsts: hsts::value(config.hsts_max_age),
        }))
    }

    fn tell_expiry(&self) {
        let left = self.not_after.timestamp() - ASN1Time::now().timestamp();
        if expires_soon(left) {
            warn!(expires = %self.not_after, "the certificate of the gateway (tls.certificate_file) expires soon or has expired");
        }
    }
}

fn expires_soon(seconds_left: i64) -> bool {
    seconds_left < EXPIRES_SOON
}

/// The certificate of a client, as it was believed when the client came, with those that it came with: to be judged again.
pub struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<Tls>,
}

impl PeerCertificate {
    /// The client's own certificate, in DER.
    pub fn own(&self) -> &[u8] {
        &self.chain[0]
    }

    /// Whether it would be believed now, as [`Tls::still_trusts`] judges.
    pub fn is_trusted(&self) -> bool {
        self.tls.still_trusts(self, UnixTime::now())
    }
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate").field("certificates", &self.chain.len()).finish()
    }
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;
