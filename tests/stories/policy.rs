//! The policy file, and the list of the rules.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use hotslot_tests::{Hotslot, Q35, binary};
use reqwest::Method;
use serde_json::{Value, json};

/// Runs a command, and returns its exit code and what it says.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let said = Command::new(binary()).args(arguments).env_remove("HOTSLOT_CONFIG").output().unwrap();
    let text = [said.stdout, said.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (said.status.code(), text)
}

#[tokio::test]
async fn a_device_is_attached_by_its_address_only_with_the_right() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let path = format!("/v2.1/servers/{Q35}/os-pci_attachments");
    let attach = async |role: &str, body: Value| {
        let headers = [("x-user-id", "u"), ("x-project-id", "p"), ("x-roles", role)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let body = json!({ "pciAttachment": body });
        service.send_with(Method::POST, &path, headers, Some(body.to_string())).await
    };
    let by_address = json!({ "addresses": ["0000:05:00.0"] });
    attach("member", by_address.clone()).await.expect(403);
    let attached = attach("admin", by_address).await.expect(200);
    assert_eq!(attached.body["pci_devices"][0]["address"], "0000:05:00.0");
    for (body, says) in [
        (json!({ "addresses": ["05:00"] }), "addresses: "),
        (json!({ "addresses": [] }), "or addresses"),
        (json!({ "addresses": ["04:10.0"] }), "write 0000:04:10.0"),
        (json!({ "addresses": ["0000:04:10.0"], "flavor": "x" }), "there is no flavor"),
        (json!({ "addresses": ["0000:04:10.0"], "pci_passthrough:alias": "" }), "pci_passthrough:alias"),
    ] {
        let refused = attach("admin", body.clone()).await.expect(400);
        assert!(refused.message().contains(says), "{body}: {}", refused.message());
    }
}

#[tokio::test]
async fn a_policy_file_replaces_rules_by_name() {
    let mut service = Hotslot::on("small").await;
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    let file = service.database().with_file_name("policy.yaml");
    service
        .reconfigure("[database]\n", &format!("[identity]\npolicy = \"{}\"\n[database]\n", file.display()));
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    let rules = "\
        # Rules of a site\n\
        \"hotslot:flavor:list\": \"role:reader\"\n\
        os_compute_api:os-pci:index: rule:watchers\n\
        watchers: role:netops or role:admin\n\
        \"hotslot:drift:list\": \"!\"\n";
    fs::write(&file, rules).unwrap();
    service.kill();
    service.start_again().await;
    let status = async |role: &str, path: &str| {
        let headers = [("x-user-id", "u"), ("x-project-id", "p"), ("x-roles", role)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        service.send_with(Method::GET, path, headers, None).await.status
    };
    for (role, path, expected) in [
        ("reader", "/v2.1/flavors", 200),
        ("netops", "/v2.1/flavors", 403),
        ("netops", "/v2.1/os-pci", 200),
        ("reader", "/v2.1/os-pci", 403),
        ("admin", "/v2.1/os-pci", 200),
        ("admin", "/drift", 403),
        ("admin", "/webhooks", 200),
    ] {
        assert_eq!(status(role, path).await, expected, "{role} {path}");
    }
    let (code, text) = run(&["policy", "list", "--config", &config, "-o", "json"]);
    assert_eq!(code, Some(0), "{text}");
    let list: Value = serde_json::from_str(&text).unwrap();
    let rule = |name: &str| list.as_array().unwrap().iter().find(|rule| rule["rule"] == name).unwrap();
    let changed = rule("hotslot:drift:list");
    assert_eq!((&changed["requires"], &changed["from"]), (&"!".into(), &"line 5 of the policy file".into()));
    assert_eq!(changed["default"], "rule:system_reader_or_admin");
    assert!(changed["routes"].as_array().unwrap().contains(&"GET /drift".into()), "{changed}");
    assert_eq!(rule("watchers")["default"], Value::Null);
    assert_eq!(rule("hotslot:webhook:list")["from"], "default");
    let (_, table) = run(&["policy", "list", "--config", &config]);
    assert!(
        table.contains("line 2 of the policy file") && table.contains("GET /flavors and 1 more"),
        "{table}"
    );
}

#[tokio::test]
async fn an_error_in_a_policy_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let (file, config) = (dir.path().join("policy.yaml"), dir.path().join("hotslot.toml"));
    let text = format!(
        "[api]\nlisten = \"unix:{}/api.sock\"\n[identity]\npolicy = \"{}\"\n[database]\nurl = \"sqlite://{}/hotslot.db\"\n",
        dir.path().display(),
        file.display(),
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let check = |rules: &str, says: &[&str]| {
        fs::write(&file, rules).unwrap();
        for command in [&["config", "check", &config][..], &["policy", "list", "--config", &config]] {
            let (code, text) = run(command);
            assert_eq!(code, Some(1), "{command:?}: {text}");
            for says in says {
                assert!(text.contains(says), "{command:?}: {says}: {text}");
            }
        }
        let (code, text) = run(&["serve", "--config", &config]);
        assert!(code == Some(1) && says.iter().all(|says| text.contains(says)), "{text}");
    };
    check(
        "# rules\nhotslot:drift:lists: role:admin\na: rule:b\nb: not rule:a\nhotslot:drift:list: role:x rule:a\n",
        &[
            "hotslot:drift:lists: there is no rule of this name",
            "requires itself",
            "hotslot:drift:list: two checks",
        ],
    );
    check("hotslot:drift:list: rule:nobody\n", &["there is no rule `nobody`"]);
    check("hotslot:drift:list:\n", &["has no requirement"]);
    check("- hotslot:drift:list\n", &["write each rule as NAME"]);
    let (_, text) = run(&["config", "check", &config]);
    assert!(text.contains("policy.yaml:1"), "{text}");
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    check("hotslot:drift:list: role:x\n", &["chmod go-w"]);
    fs::remove_file(&file).unwrap();
    let (code, text) = run(&["config", "check", &config]);
    assert!(code == Some(1) && text.contains("cannot be read"), "{text}");
}
