//! The metrics, read by a real Prometheus with the alerts and the dashboard of packaging/.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hotslot_tests::{Answer, Api, Hotslot, I440FX, Q35, binary, host};
use regex::Regex;
use reqwest::Method;
use serde_json::Value;

const CONFIG: &str = r#"
[attach]
verify = "off"
[[webhook]]
name = "billing"
url = "http://127.0.0.1:9/"
secret = "a secret that is long enough for a test"
attempts = 1
"#;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(packaging()).output();
    let output = output.expect("promtool of Debian's package prometheus (tools/install build)");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

/// Returns the value of the series that a line names with its labels.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.split(' ').next()?.parse().ok()
}

/// A service whose callers show a token, with the token of a reader of the whole system.
struct Guarded {
    service: Hotslot,
    token: PathBuf,
}

impl Guarded {
    async fn new() -> Self {
        let mut service = Hotslot::with(&host("small"), CONFIG).await;
        let tokens = service.database().with_file_name("tokens");
        service.kill();
        service.reconfigure("insecure_tcp = true", "insecure_tcp = false");
        let identity = format!("[identity]\ntokens = \"{}\"\n[database]\n", tokens.display());
        service.reconfigure("[database]\n", &identity);
        let config = service.database().with_file_name("hotslot.toml").display().to_string();
        let create = |name: &str, role: &str| {
            let mut command = Command::new(binary());
            let output =
                command.args(["token", "create", name, "--role", role, "--config", &config]).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{output:?}");
            let file = service.database().with_file_name(name);
            fs::write(&file, String::from_utf8(output.stdout).unwrap().trim()).unwrap();
            file
        };
        let (token, _) = (create("prometheus", "reader"), create("ops", "admin"));
        service.start_again().await;
        Self { service, token }
    }

    async fn as_whom(&self, name: &str, method: Method, path: &str, body: Option<String>) -> Answer {
        self.service.send_with(method, path, vec![self.bearer(name)], body).await
    }

    fn bearer(&self, name: &str) -> (String, String) {
        let token = fs::read_to_string(self.service.database().with_file_name(name)).unwrap();
        ("authorization".to_owned(), format!("Bearer {token}"))
    }

    /// The metrics, as Prometheus reads them.
    async fn metrics(&self) -> String {
        self.metrics_as("application/openmetrics-text").await.body.as_str().unwrap().to_owned()
    }

    /// The metrics in the format that `Accept` asks for.
    async fn metrics_as(&self, accept: &str) -> Answer {
        let headers = vec![self.bearer("prometheus"), ("accept".to_owned(), accept.to_owned())];
        self.service.send_with(Method::GET, "/metrics", headers, None).await.expect(200)
    }

    async fn attach(&self, server: &str, alias: &str) -> Answer {
        let body = format!("{{\"pciAttachment\": {{\"pci_passthrough:alias\": \"{alias}\"}}}}");
        self.as_whom("ops", Method::POST, &hotslot_tests::attachments(server), Some(body)).await
    }
}

