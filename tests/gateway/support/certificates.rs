//! A certificate authority of the scene's own, and what it has signed, as PEM files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Duplex;

/// The authority, a server at 127.0.0.1, and a client. Each has a key of its own beside it.
pub struct Certificates {
    folder: TempDir,
    authority: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Certificates {
        let folder = TempDir::new().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = named("The scene's authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let own = params.self_signed(&key).expect("signed").pem();
        let certificates = Certificates { folder, authority: Issuer::new(params, key) };
        certificates.write("ca.pem", &own);
        certificates.issue_server("server");
        certificates.issue_client("client", 1, 2100);
        certificates
    }

    /// Signs a server's certificate for 127.0.0.1; what was there under this name is replaced.
    pub fn issue_server(&self, name: &str) {
        let mut params = named(name, &["127.0.0.1"]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // No more than a year, as browsers want it.
        let year = this_year();
        (params.not_before, params.not_after) = (date_time_ymd(year, 1, 1), date_time_ymd(year + 1, 1, 1));
        self.issue(name, params);
    }

    /// Signs a client's certificate with this number, good until the year.
    pub fn issue_client(&self, name: &str, number: u64, until: i32) {
        let mut params = named(name, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(number));
        params.not_after = date_time_ymd(until, 1, 1);
        self.issue(name, params);
    }

    fn issue(&self, name: &str, mut params: CertificateParams) {
        let key = KeyPair::generate().expect("a key");
        params.use_authority_key_identifier_extension = true;
        self.write(&format!("{name}.pem"), &params.signed_by(&key, &self.authority).expect("signed").pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// Takes back the clients with these numbers, in a list that is good until the year.
    pub fn revoke(&self, numbers: &[u64], until: i32) {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.authority).expect("signed");
        self.write("crl.pem", &list.pem().expect("PEM"));
    }

    pub fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).expect("written");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The certificate under this name, in DER.
    pub fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate")
    }

    /// A line of a section that names one of the files.
    pub fn setting(&self, setting: &str, name: &str) -> String {
        line(setting, &self.path(name))
    }

    /// The lines that make a Mosquitto's listener speak TLS.
    pub fn listener(&self) -> String {
        let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|name| self.path(name));
        format!("cafile {}\ncertfile {}\nkeyfile {}\n", ca.display(), certificate.display(), key.display())
    }

    /// The section that makes the gateway speak TLS, with these lines in it.
    pub fn tls(&self, settings: &str) -> String {
        let (certificate, key) =
            (self.setting("certificate_file", "server.pem"), self.setting("key_file", "server.key"));
        format!("[tls]\n{certificate}{key}{settings}\n")
    }

    /// A client that believes the authority and shows no certificate.
    pub fn anyone(&self) -> TlsClient {
        self.client_with(None, &[&TLS12, &TLS13])
    }

    /// A client that shows the certificate under this name.
    pub fn client(&self, name: &str) -> TlsClient {
        self.client_with(Some((self, name)), &[&TLS12, &TLS13])
    }

    /// A client that shows a certificate, perhaps another authority's, and speaks these versions.
    pub fn client_with(
        &self,
        shows: Option<(&Certificates, &str)>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(self.der("ca")).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("known versions")
            .with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some((of, name)) => {
                let key = PrivateKeyDer::from_pem_file(of.path(&format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(vec![of.der(name)], key).expect("a pair")
            }
        };
        TlsClient(TlsConnector::from(Arc::new(config)))
    }
}

/// What a client believes and shows.
#[derive(Clone)]
pub struct TlsClient(TlsConnector);

impl TlsClient {
    /// Makes a handshake over a connection.
    pub async fn secure<S: Duplex>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        self.0.connect(ServerName::from(IpAddr::from([127, 0, 0, 1])), stream).await
    }

    /// Opens a connection and makes a handshake.
    pub async fn connect(&self, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
        self.secure(TcpStream::connect(address).await?).await
    }
}

/// A line of a section that names a file.
pub fn line(setting: &str, path: &Path) -> String {
    format!("{setting} = {:?}\n", path.display().to_string())
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn this_year() -> i32 {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("later than 1970").as_secs();
    1970 + (since_1970 as f64 / (365.2425 * 86_400.0)) as i32
}
