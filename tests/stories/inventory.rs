//! What hotslot knows of a host's devices, and how that follows the host.

use std::path::Path;
use std::time::{Duration, Instant};

use hotslot_tests::{Hotslot, I440FX, Q35, SWITCH, attachments, host, path};
use serde_json::{Value, json};

/// How soon a device that came or went on the host is seen.
const SOON: Duration = Duration::from_secs(1);

async fn statuses(service: &Hotslot, addresses: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    for address in addresses {
        found.push(service.device(address).await["status"].clone());
    }
    found
}

#[tokio::test]
async fn a_pf_is_unavailable_while_a_vf_of_it_is_in_use_and_the_other_way_round() {
    const FAMILY: [&str; 3] = ["0000:04:00.0", "0000:04:10.0", "0000:04:10.2"];
    let service = Hotslot::on("small").await;
    let answer = service.attach(Q35, "vf:1").await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["unavailable", "allocated", "available"]);
    let refused = service.attach(Q35, "pf:1").await.expect(400);
    assert!(refused.message().contains("pf"), "{}", refused.message());
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["available"; 3]);

    // A PF that leaves its driver takes its VFs with it, on a real host too.
    let answer = service.attach(Q35, "pf:1").await.expect(200);
    service.attach(Q35, "vf:1").await.expect(400);
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY[..1]).await, ["available"]);
}

