//! Cards: a PF with its VFs, or a function that is neither. A card is Cyborg's device with its one deployable.
//!
//! The handles of a card are its assignable VFs, or the function itself when it has none. Mediated devices on these can
//! be assigned as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::{self, DeviceType};
use hotslot_driver::mdev::MdevType;
use hotslot_driver::pci::PciAddress;
use hotslot_model::cyborg::{Attribute, Group};
use hotslot_model::device::{Device, card_of};
use hotslot_model::id::AttributeId;
use hotslot_model::rules;
use md5::{Digest as _, Md5};
use uuid::Uuid;

use super::cyborg::Cyborg;
use crate::error::Error;
use crate::host::Host;

/// A card with an assignable device.
#[derive(Clone)]
pub struct Card {
    /// The host of the card.
    pub host: Arc<Host>,
    /// The address of the PF, or of the only function.
    pub address: PciAddress,
    /// That function as it was last read from the host; `None` before it was read.
    pub function: Option<HostDevice>,
    /// The deployable: the record of that function, or of the first VF when only VFs are assignable.
    pub row: Arc<Device>,
    /// The assignable devices: VFs, or the function itself.
    pub handles: Vec<Arc<Device>>,
    /// Whether the card was disabled, so that its devices are unavailable.
    pub disabled: bool,
}

/// An attribute of a deployable and its origin.
#[derive(Debug, Clone)]
pub struct Attribution {
    /// The attribute.
    pub attribute: Attribute,
    /// Whether it is derived from the device; false when it was set by the API.
    pub derived: bool,
}

impl Card {
    /// Returns Cyborg's name of the deployable and its resource provider: `<host>_<address>`.
    pub fn name(&self) -> String {
        format!("{}_{}", self.host.name, self.address)
    }

