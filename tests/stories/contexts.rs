//! Contexts of the command line, and the beginnings of ids.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use hotslot_tests::{Hotslot, Q35, binary, host};
use serde_json::Value;

/// A user with a home directory of its own.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a directory") }
    }

    /// Runs a command with these variables. Returns the exit code, and what it says on stdout and stderr.
    fn run(&self, variables: &[(&str, &str)], arguments: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(binary());
        for name in ["HOTSLOT_URL", "HOTSLOT_CONFIG", "HOTSLOT_TOKEN", "XDG_CONFIG_HOME", "OS_CLOUD"] {
            command.env_remove(name);
        }
        let output = command
            .args(arguments.split_whitespace())
            .env("HOME", self.home.path())
            .envs(variables.iter().copied())
            .output()
            .expect("run hotslot");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn good(&self, arguments: &str) -> String {
        let (code, out, err) = self.run(&[], arguments);
        assert_eq!(code, Some(0), "{arguments}: {out}{err}");
        out
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join(".config/hotslot/contexts.toml")
    }
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).expect("the file").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_context_has_the_address_of_a_service_under_a_name() {
    let (one, other) = (Hotslot::on("small").await, Hotslot::on("accelerators").await);
    let user = User::new();
    assert_eq!(user.run(&[], "context list").2, "no contexts\n");
    let (code, _, err) = user.run(&[], "context add small");
    assert!(code == Some(2) && err.contains("--url"), "{err}");
    user.good(&format!("context add small --url {}", one.url()));
    user.good(&format!("context add other --url {}", other.url()));
    let (code, _, err) = user.run(&[], "context add a/b --url http://127.0.0.1:1");
    assert!(code == Some(1) && err.contains("letters, digits"), "{err}");
    assert_eq!(mode(&user.file()), 0o600);

    // A context is used when it is named, or after it was chosen.
    assert!(user.good("--context small server list").contains("q35"));
    assert!(user.run(&[], "context use nope").2.contains("`hotslot context list`"));
    user.good("context use small");
    assert!(user.good("server list").contains("q35"));
    assert_eq!(user.good("context list -q"), "other\nsmall\n");
    let listed = user.good("context list");
    assert!(listed.lines().any(|line| line.starts_with("*") && line.contains("small")), "{listed}");
    let servers = |variables: &[(&str, &str)], arguments: &str| {
        let (code, out, err) = user.run(variables, arguments);
        assert_eq!(code, Some(0), "{out}{err}");
        out.contains("q35")
    };
    // Variables and options have precedence over the chosen context, and a named one over variables.
    assert!(!servers(&[("HOTSLOT_URL", other.url())], "server list"));
    assert!(!servers(&[], &format!("server list --url {}", other.url())));
    assert!(!servers(&[("HOTSLOT_CONTEXT", "other")], "server list"));
    assert!(servers(&[("HOTSLOT_URL", other.url())], "--context small server list"));
    let (code, _, err) = user.run(&[], &format!("--context small server list --url {}", other.url()));
    assert!(code == Some(2) && err.contains("either --url or a context"), "{err}");
    let (code, _, err) = user.run(&[], "--context nope server list");
    assert!(
        code == Some(3) && err.contains("context nope not found; `hotslot context list` lists them"),
        "{err}"
    );

    user.good("context remove small");
    assert!(!user.good("context list").contains('*'));
    fs::write(user.file(), "current = 3\n").expect("write");
    let (code, _, err) = user.run(&[], "server list");
    assert!(
        code == Some(1) && err.contains("is not a file of contexts: line 1: expected a string, found 3"),
        "{err}"
    );
    // Commands that need no service do not read it.
    user.good("completions bash");
}

#[tokio::test]
async fn the_token_of_a_context_is_in_a_file_that_nobody_else_can_read() {
    let mut service = Hotslot::with(&host("small"), "").await;
    let tokens = service.database().with_file_name("tokens");
    service.kill();
    service.reconfigure("insecure_tcp = true", "insecure_tcp = false");
    service
        .reconfigure("[database]\n", &format!("[identity]\ntokens = \"{}\"\n[database]\n", tokens.display()));
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    let user = User::new();
    let token = user.good(&format!("token create ops --role admin --config {config}"));
    service.start_again().await;
    let file = user.home.path().join("token");
    fs::write(&file, &token).expect("write");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("the mode");
    let add = format!("context add lab --url {} --token-file {}", service.url(), file.display());
    let (code, _, err) = user.run(&[], &add);
    assert!(code == Some(1) && err.contains("chmod 600"), "{err}");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("the mode");
    user.good(&add);
    user.good("context use lab");
    assert!(user.good("server list").contains("q35"));
    let text = fs::read_to_string(user.file()).expect("the contexts");
    assert!(!text.contains(token.trim()) && text.contains("token_file"), "{text}");
    // A token of the environment is meant for another service.
    assert!(user.run(&[("HOTSLOT_TOKEN", "wrong")], "server list").1.contains("q35"));
    fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("the mode");
    let (code, _, err) = user.run(&[], "server list");
    assert!(code == Some(1) && err.contains("chmod 600"), "{err}");
}

#[tokio::test]
async fn the_beginning_of_an_id_is_enough_wherever_an_id_is_shown() {
    let service = Hotslot::on("small").await;
    let user = User::new();
    user.good(&format!("context add here --url {}", service.url()));
    user.good("context use here");
    let record = service.device("0000:05:00.0").await;
    let uuid = record["uuid"].as_str().expect("a UUID");
    for command in ["pci show", "device show"] {
        let shown = user.good(&format!("{command} {}", &uuid[..13]));
        assert!(shown.contains("0000:05:00.0"), "{command}: {shown}");
    }
    let (code, _, err) = user.run(&[], "pci show ffffffffff");
    assert!(code == Some(3) && err.contains("device record ") && err.contains(" not found"), "{err}");

    let entry = r#"{"name":"short","vendor_id":"8086","product_id":"10ca"}"#;
    let added: Value =
        serde_json::from_str(&user.good(&format!("config alias add {entry} -o json"))).expect("JSON");
    let id = added["id"].as_str().expect("an id");
    let listed = user.good("config alias list");
    assert!(listed.contains(&id[..8]) && !listed.contains(id), "{listed}");
    assert!(user.good(&format!("config alias remove {}", &id[..8])).contains(id));
    let (code, _, err) = user.run(&[], "config alias remove ffffffff");
    assert!(code == Some(3) && err.contains("entry ") && err.contains(" not found"), "{err}");

    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let attachment = attached["attachment_id"].as_str().expect("an id");
    let events = user.good(&format!("events --attachment {}", &attachment[..8]));
    assert!(events.contains("attachment.state"), "{events}");
    let events = user.good(&format!("events --device {}", &uuid[..13]));
    assert!(events.contains("0000:05:00.0"), "{events}");
}
