use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::xml::domain;
use crate::xml::tree::Element;

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// A VF without any optional setting.
fn plain() -> HostdevSpec {
    HostdevSpec {
        source: at("0000:3b:02.1"),
        alias: UserAlias(Uuid::from_u128(0x0b5b_d9a1_51c0_4b13_9c6f_1a7f_6f4f_5d6c)),
        managed: true,
        rom_bar: None,
        guest: None,
        interface: None,
    }
}

fn interface() -> HostdevSpec {
    let interface = InterfaceSpec { mac: "52:54:00:6d:90:02".parse().unwrap(), vlan: VlanTag::new(42).ok() };
    HostdevSpec { interface: Some(interface), ..plain() }
}

/// Writes a directory of overrides.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

/// Returns the error of loading these overrides, without the directory's name.
fn refusal(files: &[(&str, &str)]) -> String {
    let directory = directory(files);
    let error = Templates::load(Some(directory.path())).unwrap_err().to_string();
    error.replace(&format!("{}/", directory.path().display()), "")
}

/// Returns the embedded template of this name with one part replaced.
fn embedded(name: &str, from: &str, to: &str) -> String {
    let (_, text) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name).unwrap();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn the_document_of_a_function_without_options() {
    let xml = Templates::load(None).unwrap().render(&plain()).unwrap();
    assert_eq!(
        xml,
        "<hostdev mode='subsystem' type='pci' managed='yes'>
  <source>
    <address domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>
  </source>
  <alias name='ua-0b5bd9a1-51c0-4b13-9c6f-1a7f6f4f5d6c'/>
</hostdev>"
    );
}

#[test]
fn the_document_of_a_network_vf_contains_its_mac_address_and_vlan() {
    let chosen =
        HostdevSpec { managed: false, rom_bar: Some(false), guest: Some(at("0000:05:00.0")), ..interface() };
    let xml = Templates::load(None).unwrap().render(&chosen).unwrap();
    assert_eq!(
        xml,
        "<interface type='hostdev' managed='no'>
  <mac address='52:54:00:6d:90:02'/>
  <source>
    <address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>
  </source>
  <vlan>
    <tag id='42'/>
  </vlan>
  <rom bar='off'/>
  <alias name='ua-0b5bd9a1-51c0-4b13-9c6f-1a7f6f4f5d6c'/>
  <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
</interface>"
    );
}

#[test]
fn the_document_of_a_mediated_device() {
    let [plain, placed] = &every_mdev().collect::<Vec<_>>()[..] else { panic!("two kinds") };
    let templates = Templates::load(None).unwrap();
    let xml = plain.render(&templates).unwrap();
    assert_eq!(
        xml,
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'>
  <source>
    <address uuid='7d444840-9dc0-41d1-b245-5ffdce74fad2'/>
  </source>
  <alias name='ua-6ba7b810-9dad-41d1-80b4-00c04fd430c8'/>
</hostdev>"
    );
    for spec in [plain, placed] {
        let guest = guest_with(&spec.render(&templates).unwrap());
        let mdev = guest.mdev(spec.alias).unwrap();
        assert_eq!((mdev.uuid, mdev.guest), (spec.source, spec.guest));
    }
}

fn guest_with(device: &str) -> crate::domain::DomainXml {
    domain::parse(&format!(
        "<domain><name>g</name><uuid>{}</uuid><os><type arch='x86_64'>hvm</type></os><devices>{device}</devices></domain>",
        Uuid::nil()
    ))
    .unwrap()
}

#[test]
fn a_rendered_document_reads_back_as_its_spec() {
    let templates = Templates::load(None).unwrap();
    let mut documents = HashSet::new();
    for spec in every_kind() {
        let xml = templates.render(&spec).unwrap();
        let guest = guest_with(&xml);
        let hostdev = guest.hostdev(spec.alias).unwrap();
        assert_eq!((hostdev.source, hostdev.guest), (spec.source, spec.guest));
        assert_eq!((hostdev.managed, hostdev.interface), (spec.managed, spec.interface.is_some()));
        documents.insert(xml);
    }
    assert_eq!(documents.len(), 36, "every kind renders a different document");
}