#[tokio::test]
async fn a_vf_that_comes_or_goes_is_seen_within_a_second_without_a_restart() {
    let service = Hotslot::on("small").await;
    let listed = async || {
        let devices = service.get("/v2.1/os-pci").await.expect(200).body;
        devices["pci_devices"].as_array().unwrap().iter().any(|device| device["address"] == "0000:04:10.2")
    };
    assert!(listed().await);
    for (line, there) in [("device remove pci_0000_04_10_2", false), ("device add pci_0000_04_10_2", true)] {
        service.sim(line);
        let start = Instant::now();
        while listed().await != there {
            assert!(start.elapsed() < SOON, "{line}: not seen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The files of a host whose root is on the NVMe 0000:07:00.0, and whose default route is over 0000:05:00.0.
fn live_on(host: &std::path::Path) {
    let root = host.join("root");
    let file = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let link = |path: &str, to: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    let disk = "sys/devices/pci0000:00/0000:00:14.0/0000:07:00.0/nvme/nvme0/nvme0n1";
    file("proc/1/mountinfo", "20 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n");
    file("proc/swaps", "Filename Type Size Used Priority\n");
    file(
        "proc/1/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
    );
    file("proc/1/net/ipv6_route", "");
    file("proc/1/net/if_inet6", "");
    file(&format!("{disk}/nvme0n1p1/partition"), "1");
    link("sys/dev/block/259:1", &format!("../../../{disk}/nvme0n1p1"));
    link("sys/class/block/nvme0n1", &format!("../../../{disk}"));
    link("sys/class/block/nvme0n1p1", &format!("../../../{disk}/nvme0n1p1"));
    let nic = "sys/devices/pci0000:00/0000:00:12.0/0000:05:00.0";
    file(&format!("{nic}/net/eth0/type"), "1");
    link(&format!("{nic}/net/eth0/device"), "../..");
    link("sys/class/net/eth0", &format!("../../../{nic}/net/eth0"));
    for address in ["0000:04:10.0", "0000:04:10.2"] {
        file(&format!("sys/bus/pci/devices/{address}/reset_method"), "flr bus\n");
    }
}

const EVERYTHING: &str = r#"
[pci]
device_spec = ['{}']
alias = [
  '{"name": "nvme", "vendor_id": "1b36", "product_id": "0010"}',
  '{"name": "spare", "vendor_id": "1b36", "product_id": "0010", "device_type": "type-PF"}',
  '{"name": "nic", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}',
]
"#;

#[tokio::test]
async fn what_the_host_lives_on_is_refused_though_a_device_spec_matches_everything() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, live_on).await;
    // Another NVMe is given.
    service.attach(Q35, "spare:1").await.expect(200);
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    assert!(refused.message().contains("0000:07:00.0"), "{}", refused.message());
    assert!(refused.message().contains("root-filesystem"), "{}", refused.message());

    let refused = service.attach(Q35, "nic:1").await.expect(409);
    for says in ["0000:05:00.0", "network-route"] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert_eq!(service.attachments(Q35).await.len(), 1);
}

#[tokio::test]
async fn a_guard_is_overridden_by_name_with_a_warning() {
    let config = EVERYTHING.replace("alias =", "unguarded = ['node1/0000:07:00.0']\nalias =");
    let service = Hotslot::bare(&host("small"), &config, live_on).await;
    assert!(service.log().contains("0000:07:00.0 is offered even if the host needs it"), "{}", service.log());
    service.attach(Q35, "nvme:1").await.expect(200);
}

/// A host that is another machine.
fn far_away(host: &std::path::Path) {
    let file = host.join("host.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, text.replace("# remote = true", "remote = true")).unwrap();
}

#[tokio::test]
async fn of_a_remote_host_what_may_carry_it_is_offered_only_by_its_address() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, far_away).await;
    for (alias, address) in [("nvme", "0000:07:00.0"), ("nic", "0000:05:00.0"), ("spare", "0000:08:00.0")] {
        let refused = service.attach(Q35, &format!("{alias}:1")).await.expect(409);
        for says in [
            address,
            "may need",
            "cannot be evaluated for a remote host",
            "name its address in a device_spec",
        ] {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
    }
    // VFs are made to be given away.
    service.attach(Q35, "vf:1").await.expect(200);
    let explained = service.get("/v2.1/os-hypervisors/node1/pci_devices/0000:07:00.0").await.expect(200).body
        ["pci_device"]
        .clone();
    assert_eq!(explained["offered"], false);
    assert_eq!(explained["guards"][0]["kind"], "unseen", "{explained}");
    assert!(explained["withheld"].as_str().unwrap().contains("0000:07:00.0"), "{explained}");

    let named = EVERYTHING
        .replace("['{}']", r#"['{"address": "0000:07:00.0"}', '{"address": "*:05:00.*"}', '{}']"#)
        .replace("alias =", "unguarded = ['node1/0000:08:00.0']\nalias =");
    let service = Hotslot::bare(&host("small"), &named, far_away).await;
    service.attach(Q35, "nvme:1").await.expect(200);
    service.attach(Q35, "spare:1").await.expect(200);
    // A pattern is no address.
    let refused = service.attach(Q35, "nic:1").await.expect(409);
    assert!(refused.message().contains("0000:05:00.0"), "{}", refused.message());
}

async fn dry_run(service: &Hotslot, server: &str, aliases: &str) -> Value {
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": aliases, "dry_run": true } });
    service.post(&attachments(server), body).await.expect(200).body["dry_run"].clone()
}

fn result<'a>(run: &'a Value, check: &str, device: Option<&str>) -> &'a Value {
    let checks = run["checks"].as_array().unwrap();
    let found = checks
        .iter()
        .find(|line| line["check"] == check && device.is_none_or(|device| line["device"] == device));
    &found.unwrap_or_else(|| panic!("no check {check} of {device:?}: {run:#}"))["result"]
}

#[tokio::test]
async fn a_dry_run_lists_every_check_and_touches_nothing() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, live_on).await;
    let run = dry_run(&service, Q35, "vf:2").await;
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert_eq!(run["pci_devices"][1]["address"], "0000:04:10.2");
    for check in ["device-spec", "state", "guard", "group-viable", "reset"] {
        assert_eq!(result(&run, check, Some("0000:04:10.2")), "pass", "{check}: {run:#}");
    }
    for check in ["server-state", "free-port"] {
        assert_eq!(result(&run, check, None), "pass", "{check}");
    }

    // One of the two is needed by the host.
    let run = dry_run(&service, Q35, "nvme:1,spare:1").await;
    assert_eq!(run["would_attach"], false);
    assert_eq!(run["pci_devices"], json!([]));
    assert_eq!(result(&run, "guard", Some("0000:07:00.0")), "fail");
    assert_eq!(result(&run, "guard", Some("0000:08:00.0")), "pass");
    let cures = run["checks"].as_array().unwrap().iter().filter(|check| check["result"] == "fail");
    for check in cures.filter(|check| check["check"] == "guard") {
        assert!(check["cure"].as_str().is_some_and(|cure| cure.contains("unguarded")), "{check}");
    }
    service.expect_clean().await;
    assert!(!service.log().contains("asked the guest"));
}

