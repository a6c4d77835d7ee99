//! Who the service takes a caller for, and commands of which a script wants only names or an exit code.

use std::process::Output;

use hotslot_tests::{Hotslot, Q35};
use serde_json::{Value, json};

use super::door::{cli, with_tokens};

#[tokio::test]
async fn a_caller_asks_who_it_is_and_what_its_project_may_use() {
    let (service, _, _, [admin, reader, member]) = with_tokens().await;
    let run = |token: &str, line: &str, code: i32| {
        let line: Vec<_> = line.split(' ').chain(["--url", service.url()]).collect();
        let Output { status, stdout, stderr } = cli(&line, Some(token));
        let text = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert_eq!(status.code(), Some(code), "{line:?}: {text}");
        text
    };
    let caller: Value = serde_json::from_str(&run(&member, "whoami -o json", 0)).unwrap();
    assert_eq!(
        caller,
        json!({ "user_id": "app", "user_name": "app", "roles": ["member"], "scope": "project",
            "project_id": "p", "identified_by": "token" })
    );
    assert_eq!(run(&member, "whoami -q", 0), "app\n");
    let text = run(&reader, "whoami", 0);
    assert!(text.contains("system") && text.contains("a token of hotslot"), "{text}");
    run("hst_0000000000000000000000000000000000000000000000000000000000000000", "whoami", 7);

    assert_eq!(run(&member, "quota show", 0), run(&member, "quota show p", 0));
    run(&member, "quota show other", 8);
    let refused = run(&admin, "quota show", 2);
    assert!(refused.contains("hotslot whoami"), "{refused}");

    // A reader of the whole system watches it, and does not see what belongs to projects.
    let status = run(&reader, "status", 0);
    assert!(status.contains("host node1") && status.contains("you may not see them"), "{status}");
    for line in ["top --once", "device list", "pci list", "explain 0000:04:10.0", "topology node1", "events"]
    {
        run(&reader, line, 0);
    }

    // A member may not see hosts, so a name is that of a server.
    run(&admin, "server set q35 --project p", 0);
    assert!(run(&member, "topology q35", 0).contains("pcie-root-port"));
    run(&member, "topology node1", 3);
}

#[tokio::test]
async fn the_commands_for_tokens_have_exit_codes() {
    let (service, _, config, _) = with_tokens().await;
    let token = |line: &str, code: i32, text: &str| {
        let line: Vec<_> = line.split(' ').chain(["--config", &config]).collect();
        let output = cli(&[&["token"], &line[..]].concat(), None);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(text), "{line:?}: {output:?}");
        assert_eq!(said.matches("os error").count().max(1), 1, "{said}");
        output.stdout
    };
    token("revoke nosuch", 3, "hotslot token list");
    token("create ops --role admin", 4, "revoke it first");
    token("create x --role king", 2, "king");
    let listed: Value = serde_json::from_slice(&token("list -o json", 0, "")).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    assert_eq!(token("list -q", 0, ""), b"ops\nwatch\napp\n");
    // Without the directory of the file, the message says what to do.
    let elsewhere = service.database().with_file_name("elsewhere.toml");
    std::fs::write(&elsewhere, "[identity]\ntokens = \"/nosuch/tokens\"\n").unwrap();
    let output = cli(&["token", "list", "--config", elsewhere.to_str().unwrap()], None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("[identity] tokens"), "{said}");
}

#[tokio::test]
async fn quiet_commands_print_names_or_nothing() {
    let service = Hotslot::on("small").await;
    let quiet = |line: &str| {
        let line: Vec<_> = line.split(' ').chain(["-q", "--url", service.url()]).collect();
        let output = cli(&line, None);
        assert_eq!(output.status.code(), Some(0), "{line:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(quiet("status"), "");
    assert_eq!(quiet("version"), format!("{}\n", env!("CARGO_PKG_VERSION")));
    let functions = quiet("topology node1");
    assert!(functions.lines().all(|line| line.starts_with("0000:") && line.len() == 12), "{functions}");
    assert!(functions.lines().count() > 5);
    let seen = quiet("topology q35");
    assert!(!seen.is_empty() && seen.lines().all(|line| line.starts_with("0000:")), "{seen}");
    let chosen = quiet(&format!("attach {Q35} vf --dry-run"));
    assert!(chosen.lines().count() == 1 && functions.contains(&chosen), "{chosen}");
    assert_eq!(quiet(&format!("explain {}", chosen.trim())), chosen);
    assert!(quiet("pci stats").lines().all(|line| line.len() == 9 && line.contains(':')));
}
