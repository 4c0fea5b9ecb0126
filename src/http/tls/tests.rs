//! Files that are read, refused, and read again.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use super::config::ClientCertificates;
use super::*;

/// 2030-01-01, when all that the authority has signed is good.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));
/// 2041-01-01, when nothing is.
const TOO_LATE: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(2_240_524_800));

/// A folder with an authority, a server with its key, and a configuration that names them.
struct House {
    folder: TempDir,
    authority: Issuer<'static, KeyPair>,
}

impl House {
    fn new() -> House {
        let key = KeyPair::generate().unwrap();
        let mut params = params(1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key).unwrap().pem();
        let house = House { folder: TempDir::new().unwrap(), authority: Issuer::new(params, key) };
        house.write("ca.pem", &ca);
        house.serve(2);
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Puts a certificate with this number, and its key, in place.
    fn serve(&self, number: u64) {
        let key = KeyPair::generate().unwrap();
        self.write("server.pem", &params(number).signed_by(&key, &self.authority).unwrap().pem());
        self.write("server.key", &key.serialize_pem());
    }

    /// What a client with this number shows.
    fn client(&self, number: u64, tls: &Arc<Tls>) -> PeerCertificate {
        let mut params = params(number);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &self.authority).unwrap();
        PeerCertificate { chain: vec![certificate.der().clone()], tls: tls.clone() }
    }

    /// The authority takes back what has these numbers, and says so until that year.
    fn revoke(&self, numbers: &[u64], until: i32) {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write("crl.pem", &list.signed_by(&self.authority).unwrap().pem().unwrap());
    }

    fn config(&self) -> Config {
        Config {
            certificate_file: Some(self.path("server.pem")),
            key_file: Some(self.path("server.key")),
            ..Config::default()
        }
    }

    fn config_for_clients(&self) -> Config {
        let client_ca_file = Some(self.path("ca.pem"));
        Config { client_certificates: ClientCertificates::Required, client_ca_file, ..self.config() }
    }

    fn config_with_lists(&self) -> Config {
        Config { crl_file: Some(self.path("crl.pem")), ..self.config_for_clients() }
    }
}

fn params(number: u64) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.serial_number = Some(SerialNumber::from(number));
    (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2040, 1, 1));
    params
}

fn started(config: &Config) -> Arc<Tls> {
    Tls::start(config).unwrap().expect("there is TLS")
}

fn server(tls: &Tls) -> Arc<ServerConfig> {
    tls.in_force.load().server.clone()
}

#[test]
fn there_is_tls_where_there_is_a_certificate() {
    assert!(Tls::start(&Config::default()).unwrap().is_none());
    let house = House::new();
    started(&house.config());
    let key = fs::read_to_string(house.path("server.key")).unwrap();
    started(&Config { key: Some(key.into()), key_file: None, ..house.config() });
}

#[test]
fn what_cannot_be_used_is_told_with_its_setting() {
    let house = House::new();
    house.revoke(&[], 2035);
    fs::copy(house.path("server.key"), house.path("good.key")).unwrap();
    let lists = house.config_with_lists();
    assert!(Tls::start(&lists).is_ok());
    let (key, certificate) = ("PRIVATE KEY", "CERTIFICATE");
    let pem = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    for (file, text, expected) in [
        ("server.pem", String::new(), "tls.certificate_file: "),
        ("server.pem", "no PEM".to_owned(), "no usable PEM"),
        ("server.pem", pem(certificate, "AAAA"), "server.pem can't be used"),
        ("server.pem", fs::read_to_string(house.path("ca.pem")).unwrap(), "don't fit together"),
        ("server.key", String::new(), "tls.key holds no usable PEM key"),
        ("server.key", pem(key, "hunter31"), "don't fit together"),
        ("server.key", KeyPair::generate().unwrap().serialize_pem(), "don't fit together"),
        ("ca.pem", String::new(), "tls.client_ca_file: "),
        ("ca.pem", pem(certificate, "AAAA"), "tls.client_ca_file: "),
        ("crl.pem", String::new(), "tls.crl_file: "),
        ("crl.pem", pem("X509 CRL", "AAAA"), "tls.crl_file: "),
    ] {
        let good = fs::read_to_string(house.path(file)).unwrap();
        house.write(file, &text);
        let refusal = Tls::start(&lists).err().unwrap_or_else(|| panic!("{file}: {text}")).to_string();
        assert!(refusal.contains(expected) && !refusal.contains("hunter"), "{file}: {refusal}");
        house.write(file, &good);
    }
    for (file, setting) in [
        ("server.pem", "tls.certificate_file: cannot read"),
        ("server.key", "tls.key_file: cannot read"),
        ("ca.pem", "tls.client_ca_file: cannot read"),
        ("crl.pem", "tls.crl_file: cannot read"),
    ] {
        fs::rename(house.path(file), house.path("away")).unwrap();
        let refusal = Tls::start(&lists).err().expect(file).to_string();
        assert!(refusal.contains(setting), "{refusal}");
        fs::rename(house.path("away"), house.path(file)).unwrap();
    }
}

