//! Imports point down only: the floors of the house, and who may know what.
//!
//! The checker reads sources as text: every path in them, with `use` trees spelt out. Tests may look anywhere.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors, from the roof down. A module sees the floors below its own, and of its own only itself.
const FLOORS: [&[&str]; 15] = [
    &["main"],
    &["app", "cli"],
    &["config"],
    &["http", "edge"],
    &["session", "tunnel"],
    &["devices"],
    &["broker"],
    &["auth", "overload"],
    &["audit"],
    &["metrics", "log", "runtime", "shutdown", "systemd"],
    &["access", "delivery"],
    &["wire"],
    &["mqtt"],
    // How settings are written: every module's `Config` stands on it.
    &["units"],
    // What the crate is: it names the modules, and nobody names it.
    &["lib"],
];

/// What only some places may know.
const KNOWN_TO: [(&str, &[&str]); 10] = [
    ("argon2", &["auth"]),
    ("aws_lc_rs", &["audit", "auth", "http"]),
    ("reqwest", &["auth"]),
    ("x509_parser", &["auth", "http"]),
    ("axum", &["http"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("rumqttd", &["broker::embedded", "tunnel"]),
    ("rumqttc", &[]),
    ("rustix", &["http::websocket::direct", "runtime"]),
];

/// No sockets, tasks, clocks, logs or metrics: these return what happened, and the caller counts it.
const PURE: [&str; 4] = ["access", "delivery", "wire", "mqtt"];
const IMPURE: [&str; 13] = [
    "futures_util",
    "metrics",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::SystemTime",
    "Instant::now",
    "tokio",
    "tokio_util",
    "tracing",
];

#[test]
fn imports_point_down_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.iter().any(|file| file.ends_with("session/run.rs")), "the sources are found");
    let breaches: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let module = module_of(file.strip_prefix(&root).expect("below src"));
            breaches(&module, &fs::read_to_string(file).expect("readable"))
        })
        .collect();
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn a_planted_breach_is_found() {
    for (module, text, found) in [
        ("mqtt::topic", "use crate::wire::Refusal;", "mqtt::topic must not see wire: it is on a higher floor"),
        ("http", "use crate::edge::Source;", "http must not see edge: it is on the same floor"),
        ("wire", "use crate::{mqtt::Qos, session::{self, Roster}};", "wire must not see session: it is on a higher"),
        ("broker", "fn f() { let x = crate::app::App; }", "broker must not see app"),
        ("broker", "use super::session::Roster;", "broker climbs to the crate's root by super: write crate::"),
        ("broker::link", "pub use super::super::session;", "broker::link climbs to the crate's root by super"),
        ("attic", "", "attic has no floor: give it one in tests/layers.rs"),
        ("mqtt", "use crate::attic::Box;", "mqtt must not see attic: it has no floor"),
        ("config", "use crate::broker;\nfn f(url: broker::BrokerUrl) {}", "config must see only the Config of broker"),
        ("config::file", "use crate::http::listen;", "config::file must see only the Config of http"),
        ("session::run", "use axum::extract::ws::WebSocket;", "session::run must not know axum"),
        ("broker::dedicated", "use rumqttd::Router;", "broker::dedicated must not know rumqttd"),
        ("tunnel", "use rumqttc::v5;", "tunnel must not know rumqttc"),
        ("delivery::outbox", "use tokio::sync::Notify;", "delivery::outbox is pure, and must not use tokio"),
        ("wire", "use std::{fmt, net::{IpAddr, SocketAddr}};", "wire is pure, and must not use std::net"),
        ("mqtt", "let now = std::time::Instant::now();", "mqtt is pure, and must not use Instant::now"),
        ("mqtt", "use std::time::*;\nlet now = Instant::now();", "mqtt is pure, and must not use Instant::now"),
        ("access", "use std::time::{Duration, SystemTime};", "access is pure, and must not use std::time::SystemTime"),
        ("delivery", "fn f() {\n    tracing::info!(\"x\");\n}", "delivery is pure, and must not use tracing"),
    ] {
        let breaches = breaches(module, text);
        assert!(breaches.iter().any(|breach| breach.starts_with(found)), "{module}: {text}\n{breaches:#?}");
    }
}

#[test]
fn what_is_allowed_is_no_breach() {
    for (module, text) in [
        ("main", "use tidegate::{app::App, log, metrics};"),
        ("http::ws", "use axum::Router;\nuse crate::session::{self, Context};\nuse crate::wire::Close;"),
        ("broker::embedded", "use rumqttd::{Router, Server};\nuse tokio::net::TcpStream;"),
        ("broker::link", "use super::connection::Lost;\nuse crate::broker::Config;"),
        ("config", "use crate::{broker, http};\nstruct Config { http: http::Config, broker: broker::Config }"),
        ("delivery::outbox", "use std::time::Instant;\nfn f(now: Instant) {}"),
        ("wire", "//! See [`crate::session`].\n// crate::session\nfn f() {} // as crate::session does"),
        ("mqtt", "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::session::Roster;\n}\n"),
        ("mqtt", "#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;\nfn f() {}"),
        ("log", "const EXAMPLES: &str = \"rumqttd=off,tidegate::broker=debug\";"),
    ] {
        assert_eq!(breaches(module, text), Vec::<String>::new(), "{module}: {text}");
    }
}

