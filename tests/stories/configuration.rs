//! The configuration file: how the commands report its mistakes, and how they find the service by it.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use hotslot_tests::keystone::python;
use hotslot_tests::{Hotslot, binary};
use serde_json::{Value, json};

use crate::socket::at_socket;
use crate::users::refused_to_serve;

#[test]
fn mistakes_of_a_named_configuration_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("broken.toml");
    fs::write(&config, "[api]\nlisten = \"unix:api.sock\"\n").unwrap();
    let run = |arguments: &str| {
        let mut command = Command::new(binary());
        command.args(arguments.split(' ')).env_remove("HOTSLOT_URL").env("HOTSLOT_CONFIG", &config);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let name = config.display().to_string();
    let (code, _, error) = run("host list");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&name) && error.contains("has no absolute path"), "{error}");
    assert!(error.contains("hotslot config check"), "{error}");
    let (code, out, error) = run(&format!("config check {name}"));
    assert!(code == Some(1) && out.contains("has no absolute path"), "{out}{error}");
    let (_, out, error) = run("doctor -o json");
    let findings: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
    let service = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "service").unwrap();
    assert!(service["says"].as_str().unwrap().contains(&name), "{service}");
    // The schema, by which an editor shows the mistake, needs no configuration.
    let (code, out, error) = run("config schema");
    assert!(code == Some(0) && out.contains("\"listen\""), "{out}{error}");
    // With --url, the configuration is not read.
    let (code, _, error) = run("host list --url http://127.0.0.1:1");
    assert_eq!(code, Some(5), "{error}");
    fs::remove_file(&config).unwrap();
    let (code, _, error) = run("host list");
    assert!(code == Some(1) && error.contains(&name) && error.contains("No such file"), "{error}");
}

/// What has no effect is warned of where the configuration is checked and where it is used.
#[tokio::test]
async fn what_has_no_effect_is_warned_of() {
    let (mut service, _socket, _dir) = at_socket("022", "").await;
    let entries = "[log]\nlevels = \"info,hotslot_service::webhok=debug\"\n[[identity.local]]\nuser = \"nobody-here\"\nrole = \
                   \"reader\"\n[[identity.local]]\ngroup = \"no-such-group\"\nrole = \"reader\"\n[[identity.local]]\nuser = 4000000\n\
                   role = \"reader\"\n[api]\n";
    service.reconfigure("[api]\n", entries);
    let warnings = [
        "[log] levels: no line of the log comes from a module `hotslot_service::webhok`; the modules are hotslot (audit, ",
        "[[identity.local]][0] user: this machine has no user `nobody-here`, so the entry applies to nobody; correct",
        "[[identity.local]][1] group: this machine has no group `no-such-group`, so the entry applies to nobody; correct",
    ];
    let file = service.database().with_file_name("hotslot.toml");
    let output = Command::new(binary()).args(["config", "check"]).arg(&file).output().unwrap();
    let checked = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    service.kill();
    let log = service.log_length();
    service.start_again().await;
    let log = service.log_from(log);
    for said in [&checked, &log] {
        for warning in warnings {
            assert!(said.contains(warning), "{warning}: {said}");
        }
        assert!(!said.contains("4000000"), "{said}");
    }
}

