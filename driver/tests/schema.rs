//! Validates the rendered documents with libvirt's own schema. Needs `virt-xml-validate` (libvirt's client tools).

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::process::Command;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::net::VlanTag;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::xml::hostdev::{HostdevSpec, InterfaceSpec, MdevSpec, Pluggable, Templates};
use hotslot_driver::xml::mdev;
use uuid::Uuid;

/// Validates a domain with these devices; returns the result and the validator's output.
fn validate(devices: &str) -> (bool, String) {
    let domain = format!(
        "<domain type='kvm'><name>guest</name><memory>1048576</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\n{devices}\n</devices></domain>"
    );
    validate_as("domain", &domain)
}

/// Validates a document with one of libvirt's schemas; returns the result and the validator's output.
fn validate_as(schema: &str, document: &str) -> (bool, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document).unwrap();
    let output = Command::new("virt-xml-validate").arg(file.path()).arg(schema).output().expect(
        "virt-xml-validate must be installed (libvirt-clients, libxml2-utils): `tools/install build`",
    );
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

/// Renders every combination of an attach's settings.
fn every_document() -> Vec<String> {
    let templates = Templates::load(None).unwrap();
    let interface = |vlan: u32| InterfaceSpec {
        mac: "52:54:00:6d:90:02".parse().unwrap(),
        vlan: (vlan > 0).then(|| VlanTag::new(vlan).unwrap()),
    };
    let mut documents = Vec::new();
    for interface in [None, Some(interface(0)), Some(interface(1)), Some(interface(4094))] {
        for guest in [None, PciAddress::new(0, 0xff, 0x1f, 0).ok()] {
            for rom_bar in [None, Some(true), Some(false)] {
                for managed in [true, false] {
                    let spec = HostdevSpec {
                        source: PciAddress::new(0xffff, 0xff, 0x1f, 7).unwrap(),
                        alias: UserAlias(Uuid::max()),
                        managed,
                        rom_bar,
                        guest,
                        interface: interface.clone(),
                    };
                    documents.push(templates.render(&spec).unwrap());
                }
            }
        }
    }
    for guest in [None, PciAddress::new(0, 0xff, 0x1f, 0).ok()] {
        let mdev = MdevSpec { source: Uuid::max(), alias: UserAlias(Uuid::max()), guest };
        documents.push(mdev.render(&templates).unwrap());
    }
    documents
}

#[test]
fn every_rendered_document_is_valid_in_libvirts_schema() {
    let documents = every_document();
    assert_eq!(documents.len(), 50);
    let (valid, output) = validate(&documents.join("\n"));
    assert!(valid, "{output}");

    let (valid, output) = validate(&documents[0].replace("hostdev mode='subsystem'", "hostdev mode='sub'"));
    assert!(!valid, "the schema must refuse a wrong document: {output}");
}

#[test]
fn the_document_that_creates_a_mediated_device_is_valid_in_libvirts_schema() {
    let parent = PciAddress::new(0, 0x41, 0, 0).unwrap();
    let document = mdev::new(parent, "nvidia-232", Uuid::max()).unwrap();
    let (valid, output) = validate_as("nodedev", &document);
    assert!(valid, "{output}");
    let (valid, output) = validate_as("nodedev", &document.replace("<type ", "<typ "));
    assert!(!valid, "the schema must refuse a wrong document: {output}");
}
