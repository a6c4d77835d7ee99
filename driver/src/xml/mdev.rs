//! Mediated devices in node device documents: the types that a function offers, one device, and the document that
//! creates one.

use minijinja::{Environment, context};
use uuid::Uuid;

use super::XmlError;
use super::read::{self, Fault, child, child_text, children, required, required_attribute};
use super::tree::Element;
use crate::mdev::{Mdev, MdevType};
use crate::pci::PciAddress;

/// Reads the mediated device types from a PCI function's document. The result is empty when the function offers none.
///
/// # Errors
/// [`XmlError`] with the element that could not be read. Unknown elements are ignored.
pub fn types(xml: &str) -> Result<Vec<MdevType>, XmlError> {
    let document = read::document(xml, "node device", "device")?;
    let pci = children(&document.root, "capability").filter(|node| is(node, "pci"));
    let capabilities = pci.flat_map(|pci| children(pci, "capability")).filter(|node| is(node, "mdev_types"));
    capabilities
        .flat_map(|capability| children(capability, "type"))
        .map(mdev_type)
        .collect::<Result<_, _>>()
        .map_err(|fault| document.error("node device", fault))
}

fn is(capability: &Element<'_>, kind: &str) -> bool {
    capability.attribute("type") == Some(kind)
}

fn mdev_type(node: &Element<'_>) -> Result<MdevType, Fault> {
    Ok(MdevType {
        id: required_attribute(node, "id")?,
        name: child_text(node, "name"),
        device_api: read::required_text(node, "deviceAPI")?,
        available: read::value(required(node, "availableInstances")?)?,
    })
}

/// Reads a mediated device from its node device document.
pub(super) fn device(device: &Element<'_>, name: &str, capability: &Element<'_>) -> Result<Mdev, Fault> {
    // Before libvirt 7.3 only the name contains the UUID: mdev_3627463d_b7f0_4fea_b468_f1da537d301b.
    let uuid = match child(capability, "uuid") {
        Some(uuid) => read::value(uuid)?,
        None => {
            let uuid =
                name.strip_prefix("mdev_").and_then(|rest| Uuid::try_parse(&rest.replace('_', "-")).ok());
            uuid.ok_or_else(|| {
                Fault::at(capability, "missing element <uuid>, and the name contains no UUID")
            })?
        }
    };
    Ok(Mdev {
        uuid,
        name: name.to_owned(),
        mdev_type: required_attribute(required(capability, "type")?, "id")?,
        parent: child_text(device, "parent").and_then(|parent| PciAddress::from_node_name(&parent).ok()),
        iommu_group: child(capability, "iommuGroup")
            .map(|group| read::required_number(group, "number"))
            .transpose()?,
    })
}

/// The document that creates a device. libvirt's schema requires a name, but libvirt assigns its own.
const NEW: &str = "<device>
  <name>new</name>
  <parent>{{ parent }}</parent>
  <capability type='mdev'>
    <type id='{{ type }}'/>
    <uuid>{{ uuid }}</uuid>
  </capability>
</device>
";

/// Renders the node device document that creates a mediated device of this type on `parent`.
///
/// # Errors
/// [`XmlError`] when the type's id contains a character that XML does not allow.
pub fn new(parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<String, XmlError> {
    let refuse = |reason: String| XmlError {
        document: "new mediated device".to_owned(),
        element: "capability/type".to_owned(),
        reason,
    };
    let context = context! { parent => parent.node_name(), type => mdev_type, uuid => uuid.to_string() };
    // minijinja escapes the values because the template's name ends in `.xml`.
    let xml = Environment::new().render_named_str("mdev.xml", NEW, context);
    let xml = xml.map_err(|error| refuse(error.to_string()))?;
    read::document(&xml, "new mediated device", "device")?;
    Ok(xml)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_type_breaks_out_of_its_attribute(mdev_type in prop_oneof!["[-'\"<>&;/= a-z0-9{}%]{0,40}", "\\PC{0,20}"], uuid in any::<u128>()) {
            let parent = PciAddress::new(0, 0x41, 0, 0).unwrap();
            let xml = new(parent, &mdev_type, Uuid::from_u128(uuid)).unwrap();
            let root = &Element::parse(&xml).unwrap();
            let names: Vec<_> = root.descendants().map(Element::local_name).collect();
            prop_assert_eq!(names, ["device", "name", "parent", "capability", "type", "uuid"]);
            let capability = child(root, "capability").unwrap();
            prop_assert_eq!(child(capability, "type").unwrap().attribute("id"), Some(mdev_type.as_str()));
            prop_assert_eq!(child_text(capability, "uuid"), Some(Uuid::from_u128(uuid).to_string()));
        }

        #[test]
        fn no_text_makes_the_types_parser_panic(xml in "\\PC*") {
            prop_assert!(types(&xml).is_err());
        }
    }

    #[test]
    fn a_type_with_a_character_that_xml_does_not_allow_is_refused() {
        let parent = PciAddress::new(0, 0x41, 0, 0).unwrap();
        let error = new(parent, "nvidia\u{1}", Uuid::nil()).unwrap_err();
        assert!(error.to_string().starts_with("new mediated device: "), "{error}");
    }
}