#[tokio::test]
async fn a_group_with_a_busy_sibling_is_refused_and_given_whole_when_asked() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"address\": \"*:06:00.*\"}']\n\
         alias = ['{\"name\": \"pair\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n",
        |_| (),
    )
    .await;
    let refused = service.attach(Q35, "pair:1").await.expect(409);
    assert!(refused.message().contains("IOMMU group 18"), "{}", refused.message());
    assert_eq!(service.functions().await["0000:06:00.1"]["driver"], "e1000e", "nothing was touched");
    assert!(refused.message().contains("virsh nodedev-detach pci_0000_06_00_1"), "{}", refused.message());
    // The advice works at once, though no event tells of a driver; and whoever took it has to give it back.
    service.sim("device driver 0000:06:00.1 vfio-pci");
    let one = service.attach(Q35, "pair:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(one["address"], "0000:06:00.0");
    service.delete(&path(&one)).await.expect(200);
    service.sim("device driver 0000:06:00.1 e1000e");

    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "pair:1", "whole_group": true } });
    let answer = service.post(&attachments(Q35), body).await.expect(200).body;
    let devices = answer["pci_devices"].as_array().unwrap();
    let of = |key: &str| devices.iter().map(|device| device[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("address"), ["0000:06:00.0", "0000:06:00.1"]);
    assert_eq!(of("whole_group"), [true, true]);
    service.delete(&path(&devices[0])).await.expect(200);
    // The other half is still in the guest: the group must not meet a host driver.
    assert_eq!(service.functions().await["0000:06:00.0"]["driver"], "vfio-pci");
    service.delete(&path(&devices[1])).await.expect(200);
    service
        .until("both are with their host driver again", async || {
            let functions = service.functions().await;
            ["0000:06:00.0", "0000:06:00.1"].iter().all(|address| functions[*address]["driver"] == "e1000e")
        })
        .await;
    service.expect_clean().await;
}

/// The card with two functions in one IOMMU group, both with a host driver, and nothing else.
const CARD: &str = "[pci]\ndevice_spec = ['{\"address\": \"*:06:00.*\"}']\n\
                    alias = ['{\"name\": \"a1\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n";

async fn candidates(service: &Hotslot, query: &str) -> Vec<Value> {
    let path = format!("/v2/demo/os-hypervisors/1/pci_candidates?{query}");
    let body = service.get(&path).await.expect(200).body;
    let listed = |line: &&Value| line["address"].as_str().unwrap().starts_with("0000:06:00.");
    body["pci_candidates"].as_array().unwrap().iter().filter(listed).cloned().collect()
}

