//! Functions that are on VFIO by a driver of their own, such as the manager of virtual GPUs.

use std::fs;
use std::path::Path;

use hotslot_tests::{Hotslot, Q35, host, path};

use super::explain::{dry_run, result};
use super::guards::live_on;

/// Offers both VFs: the first is bound by the operator, the second by libvirt.
const VGPUS: &str = r#"
[pci]
device_spec = ['{"address": "0000:04:10.0", "managed": "false"}', '{"address": "0000:04:10.2"}']
alias = ['{"name": "vgpu", "vendor_id": "8086", "product_id": "10ca"}']
"#;

/// Binds both VFs to another driver than igbvf.
fn bind_vfs(host: &Path, driver: &str) {
    for vf in ["pci_0000_04_10_0", "pci_0000_04_10_2"] {
        let file = host.join("devices").join(vf).with_extension("xml");
        let document = fs::read_to_string(&file).unwrap();
        assert!(document.contains("<name>igbvf</name>"), "{document}");
        fs::write(file, document.replace("<name>igbvf</name>", &format!("<name>{driver}</name>"))).unwrap();
    }
}

/// Captured files of a kernel that shows a VFIO device for both VFs.
fn shown_by_the_kernel(host: &Path) {
    for vf in ["0000:04:10.0", "0000:04:10.2"] {
        fs::create_dir_all(host.join("root/sys/bus/pci/devices").join(vf).join("vfio-dev/vfio0")).unwrap();
    }
}

#[tokio::test]
async fn a_virtual_gpu_is_attached_as_it_is_and_never_taken_from_its_manager() {
    for driver in ["nvidia", "xe-vfio-pci"] {
        let service = Hotslot::bare(&host("small"), VGPUS, |host| bind_vfs(host, driver)).await;
        let one = service.attach(Q35, "vgpu:1").await.expect(200).body["pci_devices"][0].clone();
        assert_eq!(one["address"], "0000:04:10.0", "the one that libvirt leaves on its driver");
        assert!(service.documents().contains("managed='no'"));
        assert_eq!(service.functions().await["0000:04:10.0"]["driver"], driver);
        let refused = service.attach(Q35, "vgpu:1").await.expect(409);
        for says in
            ["0000:04:10.2", driver, "libvirt would bind vfio-pci in its place", r#""managed": "false""#]
        {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
        assert_eq!(service.functions().await["0000:04:10.2"]["driver"], driver, "nothing was changed");
        service.delete(&path(&one)).await.expect(200);
        assert_eq!(service.functions().await["0000:04:10.0"]["driver"], driver);
    }
}

#[tokio::test]
async fn the_kernel_tells_of_a_driver_whose_name_is_not_known() {
    let config = VGPUS.replace(r#", '{"address": "0000:04:10.2"}'"#, "");
    let change = |host: &Path| {
        live_on(host);
        bind_vfs(host, "acme_gpu");
        shown_by_the_kernel(host);
    };
    let service = Hotslot::bare(&host("small"), &config, change).await;
    let checks = dry_run(&service, Q35, "vgpu:1").await;
    assert_eq!(result(&checks, "driver", None), "pass", "{checks}");
    let one = service.attach(Q35, "vgpu:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(service.functions().await["0000:04:10.0"]["driver"], "acme_gpu");
    service.delete(&path(&one)).await.expect(200);
    // The operator binds it to a host driver: the kernel says that it is not on VFIO any more.
    service.sim("device driver 0000:04:10.0 igbvf");
    let refused = service.attach(Q35, "vgpu:1").await.expect(409);
    assert!(refused.message().contains("virsh nodedev-detach pci_0000_04_10_0"), "{}", refused.message());
}

#[tokio::test]
async fn on_a_remote_host_an_unknown_driver_is_left_to_libvirt() {
    let config = VGPUS.replace(r#", '{"address": "0000:04:10.2"}'"#, "");
    let change = |host: &Path| {
        bind_vfs(host, "acme_gpu");
        shown_by_the_kernel(host);
        let file = host.join("host.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace("# remote = true", "remote = true")).unwrap();
    };
    let service = Hotslot::bare(&host("small"), &config, change).await;
    let checks = dry_run(&service, Q35, "vgpu:1").await;
    assert_eq!(result(&checks, "driver", None), "unknown", "{checks}");
    // The simulated libvirt knows no more than the name either, and refuses it.
    let refused = service.attach(Q35, "vgpu:1").await.expect(409);
    assert!(refused.message().contains("must be manually detached"), "{}", refused.message());
    service.expect_clean().await;

    // Nor is it known whether libvirt would take a virtual GPU from its manager. libvirt decides.
    let managed = config.replace(r#", "managed": "false""#, "");
    let service = Hotslot::bare(&host("small"), &managed, change).await;
    let checks = dry_run(&service, Q35, "vgpu:1").await;
    assert_eq!(result(&checks, "driver", None), "unknown", "{checks}");
    assert!(checks.to_string().contains("whether that driver makes a virtual GPU of it"), "{checks}");
    assert_eq!(checks["would_attach"], true);
    service.attach(Q35, "vgpu:1").await.expect(200);
}
