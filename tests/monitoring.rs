//! docs/monitoring and docs/OPERATING.md say what the program does: every figure, every reason, and rules that
//! promtool understands.

use blockferry::agent::health::Code;
use blockferry::agent::metrics;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Words that begin with `blockferry_` and are no label.
fn figures(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("blockferry_") && *word != "blockferry_job").collect()
}

#[test]
fn every_reason_is_explained() {
    let text = page("docs/OPERATING.md");
    for code in Code::ALL {
        assert!(text.contains(&format!("\n| `{code}` | ")), "docs/OPERATING.md does not explain {code}");
    }
    let rows = text.lines().skip_while(|line| !line.starts_with("| reason |")).skip(2).take_while(|line| line.starts_with('|'));
    assert_eq!(rows.count(), Code::ALL.len(), "docs/OPERATING.md explains a reason that there is not");
}

#[test]
fn every_figure_is_described_and_what_is_used_exists() {
    let names: BTreeSet<&str> = metrics::names().into_iter().collect();
    assert_eq!(names.len(), metrics::names().len(), "a figure is there twice");
    let readme = page("docs/monitoring/README.md");
    assert_eq!(figures(&readme), names, "docs/monitoring/README.md and the exporter");
    for user in ["docs/monitoring/alerts.yml", "docs/monitoring/alerts_test.yml", "docs/monitoring/grafana.json"] {
        let text = page(user);
        let used = figures(&text);
        let unknown: Vec<&&str> = used.difference(&names).collect();
        assert!(unknown.is_empty() && !used.is_empty(), "{user} uses {unknown:?}");
    }
    // Base units, as Prometheus wants them.
    for name in names {
        let unit = ["_seconds", "_bytes", "_total", "_code", "_info"].iter().any(|end| name.ends_with(end));
        assert!(unit || !["_ms", "_mib", "_time", "_minutes"].iter().any(|end| name.ends_with(end)), "{name}");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_can_import() {
    let board: serde_json::Value = serde_json::from_str(&page("docs/monitoring/grafana.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    assert!(panels.len() > 5 && board["uid"] == "blockferry");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{} is wider than the page", panel["title"]);
        assert!(!panel["description"].as_str().unwrap().is_empty());
        // No data source of whoever drew it.
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(!figures(target["expr"].as_str().unwrap()).is_empty());
        }
    }
}

/// promtool, which tests/needs brings: on the path, or below target/tools.
fn promtool() -> Option<PathBuf> {
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/promtool");
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join("promtool")).find(|file| file.is_file());
    let found = on_path.or(brought.is_file().then_some(brought));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing: bash tests/needs brings it");
        eprintln!("SKIPPED: the alert rules are not tried: promtool is missing (bash tests/needs brings it)");
    }
    found
}

fn says(promtool: &Path, arguments: &[&str]) -> (bool, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring");
    let ended = Command::new(promtool).args(arguments).current_dir(folder).output().expect("promtool runs");
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn promtool_finds_the_rules_sound_and_they_speak_when_they_should() {
    let Some(promtool) = promtool() else { return };
    let (sound, said) = says(&promtool, &["check", "rules", "alerts.yml"]);
    assert!(sound, "{said}");
    let (speak, said) = says(&promtool, &["test", "rules", "alerts_test.yml"]);
    assert!(speak, "{said}");
    // Every rule is tried.
    let tests = page("docs/monitoring/alerts_test.yml");
    for line in page("docs/monitoring/alerts.yml").lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {line}\n")), "alerts_test.yml does not try {line}");
    }
}

#[test]
fn promtool_finds_nothing_to_complain_of_in_what_is_exported() {
    use blockferry::agent::book::Shelf;
    use blockferry::agent::config::{AgentConfig, EXAMPLE};
    use blockferry::agent::health::Look;
    use blockferry::state::StateDir;
    use std::io::Write;
    let Some(promtool) = promtool() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(&StateDir::open(&folder.path().join("state")).unwrap()).unwrap();
    let config = AgentConfig::parse(&[("a.toml".into(), EXAMPLE.into())]).unwrap();
    let text = metrics::Sheet::of(&Look::now(&shelf, &config.jobs, &jiff::tz::TimeZone::UTC).unwrap()).text();
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}\n{text}", String::from_utf8_lossy(&ended.stderr));
}
