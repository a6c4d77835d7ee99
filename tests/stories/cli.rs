//! The command line: its output for people and for scripts, and its exit codes.

mod accelerators;
mod completion;
mod tables;
mod topology;
mod usage;

use std::process::{Command, Stdio};

use hotslot_tests::{Hotslot, Q35, binary, host};
use serde_json::Value;

/// The output and the exit code of a command.
#[derive(Debug)]
struct Printed {
    code: i32,
    out: String,
    err: String,
}

fn hotslot(url: &str, arguments: &str) -> Printed {
    let output = Command::new(binary())
        .args(arguments.split_whitespace())
        .env("HOTSLOT_URL", url)
        .output()
        .expect("run hotslot");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Printed {
        code: output.status.code().expect("a code"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// Returns what a command shows in a terminal of 80 columns of this type.
fn in_terminal(url: &str, arguments: &str, kind: &str) -> String {
    let command =
        format!("stty cols 80; exec env TERM={kind} {} {arguments} 2>/dev/null", binary().display());
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env_remove("NO_COLOR")
        .env("HOTSLOT_URL", url)
        .stdin(Stdio::null())
        .output()
        .expect("run script");
    String::from_utf8(output.stdout).expect("text").replace('\r', "")
}

impl Printed {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Returns the cells of the line that contains a word. Columns are separated by three spaces.
    #[track_caller]
    fn line(&self, word: &str) -> Vec<&str> {
        let line = self.out.lines().find(|line| line.contains(word));
        let line = line.unwrap_or_else(|| panic!("no `{word}` in {self:?}"));
        line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Returns the id of the only attachment in the output of `-o json attach`.
fn id(output: &Printed) -> String {
    output.json()[0]["attachment_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn commands_list_attach_and_detach_a_vf() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);

    let host = hotslot("host list").expect(0);
    assert_eq!(host.line("node1")[..4], ["node1", "up", "open", "QEMU 10.0.13 (simulated)"]);
    let devices = hotslot("device list").expect(0);
    assert_eq!(devices.line("04:10.0"), ["node1", "0000:04:10.0", "8086:10ca", "type-VF", "available", "-"]);
    assert!(!devices.out.contains("0000:00:10.0"), "a root port is nothing to give away");
    let functions = hotslot("device list --all --host node1").expect(0);
    assert_eq!(functions.line("04:10.0")[4..6], ["igbvf", "22"]);
    let servers = hotslot("server list").expect(0);
    // The ids of this host differ only at their ends.
    assert_eq!(servers.line("q35"), ["q35", "ACTIVE", "node1", Q35]);
    let none = hotslot("attachment list").expect(0);
    assert_eq!((none.out.as_str(), none.err.as_str()), ("", "no PCI attachments\n"));

    let attached = hotslot("attach q35 vf").expect(0);
    let row = attached.line("04:10.0");
    let id = row[0];
    let rest = ["vf", "0000:04:10.0", "0000:02:00.0 (computed)", "attached", "-"];
    assert_eq!(row[1..], rest);

    let listed = hotslot("attachment list q35").expect(0);
    assert_eq!(listed.line(id)[1..3], ["q35", "node1"]);
    assert_eq!(hotslot("device list").expect(0).line("04:10.0")[4..], ["allocated", "q35"]);
    assert!(hotslot(&format!("server show {Q35}")).expect(0).out.contains(id));
    let shown = hotslot(&format!("attachment show {id}")).expect(0);
    assert_eq!(shown.line("Persistent"), ["Persistent:", "yes"]);
    let whole = shown.line("ID:")[1];
    assert!(id.len() == 8 && whole.starts_with(id) && whole.len() == 36, "{shown:?}");

    let detached = hotslot(&format!("detach {id}")).expect(0);
    assert_eq!(detached.out, format!("detached {whole} (0000:04:10.0)\n"));
    // Detaching it again succeeds.
    let again = hotslot(&format!("detach {id} --timeout 5s")).expect(0);
    assert_eq!(again.out, detached.out);
    assert_eq!(hotslot("attachment list --ended -o json").expect(0).json()[0]["attachment_id"], whole);
    let ended = hotslot(&format!("attachment show {id}")).expect(0);
    assert_eq!(ended.line("Status:"), ["Status:", "detached"]);
    assert!(ended.out.contains("\nEnded: "), "{ended:?}");
    service.expect_clean().await;
}

#[tokio::test]
async fn what_is_shown_can_be_typed() {
    let config = "[[flavor]]\nname = 'gzm'\nextra_specs = { 'pci_passthrough:alias' = 'e1000e:1' }\n";
    let service = Hotslot::with(&host("small"), config).await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);

    // Names alone, for other commands.
    assert_eq!(hotslot("host list -o name").expect(0).out, "node1\n");
    assert_eq!(hotslot("flavor list -q").expect(0).out, "gzm\n");
    assert_eq!(
        hotslot("flavor show gzm").expect(0).line("Extra"),
        ["Extra specs:", "pci_passthrough:alias=e1000e:1"]
    );
    assert_eq!(hotslot("host show node1").expect(0).line("State:"), ["State:", "up"]);
    let servers = hotslot("server list -q").expect(0);
    assert!(servers.out.lines().any(|line| line == Q35), "{servers:?}");
    assert_eq!(hotslot("attachment list -q").expect(0).err, "", "no note about an empty list");

    // A device by its address.
    let attached = hotslot("attach q35 05:00.0 -q").expect(0);
    let id = attached.out.trim_end().to_owned();
    let wide = hotslot("attachment list -o wide --no-headers").expect(0);
    assert_eq!(wide.out.lines().count(), 1, "{wide:?}");
    assert_eq!(wide.line("0000:05:00.0")[..4], [&id, "q35", "node1", "0000:05:00.0"]);
    let yaml = hotslot("attachment list -o yaml").expect(0).out;
    assert!(yaml.contains(&format!("attachment_id: {id}\n")), "{yaml}");
    for (code, arguments, why) in [
        (6, "attach q35 0000:05:00.0", "0000:05:00.0 asks for 1 device(s), 0 free: 1 in use"),
        (6, "attach q35 0000:00:10.0", "0000:00:10.0 of host node1 is a PCI bridge"),
        (3, "detach q35 nope", "q35 has no attachment `nope`"),
        (2, "detach q35", "q35 is a server; name its devices too"),
        (2, "detach q35 vf --all", "--all is for one server"),
        (3, "flavor show nope", "`hotslot flavor list`"),
    ] {
        let refused = hotslot(arguments).expect(code);
        assert!(refused.err.contains(why), "{arguments}: {refused:?}");
    }

    // A device of a guest by its alias or address, and all of them.
    hotslot("attach q35 vf").expect(0);
    let detached = hotslot("detach q35 vf").expect(0);
    assert!(detached.out.ends_with(" (0000:04:10.0)\n"), "{detached:?}");
    assert_eq!(hotslot("detach q35 0000:05:00.0 -q").expect(0).out, format!("{id}\n"));
    hotslot("attach q35 vf:2").expect(0);
    let several = hotslot("detach q35 vf").expect(2);
    assert!(several.err.contains("several devices of alias vf"), "{several:?}");
    assert_eq!(hotslot(&format!("detach {Q35} --all")).expect(0).out.lines().count(), 2);
    service.expect_clean().await;
}

#[tokio::test]
async fn json_output_is_that_of_the_api() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);

    assert_eq!(hotslot("host list -o json").expect(0).json()[0]["simulated"], true);
    assert_eq!(hotslot("attachment list -o json").expect(0).json(), Value::Array(Vec::new()));
    let device = hotslot("device show pci_0000_04_10_0 -o json").expect(0).json();
    assert_eq!(device["parent_addr"], "0000:04:00.0");

    let attached = hotslot("-o json attach q35 vf e1000e --live-only").expect(0).json();
    let ids: Vec<_> =
        attached.as_array().expect("a list").iter().map(|one| one["attachment_id"].as_str()).collect();
    let [Some(vf), Some(nic)] = ids[..] else { panic!("{attached}") };
    assert_eq!(attached[1]["address"], "0000:05:00.0");
    assert_eq!(attached[1]["persistent"], false);
    let server = hotslot("server show q35 -o json").expect(0).json();
    assert_eq!(server["pciAttachment"][0]["attachment_id"], vf);

    let detached = hotslot(&format!("detach {vf} {nic} -o json")).expect(0).json();
    assert_eq!(detached[1]["attachment_id"], nic);
    assert_eq!(detached[1]["status"], "detached");
    service.expect_clean().await;
}

#[tokio::test]
async fn each_failure_has_its_exit_code_and_message() {
    let mut service = Hotslot::on("small").await;
    let url = service.url().to_owned();
    for (code, arguments, why) in [
        (2, "attach q35", "required"),
        (2, "attach q35 vf --flavor gzm", "cannot be used with"),
        (2, "attach q35 vf --mac 01:00:5e:00:00:01", "multicast"),
        (2, "explain 0000:3b:00.8", "0000:3b:00.8"),
        (2, "explain 0000:04:10.0 --server q35", "is a device"),
        (2, "device show eth0", "expected a form such as `0000:3b:00.1`"),
        (2, "host list --url 127.0.0.1:9774", "write http://"),
        (3, "server show nope", "server nope not found"),
        (3, "server show 1", "server 1 not found; write at least 4 characters of an id"),
        (3, "detach 1 --all", "write at least 4 characters of an id"),
        (3, "attach nope vf", "server nope not found"),
        (3, "server show 00000000-0000-4000-8000-000000000000", "not found"),
        (3, "device list --host node9", "host node9 not found; `hotslot host list` lists all"),
        (3, "device show 0000:ff:00.0", "device 0000:ff:00.0 not found"),
        (2, "pci list --status free", "available"),
        (3, "pci list --host node9", "host node9 not found; `hotslot host list` lists all"),
        (3, "pci list --server nope", "server nope not found"),
        (3, "pci show 9999", "PCI device 9999 not found"),
        (3, "pci show 0000:ff:00.0", "record of device 0000:ff:00.0 not found"),
        (3, "topology nope", "host nope not found, and server nope not found"),
        (3, "topology --host q35", "host q35 not found"),
        (3, "topology --server node1", "server node1 not found"),
        (3, "detach 0123", "PCI attachment 0123 not found"),
        (4, "attach full vf", "no free hot-plug port"),
        (6, "attach q35 gpu", "no PCI alias is called `gpu`"),
        (6, "attach q35 vf:9", "2 free"),
        (6, "attach q35 0000:99:00.0", "host node1 has no PCI function 0000:99:00.0"),
        (6, "attach q35 0000:99:00.0 --dry-run", "`hotslot device list --all --host node1` lists those"),
        (6, "attach q35 0000:00:10.0", "0000:00:10.0 of host node1 is a PCI bridge"),
        (6, "attach q35 vf:9", "ask for 2 of them"),
        (6, "attach q35 gpu --dry-run", "no PCI alias is called `gpu`"),
        (6, "attach q35 --flavor gzm", "there is no flavor `gzm`"),
        (3, "pci cleaned 9999", "PCI device 9999 not found"),
    ] {
        let output = hotslot(&url, arguments).expect(code);
        assert!(output.err.contains(why), "{arguments}: {output:?}");
        assert_eq!(output.out, "", "{arguments}");
    }
    service.expect_clean().await;

    service.sim("disconnect");
    service.until("the host is away", async || hotslot(&url, "host list").out.contains("unreachable")).await;
    let away = hotslot(&url, "server list").expect(5);
    assert!(away.err.contains("the servers of this host: node1"), "{away:?}");
    assert!(hotslot(&url, "attach q35 vf").expect(5).err.contains("unreachable: node1"));
    service.kill();
    assert!(hotslot(&url, "host list").expect(5).err.contains("is `hotslot serve` running?"));
}

#[tokio::test]
async fn pci_list_filters_devices_and_pci_show_shows_one() {
    let service = Hotslot::with(
        &host("small"),
        r#"
        [[pci.extra_info]]
        match = '{"address": "0000:05:00.0"}'
        values = { switch = "tor 3&4" }
        "#,
    )
    .await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    hotslot("attach q35 vf").expect(0);

    let addresses = |arguments: &str| -> Vec<String> {
        let listed = hotslot(&format!("pci list {arguments} -o json")).expect(0).json();
        let devices = listed.as_array().expect("a list").clone();
        devices.iter().map(|device| device["address"].as_str().expect("an address").into()).collect()
    };
    assert_eq!(addresses("--type type-VF"), ["0000:04:10.0", "0000:04:10.2"]);
    assert_eq!(addresses("--type type-VF --status available"), ["0000:04:10.2"]);
    assert_eq!(addresses("--server q35 --host node1"), ["0000:04:10.0"]);
    assert_eq!(addresses("--vendor 8086 --product 10C9"), ["0000:04:00.0"]);
    assert_eq!(addresses("--extra phys_function=0000:04:00.0"), ["0000:04:10.0", "0000:04:10.2"]);
    assert_eq!(addresses("--extra phys_function=0000:04:00.1"), [""; 0]);
    assert!(addresses("").len() > 5);

    let listed = hotslot("pci list").expect(0);
    assert_eq!(listed.line("04:10.0"), ["node1", "0000:04:10.0", "8086:10ca", "type-VF", "allocated", "q35"]);
    let long = hotslot("pci list -l --product 10d3").expect(0);
    let row = long.line("05:00.0");
    assert!(row.last().expect("cells").contains("switch=tor 3&4"), "{row:?}");
    let (id, uuid) = (row[6], row[7]);
    for name in [id, uuid, "0000:05:00.0", "pci_0000_05_00_0 --host node1"] {
        let shown = hotslot(&format!("pci show {name}")).expect(0);
        assert_eq!(shown.line("Address"), ["Address:", "0000:05:00.0"], "{name}");
        assert_eq!(shown.line("UUID"), ["UUID:", uuid], "{name}");
    }
    // This filter contains spaces, so it cannot be passed through the helper, which splits at spaces.
    let spaced = Command::new(binary())
        .args(["pci", "list", "--extra", "switch=tor 3&4", "--url", service.url()])
        .output()
        .expect("run hotslot");
    assert_eq!(String::from_utf8_lossy(&spaced.stdout).lines().count(), 2, "the titles and one device");
}

#[tokio::test]
async fn a_dry_run_says_what_an_attach_would_do() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);

    let good = hotslot("attach q35 vf:2 --dry-run").expect(0);
    assert!(
        good.out.starts_with("these devices would be attached:\nALIAS   VENDOR:PRODUCT   ADDRESS\n"),
        "{good:?}"
    );
    assert_eq!(good.line("8086:10ca"), ["vf", "8086:10ca", "0000:04:10.0"]);
    assert_eq!(good.line("free-port")[1..3], ["-", "pass"]);
    assert!(!good.out.contains("what to do:"), "{good:?}");
    let full = hotslot("attach full vf --dry-run").expect(4);
    assert_eq!(full.line("free-port")[2], "fail");
    let cure = full.out.split_once("\nwhat to do:\n").expect("a cure").1;
    assert!(cure.starts_with("free-port:   "), "{full:?}");
    let json = hotslot("attach full vf --dry-run -o json").expect(4).json();
    assert_eq!(json["would_attach"], false);
    let few = hotslot("attach q35 vf:9 --dry-run").expect(4);
    assert!(few.out.starts_with("nothing would be attached\n\nCHECK "), "{few:?}");
    service.expect_clean().await;
}

#[tokio::test]
async fn remedies_are_commands_and_options_of_the_command_line() {
    let refuse = "[[detach.class]]\nclass = 'network controller'\nhot_unplug = 'refuse'\n";
    let service = Hotslot::with(&host("small"), refuse).await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let id = id(&hotslot("-o json attach q35 vf").expect(0));
    hotslot(r#"accelerator create nic0 --spec {"product_id":"10d3"}"#).expect(0);
    hotslot("accelerator attach nic0 q35").expect(0);
    let listed = hotslot("attachment list").expect(0);
    let of_accelerator = listed.line("0000:05:00.0")[0].to_owned();

    for (code, arguments, remedy) in [
        (3, "server show 00000000-0000-4000-8000-000000000000", "`hotslot server list` lists"),
        (3, "accelerator show nope", "`hotslot accelerator list` lists"),
        (4, &format!("detach {id}"), "with --force"),
        (4, &format!("detach {of_accelerator}"), "`hotslot accelerator detach "),
        (6, "attach q35 vf:9", "ask for 1 of them"),
        (4, "attach q35 0000:06:00.0", "ask with --whole-group, or unbind 0000:06:00.1 first"),
    ] {
        let output = hotslot(arguments).expect(code);
        assert!(output.err.contains(remedy), "{arguments}: {output:?}");
        for route in ["GET ", "DELETE ", "POST ", "os-pci", "/accelerators"] {
            assert!(!output.err.contains(route), "{arguments}: {output:?}");
        }
    }
    hotslot(&format!("detach {id} --force")).expect(0);
    let remedy = hotslot(&format!("detach {of_accelerator}")).expect(4).err;
    let command = remedy.split('`').nth(1).expect("a command").strip_prefix("hotslot ").expect("of hotslot");
    hotslot(&format!("{command} --force")).expect(0);
    let both = hotslot("attach q35 0000:06:00.0 --whole-group -o json").expect(0).json();
    assert_eq!(both.as_array().expect("a list").len(), 2, "{both}");
    hotslot("detach q35 --all --force").expect(0);
    let driver = async || service.functions().await["0000:06:00.0"]["driver"].clone();
    service.until("the host drivers are back", async || driver().await != "vfio-pci").await;
    service.expect_clean().await;
}

#[tokio::test]
async fn attach_takes_a_flavor_and_the_mac_and_vlan_of_a_vf() {
    let config = "[[flavor]]\nname = \"gzm\"\nextra_specs = { \"pci_passthrough:alias\" = \"e1000e:1\" }\n";
    let service = Hotslot::with(&host("small"), config).await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);

    assert_eq!(hotslot("attach q35 --flavor gzm").expect(0).line("0000:05:00.0")[1], "e1000e");
    let vf = id(&hotslot("attach q35 vf --mac 52:54:00:AB:00:01 --vlan 42 -o json").expect(0));
    let listed = hotslot("attachment list -l").expect(0);
    assert_eq!(
        listed.line(&vf)[9..],
        ["52:54:00:ab:00:01", "42", "-", "-", "no"],
        "MAC, VLAN, network, trusted, whole group"
    );
    assert!(!hotslot("attachment list").expect(0).out.contains("52:54:00"));
    let shown = hotslot(&format!("attachment show {vf}")).expect(0);
    assert_eq!(shown.line("VLAN"), ["VLAN:", "42"]);
    let plain = hotslot("attachment list -o json").expect(0).json();
    let plain = plain.as_array().expect("a list").iter().find(|it| it["alias"] == "e1000e").expect("it");
    let shown = hotslot(&format!("attachment show {}", plain["attachment_id"].as_str().expect("an id")));
    assert!(!shown.out.contains("VLAN"), "{shown:?}");
}

#[tokio::test]
async fn a_one_time_use_device_is_attached_again_after_cleaning() {
    let service = crate::inventory::one_time_use().await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let attached = hotslot("attach i440fx edu -o json").expect(0);
    let address = attached.json()[0]["address"].as_str().expect("an address").to_owned();
    hotslot(&format!("detach {}", id(&attached))).expect(0);
    let used = hotslot(&format!("pci show {address} -o json")).expect(0).json();
    assert!(used["used_at"].is_string(), "{used}");
    let cleaned = hotslot(&format!("pci cleaned {address}")).expect(0);
    assert_eq!(cleaned.line("Used"), ["Used:", "-"]);
    hotslot("attach i440fx edu").expect(0);
}

#[test]
fn a_configuration_is_checked_without_a_service() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |text: &str, more: &str| {
        let file = dir.path().join("hotslot.toml");
        std::fs::write(&file, text).expect("write the configuration");
        hotslot("http://127.0.0.1:1", &format!("config check {} {more}", file.display()))
    };
    let good = check("[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}']", "").expect(0);
    assert!(
        good.out.ends_with(": valid: 1 device_spec entry, 0 alias entries, 0 extra_info entries, 1 host\n")
    );
    let bad = "[detach]\nattempts = 0\n[pci]\nalias = ['{}', '[', '{\"name\": \"a1\"}']";
    let output = check(bad, "").expect(1);
    let (name, dir) = ("hotslot.toml", dir.path().display().to_string());
    let places: Vec<_> =
        output.out.lines().map(|line| line.splitn(3, ": ").take(2).collect::<Vec<_>>()).collect();
    let at = |line: usize| format!("{dir}/{name}:{line}");
    assert_eq!(
        places,
        [
            [at(2).as_str(), "[detach] attempts"],
            [at(4).as_str(), "[pci] alias[0]"],
            [at(4).as_str(), "[pci] alias[1]"],
            [at(4).as_str(), "[pci] alias[2]"],
        ],
        "{output:?}"
    );
    let json = check(bad, "-o json").expect(1).json();
    assert_eq!(json[0]["place"], "[detach] attempts");
    assert_eq!(json[0]["line"], 2);
    assert_eq!(json[0]["reason"], "a guest must be asked at least once");
    assert_eq!(check("", "-o json").expect(0).json(), Value::Array(Vec::new()));
    assert!(check("[pci]\nalias = 3", "").expect(1).out.contains("hotslot.toml:2: "));
    let missing = hotslot("http://127.0.0.1:1", "config check /nonexistent.toml").expect(1);
    assert!(missing.out.starts_with("/nonexistent.toml: cannot be read: "), "{missing:?}");
}