#[test]
fn what_follows_a_test_module_is_read() {
    let text = "#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n}\n\nuse crate::session::Roster;\n";
    assert_eq!(breaches("mqtt", text).len(), 1);
}

/// What a module's text breaks, a sentence each.
fn breaches(module: &str, text: &str) -> Vec<String> {
    let home = module.split("::").next().expect("a split has a first part");
    let Some(own_floor) = floor(home) else {
        return vec![format!("{module} has no floor: give it one in tests/layers.rs")];
    };
    let mut breaches = Vec::new();
    let code = code(text);
    if climbs_to_the_root(module, &code) {
        breaches.push(format!("{module} climbs to the crate's root by super: write crate::"));
    }
    for path in paths(&code) {
        let segments: Vec<&str> = path.split("::").collect();
        match segments[..] {
            // The program sees the library by its name; in the library, that name stands in texts only.
            ["tidegate", ..] if home != "main" => {}
            ["crate" | "tidegate", other, ..] if other != home => match floor(other) {
                Some(below) if below > own_floor => {}
                Some(same) if same == own_floor => {
                    breaches.push(format!("{module} must not see {other}: it is on the same floor ({path})"));
                }
                Some(_) => breaches.push(format!("{module} must not see {other}: it is on a higher floor ({path})")),
                None => breaches.push(format!("{module} must not see {other}: it has no floor ({path})")),
            },
            _ => {}
        }
        if home == "config" {
            let seen = segments.strip_prefix(&["crate"]).unwrap_or(&segments);
            if let [other, name, ..] = seen
                && floor(other).is_some_and(|below| below > own_floor)
                && *other != "units"
                && *name != "self"
                && !name.ends_with("Config")
            {
                breaches.push(format!("{module} must see only the Config of {other} ({path})"));
            }
        }
        for (name, places) in KNOWN_TO {
            if segments[0] == name && !places.iter().any(|place| is_within(module, place)) {
                breaches.push(format!("{module} must not know {name} ({path})"));
            }
        }
        if PURE.contains(&home) {
            for impure in IMPURE.iter().filter(|impure| names(&path, impure)) {
                breaches.push(format!("{module} is pure, and must not use {impure} ({path})"));
            }
        }
    }
    breaches
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn is_within(module: &str, place: &str) -> bool {
    module.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether the path is that of the thing or leads into it; a type's function also counts behind the type's own path.
fn names(path: &str, thing: &str) -> bool {
    is_within(path, thing) || thing.starts_with(char::is_uppercase) && path.ends_with(&format!("::{thing}"))
}

/// Whether a `use` of the module itself (those of inline modules are indented) leaves it by `super`.
fn climbs_to_the_root(module: &str, code: &str) -> bool {
    let climb = "super::".repeat(module.split("::").count());
    code.lines().filter(|line| !line.starts_with(' ')).any(|line| line.contains(&format!("use {climb}")))
}

/// The text without comments and without what is compiled for tests only.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // rustfmt ends an item where it began: with a brace there, or on a line that holds all of it.
            let indent = line.len() - line.trim_start().len();
            let ends = |line: &str| {
                let at_the_margin = line.len() - line.trim_start().len() == indent;
                at_the_margin && (line.ends_with(';') || line.ends_with('}'))
            };
            lines.by_ref().find(|line| ends(line));
        } else if !line.trim_start().starts_with("//") {
            code.push_str(line.split(" // ").next().unwrap_or(line));
            code.push('\n');
        }
    }
    code
}

/// Every path of at least two names, trees spelt out: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = end_of_path(rest);
        if rest[..end].contains("::") {
            spell_out("", &rest[..end], &mut found);
        }
        rest = &rest[end..];
    }
    found
}

fn is_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Where a path that begins here ends, its tree of braces included.
fn end_of_path(text: &str) -> usize {
    let mut end = text.find(|letter| !is_name(letter)).unwrap_or(text.len());
    while let Some(next) = text[end..].strip_prefix("::") {
        if next.starts_with('{') {
            let mut depth = 0;
            let closing = next.find(|letter| {
                depth += match letter {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                depth == 0
            });
            return closing.map_or(text.len(), |closing| end + 2 + closing + 1);
        }
        let name = next.find(|letter| !is_name(letter)).unwrap_or(next.len());
        end += 2 + name;
        if name == 0 {
            return end;
        }
    }
    end
}

fn spell_out(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((stem, branches)) = tree.split_once('{') else {
        if !tree.is_empty() {
            let path = tree.split(" as ").next().expect("a split has a first part");
            found.push(format!("{prefix}{path}"));
        }
        return;
    };
    let branches = branches.strip_suffix('}').unwrap_or(branches);
    let mut depth = 0;
    let each = branches.split(|letter| {
        depth += match letter {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        letter == ',' && depth == 0
    });
    for branch in each {
        spell_out(&format!("{prefix}{stem}"), branch, found);
    }
}

/// The files of a folder and of those in it, those of tests aside.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name in Unicode");
        if path.is_dir() {
            files.extend(sources(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            files.push(path);
        }
    }
    files
}

/// `broker/link.rs` is `broker::link`.
fn module_of(file: &Path) -> String {
    let names: Vec<_> = file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.join("::")
}
