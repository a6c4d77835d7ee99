//! Tables in a terminal of 80 columns: every command that lists something, with long cells.

use hotslot_tests::{Hotslot, host};
use regex::Regex;

use super::{hotslot, in_terminal};

/// The command lines. Those that need a configuration have `FILE` in its place.
const LINES: [&str; 30] = [
    "host list",
    "host list -o wide",
    "host show node1",
    "flavor list",
    "flavor list -o wide",
    "device list",
    "device list --all",
    "device list --all -l",
    "device show 0000:05:00.0",
    "pci list",
    "pci list -l",
    "pci stats",
    "explain vf",
    "explain 0000:06:00.0",
    "config device-spec list",
    "config alias list",
    "config extra-info list",
    "server list",
    "server show q35",
    "attachment list",
    "attachment list --ended",
    "attachment list -l",
    "accelerator list",
    "accelerator list -l",
    "quota show p1",
    "policy list --config FILE",
    "token list --config FILE",
    "attach q35 vf:9 --dry-run",
    "attach full vf --dry-run",
    "whoami",
];

/// Those whose output changes by itself.
const CHANGING: [&str; 4] = ["drift", "events --last 20", "status", "top --once"];

/// Has a guest keep one device, and everything else that makes cells long.
async fn service() -> Hotslot {
    let config = r#"
        [[flavor]]
        name = "a-flavor-with-a-long-name"
        extra_specs = { "pci_passthrough:alias" = "e1000e:1,vf:2", "hw:cpu_policy" = "dedicated" }
        [[pci.extra_info]]
        match = '{"address": "0000:05:00.0"}'
        values = { switch = "the-switch-on-the-second-floor", port = "Ethernet1/17" }
        "#;
    let service = Hotslot::with(&host("small"), config).await;
    let hotslot = |line: &str| hotslot(service.url(), line);
    let spec = r#"{"vendor_id":"8086","product_id":"ffff","physical_network":"network-of-the-second-floor","trusted":"true"}"#;
    hotslot(&format!("config device-spec add {spec}")).expect(0);
    let alias = r#"{"name":"an-alias-with-a-long-name","vendor_id":"8086","product_id":"ffff","numa_policy":"preferred"}"#;
    hotslot(&format!("config alias add {alias}")).expect(0);
    hotslot("accelerator create an-accelerator-with-a-long-name").expect(0);
    hotslot("attach i440fx e1000e").expect(0);
    hotslot("detach i440fx e1000e").expect(0);
    hotslot("attach q35 vf").expect(0);
    service.sim("guest q35 unplug=refuse");
    hotslot("detach q35 vf").expect(4);
    hotslot("attach i440fx e1000e").expect(0);
    service.sim("unplug i440fx 0000:05:00.0 live");
    service
}

#[tokio::test]
async fn every_list_fits_a_terminal_of_80_columns() {
    let dir = tempfile::tempdir().unwrap();
    let service = service().await;
    let file = dir.path().join("hotslot.toml");
    std::fs::write(&file, format!("[identity]\ntokens = \"{}/tokens\"\n", dir.path().display())).unwrap();
    let named = |line: &str| line.replace("FILE", &file.display().to_string());
    let create =
        "token create a-token-with-a-long-name --role reader --role member --project 7c1f0e2d --config FILE";
    hotslot(service.url(), &named(create)).expect(0);

    let reference = include_str!("../../../docs/reference/commands.md");
    for list in reference.lines().filter_map(|line| line.strip_prefix("## hotslot ")) {
        let is_tried = LINES.iter().any(|line| line.starts_with(list));
        assert!(
            is_tried || list == "context list" || !list.ends_with(" list"),
            "`{list}` is not among the lines of this story"
        );
    }
    for line in LINES.into_iter().chain(CHANGING) {
        let line = named(line);
        let plain = hotslot(service.url(), &line).out;
        let shown = fitting(service.url(), &line, "xterm");
        if CHANGING.contains(&line.as_str()) {
            continue;
        }
        // No id, address or key is split or lost.
        let is_id = |word: &&str| {
            word.chars().count() <= 40
                && word.contains(|letter: char| letter.is_ascii_digit() || letter == '"')
        };
        for word in plain.split_whitespace().filter(is_id) {
            assert!(
                shown.split_whitespace().any(|other| other == word),
                "{line}: `{word}` is lost in\n{shown}"
            );
        }
    }

    // The contexts are in the directory of the user.
    let contexts = "[context.a-context-with-a-long-name]\nurl = 'https://a-host-with-a-long-name.example.org:9774'\n\
                    token_file = '/etc/hotslot/tokens-of-services/a-context-with-a-long-name'\n";
    std::fs::create_dir(dir.path().join("hotslot")).unwrap();
    std::fs::write(dir.path().join("hotslot/contexts.toml"), contexts).unwrap();
    let home = format!("xterm XDG_CONFIG_HOME={}", dir.path().display());
    fitting(service.url(), "context list", &home);
}

/// Returns what a command shows in a terminal, without the codes of colours, after checking that it fits.
fn fitting(url: &str, line: &str, kind: &str) -> String {
    let codes = Regex::new("\u{1b}\\[[0-9;?]*[A-Za-z]").unwrap();
    let shown = codes.replace_all(&in_terminal(url, line, kind), "").into_owned();
    assert!(!shown.is_empty(), "{line}");
    for row in shown.lines() {
        assert!(row.chars().count() <= 80 && row.trim_end() == row, "{line}: `{row}` of\n{shown}");
    }
    shown
}

#[tokio::test]
async fn a_terminal_without_colours_gets_none() {
    let service = Hotslot::on("small").await;
    let has_codes = |text: String| text.contains('\u{1b}');
    assert!(has_codes(in_terminal(service.url(), "host list", "xterm")));
    assert!(!has_codes(in_terminal(service.url(), "host list", "dumb")));
    assert!(!has_codes(in_terminal(service.url(), "host list", "xterm NO_COLOR=1")));
    let listed = in_terminal(service.url(), "host list", "dumb");
    assert!(listed.lines().all(|line| line.chars().count() <= 80), "{listed}");
}