    /// Returns the id of the device.
    pub fn device_id(&self) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("card {}", self.name()).as_bytes())
    }

    /// Returns the id of the deployable.
    pub fn deployable_id(&self) -> Uuid {
        self.row.uuid
    }

    /// Returns the id that the deployable's resource provider has in Placement. Like Cyborg, this computes a version 3
    /// UUID (RFC 9562) from the name.
    pub fn rp_uuid(&self) -> Uuid {
        let digest = Md5::new().chain_update(Uuid::NAMESPACE_DNS).chain_update(self.name()).finalize();
        uuid::Builder::from_md5_bytes(digest.into()).into_uuid()
    }

    /// Returns the type of the card; `Pci` before it was read from its host.
    pub fn device_type(&self) -> DeviceType {
        self.function.as_ref().map_or(DeviceType::Pci, device_type::device_type)
    }

    /// Returns Cyborg's name of the type.
    pub fn type_word(&self) -> String {
        match self.device_type() {
            DeviceType::Nvme => "SSD".to_owned(),
            of @ (DeviceType::Gpu
            | DeviceType::Fpga
            | DeviceType::Nic
            | DeviceType::Qat
            | DeviceType::Crypto
            | DeviceType::AiChip
            | DeviceType::Pci) => of.to_string(),
        }
    }

    /// Returns the resource classes of a handle, the one to show first: the one in its `device_spec`, else those that
    /// Cyborg's drivers use for the type and the one that Nova derives from the PCI ids.
    pub fn classes(&self, handle: &Device) -> Vec<String> {
        let by_ids = rules::class_of(&handle.facts);
        if handle.facts.extra_info.contains_key("resource_class") {
            return vec![by_ids];
        }
        match self.device_type() {
            DeviceType::Gpu => vec!["PGPU".into(), "GPU".into(), by_ids],
            DeviceType::Fpga => vec!["FPGA".into(), by_ids],
            DeviceType::Nic
            | DeviceType::Nvme
            | DeviceType::Qat
            | DeviceType::Crypto
            | DeviceType::AiChip
            | DeviceType::Pci => vec![format!("CUSTOM_{}", self.type_word()), by_ids],
        }
    }

    /// Returns the traits of a handle: those in its `device_spec`, and those that Cyborg's drivers report for such a
    /// card.
    pub fn traits(&self, handle: &Device) -> BTreeSet<String> {
        let mut traits = rules::declared_traits(&handle.facts);
        let kind = self.type_word();
        traits.extend(["OWNER_CYBORG".to_owned(), format!("CUSTOM_{kind}")]);
        let product = self.function.as_ref().map_or(handle.facts.product_id, |function| function.product_id);
        traits.insert(format!("CUSTOM_{kind}_PRODUCT_ID_{product}").to_ascii_uppercase());
        if let Some(vendor) = self.function.as_ref().and_then(|function| device_type::names(function).vendor)
        {
            traits.insert(format!("CUSTOM_{kind}_{}", short(vendor)));
        }
        traits
    }

    /// Returns the handles that match a group and a resource class.
    ///
    /// # Errors
    /// The reason why the first handle does not match, when none does.
    pub fn matching(&self, group: &Group, class: &str) -> Result<BTreeSet<PciAddress>, String> {
        let (mut found, mut refusal) = (BTreeSet::new(), None);
        for handle in &self.handles {
            match self.mismatch(handle, group, class) {
                None => drop(found.insert(handle.facts.address)),
                Some(reason) => drop(refusal.get_or_insert(reason)),
            }
        }
        match refusal {
            Some(reason) if found.is_empty() => Err(reason),
            _ => Ok(found),
        }
    }

    fn mismatch(&self, handle: &Device, group: &Group, class: &str) -> Option<String> {
        let classes = self.classes(handle);
        if !classes.iter().any(|has| has == class) {
            return Some(format!("its resource class is {}, not {class}", classes.join(" or ")));
        }
        trait_mismatch(&self.traits(handle), group)
    }

    /// Returns the resource class of the card's mediated devices.
    fn mdev_class(&self) -> &'static str {
        if self.device_type() == DeviceType::Gpu { "VGPU" } else { "CUSTOM_MDEV" }
    }

    /// Returns whether a resource class stands for mediated devices of this card, and for no whole function.
    pub fn is_for_parts(&self, class: &str) -> bool {
        let is_whole = |handle: &Arc<Device>| self.classes(handle).iter().any(|has| has == class);
        self.mdev_class() == class && !self.handles.iter().any(is_whole)
    }

    /// Returns the functions that may be parents of mediated devices.
    pub fn parents(&self) -> impl Iterator<Item = &Arc<Device>> {
        let own = (self.row.facts.address == self.address && !self.handles.contains(&self.row))
            .then_some(&self.row);
        own.into_iter().chain(&self.handles)
    }

    /// Returns the traits of a mediated device: those of its parent, one from the id of its type (`CUSTOM_NVIDIA_232`)
    /// and one from the name of its type (`CUSTOM_NVIDIA_1EB8_T4_4Q`).
    pub fn mdev_traits(&self, maker: &Device, of: &MdevType) -> BTreeSet<String> {
        let mut traits = self.traits(maker);
        traits.insert(rules::custom(&of.id));
        let vendor = self.function.as_ref().and_then(|function| device_type::names(function).vendor);
        let word = of.name.as_deref().and_then(|name| name.split_whitespace().last());
        if let (Some(vendor), Some(word)) = (vendor, word) {
            let product = maker.facts.product_id;
            traits.insert(rules::custom(&format!("{}_{product}_{word}", short(vendor))));
        }
        traits
    }

    /// Returns why a mediated device of a type does not match a group; `None` when it matches.
    pub fn mdev_mismatch(&self, maker: &Device, of: &MdevType, group: &Group) -> Option<String> {
        trait_mismatch(&self.mdev_traits(maker, of), group)
    }

    /// Returns the attributes that are derived from the device, with the keys of Cyborg's drivers: `rc`, `trait0`,
    /// `trait1` and so on.
    pub fn derived(&self) -> Vec<Attribution> {
        let first = self.handles.first().unwrap_or(&self.row);
        let class = self.classes(first).into_iter().next().unwrap_or_default();
        let traits = self.traits(first).into_iter().enumerate();
        let pairs = std::iter::once(("rc".to_owned(), class))
            .chain(traits.map(|(number, name)| (format!("trait{number}"), name)));
        let attribution = |(key, value): (String, String)| Attribution {
            attribute: Attribute {
                id: AttributeId(Uuid::new_v5(&self.deployable_id(), key.as_bytes())),
                deployable: self.row.id,
                key,
                value,
                created_at: self.row.created_at,
            },
            derived: true,
        };
        pairs.map(attribution).collect()
    }
}