#[test]
fn the_schema_of_the_configuration_is_printed() {
    let schema = hotslot("http://127.0.0.1:1", "config schema").expect(0).json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["api"].is_object() && schema["additionalProperties"] == false, "{schema}");
}

#[tokio::test]
async fn detach_all_continues_after_failures_and_returns_the_worst_code() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let kept = id(&hotslot("-o json attach q35 vf").expect(0));
    let gone = id(&hotslot("-o json attach i440fx e1000e").expect(0));
    service.sim("guest q35 unplug=refuse");

    let output = hotslot(&format!("detach {kept} {gone} 0123-not-there")).expect(4);
    assert_eq!(output.out, format!("detached {gone} (0000:05:00.0)\n"));
    assert!(
        output.err.contains(&kept) && output.err.contains("PCI attachment 0123-not-there not found"),
        "{output:?}"
    );
    let left = hotslot("attachment list").expect(0);
    assert_eq!(left.out.lines().count(), 2, "the titles, and the one that is kept: {left:?}");

    service.sim("guest q35 unplug=normal");
    let asked = hotslot(&format!("detach --no-wait {kept}")).expect(0);
    assert_eq!(asked.out, format!("detaching {kept} (0000:04:10.0)\n"));
    service.until("it is gone", async || hotslot("attachment list").expect(0).out.is_empty()).await;
    assert_eq!(hotslot("detach q35 --all").expect(0).err, "q35 has no PCI attachments\n");
    service.expect_clean().await;
}

