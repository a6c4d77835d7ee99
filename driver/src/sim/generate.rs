//! Writes a large simulated host for load tests and benchmarks: network cards with VFs, and guests with free ports.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::pci::{PciAddress, PciParseError};

/// The size of a generated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The number of PFs, each on its own bus.
    pub pfs: u32,
    /// The number of VFs per PF, at most 240.
    pub vfs: u32,
    /// The number of running guests, named `g0`, `g1`, …
    pub guests: u32,
    /// The number of free root ports per guest, at most 232.
    pub ports: u32,
}

impl Size {
    /// Writes the host into `dir`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `vfs` or `ports` is too large. Another error when a file cannot be written
    /// or when there are more functions than PCI addresses.
    pub fn write(self, dir: &Path) -> io::Result<()> {
        if self.vfs > 240 || self.ports > 232 {
            let text = "invalid size: expected at most 240 VFs per PF and 232 ports per guest";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (devices, domains) = (dir.join("devices"), dir.join("domains"));
        fs::create_dir_all(&devices)?;
        fs::create_dir_all(&domains)?;
        for number in 0..self.pfs {
            let card = Card::new(number, self.vfs).map_err(io::Error::other)?;
            for (address, xml) in card.documents() {
                fs::write(devices.join(address.node_name()).with_extension("xml"), xml)?;
            }
        }
        for number in 0..self.guests {
            fs::write(domains.join(format!("g{number}.xml")), guest(number, self.ports))?;
        }
        Ok(())
    }
}

/// The UUID of a generated guest.
pub fn guest_uuid(number: u32) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("hotslot simulated guest g{number}").as_bytes())
}

/// A PF and its VFs.
struct Card {
    pf: PciAddress,
    vfs: Vec<PciAddress>,
    /// The IOMMU group of the PF. Those of the VFs have the following numbers.
    group: u32,
}

impl Card {
    fn new(number: u32, vfs: u32) -> Result<Self, PciParseError> {
        let (domain, bus) = (number / 0xff, number % 0xff + 1);
        let at = |slot: u32, function: u32| PciAddress::new(domain, bus, slot, function);
        Ok(Self {
            pf: at(0, 0)?,
            vfs: (0..vfs).map(|vf| at(2 + vf / 8, vf % 8)).collect::<Result<_, _>>()?,
            group: number * (vfs + 1),
        })
    }

    fn documents(&self) -> Vec<(PciAddress, String)> {
        let own = self.vfs.iter().fold(String::new(), |mut own, vf| {
            let _ = writeln!(own, "      {}", address(*vf, ""));
            own
        });
        let own = format!("    <capability type='virt_functions' maxCount='240'>\n{own}    </capability>\n");
        let mut documents = vec![(self.pf, document(self.pf, "igb", "10c9", &own, self.group))];
        let parent = address(self.pf, "");
        let parent = format!("    <capability type='phys_function'>\n      {parent}\n    </capability>\n");
        for (group, vf) in (self.group + 1..).zip(&self.vfs) {
            documents.push((*vf, document(*vf, "igbvf", "10ca", &parent, group)));
        }
        documents
    }
}

fn document(at: PciAddress, driver: &str, product: &str, role: &str, group: u32) -> String {
    format!(
        "<device>\n  <name>{name}</name>\n  <path>/sys/devices/pci{domain:04x}:00/{at}</path>\n  \
         <parent>computer</parent>\n  <driver>\n    <name>{driver}</name>\n  </driver>\n  \
         <capability type='pci'>\n    <class>0x020000</class>\n    <domain>{domain}</domain>\n    \
         <bus>{bus}</bus>\n    <slot>{slot}</slot>\n    <function>{function}</function>\n    \
         <product id='0x{product}'>82576 Gigabit Network Connection</product>\n    \
         <vendor id='0x8086'>Intel Corporation</vendor>\n{role}    \
         <iommuGroup number='{group}'>\n      {own}\n    </iommuGroup>\n    <numa node='{numa}'/>\n    \
         <pci-express>\n      <link validity='cap' port='0' speed='2.5' width='1'/>\n      \
         <link validity='sta' speed='2.5' width='1'/>\n    </pci-express>\n  </capability>\n</device>\n",
        name = at.node_name(),
        domain = at.domain(),
        bus = at.bus(),
        slot = at.slot(),
        function = at.function(),
        own = address(at, ""),
        numa = at.bus() % 2,
    )
}

fn guest(number: u32, ports: u32) -> String {
    let mut controllers = String::new();
    for port in 0..ports {
        let at = PciAddress::new(0, 0, 1 + port / 8, port % 8);
        let at = at.map(|at| address(at, if port % 8 == 0 { " multifunction='on'" } else { "" }));
        let _ = write!(
            controllers,
            "    <controller type='pci' index='{index}' model='pcie-root-port'>\n      \
             <model name='pcie-root-port'/>\n      <target chassis='{index}' port='{port:#x}'/>\n      \
             <alias name='pci.{index}'/>\n      {at}\n    </controller>\n",
            index = port + 1,
            at = at.unwrap_or_default().replace("<address ", "<address type='pci' "),
        );
    }
    format!(
        "<domain type='kvm' id='{id}'>\n  <name>g{number}</name>\n  <uuid>{uuid}</uuid>\n  \
         <memory unit='KiB'>262144</memory>\n  <vcpu placement='static'>1</vcpu>\n  <os>\n    \
         <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>\n  </os>\n  <devices>\n    \
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\n    \
         <controller type='pci' index='0' model='pcie-root'>\n      <alias name='pcie.0'/>\n    \
         </controller>\n{controllers}    <memballoon model='none'/>\n  </devices>\n</domain>\n",
        id = number + 1,
        uuid = guest_uuid(number),
    )
}

/// Returns the element of an address.
pub(super) fn address(at: PciAddress, more: &str) -> String {
    format!(
        "<address domain='{:#06x}' bus='{:#04x}' slot='{:#04x}' function='{:#x}'{more}/>",
        at.domain(),
        at.bus(),
        at.slot(),
        at.function()
    )
}