/// A Prometheus that reads the metrics of a service every five seconds.
struct Prometheus {
    child: Child,
    api: Api,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn reading(service: &Guarded) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        let target = service.service.url().strip_prefix("http://").unwrap();
        let text = format!(
            "global: {{scrape_interval: 5s, evaluation_interval: 5s}}\nrule_files: ['{}']\nscrape_configs:\n  - job_name: \
             hotslot\n    authorization: {{credentials_file: '{}'}}\n    static_configs: [{{targets: ['{target}']}}]\n",
            packaging().join("hotslot.rules.yml").display(),
            service.token.display()
        );
        fs::write(&config, text).unwrap();
        promtool(&["check", "config", config.to_str().unwrap()]);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, api: Api::at(format!("http://{free}")), _dir: dir }
    }

    /// The result of a query; `None` while Prometheus does not answer.
    async fn query(&self, expression: &str) -> Option<Value> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.api.try_get(&format!("/api/v1/query?query={query}")).await?;
        // It is still starting.
        if answer.status == 503 {
            return None;
        }
        assert_eq!(answer.status, 200, "{expression}: {}", answer.body);
        Some(answer.body["data"]["result"].clone())
    }

    /// Waits until a query has a result.
    async fn until(&self, expression: &str) {
        let found =
            async || self.query(expression).await.is_some_and(|found| found != Value::Array(Vec::new()));
        self.api.until(expression, found).await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the expressions of the dashboard, as Prometheus gets them from Grafana.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(packaging().join("hotslot.dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions.map(|text| text.replace("$__rate_interval", "1m").replace("$instance", ".*")).collect()
}

#[test]
fn the_alerts_fire_on_faults_and_on_nothing_else() {
    promtool(&["check", "rules", "hotslot.rules.yml"]);
    promtool(&["test", "rules", "hotslot.rules.test.yml"]);
}

/// Each metric of the alerts and of the dashboard exists, each one that exists is shown, and Prometheus understands each
/// expression.
async fn expect_shown(text: &str, prometheus: &Prometheus) {
    let samples: BTreeSet<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let rules = fs::read_to_string(packaging().join("hotslot.rules.yml")).unwrap();
    let alerts = rules.lines().filter(|line| !line.contains("summary:") && !line.contains("action:"));
    let names = Regex::new(r"(?-u:\b)(?:hotslot|process)_[a-z_]+").unwrap();
    let expressions = dashboard();
    let used: BTreeSet<_> = alerts
        .chain(expressions.iter().map(String::as_str))
        .flat_map(|text| names.find_iter(text))
        .map(|found| found.as_str())
        .collect();
    let missing: Vec<_> = used.difference(&samples).collect();
    assert!(used.len() > 25 && missing.is_empty(), "{missing:?} is not among {samples:?}");
    for expression in &expressions {
        prometheus.query(expression).await.expect("an answer");
    }
    // Each metric is on the dashboard, or in an alert, besides the parts of histograms.
    let whole = |name: &str| !["_bucket", "_sum", "_count"].iter().any(|part| name.ends_with(part));
    let unused: Vec<_> = samples.iter().filter(|name| whole(name) && !used.contains(*name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_reads_what_happens_and_the_dashboard_shows_what_there_is() {
    let guarded = Guarded::new().await;
    let prometheus = Prometheus::reading(&guarded);
    let text = guarded.metrics().await;
    assert_eq!(value(&text, r#"hotslot_assignments{kind="attachment",state="attached"}"#), Some(0.0));
    assert_eq!(value(&text, "hotslot_database_up"), Some(1.0));

    let attached = guarded.attach(Q35, "vf:1").await.expect(200).body;
    guarded.attach(Q35, "nothing:1").await.expect(400);
    prometheus.until(r#"hotslot_assignments{kind="attachment", state="attached"} == 1"#).await;
    prometheus.until(r#"hotslot_devices{host="node1", type="type-VF", status="allocated"} == 1"#).await;

    // The guest keeps the device.
    guarded.service.sim("guest q35 unplug=ignore");
    let path = hotslot_tests::path(&attached["pci_devices"][0]);
    let kept = guarded.as_whom("ops", Method::DELETE, &path, None).await;
    assert_eq!(kept.status, 409, "{}", kept.body);
    let text = guarded.metrics().await;
    let count = |operation: &str, result: &str| {
        let labels = format!("operation=\"{operation}\",kind=\"attachment\",result=\"{result}\"");
        value(&text, &format!("hotslot_operation_duration_seconds_count{{{labels}}}"))
    };
    assert_eq!((count("attach", "done"), count("attach", "refused")), (Some(1.0), Some(1.0)), "{text}");
    assert_eq!(count("detach", "pending"), Some(1.0), "{text}");
    for step in ["wait", "choose", "reserve", "render", "plug", "settle"] {
        let series = format!(
            "hotslot_step_duration_seconds_count{{kind=\"attachment\",step=\"{step}\",result=\"done\"}}"
        );
        assert!(value(&text, &series).is_some(), "{series} in {text}");
    }
    prometheus
        .until(r#"hotslot_hypervisor_call_duration_seconds_count{call="attach", result="done"} >= 1"#)
        .await;
    prometheus.until(r#"hotslot_webhook_dead_letters{webhook="billing"} > 0"#).await;
    prometheus
        .until(r#"hotslot_database_call_duration_seconds_count{call="commit", result="done"} > 0"#)
        .await;

    expect_shown(&guarded.metrics().await, &prometheus).await;
}

/// The format of older scrapers and of `curl`, in which promtool finds no fault.
#[tokio::test]
async fn the_text_format_of_prometheus_is_answered_unless_openmetrics_is_preferred() {
    let guarded = Guarded::new().await;
    guarded.attach(Q35, "vf:1").await.expect(200);
    for accept in ["text/plain", "*/*", "text/plain;version=0.0.4, application/openmetrics-text;q=0.5"] {
        let answer = guarded.metrics_as(accept).await;
        assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        let text = answer.body.as_str().unwrap();
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        let mut check = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}\n{text}");
    }
    let answer = guarded.metrics_as("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(answer.body.as_str().unwrap().ends_with("# EOF\n"));
}

#[tokio::test]
async fn no_label_names_a_device_a_server_or_a_caller_and_nobody_reads_without_a_right() {
    let guarded = Guarded::new().await;
    for server in [Q35, I440FX] {
        guarded.attach(server, if server == Q35 { "vf:2" } else { "e1000:1" }).await.expect(200);
    }
    guarded.service.get("/metrics").await.expect(401);
    let wrong = vec![("authorization".to_owned(), "Bearer nonsense".to_owned())];
    guarded.service.send_with(Method::GET, "/metrics", wrong, None).await.expect(401);
    guarded.as_whom("ops", Method::GET, "/metrics", None).await.expect(200);
    let text = guarded.metrics().await;
    let uuid = Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-|[0-9a-f]{2}:[0-9a-f]{2}\\.[0-7]|req-").unwrap();
    for secret in ["prometheus", "ops", "q35", "t/servers"] {
        assert!(!text.contains(&format!("\"{secret}")), "{secret} in {text}");
    }
    assert!(!uuid.is_match(&text), "{text}");
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    // More devices and servers make no more series.
    assert!(series < 1500, "{series}");
    // Prometheus' conventions: base units, and `_total` for counters alone.
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(!name.ends_with("_total") && !name.contains("milli") && !name.contains("kib"), "{line}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{line}");
    }
}
