//! Command lines with mistakes: `data/usage.json`.

use std::process::Command;

use hotslot_tests::{Hotslot, binary};
use serde::Deserialize;

use super::hotslot;

/// A command line with a mistake, and what is said about it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mistake {
    line: String,
    says: String,
    /// The usage line, where the message has one.
    #[serde(default)]
    usage: Option<String>,
}

/// Texts of the parsers of Rust and of serde, and advice that does not help.
const RAW: [&str; 7] = [
    "invalid digit",
    "invalid type",
    "invalid value:",
    "unknown variant",
    "unknown field",
    "did not match any",
    // clap's advice for texts that begin with `-`: with it an option becomes the name of something.
    "as a value, use",
];

#[test]
fn a_mistake_in_a_command_line_is_said_in_plain_words_with_the_usage() {
    let mistakes: Vec<Mistake> = serde_json::from_str(include_str!("../../data/usage.json")).unwrap();
    for Mistake { line, says, usage } in mistakes {
        let said = hotslot("http://127.0.0.1:1", &line).expect(2);
        assert!(said.err.contains(&says) && said.out.is_empty(), "{line}: {said:?}");
        assert!(RAW.iter().all(|raw| !said.err.contains(raw)), "{line}: {said:?}");
        let shown = said.err.lines().find(|line| line.starts_with("Usage: "));
        match usage {
            // The variable HOTSLOT_URL is set, and no part of the command line.
            Some(usage) => assert!(shown.is_some_and(|shown| shown.starts_with(&usage)), "{line}: {said:?}"),
            None => assert_eq!(shown, None, "{line}: {said:?}"),
        }
    }
}

#[test]
fn a_command_that_lacks_its_command_is_answered_with_its_help() {
    for (line, says) in [("", "Hot-plugs PCI devices"), ("host", "List and show the hosts")] {
        // The variable HOTSLOT_URL is no part of the command line.
        let said = hotslot("http://127.0.0.1:1", line).expect(2);
        assert!(said.err.contains(says) && said.err.contains("Commands:"), "{said:?}");
        assert!(!said.err.contains("man-pages") && !said.err.contains("error:"), "{said:?}");
    }
}

#[test]
fn an_empty_variable_is_like_none() {
    let output = |line: &str| {
        let mut command = Command::new(binary());
        for name in ["HOTSLOT_URL", "HOTSLOT_CONFIG", "HOTSLOT_CONTEXT", "HOTSLOT_CA_FILE", "OS_CLOUD"] {
            command.env(name, "");
        }
        command.args(line.split(' ')).output().expect("run hotslot")
    };
    let listed = output("policy list -q");
    assert!(listed.status.success(), "{listed:?}");
    let away = output("host list --url http://127.0.0.1:1");
    assert_eq!(away.status.code(), Some(5), "{away:?}");
}

#[tokio::test]
async fn the_same_mistake_has_the_same_exit_code_everywhere() {
    let service = Hotslot::on("small").await;
    let url = service.url();
    let run = |words: &[&str]| {
        let output =
            Command::new(binary()).args(words).env("HOTSLOT_URL", url).output().expect("run hotslot");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    for (words, code, says) in [
        (&["quota", "set", "", "accelerators=1"][..], 2, "a value is required for '<PROJECT>'"),
        (&["quota", "show", ""], 2, "a value is required for '[PROJECT]'"),
        (&["server", "set", "q35", "--project", ""], 2, "a value is required for '--project <PROJECT>'"),
        (&["server", "show", ""], 3, "server '' not found"),
        (&["db", "restore", "/nonexistent"], 3, "the backup /nonexistent is not there"),
        (&["flavor", "show", "nope"], 3, "flavor nope not found"),
        (&["host", "list", "--url", &format!("{url}/foo")], 3, "has no path /foo/v2.1/os-hypervisors"),
    ] {
        let (found, said) = run(words);
        assert!(found == Some(code) && said.contains(says), "{words:?}: {found:?} {said}");
        assert!(!said.contains("GET "), "{words:?}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hotslot.toml");
    std::fs::write(&config, format!("[identity]\ntokens = \"{}/tokens\"\n", dir.path().display())).unwrap();
    let token = |line: &str| hotslot(url, &format!("token {line} --config {}", config.display()));
    token("create ci --role foo").expect(2);
    token("create ci --role member --project p").expect(0);
    assert_eq!(token("revoke ci").expect(0).out, "revoked ci\n");
    // What has no names prints none, and what is for programs is JSON.
    let spec = hotslot(url, "flavor list").expect(0);
    assert!(spec.err.contains("a table `[[flavor]]`"), "{spec:?}");
    assert_eq!(hotslot(url, &format!("config check {} -o name", config.display())).expect(0).out, "");
    let levels = hotslot(url, "log-level hotslot_driver=debug").expect(0);
    assert!(levels.out.contains("info,hotslot_driver=debug"), "{levels:?}");
    let version = hotslot(url, "version -o json").expect(0).json();
    assert!(version["program"]["build"].is_string(), "{version}");
}