fn trait_mismatch(traits: &BTreeSet<String>, group: &Group) -> Option<String> {
    group.traits().find_map(|(name, required)| match (required, traits.contains(name)) {
        (true, false) => {
            let has = Vec::from_iter(traits.iter().map(String::as_str)).join(", ");
            Some(format!("it has no trait {name}; it has {has}"))
        }
        (false, true) => Some(format!("it has the trait {name}, which is forbidden")),
        (true, true) | (false, false) => None,
    })
}

/// Returns the short name of a vendor for a trait: the first word in the brackets, or of the whole name without
/// brackets.
fn short(vendor: &str) -> String {
    let inner = vendor.split_once('[').map_or(vendor, |(_, inner)| inner);
    let plain = |c: &char| c.is_ascii_alphanumeric();
    let word = inner.chars().skip_while(|c| !plain(c)).take_while(plain);
    word.map(|c| c.to_ascii_uppercase()).collect()
}

impl Cyborg {
    /// Returns all cards with an assignable device, ordered by host and address.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn cards(&self) -> Result<Vec<Card>, Error> {
        let mut cards = Vec::new();
        for host in self.hosts.iter() {
            let (functions, disabled) = (host.functions(), self.store.disabled_cards(host.row.id).await?);
            let mut rows = BTreeMap::<PciAddress, Vec<Arc<Device>>>::new();
            for row in self.store.devices_of(host.row.id) {
                rows.entry(card_of(&row.facts)).or_default().push(row);
            }
            for (address, mut handles) in rows {
                let own = handles.iter().position(|row| row.facts.address == address);
                let own = own.map(|at| handles.remove(at));
                let Some(row) = own.or_else(|| handles.first().cloned()) else { continue };
                if handles.is_empty() {
                    handles.push(Arc::clone(&row));
                }
                cards.push(Card {
                    host: Arc::clone(host),
                    address,
                    function: functions.get(&address).cloned(),
                    row,
                    handles,
                    disabled: disabled.contains(&address),
                });
            }
        }
        Ok(cards)
    }

    /// Disables a card, which makes its devices unavailable, or enables it again. Devices in use are not affected.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such card; errors of the database.
    pub async fn disable_card(&self, id: Uuid, disabled: bool) -> Result<(), Error> {
        let card = self.cards().await?.into_iter().find(|card| card.device_id() == id);
        let card = card.ok_or_else(|| Error::NotFound(format!("device {id}")))?;
        self.store.disable_card(card.host.row.id, card.address, disabled).await?;
        let word = if disabled { "disabled" } else { "enabled" };
        tracing::info!(host = %card.host.name, pci.address = %card.address, "{word} card {}", card.address);
        Ok(())
    }

    /// Returns the attributes of deployables: for each, first the derived ones, then those that were set by the API.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn attributions(&self, cards: &[Card]) -> Result<Vec<Attribution>, Error> {
        let attributions = self.store.attributes().await?;
        let mut all = Vec::new();
        for card in cards {
            all.extend(card.derived());
            let of_it = attributions.iter().filter(|attribute| attribute.deployable == card.row.id);
            all.extend(of_it.map(|attribute| Attribution { attribute: attribute.clone(), derived: false }));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_have_short_names() {
        for (vendor, name) in [
            ("NVIDIA Corporation", "NVIDIA"),
            ("Huawei Technologies Co., Ltd.", "HUAWEI"),
            ("Advanced Micro Devices, Inc. [AMD/ATI]", "AMD"),
            (" ", ""),
        ] {
            assert_eq!(short(vendor), name);
        }
    }
}
