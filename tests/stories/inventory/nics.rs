//! Network functions: vDPA, what Nova records of a NIC, MAC addresses and VLANs, and devices named by their interface.

use std::fs;
use std::path::Path;

use hotslot_tests::{Hotslot, Q35, attachments, host, path};
use serde_json::{Value, json};

const NICS: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "pf", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',
]
"#;

/// Adds a vDPA device on the first VF, whose character device the running guest i440fx uses.
fn with_vdpa(host: &Path) {
    let node = "<device><name>vdpa_vdpa0</name>\
                <path>/sys/devices/pci0000:00/0000:00:10.0/0000:04:10.0/vdpa0</path>\
                <parent>pci_0000_04_10_0</parent><driver><name>vhost_vdpa</name></driver>\
                <capability type='vdpa'><chardev>/dev/vhost-vdpa-0</chardev></capability></device>";
    fs::write(host.join("devices/vdpa_vdpa0.xml"), node).unwrap();
    let domain = host.join("domains/i440fx.xml");
    let text = fs::read_to_string(&domain).unwrap();
    let interface = "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface></devices>";
    fs::write(&domain, text.replace("</devices>", interface)).unwrap();
}

#[tokio::test]
async fn a_vf_with_a_vdpa_device_is_not_assignable() {
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
    let unavailable = shown["pci_device"]["withheld"].as_str().unwrap();
    assert!(
        unavailable.contains("in domain i440fx") && !unavailable.contains("vdpa dev del"),
        "{unavailable}"
    );

    // The other VF is attached, and this one is not.
    service.attach(Q35, "vf:2").await.expect(400);
    let other = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(other["address"], "0000:04:10.2");
    service.delete(&path(&other)).await.expect(200);
    // The PF is refused too, because the guest would lose the VF.
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
    assert!(refused.message().contains("only network ports request vDPA devices"), "{}", refused.message());
    service.expect_clean().await;
}

/// Adds vDPA devices that no guest uses: on the first VF, and on a function that has no VFs (as the driver vp_vdpa does).
fn with_unused_vdpas(host: &Path) {
    for (number, parent) in [(0, "pci_0000_04_10_0"), (1, "pci_0000_05_00_0")] {
        let node = format!(
            "<device><name>vdpa_vdpa{number}</name><parent>{parent}</parent>\
             <capability type='vdpa'><chardev>/dev/vhost-vdpa-{number}</chardev></capability></device>"
        );
        fs::write(host.join(format!("devices/vdpa_vdpa{number}.xml")), node).unwrap();
    }
}

#[tokio::test]
async fn a_vdpa_device_keeps_its_function_and_the_pf_from_everybody() {
    let config = r#"
[pci]
device_spec = ['{"address": "*"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}',
  '{"name": "pf", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',
]
"#;
    let service = Hotslot::bare(&host("small"), config, with_unused_vdpas).await;
    let function = service.functions().await["0000:05:00.0"].clone();
    assert_eq!(function["vdpa"], json!(["/dev/vhost-vdpa-1"]));
    for (address, says) in [
        ("0000:04:10.0", "it carries a vDPA device"),
        ("0000:05:00.0", "it carries a vDPA device"),
        ("0000:04:00.0", "its VF 0000:04:10.0 would disappear with its driver, and it carries a vDPA device"),
    ] {
        let shown =
            service.get(&format!("/v2/demo/os-hypervisors/1/pci_devices/{address}")).await.expect(200).body;
        let unavailable = shown["pci_device"]["withheld"].as_str().unwrap_or_default();
        assert!(unavailable.contains(says) && unavailable.contains("vdpa dev del"), "{address}: {shown}");
    }
    let refused = service.attach(Q35, "pf:1").await.expect(409);
    assert!(refused.message().contains("its VF 0000:04:10.0 would disappear"), "{}", refused.message());
    for mut keys in [json!({}), json!({ "mac_address": "fa:16:3e:00:00:01" })] {
        keys["addresses"] = json!(["0000:04:10.0"]);
        let body = json!({ "pciAttachment": keys });
        let refused = service.post(&attachments(Q35), body).await.expect(409);
        for says in ["0000:04:10.0: it carries a vDPA device", "vdpa dev del"] {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
        let another = refused.message().matches("ask for another device").count();
        assert!(another == 1 && !refused.message().contains("requested addresses"), "{}", refused.message());
    }
    // It is nobody's to take, so it is not counted as free.
    let host = service.get("/v2.1/os-hypervisors/1").await.expect(200).body["hypervisor"].clone();
    let stats = host["pci_stats"].as_array().unwrap().iter();
    let of_vfs: Vec<_> =
        stats.filter(|stat| stat["product_id"] == "10ca").map(|stat| &stat["count"]).collect();
    assert_eq!(of_vfs, [1], "{host:#}");
    let one = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(one["address"], "0000:04:10.2");
    service.delete(&path(&one)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn extra_info_of_nics_matches_nova() {
    let service = Hotslot::bare(&host("small"), NICS, |host| {
        // A VF whose PF has no address is a plain function, as in Nova, and does not prevent the start.
        let document = host.join("devices/pci_0000_04_10_2.xml");
        let text = fs::read_to_string(&document).unwrap();
        let address = "<address domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>";
        let (before, after) = text.split_once("phys_function'>").unwrap();
        let bare = format!("{before}phys_function'>{}", after.replacen(address, "", 1));
        assert_ne!(bare, text);
        fs::write(&document, bare).unwrap();
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
    assert_eq!(vf["extra_info"]["mac_address"], Value::Null, "only a PF has a MAC address");
    assert_eq!(service.device("0000:04:10.2").await["dev_type"], "type-PCI");

    // A device in a guest keeps its recorded facts, and pools ignore these keys.
    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let extra_info = &service.device("0000:04:10.0").await["extra_info"];
    assert_eq!(extra_info["capabilities"], vf["extra_info"]["capabilities"]);
    let groups = service.get("/v2.1/os-pci-config/group").await.expect(200).body.to_string();
    assert!(!groups.contains("capabilities") && !groups.contains("mac_address"), "{groups}");
    service.delete(&path(&attached)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_network_vf_gets_its_mac_and_vlan() {
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
    assert!(refused.message().contains("choose another"), "{}", refused.message());
    ask("vf:1", json!({ "physical_network": "physnet1" })).await.expect(400);
    ask("pf:1", json!({ "vlan": 1 })).await.expect(400);
    // Without a MAC address, one is generated.
    let answer = ask("vf:1", json!({ "vlan": 7 })).await.expect(200).body;
    assert!(answer["pci_devices"][0]["mac_address"].as_str().unwrap().starts_with("fa:16:3e:"));

    service.delete(&path(vf)).await.expect(200);
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn devname_follows_the_network_interface() {
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
    // While it is in a guest, the NIC has no interface, but it is still the same device.
    let answer = service.attach(Q35, "nic:1").await.expect(200).body;
    assert_eq!(service.device("0000:05:00.0").await["gone_at"], Value::Null);
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    assert_eq!(service.device("0000:05:00.0").await["id"], id);
    // Wait until the driver is rebound, because that would undo the following changes.
    let back = async || service.functions().await["0000:05:00.0"]["driver"] == "e1000e";
    service.until("its driver is back", back).await;
    for (line, count) in [("device driver pci_0000_05_00_0", 0), ("device driver pci_0000_05_00_0 e1000e", 1)]
    {
        // hotslot may rebind the driver once more, so the change is repeated.
        let changed = async || {
            service.sim(line);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            listed().await == count
        };
        service.until(line, changed).await;
    }
}
