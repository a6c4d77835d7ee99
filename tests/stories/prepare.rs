//! Ports that a guest gets with its next start.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use hotslot_tests::{FULL, Hotslot, I440FX, Q35, binary, host, path};
use serde_json::json;

fn run(service: &Hotslot, arguments: &str) -> Output {
    let arguments = arguments.split_whitespace();
    Command::new(binary()).args(arguments).env("HOTSLOT_URL", service.url()).output().unwrap()
}

#[track_caller]
fn printed(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{all}");
    all
}

#[tokio::test]
async fn a_guest_without_a_free_port_is_prepared_and_has_room_after_its_next_start() {
    let service = Hotslot::on("small").await;
    // The refusal names the request or the command, with the guest.
    let refused = service.attach(FULL, "vf:1").await.expect(409).message().to_owned();
    let request =
        format!("add 1 port(s) to the definition of full (POST servers/{FULL}/pci_ports with count 1)");
    assert!(refused.contains(&request), "{refused}");
    for name in [FULL, "full"] {
        let refused = printed(&run(&service, &format!("attach {name} vf:1")), 4);
        assert!(refused.contains(&format!("(`hotslot server prepare {name} --ports 1`)")), "{refused}");
        // It is a whole command.
        let command = refused.split("`hotslot ").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
        printed(&run(&service, &format!("{command} --dry-run")), 0);
    }

    let before = service.documents();
    let dry = printed(&run(&service, &format!("server prepare {FULL} --ports 2 --dry-run")), 0);
    // libvirt wants the model, the chassis and the port number of a port that is added to a definition.
    let line = |index: u8| {
        format!(
            "+    <controller type='pci' index='{index}' model='pcie-root-port'><model name='pcie-root-port'/><target \
             chassis='{index}' port='{index:#x}'/></controller>\n"
        )
    };
    let lines = line(3) + &line(4);
    assert!(dry.starts_with(&lines), "{dry}");
    assert_eq!(service.documents(), before, "a dry run changes nothing");

    let done = printed(&run(&service, &format!("server prepare {FULL} --ports 2")), 0);
    assert!(done.starts_with(&lines) && done.contains("shut off and started again"), "{done}");
    // The running guest does not have them yet, so a device is still refused, and no more ports are advised.
    let refused = service.attach(FULL, "vf:1").await.expect(409).message().to_owned();
    assert!(
        refused
            .contains("shut full off and start it again: it then has the 2 free port(s) of its definition"),
        "{refused}"
    );
    assert!(!refused.contains("pci_ports"), "{refused}");
    service.sim("shutdown full");
    service.sim("start full");
    let one = service.attach(FULL, "vf:2").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&one)).await.expect(200);
    let events = service.get("/events?kind=server.ports").await.expect(200).body;
    assert_eq!(events["events"][0]["to"], json!({ "added": 2 }), "{events}");
}

#[tokio::test]
async fn what_libvirt_cannot_say_is_refused() {
    let service = Hotslot::on("small").await;
    let before = service.documents();
    let refused = printed(&run(&service, "server prepare q35 --ports 1 --bar 64G"), 4);
    for says in ["libvirt has no setting", "pref64-reserve=68719476736", "virsh edit q35"] {
        assert!(refused.contains(says), "{says}: {refused}");
    }
    // It is not advised to leave out what is not the only reason.
    let missing = printed(&run(&service, "server prepare nope --ports 1 --bar 64G"), 3);
    assert!(missing.contains("nope") && !missing.contains("--bar"), "{missing}");
    let conventional = printed(&run(&service, "server prepare i440fx --ports 1 --bar 64G"), 4);
    assert!(conventional.contains("conventional PCI root bus"), "{conventional}");
    let wrong = printed(&run(&service, "server prepare q35 --ports 1 --bar 64"), 2);
    assert!(wrong.contains("such as 64G"), "{wrong}");
    printed(&run(&service, "server prepare q35 --ports 31"), 2);
    let conventional = printed(&run(&service, "server prepare i440fx --ports 1"), 4);
    assert!(conventional.contains("conventional PCI root bus"), "{conventional}");
    assert_eq!(service.documents(), before);
    for (body, says) in [
        (json!({}), "pci_ports"),
        (json!({ "pci_ports": { "count": 0 } }), "1 to 30"),
        (json!({ "pci_ports": { "count": 31 } }), "1 to 30"),
        (json!({ "pci_ports": { "count": 300 } }), "300"),
        (json!({ "pci_ports": { "count": 1, "bar": 1 } }), "bar"),
    ] {
        let refused = service.post(&format!("/v2.1/servers/{Q35}/pci_ports"), body).await.expect(400);
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    let body = json!({ "pci_ports": { "count": 1 } });
    service.post(&format!("/v2.1/servers/{I440FX}/pci_ports"), body).await.expect(409);
}

/// Adds NICs in IOMMU groups of their own.
fn with_many_nics(host: &Path) {
    let text = fs::read_to_string(host.join("devices/pci_0000_05_00_0.xml")).unwrap();
    for number in 0x20..0x48 {
        let text = text
            .replace("pci_0000_05_00_0", &format!("pci_0000_{number:02x}_00_0"))
            .replace("<bus>5</bus>", &format!("<bus>{number}</bus>"))
            .replace("bus='0x05'", &format!("bus='{number:#x}'"))
            .replace("iommuGroup number='17'", &format!("iommuGroup number='{}'", 100 + number));
        fs::write(host.join(format!("devices/pci_0000_{number:02x}_00_0.xml")), text).unwrap();
    }
}

#[tokio::test]
async fn no_more_ports_are_advised_than_can_be_added() {
    let nics = r#"
[pci]
device_spec = ['{"product_id": "10d3"}']
alias = ['{"name": "nic", "vendor_id": "8086", "product_id": "10d3"}']
"#;
    let service = Hotslot::bare(&host("small"), nics, with_many_nics).await;
    let refused = printed(&run(&service, "attach full nic:35"), 4);
    let command = refused.split("`hotslot ").nth(1).and_then(|rest| rest.split('`').next()).unwrap();
    let count: usize = command.rsplit(' ').next().unwrap().parse().unwrap();
    let rest = 35 - count;
    let limit = format!("it then has room for {count} device(s), and the other {rest} do not fit");
    assert!(refused.contains(&limit), "{refused}");
    printed(&run(&service, command), 0);
    service.sim("shutdown full");
    service.sim("start full");
    let full = printed(&run(&service, &format!("attach full nic:{}", count + 1)), 4);
    assert!(full.contains("ask for fewer devices") && full.contains("no room for more"), "{full}");
    printed(&run(&service, &format!("attach full nic:{count}")), 0);
}

#[tokio::test]
async fn ports_that_were_added_before_a_failure_are_told() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach fail nth=2 text=internal error: no room");
    let body = json!({ "pci_ports": { "count": 3 } });
    let failed = service.post(&format!("/v2.1/servers/{Q35}/pci_ports"), body).await.expect(502);
    assert!(failed.message().contains("1 of 3 ports were added"), "{}", failed.message());
    let events = service.get("/events?kind=server.ports").await.expect(200).body;
    assert_eq!(events["events"][0]["to"], json!({ "added": 1 }), "{events}");
}
