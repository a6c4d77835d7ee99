//! The configuration that is read again while the service runs, and the log.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hotslot_tests::{Hotslot, I440FX, Q35, binary, host};
use serde_json::{Value, json};

fn hotslot(service: &Hotslot, arguments: &[&str]) -> Output {
    let config = service.database().with_file_name("hotslot.toml");
    let mut command = Command::new(binary());
    command.args(arguments).args(["--url", service.url(), "--config"]).arg(config);
    command.output().unwrap()
}

#[tokio::test]
async fn the_state_of_the_service_is_one_screen_with_an_exit_code() {
    let service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"\n").await;
    let said = printed(&service, &["status"]);
    assert!(said.contains("ready") && said.contains("host node1") && said.contains("none"), "{said}");
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let said = printed(&service, &["status"]);
    assert!(said.contains("1 attached"), "{said}");
    // The guest keeps the device.
    service.sim("guest q35 unplug=ignore");
    service.delete(&hotslot_tests::path(&attached["pci_devices"][0])).await.expect(409);
    let output = hotslot(&service, &["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bad: Vec<_> = lines.as_array().unwrap().iter().filter(|line| line["bad"] == true).collect();
    assert_eq!(bad.len(), 1, "{lines}");
    assert!(bad[0]["state"].as_str().unwrap().starts_with("detaching: "), "{lines}");

    // A host in another mode is shown; a device that somebody else detached is a difference.
    let service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"\n").await;
    printed(&service, &["host", "drain", "node1", "--reason", "repair"]);
    let said = printed(&service, &["status"]);
    assert!(said.contains("connected, drain") && said.contains("repair"), "{said}");
    printed(&service, &["host", "thaw", "node1"]);
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let address = attached["pci_devices"][0]["address"].as_str().unwrap();
    service.sim(&format!("unplug q35 {address} live"));
    let status = || hotslot(&service, &["status"]);
    service.until("status fails", async || status().status.code() == Some(1)).await;
    let said = String::from_utf8(status().stdout).unwrap();
    assert!(said.contains("hotslot drift"), "{said}");
}

