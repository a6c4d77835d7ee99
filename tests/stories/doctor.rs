//! `hotslot doctor`: its checks of the service, on a simulated host.

use std::path::Path;
use std::process::Command;

use hotslot_tests::{Hotslot, binary, host};
use serde_json::Value;

use crate::socket::at_socket;
use crate::users::chmod;

/// Runs the checks, and returns the findings.
fn findings(service: &Hotslot, address: &str) -> Vec<Value> {
    let output = Command::new(binary())
        .args(["doctor", "--output", "json", "--url", address, "--uri"])
        .arg(format!("sim://{}", service.host_dir().display()))
        .arg("--config")
        .arg(service.database().with_file_name("hotslot.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn expect(findings: &[Value], check: &str, level: &str, says: &str) {
    let finding = findings.iter().find(|finding| finding["check"] == check);
    let finding = finding.unwrap_or_else(|| panic!("no `{check}`: {findings:#?}"));
    assert_eq!(finding["level"], level, "{finding}");
    assert!(finding["says"].as_str().unwrap().contains(says), "{says}: {finding}");
    assert_eq!(finding["fix"].is_null(), level == "ok", "{finding}");
}

#[tokio::test]
async fn who_may_connect_and_read_the_files_is_checked() {
    let (service, socket, _dir) = at_socket("022", "socket_group = \"1\"\n").await;
    let address = format!("unix:{}", socket.display());
    let config = service.database().with_file_name("hotslot.toml");
    chmod(&config, 0o644);
    let found = findings(&service, &address);
    expect(&found, "socket", "ok", "has mode 0660 and group daemon");
    // A configuration without a secret may be read by everybody.
    expect(&found, "configuration", "ok", "has mode 0644");
    expect(&found, "database", "ok", "only the owner");
    expect(&found, "unit", "info", "not run under a systemd unit");
    expect(&found, "service", "ok", "ready at unix:");
    if is_root(&service) {
        expect(&found, "user", "warn", "root's rights");
    }
    assert!(found.iter().all(|finding| finding["check"] != "guest networks"), "{found:#?}");

    chmod(&socket, 0o666);
    chmod(&service.database(), 0o640);
    let secret =
        "[[webhook]]\nname = \"w\"\nurl = \"http://127.0.0.1:9/\"\nsecret = \"0123456789abcdef\"\n[api]\n";
    service.reconfigure("[api]\n", secret);
    let found = findings(&service, &address);
    expect(&found, "socket", "warn", "every user of this machine may connect");
    expect(&found, "configuration", "warn", "may read the secrets in it");
    expect(&found, "database", "warn", "other users may open hotslot.db in");
    chmod(&config, 0o620);
    expect(&findings(&service, &address), "configuration", "warn", "may change it");
    chmod(&config, 0o600);
    expect(&findings(&service, &address), "configuration", "ok", "has mode 0600");

    service.reconfigure("[api]\n", "[log]\nlevels = \"info,hotslot_servce=debug\"\n[api]\n");
    expect(
        &findings(&service, &address),
        "no effect",
        "warn",
        "a module `hotslot_servce`; the modules are hotslot",
    );

    let names = Command::new(binary())
        .args(["doctor", "-q", "--url", &address, "--uri", "sim:///nowhere"])
        .output()
        .unwrap();
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    assert!(names.lines().any(|name| name == "socket") && !names.contains("  "), "{names}");

    let missing = findings(&service, "unix:/nonexistent/api.sock");
    expect(&missing, "socket", "info", "/nonexistent/api.sock cannot be used");
}

fn is_root(service: &Hotslot) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    Path::new(&format!("/proc/{}", service.pid())).metadata().is_ok_and(|found| found.uid() == 0)
}

#[tokio::test]
async fn a_guest_that_can_reach_the_api_on_a_tcp_port_is_named() {
    let in_domain = |text: &str, host: &Path| {
        let file = host.join("domains/q35.xml");
        let document = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, document.replace("</devices>", &format!("{text}</devices>"))).unwrap();
    };
    for interface in [
        "<interface type='user'><mac address='52:54:00:00:00:01'/></interface>",
        "<interface type='user'><backend type='passt'/></interface>",
        "<interface type='vhostuser'><backend type='passt'/></interface>",
    ] {
        let service = Hotslot::bare(&host("small"), "", |host| in_domain(interface, host)).await;
        let found = findings(&service, service.url());
        expect(&found, "guest networks", "warn", "user networking or passt is used by q35:");
        expect(&found, "service", "warn", "every client that can connect to the TCP port");
        let found = findings(&service, "unix:/nonexistent/api.sock");
        expect(&found, "guest networks", "ok", "cannot reach the API on a unix socket");
    }
    let bridge = "<interface type='bridge'><source bridge='br0'/></interface>";
    let service = Hotslot::bare(&host("small"), "", |host| in_domain(bridge, host)).await;
    let found = findings(&service, service.url());
    assert!(found.iter().all(|finding| finding["check"] != "guest networks"), "{found:#?}");
}