#[test]
fn an_override_replaces_only_the_template_of_its_name() {
    let boot_first = embedded(HOSTDEV, "  <source>", "  <boot order='1'/>\n  <source>");
    let directory = directory(&[(HOSTDEV, &boot_first), (".hostdev.xml.swp", "an editor's own")]);
    let templates = Templates::load(Some(directory.path())).unwrap();
    assert!(templates.render(&plain()).unwrap().contains("<boot order='1'/>"));
    assert!(!templates.render(&interface()).unwrap().contains("boot"));
}

#[test]
fn an_override_that_does_not_render_is_refused_with_its_file_and_line() {
    let broken = embedded(HOSTDEV, "{%- endif %}", "{%- endfor %}");
    assert!(refusal(&[(HOSTDEV, &broken)]).starts_with("hostdev.xml:10: syntax error: "));

    let unknown = embedded(INTERFACE, "{{ vlan }}", "{{ vlans }}");
    assert_eq!(refusal(&[(INTERFACE, &unknown)]), "interface.xml:11: undefined value");

    assert_eq!(
        refusal(&[("hostdev.xlm", "<hostdev/>")]),
        "hostdev.xlm: unknown template; expected hostdev.xml, interface.xml or mdev.xml"
    );
    let missing = Templates::load(Some(Path::new("/nowhere/at/all"))).unwrap_err();
    assert!(missing.to_string().starts_with("/nowhere/at/all: No such file"));
    // A reporter prints the text of an error and then those of its causes; this text contains its cause already.
    assert!(std::error::Error::source(&missing).is_none());
}

/// Replaces a part of each embedded template, as `tests/data/template-overrides.json` lists them.
#[test]
fn an_override_that_differs_from_the_spec_is_refused() {
    let cases = include_str!("../../../tests/data/template-overrides.json");
    for case in serde_json::from_str::<Vec<serde_json::Value>>(cases).unwrap() {
        let [name, from, to, reason] =
            ["template", "replace", "by", "reason"].map(|key| case[key].as_str().unwrap());
        let expected = format!("{name}: in the rendered document, {reason}");
        let found = refusal(&[(name, &embedded(name, from, to))]);
        assert!(found.starts_with(&expected), "{from} → {to}:\n{found}\n{expected}");
    }
    assert_eq!(
        refusal(&[(HOSTDEV, "<interface/>")]),
        "hostdev.xml: in the rendered document, <hostdev>: unexpected root element <interface>"
    );
}

/// Texts of an attacker who tries to break out of an attribute.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "[-'\"<>&;:/= a-z0-9{}%]{0,40}",
        "\\PC{0,20}",
        Just("'/></hostdev><hostdev mode='subsystem'>".to_owned()),
        Just("\"><source/>".to_owned()),
        Just("{{ source.bus }}&#39;&lt;".to_owned()),
        Just("]]><!-- --><?x?>".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_text_breaks_out_of_its_attribute(alias in hostile(), mac in hostile()) {
        // The types of these values do not allow such texts; this test shows that the escaping works without the types.
        let templates = Templates::load(None).unwrap();
        let context = context! { alias => alias.as_str(), mac => mac.as_str(), ..context(&interface()) };
        let xml = templates.render_context(INTERFACE, context).unwrap();
        let root = Element::parse(&xml).unwrap();
        let names: Vec<_> = root.descendants().map(Element::local_name).collect();
        prop_assert_eq!(names, ["interface", "mac", "source", "address", "vlan", "tag", "alias"]);
        let value = |name: &str, attribute: &str| {
            root.descendants().find(|node| node.is(name)).and_then(|node| node.attribute(attribute)).unwrap()
        };
        prop_assert_eq!(value("alias", "name"), alias);
        prop_assert_eq!(value("mac", "address"), mac);
        prop_assert!(rendered::check(&xml, &interface()).is_err());
    }

    #[test]
    fn a_text_that_is_a_mac_address_renders_as_that_address(text in prop_oneof![hostile(), "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"]) {
        if let Ok(mac) = text.parse() {
            let spec = HostdevSpec { interface: Some(InterfaceSpec { mac, vlan: None }), ..plain() };
            let xml = Templates::load(None).unwrap().render(&spec).unwrap();
            let expected = format!("<mac address='{}'/>", text.to_ascii_lowercase());
            prop_assert!(xml.contains(&expected), "{xml}");
        }
    }
}