#[test]
fn new_files_come_in_force_once_they_keep_still_for_two_looks() {
    let house = House::new();
    let tls = started(&house.config());
    let first = server(&tls);
    let is_first = || Arc::ptr_eq(&first, &server(&tls));
    tls.look();
    tls.look();
    assert!(is_first(), "nothing has changed");
    house.serve(3);
    tls.look();
    assert!(is_first(), "they may still be written");
    house.write("server.key", "half a key");
    tls.look();
    assert!(is_first(), "they were");
    tls.look();
    assert!(is_first() && tls.reloads() == 0, "half a key is none");
    house.serve(4);
    tls.look();
    assert!(is_first());
    tls.look();
    assert!(!is_first() && tls.reloads() == 1);
    let second = server(&tls);
    tls.look();
    tls.look();
    assert!(Arc::ptr_eq(&second, &server(&tls)), "once is enough");
}

#[test]
fn what_is_told_to_be_read_is_read_at_once_and_what_is_broken_changes_nothing() {
    let house = House::new();
    let tls = started(&house.config());
    let first = server(&tls);
    let wrong = Config { key_file: Some(house.path("ca.pem")), ..house.config() };
    assert!(tls.replace(&wrong).is_err());
    tls.look();
    tls.look();
    assert_eq!(tls.reloads(), 0, "files that were not taken are not looked after");
    house.write("server.pem", "broken");
    assert!(tls.replace(&house.config()).is_err());
    assert!(Arc::ptr_eq(&first, &server(&tls)));
    // The watch has nothing to add to it.
    tls.look();
    assert!(tls.files().unsettled.is_none());
    fs::create_dir(house.path("other")).unwrap();
    house.serve(5);
    for file in ["server.pem", "server.key"] {
        fs::rename(house.path(file), house.path("other").join(file)).unwrap();
    }
    let elsewhere = Config {
        certificate_file: Some(house.path("other/server.pem")),
        key_file: Some(house.path("other/server.key")),
        handshake_timeout: Duration::from_secs(3),
        ..Config::default()
    };
    tls.replace(&elsewhere).unwrap();
    assert!(!Arc::ptr_eq(&first, &server(&tls)));
    assert_eq!(tls.in_force.load().handshake_timeout, Duration::from_secs(3));
    assert_eq!(tls.files().config.files().count(), 2);
}

#[test]
fn a_client_is_believed_as_long_as_its_authority_and_the_lists_say_so() {
    let house = House::new();
    let tls = started(&house.config_for_clients());
    let (ann, ben) = (house.client(11, &tls), house.client(12, &tls));
    let stranger = House::new().client(13, &tls);
    let believed = |at| [&ann, &ben, &stranger].map(|client| tls.still_trusts(client, at));
    assert_eq!(believed(NOW), [true, true, false]);
    assert_eq!(believed(TOO_LATE), [false; 3], "they have expired");

    house.revoke(&[12], 2035);
    tls.replace(&house.config_with_lists()).unwrap();
    assert_eq!(believed(NOW), [true, false, false], "one is revoked");
    house.revoke(&[12], 2029);
    tls.replace(&house.config_with_lists()).unwrap();
    assert_eq!(believed(NOW), [false; 3], "the list is out of date");
    house.revoke(&[], 2035);
    tls.replace(&house.config_with_lists()).unwrap();
    assert_eq!(believed(NOW), [true, true, false]);

    fs::copy(House::new().path("ca.pem"), house.path("ca.pem")).unwrap();
    tls.replace(&house.config_for_clients()).unwrap();
    assert_eq!(believed(NOW), [false; 3], "another authority is in force");
    tls.replace(&house.config()).unwrap();
    assert_eq!(believed(NOW), [false; 3], "nobody is asked any more");
    assert_eq!(tls.reloads(), 5);
    assert!(!ann.own().is_empty());
}

#[test]
fn a_list_of_another_authority_says_nothing_of_a_client_which_is_refused() {
    let (house, other) = (House::new(), House::new());
    other.revoke(&[], 2035);
    fs::copy(other.path("crl.pem"), house.path("crl.pem")).unwrap();
    let tls = started(&house.config_with_lists());
    assert!(!tls.still_trusts(&house.client(11, &tls), NOW));
}

#[test]
fn sessions_are_resumed_by_what_clients_keep_and_never_past_a_client_certificate() {
    let house = House::new();
    let tls = started(&house.config());
    assert!(server(&tls).ticketer.enabled() && !server(&tls).session_storage.can_cache());
    assert_eq!(server(&tls).max_early_data_size, 0);
    for client_certificates in [ClientCertificates::Optional, ClientCertificates::Required] {
        tls.replace(&Config { client_certificates, ..house.config_for_clients() }).unwrap();
        let server = server(&tls);
        assert!(!server.ticketer.enabled() && !server.session_storage.can_cache() && server.send_tls13_tickets == 0);
    }
}

#[test]
fn an_expiry_is_soon_within_two_weeks() {
    let days = |days: i64| days * 24 * 60 * 60;
    for (left, is_soon) in [(days(14), false), (days(14) - 1, true), (0, true), (-1, true), (days(400), false)] {
        assert_eq!(expires_soon(left), is_soon, "{left} seconds");
    }
}
