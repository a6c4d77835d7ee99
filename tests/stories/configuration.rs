//! The configuration file: how the commands report its mistakes, and how they find the service by it.

use std::fs;
use std::process::Command;

use hotslot_tests::{Hotslot, binary};
use serde_json::Value;

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
