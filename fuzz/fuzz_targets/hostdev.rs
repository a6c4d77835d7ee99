//! What a request can put into a hostdev document, as texts: `SOURCE ALIAS MANAGED ROM GUEST MAC VLAN`, separated by
//! newlines. Whatever of it is accepted, the domain has one device more, the one that was asked for.

#![no_main]

use std::sync::LazyLock;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::net::VlanTag;
use hotslot_driver::xml::domain;
use hotslot_driver::xml::hostdev::{HostdevSpec, InterfaceSpec, Templates};
use libfuzzer_sys::fuzz_target;

static TEMPLATES: LazyLock<Templates> =
    LazyLock::new(|| Templates::load(None).expect("the embedded templates"));

fn read(text: &str) -> Option<HostdevSpec> {
    let mut lines = text.split('\n');
    let source = lines.next()?.parse().ok()?;
    let alias = UserAlias::parse(lines.next()?)?;
    let flag = |word: &str| match word {
        "" => None,
        word => Some(word == "y"),
    };
    let (managed, rom_bar) = (flag(lines.next()?) == Some(true), flag(lines.next()?));
    let guest = lines.next().filter(|text| !text.is_empty()).map(str::parse).transpose().ok()?;
    let mac = lines.next().filter(|text| !text.is_empty()).map(str::parse).transpose().ok()?;
    let vlan = lines.next().and_then(|text| text.parse().ok()).and_then(|tag| VlanTag::new(tag).ok());
    let interface = mac.map(|mac| InterfaceSpec { mac, vlan });
    Some(HostdevSpec { source, alias, managed, rom_bar, guest, interface })
}

fuzz_target!(|text: &str| {
    let Some(spec) = read(text) else { return };
    let xml = TEMPLATES.render(&spec).expect("what was asked for");
    let uuid = "10000000-0000-4000-8000-000000000001";
    let os = "<os><type arch='x86_64'>hvm</type></os>";
    let xml = format!("<domain><name>g</name><uuid>{uuid}</uuid>{os}<devices>{xml}</devices></domain>");
    let domain = domain::parse(&xml).expect("a domain's document");
    let [hostdev] = &domain.hostdevs[..] else { panic!("one device was asked for: {xml}") };
    assert_eq!(hostdev.source, spec.source);
    assert_eq!(hostdev.alias, Some(spec.alias.to_string()));
    assert_eq!(hostdev.managed, spec.managed);
    assert_eq!(hostdev.interface, spec.interface.is_some());
    assert_eq!(hostdev.mac, spec.interface.as_ref().map(|interface| interface.mac));
    assert_eq!(hostdev.vlan, spec.interface.as_ref().and_then(|interface| interface.vlan));
    // An address of zeros is one that libvirt has yet to choose.
    let chosen = |guest: &hotslot_driver::pci::PciAddress| {
        guest.domain() != 0 || guest.bus() != 0 || guest.slot() != 0
    };
    assert_eq!(hostdev.guest, spec.guest.filter(chosen));
});
