//! The values of a network interface: MAC addresses and VLAN tags.

use std::fmt;
use std::str::FromStr;

/// The MAC address of one interface: unicast, and not all zero. Prints as `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// The tag of a VLAN, 1 to 4094, as in Neutron. IEEE 802.1Q reserves 4095, and 0 means no VLAN, although libvirt accepts
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VlanTag(u16);

/// The reason why a text or number is not a MAC address or VLAN tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetParseError {
    /// The text does not have the form of a MAC address.
    #[error("`{0}` is not a MAC address; expected a form such as `52:54:00:12:34:56`")]
    Form(String),
    /// A group address, which libvirt refuses for an interface.
    #[error("invalid MAC address {0}: expected a unicast address, not a multicast address")]
    Multicast(String),
    /// All bytes are zero, which means "no address" to a VF's driver.
    #[error("invalid MAC address {0}: expected an address other than zero")]
    Zero(String),
    /// A VLAN tag outside of 1 to 4094.
    #[error("invalid VLAN tag {0}: expected 1 to 4094")]
    Vlan(u32),
}

impl FromStr for MacAddress {
    type Err = NetParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || NetParseError::Form(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let digits = parts.next().ok_or_else(form)?;
            if digits.len() != 2 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(form());
            }
            *octet = u8::from_str_radix(digits, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        match octets {
            [0, 0, 0, 0, 0, 0] => Err(NetParseError::Zero(text.to_owned())),
            [first, ..] if first & 1 == 1 => Err(NetParseError::Multicast(text.to_owned())),
            _ => Ok(Self(octets)),
        }
    }
}

impl MacAddress {
    /// Returns a random address with the prefix `fa:16:3e`, which is that of OpenStack's Neutron (`base_mac`).
    pub fn random() -> Self {
        let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
        Self([0xfa, 0x16, 0x3e, a, b, c])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl VlanTag {
    /// Makes a tag from its number.
    ///
    /// # Errors
    /// [`NetParseError::Vlan`] outside of 1 to 4094.
    pub fn new(tag: u32) -> Result<Self, NetParseError> {
        if (1..=4094).contains(&tag) { Ok(Self(tag as u16)) } else { Err(NetParseError::Vlan(tag)) }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_unicast_address_is_accepted() {
        assert_eq!("52:54:00:AB:cd:0F".parse::<MacAddress>().unwrap().to_string(), "52:54:00:ab:cd:0f");
        for (text, reason) in [
            ("01:00:5e:00:00:01", "multicast"),
            ("ff:ff:ff:ff:ff:ff", "multicast"),
            ("00:00:00:00:00:00", "zero"),
            ("52:54:00:12:34", "a form such as"),
            ("52:54:00:12:34:56:78", "a form such as"),
            ("52:54:00:12:34:+5", "a form such as"),
            ("52-54-00-12-34-56", "a form such as"),
            ("52:54:00:12:34:56'/><x a='", "a form such as"),
        ] {
            let error = text.parse::<MacAddress>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_reserved_vlan_tags_are_refused() {
        for tag in [1, 4094] {
            assert_eq!(VlanTag::new(tag).map(|tag| u32::from(tag.get())), Ok(tag));
        }
        for tag in [0, 4095, 4096, u32::MAX] {
            assert_eq!(VlanTag::new(tag), Err(NetParseError::Vlan(tag)));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_a_parsed_address_prints_back(text in "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}|\\PC*") {
            if let Ok(mac) = text.parse::<MacAddress>() {
                prop_assert_eq!(mac.to_string(), text.to_ascii_lowercase());
            }
        }
    }
}
