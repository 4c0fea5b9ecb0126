//! Scenes with all that a configuration comes from.

use std::collections::BTreeSet;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;

use super::*;
use crate::broker::BrokerUrl;

const SECRET: &str = "hunter-31415";

/// A folder with a configuration file and what it names.
struct House(TempDir);

impl House {
    fn new(config: &str) -> Self {
        let house = Self(TempDir::new().unwrap());
        house.with("tidegate.toml", config)
    }

    fn with(self, file: &str, text: &str) -> Self {
        fs::write(self.path(file), text).unwrap();
        self
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn load(&self, flags: Flags, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let flags = Flags { config: Some(self.path("tidegate.toml")), ..flags };
        Config::load(&flags, environment).map_err(|error| error.to_string())
    }
}

fn password_of(config: &Config) -> Option<&str> {
    config.broker.password.as_ref().map(SecretString::expose_secret)
}

#[test]
fn without_a_word_from_anybody_the_defaults_hold() {
    let config = Config::load(&Flags::default(), []).unwrap();
    assert_eq!(config.to_string(), Config::default().to_string());
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let house = House::new(
        "[http]\nlisten = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:2\"\n\
         [broker]\nurl = \"mqtt://file\"\nkeep_alive = 40\n",
    );
    let flags = Flags { broker: Some("mqtt://flag".to_owned()), ..Flags::default() };
    let environment = [
        ("TIDEGATE_BROKER__URL", "mqtt://environment"),
        ("TIDEGATE_BROKER__KEEP_ALIVE", "50"),
        ("TIDEGATE_HTTP__ADMIN_LISTEN", "127.0.0.1:3"),
    ];
    let config = house.load(flags, &environment).unwrap();
    assert_eq!(config.broker.url, "mqtt://flag".parse::<BrokerUrl>().unwrap());
    assert_eq!(config.broker.keep_alive, Duration::from_secs(50));
    assert_eq!(config.http.admin_listen.port(), 3);
    assert_eq!(config.http.listen.port(), 1);
    assert_eq!(config.broker.grace, Duration::from_secs(60));
}

#[test]
fn a_wrong_value_is_told_with_the_place_it_came_from() {
    let house = House::new("");
    let listen = Flags { listen: Some("8080".to_owned()), ..Flags::default() };
    for (flags, environment, expected) in [
        (listen, ("HOME", "/"), "--listen (or TIDEGATE_LISTEN): invalid value: string \"8080\", expected an IP"),
        (Flags::default(), ("TIDEGATE_BROKER__GRACE", "soon"), "TIDEGATE_BROKER__GRACE: invalid type: string"),
        (Flags::default(), ("TIDEGATE_BROKER__GRACE", "0"), "TIDEGATE_BROKER__GRACE: invalid value: integer `0`"),
        (Flags::default(), ("TIDEGATE_BROKER_GRACE", "1"), "is it TIDEGATE_BROKER__GRACE?"),
        (Flags::default(), ("TIDEGATE_BROKER__CA_FILE", "/none"), "broker.ca_file: cannot read /none: No such file"),
        (Flags::default(), ("TIDEGATE_HTTP__BACKLOG", "0"), "a whole number from 1 to 4294967295"),
        (Flags::default(), ("TIDEGATE_HTTP__BACKLOG", "4294967296"), "a whole number from 1 to 4294967295"),
        (Flags::default(), ("TIDEGATE_HTTP__MAX_HEADER", "1023"), "http.max_header is 1023: browsers send heads of"),
        (
            Flags::default(),
            ("TIDEGATE_HTTP__TRUSTED_PROXIES", "[\"proxy\"]"),
            "\"proxy\" is no IP address and no network",
        ),
        (Flags::default(), ("TIDEGATE_CONNECTIONS__MAX", "0"), "TIDEGATE_CONNECTIONS__MAX: invalid value: integer `0`"),
        (
            Flags::default(),
            ("TIDEGATE_WIRE__MAX_UNFINISHED_BYTES", "1000"),
            "wire.max_unfinished_bytes is 1000, less than",
        ),
        (Flags::default(), ("TIDEGATE_RUNTIME__WORKER_THREADS", "0"), "a whole number, at least 1"),
        (
            Flags::default(),
            ("TIDEGATE_RUNTIME__WORKER_THREADS", "1025"),
            "runtime.worker_threads is 1025: more than there are processors",
        ),
        (Flags::default(), ("TIDEGATE_ADMIN__TOKEN", "guess me"), "admin.token has less than 16 bytes"),
        (Flags::default(), ("TIDEGATE_HTTP__LISTEN", "127.0.0.1:9464"), "http.admin_listen are both 127.0.0.1:9464"),
    ] {
        let refusal = house.load(flags, &[environment]).unwrap_err();
        assert!(refusal.contains(expected), "{environment:?}: {refusal}");
    }
}

#[test]
fn a_missing_configuration_file_is_named() {
    let flags = Flags { config: Some("/none/tidegate.toml".into()), ..Flags::default() };
    let refusal = Config::load(&flags, []).unwrap_err().to_string();
    assert!(refusal.contains("/none/tidegate.toml: No such file"), "{refusal}");
}

#[test]
fn a_secret_is_read_from_a_file_beside_the_configuration() {
    let house = House::new("[broker]\npassword_file = \"password\"").with("password", "hunter-31415\n");
    let config = house.load(Flags::default(), &[]).unwrap();
    assert_eq!(password_of(&config), Some(SECRET));
    assert_eq!(config.broker.password_file, Some(house.path("password")));
}

#[test]
fn a_file_of_a_secret_that_cannot_serve_is_told_with_its_setting() {
    let missing = House::new("[broker]\npassword_file = \"password\"");
    let refusal = missing.load(Flags::default(), &[]).unwrap_err();
    let path = missing.path("password");
    assert!(refusal.contains(&format!("broker.password_file: cannot read {}", path.display())), "{refusal}");

    let empty = missing.with("password", "\n");
    let refusal = empty.load(Flags::default(), &[]).unwrap_err();
    assert!(refusal.contains("broker.password_file") && refusal.contains("empty"), "{refusal}");
}

#[test]
fn a_secret_has_one_form_in_each_place() {
    let house = House::new("[broker]\npassword = \"a\"\npassword_file = \"b\"").with("b", SECRET);
    let refusal = house.load(Flags::default(), &[]).unwrap_err();
    assert!(refusal.contains("broker.password and broker.password_file are both given"), "{refusal}");

    let house = house.with("tidegate.toml", "[broker]\npassword = \"a\"");
    let file = house.path("b");
    let environment = [("TIDEGATE_BROKER__PASSWORD_FILE", file.to_str().unwrap())];
    let config = house.load(Flags::default(), &environment).unwrap();
    assert_eq!(password_of(&config), Some(SECRET), "the environment goes before the file, in either form");
}

#[test]
fn a_secret_is_never_shown() {
    let house = House::new(
        "[broker]\nurl = \"mqtts://mosquitto\"\npassword = \"hunter-31415\"\n\
         client_certificate_file = \"certificate\"\nclient_key_file = \"key\"\n",
    );
    let config = house.with("certificate", "public").with("key", SECRET).load(Flags::default(), &[]).unwrap();
    assert_eq!(password_of(&config), Some(SECRET));
    for shown in [config.to_string(), format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    assert!(config.to_string().contains("client_key = \"***\""), "{config}");
}

/// The settings of a table, in order of the alphabet.
fn keys(table: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    flatten(table, &mut Vec::new(), &mut |path, _| keys.push(path.join(".")));
    keys.sort();
    keys
}

/// A configuration in which nothing is absent. The section with most of the optional settings has no `..`, so that a new one must
/// take its place here.
fn full() -> Config {
    let file = || Some(PathBuf::from("a file"));
    let secret = || Some(SecretString::from(SECRET));
    let default = broker::Config::default();
    let broker = broker::Config {
        url: default.url,
        upstream: default.upstream,
        connections: NonZeroUsize::new(1),
        username: Some("a name".to_owned()),
        password: secret(),
        password_file: file(),
        client_id: default.client_id,
        session_username: access::TemplateConfig::parse("{user}").ok(),
        session_password: access::TemplateConfig::parse("{token}").ok(),
        ca_file: file(),
        client_certificate_file: file(),
        client_key: secret(),
        client_key_file: file(),
        keep_alive: default.keep_alive,
        connect_timeout: default.connect_timeout,
        request_timeout: default.request_timeout,
        grace: default.grace,
        max_packet: default.max_packet,
        receive_maximum: default.receive_maximum,
        max_waiting: default.max_waiting,
    };
    let shutdown = shutdown::Config { notice: Some(Duration::from_secs(1)), ..shutdown::Config::default() };
    let some = || NonZeroU32::new(100);
    let session = session::Config {
        max_frames_per_second: some(),
        max_publishes_per_second: some(),
        ..session::Config::default()
    };
    let runtime = runtime::Config { worker_threads: NonZeroUsize::new(1), ..runtime::Config::default() };
    let auth = toml::from_str(
        "anonymous = true\ncookie = \"c\"\nmax_password_checks = 1\nrevocations = \"r\"\n\
         [jwt]\nalgorithms = [\"HS256\"]\nsecret = \"s\"\nsecret_file = \"s\"\npublic_key_file = \"p\"\n\
         jwks_url = \"https://id\"\njwks_ca_file = \"c\"\naudience = \"a\"\nissuer = \"i\"\nmax_lifetime = 5\n\
         [certificate]\nuser = \"cn\"\n[hook]\nurl = \"https://id\"\nca_file = \"c\"\nsecret = \"s\"\nsecret_file = \"s\"\n\
         [tokens.backend]\nhash = \"h\"\nuser = \"u\"\nexpires = 1\nclaims = { site = \"north\" }\n\
         [users.anna]\nhash = \"h\"\nclaims = { site = \"north\" }\n",
    );
    let auth = auth.expect("all of it is there");
    let role = access::RoleConfig {
        grants: vec![
            toml::from_str("allow = [\"publish\"]\ntopics = [\"a\"]\nqos = [0]\nretain = true").expect("a grant"),
        ],
        max_publishes_per_second: some(),
        max_bytes_per_second: some(),
        max_subscriptions: NonZeroUsize::new(1),
        max_connections: NonZeroUsize::new(1),
    };
    let roles = BTreeMap::from([("viewer".to_owned(), role)]);
    let groups = BTreeMap::from([("pumps".to_owned(), access::GroupConfig { devices: vec!["pump-1".into()] })]);
    let audit = audit::Config { log: file(), keep: NonZeroUsize::new(1), ..audit::Config::default() };
    let admin = http::AdminConfig { token: secret(), token_file: file() };
    let tls = http::TlsConfig {
        certificate_file: file(),
        key: secret(),
        key_file: file(),
        client_ca_file: file(),
        crl_file: file(),
        ..http::TlsConfig::default()
    };
    Config { admin, tls, auth, broker, session, shutdown, runtime, audit, roles, groups, ..Config::default() }
}

#[test]
fn the_template_has_every_setting() {
    let full = Table::try_from(full()).unwrap();
    assert_eq!(keys(&TEMPLATE_TABLE), keys(&full));
    // What its user names has everything in its example too.
    for named in every_setting().filter(|known| is_named(&known.path)) {
        let keys = |table: &Table| {
            let named = named.path.iter().fold(Value::Table(table.clone()), |table, part| table[*part].clone());
            named.as_table().unwrap().keys().cloned().collect::<BTreeSet<_>>()
        };
        assert_eq!(keys(&TEMPLATE_TABLE), keys(&full), "{}", named.name());
    }
}

#[test]
fn the_template_tells_the_defaults() {
    let as_it_is: Config = toml::from_str(TEMPLATE).unwrap();
    assert_eq!(as_it_is.to_string(), Config::default().to_string());

    TEMPLATE_TABLE.clone().try_into::<Config>().expect("its examples are right");
    flatten(&Table::try_from(Config::default()).unwrap(), &mut Vec::new(), &mut |path, default| {
        let known = every_setting().find(|known| known.path == path).map(|known| known.example);
        assert_eq!(known, Some(default), "{path:?}");
    });
}

#[test]
fn the_template_leaves_every_setting_to_whoever_takes_it_up() {
    let untouched: Table = TEMPLATE.parse().unwrap();
    assert_eq!(keys(&untouched), [""; 0]);
}

fn house_of(settings: &str) -> Config {
    House::new(settings).load(Flags::default(), &[]).unwrap()
}

#[test]
fn a_configuration_read_again_replaces_what_new_sessions_read_and_names_what_needs_a_restart() {
    let old = house_of("[log]\nlevel = \"info\"\n[wire]\nmax_frame = 5");
    let new = house_of(
        "[http]\nlisten = \"127.0.0.1:1\"\n[broker]\nusername = \"ann\"\n[session]\nmax_subscriptions = 3\n\
         [delivery]\nmax_queued = 4\n[wire]\nmax_frame = 5\n[runtime]\nworker_threads = 1\npin_workers = true\n[log]\nlevel = \"warn\"\nformat = \"json\"\n\
         [shutdown]\ndeadline = 6",
    );
    let (next, changes) = old.replaced_by(new.clone());
    let told: Vec<_> = changes
        .iter()
        .map(|Change { setting, from, to, needs_restart }| {
            format!("{setting}: {from} -> {to}{}", if *needs_restart { ", restart" } else { "" })
        })
        .collect();
    assert_eq!(
        told,
        [
            "http.listen: \"127.0.0.1:8080\" -> \"127.0.0.1:1\", restart",
            "broker.username:  -> \"ann\", restart",
            "session.max_subscriptions: 1000 -> 3",
            "delivery.max_queued: 1000 -> 4",
            "runtime.worker_threads:  -> 1, restart",
            "runtime.pin_workers: false -> true, restart",
            "log.format: \"text\" -> \"json\", restart",
            "log.level: \"info\" -> \"warn\"",
            "shutdown.deadline: 10 -> 6",
        ]
    );
    assert_eq!((next.session.max_subscriptions.get(), next.delivery.max_queued.get()), (3, 4));
    assert_eq!((next.http.listen.port(), next.log.format), (8080, log::Format::Text));
    // What needs a restart is told again as long as it does.
    let (_, again) = next.replaced_by(new);
    assert!(again.len() == 5 && again.iter().all(|change| change.needs_restart), "{again:?}");
    assert_eq!(next.replaced_by(next.clone()).1, []);
}

#[test]
fn a_secret_that_changes_is_told_and_not_shown() {
    let simple = |known: &&Known| is_secret(&known.name()) && known.path[0] != "auth";
    for known in every_setting().filter(simple) {
        let (section, key) = (known.path[0], known.key());
        let others = match (section, key) {
            ("admin", _) => "[admin]\n",
            ("tls", _) => "[tls]\ncertificate_file = \"certificate\"\n",
            (_, "client_key") => "[broker]\nurl = \"mqtts://b\"\nclient_certificate_file = \"certificate\"\n",
            (_, _) => "[broker]\n",
        };
        let with = |secret: &str| {
            let house = House::new(&format!("{others}{key} = \"{secret}\"")).with("certificate", "public");
            house.load(Flags::default(), &[]).unwrap()
        };
        let (old, mut new) = (with("hunter-31415-hunter"), with("hunter-27182-hunter"));
        new.broker.client_certificate_file.clone_from(&old.broker.client_certificate_file);
        new.tls.certificate_file.clone_from(&old.tls.certificate_file);
        let (_, changes) = old.replaced_by(new);
        let change = Change {
            setting: known.name(),
            from: "***".to_owned(),
            to: "***".to_owned(),
            needs_restart: !["admin", "tls"].contains(&section),
        };
        assert_eq!(changes, [change]);
    }
}

#[test]
fn what_is_audited_can_change_in_a_running_gateway_and_where_to_cannot() {
    let old = house_of("[audit]\nlog = \"a.jsonl\"");
    let new = house_of("[audit]\nlog = \"b.jsonl\"\nmax_size = 70000\ntopics = [\"valves/#\"]\nwhen_full = \"refuse\"");
    let (next, changes) = old.replaced_by(new);
    let told: Vec<_> = changes.iter().map(|change| (change.setting.as_str(), change.needs_restart)).collect();
    assert_eq!(
        told,
        [("audit.log", true), ("audit.max_size", true), ("audit.topics", false), ("audit.when_full", false)]
    );
    assert_eq!((&next.audit.log, next.audit.max_size), (&old.audit.log, old.audit.max_size));
    assert_eq!(next.audit.when_full, audit::WhenFull::Refuse);
}

#[test]
fn the_audit_log_lies_beside_the_configuration_and_need_not_be_there() {
    let house = House::new("[audit]\nlog = \"audit.jsonl\"");
    assert_eq!(house.load(Flags::default(), &[]).unwrap().audit.log, Some(house.path("audit.jsonl")));
    let refusal = house.load(Flags::default(), &[("TIDEGATE_AUDIT__MAX_SIZE", "65535")]).unwrap_err();
    assert!(refusal.contains("audit.max_size is 65535"), "{refusal}");
}
