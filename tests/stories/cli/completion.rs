//! Completion in shells, of names that the service knows.

use std::io::Write as _;
use std::process::{Command, Stdio};

use hotslot_tests::{Hotslot, binary};

use super::{hotslot, id};

/// Returns what a shell would offer for the last word of a command line.
fn completed(url: &str, line: &str) -> Vec<String> {
    let words: Vec<_> = line.split(' ').collect();
    let output = Command::new(binary())
        .arg("--")
        .args(&words)
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_IFS", "\n")
        .env("HOTSLOT_URL", url)
        .output()
        .expect("run hotslot");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// Types keys into a bash that has the completions, and returns what it shows.
fn in_bash(url: &str, keys: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let script = dir.path().join("completions");
    std::fs::write(&script, hotslot(url, "completions bash").expect(0).out).expect("write the script");
    let bash = format!("exec bash --noprofile --rcfile {} -i", script.display());
    let binaries = binary().parent().expect("a directory").display().to_string();
    let mut child = Command::new("script")
        .args(["-qec", &bash, "/dev/null"])
        .env("HOTSLOT_URL", url)
        .env("PATH", format!("{binaries}:{}", std::env::var("PATH").expect("PATH")))
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run script");
    let mut stdin = child.stdin.take().expect("the input");
    stdin.write_all(format!("{keys}\nexit\n").as_bytes()).expect("type");
    let output = child.wait_with_output().expect("its output");
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

#[tokio::test]
async fn completions_know_guests_aliases_attachments_and_addresses() {
    let service = Hotslot::on("small").await;
    let url = service.url();
    assert!(hotslot(url, "completions bash").expect(0).out.contains("COMPLETE="));
    assert_eq!(completed(url, "hotslot attach q3"), ["q35"]);
    assert_eq!(completed(url, "hotslot attach q35 v"), ["vf"]);
    assert!(completed(url, "hotslot attach q35 0000:04:1").contains(&"0000:04:10.0".to_owned()));
    assert_eq!(completed(url, "hotslot attach q35 vf:"), [""; 0]);
    assert_eq!(completed(url, "hotslot topology no"), ["node1"]);
    let id = id(&hotslot(url, "-o json attach q35 vf").expect(0));
    assert_eq!(completed(url, &format!("hotslot detach {}", &id[..4])), [id.as_str()]);
    // What is offered is what the command takes: an alias and an address only after their server.
    let first = |line: &str| {
        let mut found = completed(url, line);
        found.retain(|one| !one.starts_with('-'));
        found
    };
    assert_eq!(first("hotslot detach "), ["q35", &id]);
    assert_eq!(first("hotslot detach q35 "), ["vf", "0000:04:10.0"]);
    assert_eq!(first(&format!("hotslot detach {id} ")), [id.as_str()]);
    // Without a service nothing is completed, and nothing fails.
    assert_eq!(completed("http://127.0.0.1:1", "hotslot attach q3"), [""; 0]);
}

/// Bash takes an address for several words, because `COMP_WORDBREAKS` has a colon.
#[tokio::test]
async fn bash_completes_addresses() {
    let service = Hotslot::on("small").await;
    for (keys, printed) in [
        ("hotslot device show 0000:05\t-o name", "0000:05:00.0"),
        ("hotslot device show 00\t5\t-o name", "0000:05:00.0"),
        ("hotslot device show 0000:\t5\t-o name", "0000:05:00.0"),
        ("hotslot explain 0000:04:10.0\t-o name", "0000:04:10.0"),
        ("hotslot attach q3\t0000:05:\t--dry-run -o name", "0000:05:00.0"),
        ("hotslot attach q35 vf:\t1 --dry-run -o name", "0000:04:10.0"),
        ("hotslot device show 0000:05\t--output=n\t", "0000:05:00.0"),
        ("COMP_WORDBREAKS=' '\nhotslot device show 0000:05\t-o name", "0000:05:00.0"),
    ] {
        let shown = in_bash(service.url(), keys);
        assert!(shown.lines().any(|line| line == printed), "{keys:?}:\n{shown}");
    }
}