#[tokio::test]
async fn a_dry_run_names_who_holds_a_member_of_the_group_and_not_to_unbind_it() {
    let service = Hotslot::bare(&host("small"), CARD, |_| ()).await;
    let uuid = service.device("0000:06:00.1").await["uuid"].clone();
    let body = json!({ "name": "a", "uuid": uuid });
    service.post("/accelerators", body).await.expect(201);
    let path = format!("/accelerators/{}", uuid.as_str().unwrap());
    service.put(&path, json!({})).await.expect(200);
    let run = dry_run(&service, Q35, "a1:1").await;
    assert_eq!((&run["would_attach"], result(&run, "choice", None)), (&json!(false), &json!("fail")));
    let viable =
        run["checks"].as_array().unwrap().iter().find(|line| line["check"] == "group-viable").unwrap();
    assert_eq!((&viable["result"], &viable["cure"]), (&json!("fail"), &json!(null)));
    let message = viable["message"].as_str().unwrap();
    assert!(message.contains("its member 0000:06:00.1 is held by its host; detach it there"), "{message}");
    service.delete(&path).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_for_all_busy_functions_of_a_group_takes_them_without_a_flag() {
    let service = Hotslot::bare(&host("small"), CARD, |_| ()).await;
    // One alone is refused, and what helps comes in this order.
    let refused = service.attach(Q35, "a1:1").await.expect(409);
    let place = |text: &str| {
        refused.message().find(text).unwrap_or_else(|| panic!("no {text}: {}", refused.message()))
    };
    let helps =
        ["not viable", "whole_group", "ask for 2", "virsh nodedev-detach pci_0000_06_00_1"].map(place);
    assert!(helps.is_sorted(), "{}", refused.message());
    let run = dry_run(&service, Q35, "a1:1").await;
    assert_eq!((&run["would_attach"], result(&run, "group-viable", None)), (&json!(false), &json!("fail")));
    let cures = run["checks"].as_array().unwrap().iter().filter_map(|check| check["cure"].as_str());
    assert!(cures.into_iter().any(|cure| cure.starts_with("ask with whole_group")), "{run:#}");
    let why = candidates(&service, "alias=a1").await;
    assert!(
        why.iter().all(|line| line["why"].as_str().is_some_and(|why| why.contains("ask for 2"))),
        "{why:?}"
    );

    let run = dry_run(&service, Q35, "a1:2").await;
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert_eq!(result(&run, "group-viable", Some("0000:06:00.0")), "pass");
    let places: Vec<_> = candidates(&service, "alias=a1&count=2").await;
    assert_eq!(places.iter().map(|line| line["place"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(service.functions().await["0000:06:00.1"]["driver"], "e1000e", "nothing was touched");

    let answer = service.attach(Q35, "a1:2").await.expect(200).body;
    let devices = answer["pci_devices"].as_array().unwrap();
    assert_eq!(
        devices.iter().map(|device| device["address"].clone()).collect::<Vec<_>>(),
        ["0000:06:00.0", "0000:06:00.1"]
    );
    // With everything in use no other way of asking helps.
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "a1:1", "whole_group": true } });
    let refused = service.post(&attachments(Q35), body).await.expect(400);
    assert!(refused.message().contains("detach one"), "{}", refused.message());
    assert!(!refused.message().contains("without whole_group"), "{}", refused.message());

    service.delete(&path(&devices[0])).await.expect(200);
    // The other half is still in the guest: the group must not meet a host driver.
    assert_ne!(service.functions().await["0000:06:00.0"]["driver"], "e1000e");
    service.delete(&path(&devices[1])).await.expect(200);
    service
        .until("both are with their host driver again", async || {
            let functions = service.functions().await;
            ["0000:06:00.0", "0000:06:00.1"].iter().all(|address| functions[*address]["driver"] == "e1000e")
        })
        .await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_group_is_taken_whole_when_nothing_else_makes_up_the_number() {
    let service = Hotslot::on("small").await;
    // One device is alone in its group; two are the card, three are all.
    for (count, wanted) in [
        (1, vec!["0000:05:00.0"]),
        (2, vec!["0000:06:00.0", "0000:06:00.1"]),
        (3, vec!["0000:05:00.0", "0000:06:00.0", "0000:06:00.1"]),
    ] {
        let answer = service.attach(Q35, &format!("e1000e:{count}")).await.expect(200).body;
        let devices = answer["pci_devices"].as_array().unwrap();
        let of = devices.iter().map(|device| device["address"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(of, wanted);
        for device in devices {
            service.delete(&path(device)).await.expect(200);
        }
        service
            .until("all are with their host driver again", async || {
                let functions = service.functions().await;
                wanted.iter().all(|address| functions[*address]["driver"] == "e1000e")
            })
            .await;
    }
    service.expect_clean().await;
}

const NICS: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "pf", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',
]
"#;

/// Makes a vDPA device of the first VF, which the running guest i440fx has by its character device.
fn with_vdpa(host: &Path) {
    let node = "<device><name>vdpa_vdpa0</name>\
                <path>/sys/devices/pci0000:00/0000:00:10.0/0000:04:10.0/vdpa0</path>\
                <parent>pci_0000_04_10_0</parent><driver><name>vhost_vdpa</name></driver>\
                <capability type='vdpa'><chardev>/dev/vhost-vdpa-0</chardev></capability></device>";
    std::fs::write(host.join("devices/vdpa_vdpa0.xml"), node).unwrap();
    let domain = host.join("domains/i440fx.xml");
    let text = std::fs::read_to_string(&domain).unwrap();
    let interface = "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface></devices>";
    std::fs::write(&domain, text.replace("</devices>", interface)).unwrap();
}

#[tokio::test]
async fn a_vf_that_carries_a_vdpa_device_is_vdpa_and_given_to_nobody() {
    let service = Hotslot::bare(&host("small"), NICS, with_vdpa).await;
    let vf = service.device("0000:04:10.0").await;
    assert_eq!(
        (&vf["dev_type"], &service.device("0000:04:10.2").await["dev_type"]),
        (&json!("vdpa"), &json!("type-VF"))
    );
    let function = service.functions().await["0000:04:10.0"].clone();
    assert_eq!(function["dev_type"], "vdpa");
    assert_eq!(
        (&function["vdpa"], &function["foreign"]["domain"]),
        (&json!(["/dev/vhost-vdpa-0"]), &json!("i440fx"))
    );

    let shown = service.get("/v2/demo/os-hypervisors/1/pci_devices/0000:04:10.0").await.expect(200).body;
    let withheld = shown["pci_device"]["withheld"].as_str().unwrap();
    assert!(withheld.contains("in domain i440fx") && !withheld.contains("vdpa dev del"), "{withheld}");

    // The other VF is given, this one is not.
    service.attach(Q35, "vf:2").await.expect(400);
    let other = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(other["address"], "0000:04:10.2");
    service.delete(&path(&other)).await.expect(200);
    // Nor is its PF, which would take it from the guest.
    let refused = service.attach(Q35, "pf:1").await.expect(409);
    assert!(refused.message().contains("in domain i440fx"), "{}", refused.message());

    let why = service.get("/v2/demo/os-hypervisors/1/pci_candidates?alias=vf").await.expect(200).body;
    let line =
        why["pci_candidates"].as_array().unwrap().iter().find(|line| line["address"] == "0000:04:10.0");
    let why = line.unwrap()["why"].as_str().unwrap();
    assert!(why.contains("in domain i440fx") && !why.contains("vdpa dev del"), "{why}");
    let asked =
        json!({ "alias": { "name": "v", "vendor_id": "8086", "product_id": "10ca", "device_type": "vdpa" } });
    let refused = service.post("/v2.1/os-pci-config/alias", asked).await.expect(400);
    assert!(refused.message().contains("only network ports do"), "{}", refused.message());
    service.expect_clean().await;
}

#[tokio::test]
async fn what_nova_records_of_a_nic_is_recorded() {
    let service = Hotslot::bare(&host("small"), NICS, |host| {
        // A VF whose PF has no address is a plain function to Nova; the host starts all the same.
        let document = host.join("devices/pci_0000_04_10_2.xml");
        let text = std::fs::read_to_string(&document).unwrap();
        let address = "<address domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>";
        let (before, after) = text.split_once("phys_function'>").unwrap();
        let bare = format!("{before}phys_function'>{}", after.replacen(address, "", 1));
        assert_ne!(bare, text);
        std::fs::write(&document, bare).unwrap();
    })
    .await;
    let pf = service.device("0000:04:00.0").await;
    assert_eq!(pf["extra_info"]["mac_address"], "52:54:00:aa:00:01");
    assert_eq!(pf["extra_info"]["capabilities"], Value::Null);
    let vf = service.device("0000:04:10.0").await;
    let capabilities: Value =
        serde_json::from_str(vf["extra_info"]["capabilities"].as_str().unwrap()).unwrap();
    assert_eq!(
        capabilities,
        json!({
            "network": ["rx", "tx", "sg", "tso", "gso", "gro", "rxvlan", "txvlan", "txudptnl"],
            "sriov": { "pf_mac_address": "52:54:00:aa:00:01", "vf_num": 0 },
        })
    );
    assert_eq!(vf["extra_info"]["mac_address"], Value::Null, "that is a PF's");
    assert_eq!(service.device("0000:04:10.2").await["dev_type"], "type-PCI");

    // What a guest has keeps what was known of it, and pools do not tell devices apart by it.
    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let extra_info = &service.device("0000:04:10.0").await["extra_info"];
    assert_eq!(extra_info["capabilities"], vf["extra_info"]["capabilities"]);
    let groups = service.get("/v2.1/os-pci-config/group").await.expect(200).body.to_string();
    assert!(!groups.contains("capabilities") && !groups.contains("mac_address"), "{groups}");
    service.delete(&path(&attached)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_network_vf_carries_its_mac_and_vlan() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = [\
         '{\"address\": \"0000:04:10.0\", \"physical_network\": \"physnet1\", \"trusted\": \"true\"}',\
         '{\"vendor_id\": \"8086\"}']\n\
         alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}',\
         '{\"name\": \"pf\", \"vendor_id\": \"8086\", \"product_id\": \"10c9\", \"device_type\": \"type-PF\"}']\n",
        |_| (),
    )
    .await;
    let ask = async |alias: &str, keys: Value| {
        let mut body = json!({ "pci_passthrough:alias": alias });
        body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        service.post(&attachments(Q35), json!({ "pciAttachment": body })).await
    };
    let keys = json!({
        "mac_address": "52:54:00:12:34:56", "vlan": 42, "physical_network": "physnet1", "trusted": true,
    });
    let answer = ask("vf:1", keys).await.expect(200).body;
    let vf = &answer["pci_devices"][0];
    assert_eq!((&vf["address"], &vf["mac_address"]), (&json!("0000:04:10.0"), &json!("52:54:00:12:34:56")));
    assert_eq!((&vf["vlan"], &vf["physical_network"]), (&json!(42), &json!("physnet1")));
    let documents = service.documents();
    assert!(documents.contains("<interface type='hostdev'"), "{documents}");
    assert!(documents.contains("52:54:00:12:34:56") && documents.contains("<tag id='42'/>"), "{documents}");

    let refused = ask("vf:1", json!({ "mac_address": "52:54:00:12:34:56" })).await.expect(409);
    assert!(refused.message().contains("take another"), "{}", refused.message());
    ask("vf:1", json!({ "physical_network": "physnet1" })).await.expect(400);
    ask("pf:1", json!({ "vlan": 1 })).await.expect(400);
    // Without a MAC one is made up.
    let answer = ask("vf:1", json!({ "vlan": 7 })).await.expect(200).body;
    assert!(answer["pci_devices"][0]["mac_address"].as_str().unwrap().starts_with("fa:16:3e:"));

    service.delete(&path(vf)).await.expect(200);
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn os_pci_is_narrowed_and_comes_in_pages() {
    let service = Hotslot::on("small").await;
    let ids = async |query: &str| -> Vec<i64> {
        let body = service.get(&format!("/v2.1/os-pci?{query}")).await.expect(200).body;
        body["pci_devices"].as_array().unwrap().iter().map(|device| device["id"].as_i64().unwrap()).collect()
    };
    let all = ids("").await;
    assert!(all.is_sorted() && all.len() > 4);
    let mut paged = Vec::new();
    let mut url = Some("/v2.1/os-pci/detail?limit=3&vendor_id=8086".to_owned());
    while let Some(path) = url {
        let body = service.get(&path).await.expect(200).body;
        let page = body["pci_devices"].as_array().unwrap();
        assert!(page.len() <= 3);
        paged.extend(page.iter().map(|device| device["id"].as_i64().unwrap()));
        let link = &body["pci_devices_links"][0];
        assert!(link.is_null() || link["rel"] == "next");
        url = link["href"].as_str().map(|href| href.replace(service.url(), ""));
    }
    assert_eq!(paged, ids("vendor_id=8086").await);

    service.attach(SWITCH, "vf:1").await.expect(200);
    let vf = service.device("0000:04:10.0").await;
    for query in [
        format!("instance_uuid={SWITCH}"),
        format!("server_uuid={SWITCH}"),
        "status=allocated".into(),
        "address=0000:04:10.0".into(),
        "dev_type=type-VF&status=allocated&host=node1&product_id=10ca".into(),
        "phys_function=0000:04:00.0&status=allocated".into(),
    ] {
        assert_eq!(ids(&query).await, [vf["id"].as_i64().unwrap()], "{query}");
    }
    assert_eq!(ids("host=node2").await, [0i64; 0]);
    assert_eq!(ids("rack=7").await, [0i64; 0]);
    let uuid = vf["uuid"].as_str().unwrap();
    assert_eq!(service.get(&format!("/v3/os-pci/{uuid}")).await.expect(200).body["pci_device"], vf);
    assert_eq!(ids(&format!("marker={uuid}&limit=1")).await.len(), 1);
}

#[tokio::test]
async fn a_device_for_one_use_waits_to_be_cleaned() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\nreport_in_placement = true\n\
         device_spec = ['{\"vendor_id\": \"1234\", \"one_time_use\": \"true\"}']\n\
         alias = ['{\"name\": \"edu\", \"vendor_id\": \"1234\", \"product_id\": \"11e8\"}']\n",
        |_| (),
    )
    .await;
    let all = service.get("/v2.1/os-pci?status=available").await.expect(200).body["pci_devices"].clone();
    let edu = &all[0];
    let answer = service.attach(I440FX, "edu:1").await.expect(200).body;
    let held = service.device(edu["address"].as_str().unwrap()).await;
    let refused =
        service.post(&format!("/v2.1/os-pci/{}/action", held["id"]), json!({ "cleaned": null })).await;
    assert!(refused.expect(409).message().contains("is allocated: detach it"));
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    let used = service.device(edu["address"].as_str().unwrap()).await;
    assert!(used["used_at"].is_string(), "{used}");
    let cleaned = format!("/v2.1/os-pci/{}/action", used["id"]);
    if all.as_array().unwrap().len() == 1 {
        let refused = service.attach(I440FX, "edu:1").await.expect(409);
        assert!(refused.message().contains("one_time_use"), "{}", refused.message());
    }
    service.post(&cleaned, json!({ "clean": null })).await.expect(400);
    let answer = service.post(&cleaned, json!({ "cleaned": null })).await.expect(200).body;
    assert_eq!(answer["pci_device"]["used_at"], Value::Null);
    service.post(&cleaned, json!({ "cleaned": null })).await.expect(200);
    service.attach(I440FX, "edu:1").await.expect(200);
}

#[tokio::test]
async fn it_is_explained_why_a_device_is_offered_or_not_and_what_an_alias_would_take() {
    let service = Hotslot::bare(
        &host("small"),
        &EVERYTHING.replace("'{}'", "'{\"vendor_id\": \"10de\"}', '{}', '{\"vendor_id\": \"8086\"}'"),
        live_on,
    )
    .await;
    let device = async |address: &str| {
        let path = format!("/v2.1/os-hypervisors/node1/pci_devices/{address}");
        service.get(&path).await.expect(200).body["pci_device"].clone()
    };
    let disk = device("0000:07:00.0").await;
    assert_eq!((&disk["offered"], &disk["status"]), (&json!(false), &json!("available")));
    assert_eq!(disk["guards"], json!([{ "kind": "root-filesystem", "reason": "/ on nvme0n1p1" }]));
    let of = |key: &str| -> Vec<Value> {
        disk["whitelist"].as_array().unwrap().iter().map(|line| line[key].clone()).collect()
    };
    assert_eq!(of("matches"), [false, true, false]);
    assert_eq!(of("counts"), [false, true, false]);
    assert_eq!(of("why")[0], "its vendor_id is 1b36, not 10de");

    let vf = device("0000:04:10.0").await;
    assert_eq!((&vf["offered"], &vf["reset_methods"]), (&json!(true), &json!(["flr", "bus"])));
    assert_eq!((&vf["pool"]["count"], &vf["pool"]["address"]), (&json!(2), &json!("0000:04:00.0")));
    let half = device("0000:06:00.0").await;
    assert!(half["withheld"].as_str().unwrap().contains("IOMMU group 18"), "{half}");
    assert_eq!(half["group_members"][1]["driver"], "e1000e");
    let port = device("0000:00:14.0").await;
    assert!(port["whitelist"][1]["why"].as_str().unwrap().contains("bridge"), "{port}");

    let path = "/v2.1/os-hypervisors/node1/pci_candidates";
    let lines = service.get(&format!("{path}?alias=vf")).await.expect(200).body["pci_candidates"].clone();
    let lines = lines.as_array().unwrap();
    assert_eq!((&lines[0]["address"], &lines[0]["place"]), (&json!("0000:04:10.0"), &json!(0)));
    assert_eq!((&lines[1]["address"], &lines[1]["place"]), (&json!("0000:04:10.2"), &json!(1)));
    assert!(lines[2..].iter().all(|line| line["place"].is_null() && line["why"].is_string()), "{lines:?}");
    let nic = service.get(&format!("{path}?alias=nic&server={Q35}")).await.expect(200).body;
    let line = nic["pci_candidates"].as_array().unwrap().iter().find(|it| it["address"] == "0000:05:00.0");
    assert!(line.unwrap()["why"].as_str().unwrap().contains("network-route"), "{nic}");
    service.get(&format!("{path}?alias=gpu")).await.expect(400);
    service.get("/v2.1/os-hypervisors/node1/pci_devices/0000:99:00.0").await.expect(404);
}

#[tokio::test]
async fn a_function_that_nothing_lists_is_explained_too() {
    for pci in ["", "device_spec = ['{\"product_id\": \"10d3\"}']\n"] {
        let alias = r#"alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}']"#;
        let service = Hotslot::bare(&host("small"), &format!("[pci]\n{pci}{alias}\n"), |_| ()).await;
        let path = "/v2.1/os-hypervisors/node1/pci_candidates?alias=vf";
        let lines = service.get(path).await.expect(200).body["pci_candidates"].clone();
        let why = |address: &str| {
            let line = lines.as_array().unwrap().iter().find(|line| line["address"] == address);
            line.map(|line| (line["place"].clone(), line["why"].clone()))
        };
        assert_eq!(why("0000:04:10.0"), Some((Value::Null, json!("no device_spec lists it"))));
        assert_eq!(why("0000:00:10.0"), None, "a root port");
    }
}

#[tokio::test]
async fn of_the_alternatives_the_guest_gets_one_that_it_has_a_port_for() {
    let service = Hotslot::on("small").await;
    for (vendor, product) in [("1234", "11e8"), ("8086", "10d3")] {
        let alias = json!({ "alias": { "name": "mixed", "vendor_id": vendor, "product_id": product } });
        service.post("/v2.1/os-pci-config/alias", alias).await.expect(201);
    }
    let first = async |query: &str| {
        let path = format!("/v2.1/os-hypervisors/node1/pci_candidates?alias=mixed{query}");
        service.get(&path).await.expect(200).body["pci_candidates"].clone()
    };
    assert_eq!(first("").await[0]["address"], "0000:00:1d.0", "a conventional one");
    let explained = first(&format!("&server={Q35}")).await;
    assert_eq!(explained[0]["address"], "0000:05:00.0");
    let line = explained.as_array().unwrap().iter().find(|line| line["address"] == "0000:00:1d.0");
    assert_eq!(line.unwrap()["why"], "the guest has no free hot-plug port for conventional PCI devices");
    let refused = service.attach(Q35, "edu:1").await.expect(409);
    assert!(refused.message().contains("a pcie-to-pci-bridge controller"), "{}", refused.message());
    let one = service.attach(Q35, "mixed:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(one["address"], "0000:05:00.0");
}

#[tokio::test]
async fn a_device_that_is_named_by_its_interface_is_followed_as_that_comes_and_goes() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"devname\": \"eth0\"}']\n\
         alias = ['{\"name\": \"nic\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n",
        |_| (),
    )
    .await;
    let listed = async || {
        let body = service.get("/v2.1/os-pci").await.expect(200).body;
        body["pci_devices"].as_array().unwrap().len()
    };
    assert_eq!(listed().await, 1);
    let id = service.device("0000:05:00.0").await["id"].clone();
    // With a guest it has no interface, and is the same device all the time.
    let answer = service.attach(Q35, "nic:1").await.expect(200).body;
    assert_eq!(service.device("0000:05:00.0").await["gone_at"], Value::Null);
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    assert_eq!(service.device("0000:05:00.0").await["id"], id);
    // Its driver comes back a moment later, and would undo what is done to it before.
    let back = async || service.functions().await["0000:05:00.0"]["driver"] == "e1000e";
    service.until("its driver is back", back).await;
    for (line, count) in [("device driver pci_0000_05_00_0", 0), ("device driver pci_0000_05_00_0 e1000e", 1)]
    {
        service.sim(line);
        service.until(line, async || listed().await == count).await;
    }
}

#[tokio::test]
async fn a_one_time_device_that_may_have_been_in_a_guest_is_used() {
    const EDU: &str = "0000:00:1d.0";
    let pci = "[pci]\nreport_in_placement = true\n\
               device_spec = ['{\"vendor_id\": \"1234\", \"one_time_use\": \"true\", \"address\": \"0000:00:1d.0\"}']\n\
               alias = ['{\"name\": \"edu\", \"vendor_id\": \"1234\", \"product_id\": \"11e8\"}']\n";
    // What befalls the attach, and whether the guest may have had the device.
    for (fault, used) in [
        ("fail text=refused", false),
        ("fail kind=no-free-port text=full", false),
        ("fail at=between text=the-definition-cannot-be-written", true),
        ("fail at=after text=refused-after-all", true),
        ("crash at=before", false),
        ("crash at=after", true),
        ("kill at=before", true),
        ("kill at=after", true),
    ] {
        let mut service = Hotslot::bare(&host("small"), pci, |_| ()).await;
        service.sim(&format!("fault attach {fault}"));
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": "edu:1" } }).to_string();
        let body = Some(("application/json", body));
        let answer = service.try_send(reqwest::Method::POST, &attachments(I440FX), body).await;
        assert!(answer.as_ref().is_none_or(|answer| answer.status != 200), "{fault}: {answer:?}");
        if answer.is_none() {
            assert!(service.ended(std::time::Duration::from_secs(10)).await);
            service.start_again().await;
            // What came of it all the same is given back.
            for row in service.attachments(I440FX).await {
                service.delete(&path(&row)).await.expect(200);
            }
        }
        let is_free = async || service.device(EDU).await["status"] == "available";
        service.until("it is free", is_free).await;
        let device = service.device(EDU).await;
        assert_eq!(device["used_at"].is_string(), used, "{fault}: {device:#}");
        let ended = service.get("/v2/t/os-pci_attachments?ended=true").await.expect(200).body;
        let reason = ended["pciAttachment"][0]["status_reason"].as_str().unwrap_or_default().to_owned();
        assert!(!reason.contains("before the device was plugged"), "{fault}: {reason}");
    }
}
