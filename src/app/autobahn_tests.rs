//! The WebSocket by itself, judged by Autobahn's cases, which kosoku runs: `/echo`, a route that only this build has, behind
//! the listener and the upgrade that `/ws` has too.

use std::path::{Path, PathBuf};
use std::process::Command;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tempfile::TempDir;

use super::App;
use crate::config::Config;
use crate::log;

/// Cases that judge more than a server of text frames has: speed, and compression.
const LEFT_OUT: [&str; 3] = ["9.*", "12.*", "13.*"];
/// So many are left: none is skipped without a word.
const CASES: usize = 247;
/// Cases in which nothing is right or wrong: what comes behind a Close frame, and close codes that nobody has given a meaning.
const INFORMATIONAL: [&str; 3] = ["7.1.6", "7.13.1", "7.13.2"];

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_passes_every_case_of_autobahn() {
    let mut config = Config::default();
    config.http.listen.set_port(0);
    config.http.admin_listen.set_port(0);
    // Nobody is there, and nobody needs to be.
    config.broker.url = "mqtt://127.0.0.1:1".parse().expect("a URL");
    let page = PrometheusBuilder::new().build_recorder().handle();
    let app = App::start(config.clone(), log::init(&config.log), page).await.expect("started");
    let folder = TempDir::new().expect("a folder");
    let mut command = tokio::process::Command::new(kosoku());
    command.args(["-m", "fuzzingclient", "-p", "8", "-o"]).arg(folder.path());
    command.args(LEFT_OUT.iter().flat_map(|cases| ["-x", cases]));
    command.arg(format!("ws://{}/echo", app.listen)).kill_on_drop(true);
    let output = command.output().await.expect("kosoku runs");
    let report = std::fs::read_to_string(folder.path().join("index.json")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(faults(&report, CASES), Vec::<String>::new(), "{said}");
    assert!(output.status.success(), "{said}");
}

/// What the report says that should not be, of so many cases.
fn faults(report: &str, count: usize) -> Vec<String> {
    let Ok(Value::Object(agents)) = serde_json::from_str(report) else { return vec!["there is no report".to_owned()] };
    let cases: Vec<_> = agents.values().filter_map(Value::as_object).flatten().collect();
    let mut faults: Vec<_> = cases.iter().filter_map(|(case, verdict)| fault(case, verdict)).collect();
    if cases.len() != count {
        faults.push(format!("{} cases were run, not {count}", cases.len()));
    }
    faults
}

/// Both the exchange and the closing handshake must be OK. Less is enough only where that is said above.
fn fault(case: &str, verdict: &Value) -> Option<String> {
    let passes = |verdict: &Value| match verdict.as_str() {
        Some("OK") => true,
        Some("INFORMATIONAL") => INFORMATIONAL.contains(&case),
        _ => false,
    };
    let verdicts = [&verdict["behavior"], &verdict["behaviorClose"]];
    (!verdicts.into_iter().all(passes)).then(|| format!("case {case}: {} and {}", verdicts[0], verdicts[1]))
}

#[test]
fn a_report_with_any_other_verdict_fails() {
    let report = |verdicts: &str| {
        format!(r#"{{"server": {{"1.1.1": {{"behavior": "OK", "behaviorClose": "OK"}}, {verdicts}}}}}"#)
    };
    let cases = [
        (r#""1.1.2": {"behavior": "OK", "behaviorClose": "OK"}"#, true),
        (r#""7.1.6": {"behavior": "INFORMATIONAL", "behaviorClose": "INFORMATIONAL"}"#, true),
        (r#""6.4.3": {"behavior": "NON-STRICT", "behaviorClose": "OK"}"#, false),
        (r#""1.1.2": {"behavior": "INFORMATIONAL", "behaviorClose": "OK"}"#, false),
        (r#""1.1.2": {"behavior": "NON-STRICT", "behaviorClose": "OK"}"#, false),
        (r#""1.1.2": {"behavior": "FAILED", "behaviorClose": "OK"}"#, false),
        (r#""1.1.2": {"behavior": "OK", "behaviorClose": "UNCLEAN"}"#, false),
        (r#""1.1.2": {"behavior": "OK", "behaviorClose": "FAILED"}"#, false),
        (r#""1.1.2": {"behavior": "UNIMPLEMENTED", "behaviorClose": "OK"}"#, false),
        (r#""1.1.2": {"behavior": "OK"}"#, false),
        (r#""1.1.2": null"#, false),
    ];
    for (verdicts, passes) in cases {
        assert_eq!(faults(&report(verdicts), 2).is_empty(), passes, "{verdicts}");
    }
    assert_eq!(faults(&report(cases[0].0), 3), ["2 cases were run, not 3"]);
    assert_eq!(faults("", 0), ["there is no report"]);
    assert_eq!(faults("{}", 1), ["0 cases were run, not 1"]);
}

/// kosoku, as tests/autobahn/requirements.txt has it, made when it is needed for the first time.
fn kosoku() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/autobahn/requirements.txt");
    let wanted = std::fs::read(&requirements).expect("readable");
    // Tests of the library are in the target directory, under the profile and `deps`.
    let program = std::env::current_exe().expect("a program");
    let folder = program.ancestors().nth(3).expect("a target directory").join("tools/autobahn");
    let made = folder.join("requirements.txt");
    if !std::fs::read(&made).is_ok_and(|made| made == wanted) {
        let run = |command: &mut Command| {
            let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            assert!(status.success(), "{command:?}");
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements));
        std::fs::write(made, wanted).expect("written");
    }
    folder.join("bin/kosoku")
}