/// Runs a command, and returns what it printed; fails the test when the command fails.
fn printed(service: &Hotslot, arguments: &[&str]) -> String {
    let output = hotslot(service, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn aliases(service: &Hotslot) -> Vec<String> {
    let answer = service.get("/v2.1/os-pci-config/alias").await.expect(200).body;
    let entries = answer["alias"].as_array().unwrap().iter();
    entries.map(|entry| entry["entry"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_configuration_is_in_force_after_a_signal_or_a_command() {
    let mut service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"\n").await;
    assert_eq!(printed(&service, &["config", "reload"]), "nothing has changed\n");

    // A signal is enough, and what runs goes on.
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    service.reconfigure("\"name\": \"vf\"", "\"name\": \"function\"");
    service.signal("HUP");
    service
        .until("the alias has its new name", async || aliases(&service).await.contains(&"function".into()))
        .await;
    assert!(!service.has_ended() && !aliases(&service).await.contains(&"vf".to_owned()));
    service.attach(Q35, "function:1").await.expect(200);
    service.attach(Q35, "vf:1").await.expect(400);
    assert!(
        service.log().contains("changed=[pci] alias") || service.log().contains("[pci] alias"),
        "{}",
        service.log()
    );
    assert_eq!(service.attachments(Q35).await.len(), 2, "{attached}");

    // Some keys are in force now, and others after a restart.
    assert_eq!(printed(&service, &["config", "reload", "-q"]), "");
    service.reconfigure("attempts = 2", "attempts = 3");
    service.reconfigure("rate = 0", "rate = 7");
    let said = printed(&service, &["config", "reload"]);
    assert_eq!(said, "in force now: [detach] attempts\nin force after a restart: [api] rate\n");
    let said = printed(&service, &["config", "reload", "-o", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said, json!({ "changed": [], "needs_restart": ["[api] rate"] }), "it still needs the restart");
    assert_eq!(printed(&service, &["config", "reload", "-o", "name"]), "[api] rate\n");

    // A file with mistakes is refused as a whole.
    service.reconfigure("\"name\": \"function\"", "\"name\": \"again\"");
    service.reconfigure("attempts = 3", "attempts = 0");
    let output = hotslot(&service, &["config", "reload"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("[detach] attempts"), "{output:?}");
    assert!(error.contains("the previous one stays in force"), "{error}");
    let log = service.log_length();
    service.signal("HUP");
    service
        .until("the refusal is in the log", async || service.log_from(log).contains("[detach] attempts"))
        .await;
    assert!(aliases(&service).await.contains(&"function".to_owned()));
    assert!(!service.has_ended());

    service.signal("TERM");
    assert!(service.ended(Duration::from_secs(15)).await);
    assert_eq!(service.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_do_what_follows_the_policy_file() {
    let mut service = Hotslot::on("small").await;
    let policy = service.database().with_file_name("policy.yaml");
    fs::write(&policy, "\"hotslot:event:list\": \"role:admin\"\n").unwrap();
    let identity = format!("[identity]\npolicy = \"{}\"\n[database]\n", policy.display());
    service.reconfigure("[database]\n", &identity);
    service.kill();
    service.start_again().await;
    service.get("/events").await.expect(200);
    fs::write(&policy, "\"hotslot:event:list\": \"!\"\n").unwrap();
    let said = printed(&service, &["config", "reload"]);
    assert!(said.contains("the rules in the file of [identity] policy"), "{said}");
    service.get("/events").await.expect(403);
    fs::write(&policy, "\"hotslot:event:lists\": \"@\"\n").unwrap();
    let output = hotslot(&service, &["config", "reload"]);
    assert!(!output.status.success(), "{output:?}");
    service.get("/events").await.expect(403);
}

#[tokio::test]
async fn a_configuration_is_shown_without_its_secrets() {
    let webhook = "[[webhook]]\nname = \"w\"\nurl = \"http://127.0.0.1:9/t0ken\"\nsecret = \"a s3cret that is long enough\"\n";
    let service = Hotslot::with(&host("small"), webhook).await;
    let said = printed(&service, &["config", "show"]);
    assert!(said.contains("attempts = 2") && said.contains("name = \"w\""), "{said}");
    let as_json = printed(&service, &["config", "show", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&as_json).unwrap()["webhook"][0]["name"], "w");
    for secret in ["t0ken", "s3cret", "hotslot.db"] {
        assert!(!said.contains(secret) && !as_json.contains(secret), "{said}");
    }
    let said = printed(&service, &["version"]);
    let version = env!("CARGO_PKG_VERSION");
    assert!(said.contains(&format!("hotslot {version}, schema ")), "{said}");
    assert!(said.contains("host node1") && said.contains("libvirt "), "{said}");
    let said = printed(&service, &["db", "version"]);
    let numbers: Vec<_> = said.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{said}");
}

#[tokio::test]
async fn the_log_is_one_json_object_a_line_and_its_levels_change_at_run_time() {
    let mut service = Hotslot::with(&host("small"), "[log]\nformat = \"json\"\n").await;
    service.take_log();
    service.attach(Q35, "vf:1").await.expect(200);
    let lines = |text: &str| -> Vec<Value> {
        // A line that is being written is left out.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    };
    let log = lines(&service.log());
    let attached =
        log.iter().find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("attached ")));
    let attached = attached.unwrap_or_else(|| panic!("{log:#?}"));
    assert!(attached["level"] == "INFO" && attached["server.id"] == Q35, "{attached}");
    assert!(attached["timestamp"].is_string() && attached["target"].is_string(), "{attached}");

    // At the level `error` the same work leaves no line.
    printed(&service, &["log-level", "error"]);
    service.take_log();
    service.attach(Q35, "vf:1").await.expect(200);
    assert_eq!(service.log(), "");
    let said = printed(&service, &["log-level", "warn,hotslot_service::assignment=info"]);
    assert!(said.contains("warn,hotslot_service::assignment=info"), "{said}");
    service.attach(I440FX, "e1000:1").await.expect(200);
    let log = lines(&service.log());
    assert!(!log.is_empty(), "{log:#?}");
    for line in &log {
        assert!(line["target"].as_str().unwrap().starts_with("hotslot_service::assignment"), "{line}");
    }
    // Libraries stay silent below info, whatever is requested.
    printed(&service, &["log-level", "trace"]);
    service.take_log();
    service.get("/v2.1/servers").await.expect(200);
    for line in lines(&service.log()) {
        assert!(
            line["target"].as_str().unwrap().starts_with("hotslot") || line["level"] != "TRACE",
            "{line}"
        );
    }
    let said = printed(&service, &["log-level", "--reset"]);
    assert!(said.lines().next().unwrap().ends_with("info"), "{said}");
    assert_eq!(printed(&service, &["log-level", "-q"]), "info\n");
    let output = hotslot(&service, &["log-level", "info,hotslot_servce=debug"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`hotslot_servce`; the modules are hotslot (audit,"), "{said}");
    let path = "/service/log-level";
    for bad in [json!({ "levels": "loud" }), json!({ "levels": 3 }), json!({ "level": "info" })] {
        service.put(path, bad).await.expect(400);
    }
    service.kill();
    // Without a journal the log is text, and says so.
    if !Path::new("/run/systemd/journal/socket").exists() {
        service.reconfigure("format = \"json\"", "format = \"journald\"");
        service.start_again().await;
        assert!(service.log().contains("systemd-journald cannot be reached"), "{}", service.log());
    }
}