/// An editor that has the schema shows what the check would refuse, and nothing that it accepts.
#[test]
fn the_schema_admits_what_the_check_accepts() {
    let alias = |keys: &str| format!("[[pci.alias]]\n{keys}");
    let webhook =
        |keys: &str| format!("[[webhook]]\nurl = \"https://h/\"\nsecret = \"0123456789abcdef\"\n{keys}");
    let refused = [
        "[detach]\nattempts = 0".to_owned(),
        "[[identity.local]]\nuser = \"a\"\nrole = \"king\"".to_owned(),
        webhook("name = \"w\"\nattempts = 0"),
        webhook("name = \"w w\""),
        "[events]\nmost = 0".to_owned(),
        alias("vendor_id = \"8086\"\nproduct_id = \"10ca\""),
        alias("name = \"a\"\nvendor_id = \"8086\""),
        "[api]\nlisten = \"foo\"".to_owned(),
        "[api]\nhosts = [\"a b\"]".to_owned(),
        "[log]\nlevels = \"loud\"".to_owned(),
        "[records]\nkeep_ended = \"forever\"".to_owned(),
        "[database]\nurl = \"mysql://h/d\"".to_owned(),
        "[[hypervisor]]\nname = \"\"\nuri = \"qemu:///system\"".to_owned(),
        "[[hypervisor]]\nname = \"a\"\nuri = \"foo\"".to_owned(),
    ];
    let accepted = [
        include_str!("../../hotslot.example.toml").to_owned(),
        String::new(),
        "[api]\nlisten = \"unix:/run/hotslot/api.sock\"\nhosts = [\"[2001:db8::1]\", \"h_1.example\"]"
            .to_owned(),
        "[log]\nlevels = \"warn, hotslot_driver::sim=debug,a=off\"".to_owned(),
        "[records]\nkeep_ended = \"1h30m\"\n[events]\nkeep = \"90 days\"".to_owned(),
        alias("name = \"a\"\nvendor_id = \"8086\"\nproduct_id = \"10ca\""),
        "[pci]\npci_in_placement = true\nalias = [{ name = \"a\", resource_class = \"gpu\" }]".to_owned(),
        webhook("name = \"w.1-a_b\"\nkinds = [\"device\"]"),
        "[[identity.local]]\ngroup = 5\nrole = \"service\"".to_owned(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hotslot.toml");
    let check = |text: &String| {
        fs::write(&file, text).unwrap();
        Command::new(binary()).args(["config", "check"]).arg(&file).output().unwrap()
    };
    for text in &refused {
        assert_eq!(check(text).status.code(), Some(1), "{text}");
    }
    for text in &accepted[1..] {
        let output = check(text);
        assert_eq!(output.status.code(), Some(0), "{text}: {output:?}");
    }
    let schema = Command::new(binary()).args(["config", "schema"]).output().unwrap().stdout;
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let texts: Vec<_> = refused.iter().chain(&accepted).collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/contract/config_schema.py");
    let mut child =
        Command::new(python()).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let given = json!({ "schema": schema, "texts": texts }).to_string();
    child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let admitted: Vec<bool> = serde_json::from_slice(&output.stdout).unwrap();
    for (text, (admitted, accepted)) in
        texts.iter().zip(admitted.iter().zip((0..).map(|place| place >= refused.len())))
    {
        assert_eq!(*admitted, accepted, "{text}");
    }
}

/// Each problem is reported with its line and its key, in the order of the lines.
#[test]
fn config_check_reports_the_line_and_the_key_of_each_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hotslot.toml");
    let check = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        let output = Command::new(binary()).args(["config", "check"]).arg(&file).output().unwrap();
        let name = format!("{}:", file.display());
        let out = String::from_utf8(output.stdout).unwrap().replace(&name, "");
        (out, String::from_utf8(output.stderr).unwrap())
    };
    let text = "\
[api]
queue = 0
socket_mode = \"0999\"
[identity]
policy = \"/nonexistent/policy.yaml\"
[detach]
attempts = 0
[[detach.class]]
quiesce = []
class = \"zz\"
[[pci.extra_info]]
values = { rack = \"r1\" }
match = { address = \"zz\" }
[[flavor]]
name = \"f\"
[flavor.extra_specs]
\"pci_passthrough:alias\" = \"nosuch:1\"
";
    let (out, _) = check(text.as_bytes());
    let expected = [
        "2: [api] queue: ",
        "3: [api] socket_mode: ",
        "5: [identity] policy: /nonexistent/policy.yaml cannot be read",
        "7: [detach] attempts: ",
        "10: [[detach.class]][0] class: ",
        "13: [[pci.extra_info]][0]: match: address",
        "17: [[flavor]][0] extra_specs: pci_passthrough:alias: ",
    ];
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{out}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}\n{start}");
    }
    assert!(lines[0].ends_with("expected an integer from 1 to 4294967295"), "{out}");
    let (out, _) = check(b"[api]\n# \xff\n");
    assert!(out.starts_with("2: it is not UTF-8 text"), "{out}");
    // Names that Nova gave up still work.
    let (out, warned) = check(b"[pci]\npassthrough_whitelist = []\npci_alias = []\n");
    assert!(out.contains("valid: "), "{out}");
    for (line, key) in [(2, "passthrough_whitelist"), (3, "pci_alias")] {
        assert!(warned.contains(&format!("line {line}: [pci] {key} is an earlier name")), "{warned}");
    }
}

#[test]
fn config_check_and_serve_refuse_the_same_urls() {
    let dir = tempfile::tempdir().unwrap();
    for url in [
        "postgres://hotslot:s3cret@db:port/hotslot",
        "postgres://hotslot:s3cret@db/hotslot?sslmode=s3cret",
        "postgres://hotslot:s3cret@db/hotslot?port=s3cret",
        "postgres://hotslot:s3cret@/hotslot?hostaddr=s3cret",
        "postgres://hotslot:s3cret@[db/hotslot",
        "sqlite:///tmp/x.db?mode=s3cret",
        "sqlite:///tmp/x.db?s3cret=1",
        "sqlite://",
        "sqlite://:memory:",
    ] {
        let error = refused_to_serve(dir.path(), url);
        assert!(error.contains("[database] url: ") && !error.contains("s3cret"), "{url}: {error}");
        let config = dir.path().join("refused.toml");
        let output = Command::new(binary()).args(["config", "check"]).arg(&config).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{url}: {stdout}");
        assert!(stdout.contains("[database] url: ") && !stdout.contains("s3cret"), "{url}: {stdout}");
    }
}

#[tokio::test]
async fn the_command_line_finds_the_service_by_its_configuration() {
    // A service at the default socket of this machine would be found before the configuration is read.
    if std::os::unix::net::UnixStream::connect("/run/hotslot/api.sock").is_ok() {
        println!("a service answers at the default socket: not tested");
        return;
    }
    let (service, socket, dir) = at_socket("022", "").await;
    let config = dir.path().join("found.toml");
    fs::write(&config, format!("[api]\nlisten = \"unix:{}\"\n", socket.display())).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).env_remove("HOTSLOT_URL").env("HOTSLOT_CONFIG", &config);
        command.output().unwrap()
    };
    let output = run(&["host", "list"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("node1"), "{output:?}");
    drop(service);
    let output = run(&["host", "list"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("is `hotslot serve` running?"), "{error}");
}

#[tokio::test]
async fn listening_on_a_tcp_port_gives_a_warning() {
    let service = Hotslot::on("small").await;
    assert!(service.log().contains("listen is a TCP port"), "{}", service.log());
    let output =
        Command::new(binary()).args(["doctor", "--url", service.url(), "-o", "json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "service").unwrap();
    assert_eq!(finding["level"], "warn");
    assert!(finding["fix"].as_str().unwrap().contains("unix:/run/hotslot/api.sock"), "{finding}");
}
