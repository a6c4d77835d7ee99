//! A network VF as an interface: its MAC address and VLAN after the attach and after a power cycle of the guest.

use hotslot_driver::hotplug::{self, DetachLimits, Presence, Unplugged};
use hotslot_driver::net::VlanTag;
use hotslot_driver::xml::hostdev::{InterfaceSpec, Templates};

use super::*;

const LIMITS: DetachLimits = DetachLimits { attempts: 2, timeout: Duration::from_secs(1), total: None };

fn vf(device: &str, id: u128, mac: &str, vlan: Option<u32>) -> HostdevSpec {
    let vlan = vlan.map(|vlan| VlanTag::new(vlan).unwrap());
    HostdevSpec { interface: Some(InterfaceSpec { mac: mac.parse().unwrap(), vlan }), ..spec(device, id) }
}

/// Returns a guest's document (`live` or `persistent`) from the state directory.
fn kept(host: &Host, guest: Uuid, document: &str) -> String {
    let kept = fs::read_to_string(host.file(format!("state/domains/{guest}.json"))).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    kept[document].as_str().unwrap_or_default().to_owned()
}

async fn presence(host: &Host, spec: &HostdevSpec) -> Presence {
    Presence::of(&host.sim.domain(Q35).await.unwrap(), spec.alias)
}

#[tokio::test]
async fn an_interface_is_plugged_with_its_mac_and_vlan_and_unplugged_by_its_alias() {
    let host = Host::small();
    let templates = Templates::load(None).unwrap();
    let spec = vf(VF0, 1, "52:54:00:6d:90:02", Some(42));
    let plugged =
        hotplug::plug(host.sim.as_ref(), &templates, Q35, &spec, Scope::LiveAndConfig, LIMITS).await;
    let plugged = plugged.unwrap();
    assert!(plugged.live && plugged.config);
    assert_eq!(plugged.inner_address, Some(address("0000:02:00.0")));
    for document in ["live", "persistent"] {
        let text = kept(&host, Q35, document);
        assert!(text.contains("<mac address='52:54:00:6d:90:02'/>"), "{document}: {text}");
        assert!(text.contains("<tag id='42'/>"), "{document}: {text}");
        assert_eq!(text.matches("<interface type='hostdev' managed='yes'>").count(), 1, "{document}");
    }

    host.control("shutdown q35");
    assert!(presence(&host, &spec).await.config);
    host.control("start q35");
    let after = presence(&host, &spec).await;
    assert_eq!(
        (after.live, after.inner_address),
        (true, plugged.inner_address),
        "the address is the same after a power cycle"
    );
    assert!(kept(&host, Q35, "live").contains("<mac address='52:54:00:6d:90:02'/>"));

    let unplugged = hotplug::unplug(host.sim.as_ref(), &templates, Q35, &spec, true, LIMITS).await;
    assert_eq!(unplugged, Ok(Unplugged::Gone));
    assert!(presence(&host, &spec).await.is_absent());
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    for document in ["live", "persistent"] {
        assert!(!kept(&host, Q35, document).contains("<interface type='hostdev'"), "{document}");
    }
}

/// When the guest refuses to release an interface, it is added to the definition again with the same settings.
#[tokio::test(start_paused = true)]
async fn an_interface_that_the_guest_keeps_stays_unchanged_in_the_definition() {
    let host = Host::with("[guest.q35]\nunplug = 'refuse'");
    let templates = Templates::load(None).unwrap();
    let spec = vf(VF0, 1, "52:54:00:6d:90:02", Some(42));
    hotplug::plug(host.sim.as_ref(), &templates, Q35, &spec, Scope::LiveAndConfig, LIMITS).await.unwrap();
    let unplugged = hotplug::unplug(host.sim.as_ref(), &templates, Q35, &spec, true, LIMITS).await.unwrap();
    assert!(matches!(unplugged, Unplugged::Refused { .. }), "{unplugged:?}");
    let definition = kept(&host, Q35, "persistent");
    assert!(definition.contains("<mac address='52:54:00:6d:90:02'/>"), "{definition}");
    assert!(definition.contains("<tag id='42'/>"), "{definition}");
}

/// libvirt's QEMU driver does not compare MAC addresses, so that two interfaces of a guest may have the same one. Their
/// aliases distinguish them, also in a detach.
#[tokio::test]
async fn two_interfaces_may_have_the_same_mac() {
    let host = Host::small();
    let templates = Templates::load(None).unwrap();
    let specs = [vf(VF0, 1, "52:54:00:6d:90:02", None), vf(VF1, 2, "52:54:00:6d:90:02", Some(7))];
    for spec in &specs {
        hotplug::plug(host.sim.as_ref(), &templates, Q35, spec, Scope::Live, LIMITS).await.unwrap();
    }
    let unplugged = hotplug::unplug(host.sim.as_ref(), &templates, Q35, &specs[0], false, LIMITS).await;
    assert_eq!(unplugged, Ok(Unplugged::Gone));
    assert!(presence(&host, &specs[0]).await.is_absent());
    assert!(presence(&host, &specs[1]).await.live);
    assert!(kept(&host, Q35, "live").contains("<tag id='7'/>"));
}

#[tokio::test]
async fn only_a_vf_can_be_attached_as_an_interface() {
    let host = Host::small();
    let templates = Templates::load(None).unwrap();
    for device in [PF, E1000E] {
        let spec = vf(device, 1, "52:54:00:6d:90:02", None);
        let plugged = hotplug::plug(host.sim.as_ref(), &templates, Q35, &spec, Scope::Live, LIMITS).await;
        let (kind, text) = refused(plugged);
        assert_eq!(kind, ErrorKind::NotAssignable, "{device}: {text}");
        assert!(text.contains("SR-IOV Virtual Functions only"), "{device}: {text}");
    }
}