#[tokio::test]
async fn the_sim_command_controls_a_simulated_host() {
    let service = Hotslot::on("small").await;
    let dir = service.host_dir();
    let sim = |line: &str| hotslot(service.url(), &format!("sim {} {line}", dir.display()));
    assert_eq!(sim("pause q35").expect(0).out, "ok\n");
    assert_eq!(hotslot(service.url(), "server list").line("q35")[1], "PAUSED");
    let unknown = sim("dance q35").expect(1);
    assert!(unknown.err.contains("`dance q35` is no command, or its arguments are wrong"), "{unknown:?}");
    let lacking = sim("reboot").expect(1);
    assert!(lacking.err.contains("`reboot` is no command, or its arguments are wrong"), "{lacking:?}");
    let misspelt = sim("guest q35 unplug=never").expect(1);
    assert!(misspelt.err.contains("unknown value `never`; known: normal, refuse, ignore"), "{misspelt:?}");
    assert!(
        hotslot(service.url(), "sim /nonexistent reboot q35").expect(5).err.contains("no service serves")
    );
}

#[tokio::test]
async fn explain_reports_an_unreachable_host() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    service.sim("disconnect");
    service.until("the host is away", async || hotslot("host list").out.contains("unreachable")).await;
    for (arguments, says) in [
        ("explain 0000:04:10.0", "its host is unreachable; only its record is shown"),
        ("device show 0000:04:10.0", "0000:04:10.0"),
        ("explain vf", ""),
        ("device list --all", ""),
    ] {
        let output = hotslot(arguments).expect(5);
        assert!(
            output.out.contains(says) && output.out.is_empty() == says.is_empty(),
            "{arguments}: {output:?}"
        );
        assert!(
            output.err.contains("host node1 is unreachable") && !output.err.contains("no devices"),
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn an_ignored_entry_is_listed_with_its_problem() {
    let mut service = Hotslot::on("small").await;
    hotslot(service.url(), r#"config alias add {"name":"late","vendor_id":"8086","product_id":"10ca"}"#)
        .expect(0);
    service.kill();
    let clashes =
        r#"'{"name": "late", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',"#;
    service.reconfigure("alias = [\n", &format!("alias = [\n{clashes}\n"));
    service.start_again().await;
    let listed = hotslot(service.url(), "config alias list").expect(0);
    let problem = "device_type: must be the same in all entries of alias `late`";
    assert_eq!(listed.line(" api ").last(), Some(&problem), "{listed:?}");
    assert_eq!(listed.line("e1000e").last(), Some(&"-"), "{listed:?}");
}

#[tokio::test]
async fn explain_shows_an_alias_or_a_device() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let alias = hotslot("explain vf").expect(0);
    assert_eq!(alias.line("0000:04:10.0")[0], "0", "{alias:?}");
    assert!(alias.line("0000:05:00.0").last().expect("why").contains("does not ask for it"), "{alias:?}");
    let device = hotslot("explain 04:10.0").expect(0);
    assert_eq!(device.line("Assignable:"), ["Assignable:", "yes"]);
    let bridge = hotslot("explain 00:10.0").expect(0);
    assert!(bridge.line("Assignable:")[1].contains("it is a PCI bridge"), "{bridge:?}");
    let half = hotslot("device show 06:00.0").expect(0);
    assert!(half.line("Assignable:")[1].contains("IOMMU group 18"), "{half:?}");
    assert!(hotslot("explain gpu").expect(6).err.contains("no PCI alias is called `gpu`"));

    // Rules that are added by the API take effect at once.
    let rule = r#"{"name":"late","vendor_id":"8086","product_id":"10ca"}"#;
    hotslot(&format!("config alias add {rule}")).expect(0);
    hotslot("explain late").expect(0);
    let list = hotslot("config alias list -o json").expect(0).json();
    let late = list.as_array().expect("a list").iter().find(|line| line["entry"]["name"] == "late");
    let id = late.expect("the new one")["id"].as_str().expect("an id").to_owned();
    hotslot(&format!("config alias remove {id}")).expect(0);
    hotslot("explain late").expect(6);
    assert_eq!(hotslot("pci stats").expect(0).line("8086:10ca")[1], "2");
}
