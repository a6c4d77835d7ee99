//! Writes the made-up host of `hotslot serve --simulate`, from a table of its functions and guests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::Deserialize;
use uuid::Uuid;

use super::generate::address;
use crate::pci::PciAddress;

const TABLE: &str = include_str!("../../data/demo-host.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    function: Vec<Function>,
    guest: Vec<Guest>,
    host: Own,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    at: PciAddress,
    below: Option<PciAddress>,
    class: String,
    id: String,
    #[serde(default = "intel")]
    vendor: String,
    product: String,
    driver: String,
    node: u32,
    link: Option<String>,
    most: Option<String>,
    vfs: Option<Vfs>,
    #[serde(default)]
    mdev: Vec<(String, String, u32)>,
    group: Option<String>,
    net: Option<String>,
    block: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vfs {
    count: u32,
    most: u32,
    first: PciAddress,
    id: String,
    product: String,
    driver: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Guest {
    name: String,
    ports: u32,
    running: bool,
}

/// What the host itself needs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    disk: PciAddress,
    interface: PciAddress,
}

fn intel() -> String {
    "Intel Corporation".to_owned()
}

/// Writes the host into `dir`, which is made if necessary.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path) -> io::Result<()> {
    let table: Table = toml::from_str(TABLE).map_err(io::Error::other)?;
    let (devices, domains) = (dir.join("devices"), dir.join("domains"));
    fs::create_dir_all(&devices)?;
    fs::create_dir_all(&domains)?;
    for (name, xml) in table.documents()? {
        fs::write(devices.join(name).with_extension("xml"), xml)?;
    }
    for (number, guest) in (1..).zip(&table.guest) {
        fs::write(domains.join(&guest.name).with_extension("xml"), guest.document(number))?;
    }
    fs::write(dir.join("host.toml"), table.settings())?;
    table.write_root(&dir.join("root"))
}

impl Vfs {
    /// Returns the addresses of the VFs: eight to a slot.
    fn addresses(&self) -> io::Result<Vec<PciAddress>> {
        let at = |number: u32| {
            let function = u32::from(self.first.function()) + number;
            let slot = u32::from(self.first.slot()) + function / 8;
            PciAddress::new(self.first.domain().into(), self.first.bus().into(), slot, function % 8)
        };
        (0..self.count).map(at).collect::<Result<_, _>>().map_err(io::Error::other)
    }
}

impl Table {
    /// Returns libvirt's documents of the functions, interfaces and disks, by their names.
    fn documents(&self) -> io::Result<Vec<(String, String)>> {
        let (mut documents, mut next_group) = (Vec::new(), 20);
        let mut shared = BTreeMap::<&str, Vec<PciAddress>>::new();
        for function in &self.function {
            if let Some(group) = &function.group {
                shared.entry(group).or_default().push(function.at);
            }
        }
        let mut numbers = BTreeMap::<&str, u32>::new();
        for function in &self.function {
            let mut fresh = || {
                next_group += 1;
                next_group
            };
            let (number, members) = match &function.group {
                Some(group) => (*numbers.entry(group).or_insert_with(fresh), shared[group.as_str()].clone()),
                None => (fresh(), vec![function.at]),
            };
            documents
                .push((function.at.node_name(), function.document(&self.path(function), number, &members)?));
            documents.extend(function.children());
            let Some(vfs) = &function.vfs else { continue };
            for at in vfs.addresses()? {
                next_group += 1;
                documents.push((at.node_name(), function.virtual_document(vfs, at, next_group)));
            }
        }
        Ok(documents)
    }

    /// Returns the path of a function in sysfs.
    fn path(&self, function: &Function) -> String {
        let root = function.below.unwrap_or(function.at);
        let above = function.below.map_or(String::new(), |port| format!("/{port}"));
        format!("/sys/devices/pci{:04x}:{:02x}{above}/{}", root.domain(), root.bus(), function.at)
    }

    /// Returns the behaviour of the guests: a Linux guest needs a second or two to release a device.
    fn settings(&self) -> String {
        let mut text = "hostname = \"demo\"\nnode_sockets = [0, 1]\n[latency]\nattach = 700\n".to_owned();
        for guest in &self.guest {
            let _ = writeln!(text, "[guest.{}]\nunplug_ms = 1500", guest.name);
        }
        text
    }

    /// Writes the files by which the host shows which functions it needs.
    fn write_root(&self, root: &Path) -> io::Result<()> {
        let file = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            fs::write(path, text)
        };
        let link = |path: String, to: String| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            symlink(to, path)
        };
        file("proc/1/mountinfo", "20 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n")?;
        file("proc/swaps", "Filename Type Size Used Priority\n")?;
        file("proc/1/net/ipv6_route", "")?;
        file("proc/1/net/if_inet6", "")?;
        for function in &self.function {
            let place = self.path(function);
            let place = place.trim_start_matches('/');
            if function.at == self.host.disk {
                let disk = format!("{place}/nvme/nvme0/nvme0n1");
                file(&format!("{disk}/nvme0n1p1/partition"), "1")?;
                link("sys/dev/block/259:1".into(), format!("../../../{disk}/nvme0n1p1"))?;
                link("sys/class/block/nvme0n1".into(), format!("../../../{disk}"))?;
                link("sys/class/block/nvme0n1p1".into(), format!("../../../{disk}/nvme0n1p1"))?;
            }
            if let Some(net) = &function.net {
                file(&format!("{place}/net/{net}/type"), "1")?;
                link(format!("{place}/net/{net}/device"), "../..".into())?;
                link(format!("sys/class/net/{net}"), format!("../../../{place}/net/{net}"))?;
                if function.at == self.host.interface {
                    let route = format!(
                        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                         {net}\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
                    );
                    file("proc/1/net/route", &route)?;
                }
            }
            let vfs = function.vfs.as_ref().map(Vfs::addresses).transpose()?.unwrap_or_default();
            for at in vfs.into_iter().chain([function.at]) {
                file(&format!("sys/bus/pci/devices/{at}/reset_method"), "flr bus\n")?;
            }
        }
        Ok(())
    }
}

impl Function {
    fn document(&self, path: &str, group: u32, members: &[PciAddress]) -> io::Result<String> {
        let mut role = String::new();
        if self.class.starts_with("0604") {
            role += "    <capability type='pci-bridge'/>\n";
        }
        if let Some(vfs) = &self.vfs {
            let _ = writeln!(role, "    <capability type='virt_functions' maxCount='{}'>", vfs.most);
            for at in vfs.addresses()? {
                let _ = writeln!(role, "      {}", address(at, ""));
            }
            role += "    </capability>\n";
        }
        if !self.mdev.is_empty() {
            role += "    <capability type='mdev_types'>\n";
            for (id, name, count) in &self.mdev {
                let _ = writeln!(
                    role,
                    "      <type id='{id}'><name>{name}</name><deviceAPI>vfio-pci</deviceAPI>\
                     <availableInstances>{count}</availableInstances></type>"
                );
            }
            role += "    </capability>\n";
        }
        let parent = self.below.map_or("computer".to_owned(), PciAddress::node_name);
        let what = What {
            at: self.at,
            path,
            parent: &parent,
            driver: &self.driver,
            id: &self.id,
            product: &self.product,
        };
        Ok(self.written(&what, &role, group, members))
    }

    fn virtual_document(&self, vfs: &Vfs, at: PciAddress, group: u32) -> String {
        let role = format!(
            "    <capability type='phys_function'>\n      {}\n    </capability>\n",
            address(self.at, "")
        );
        let parent = self.below.map_or("computer".to_owned(), PciAddress::node_name);
        let path = format!("/sys/devices/pci0000:{:02x}/{at}", self.below.unwrap_or(self.at).bus());
        let what = What {
            at,
            path: &path,
            parent: &parent,
            driver: &vfs.driver,
            id: &vfs.id,
            product: &vfs.product,
        };
        self.written(&what, &role, group, &[at])
    }

    fn written(&self, what: &What<'_>, role: &str, group: u32, members: &[PciAddress]) -> String {
        let (vendor, product) = what.id.split_once(':').unwrap_or_default();
        let members = members.iter().fold(String::new(), |text, at| text + "\n      " + &address(*at, ""));
        let (at, class) = (what.at, &self.class);
        format!(
            "<device>\n  <name>{}</name>\n  <path>{}</path>\n  <parent>{}</parent>\n  <driver>\n    <name>{}</name>\n  \
             </driver>\n  <capability type='pci'>\n    <class>0x{class}</class>\n    <domain>{}</domain>\n    \
             <bus>{}</bus>\n    <slot>{}</slot>\n    <function>{}</function>\n    \
             <product id='0x{product}'>{}</product>\n    <vendor id='0x{vendor}'>{}</vendor>\n{role}    \
             <iommuGroup number='{group}'>{members}\n    </iommuGroup>\n    <numa node='{}'/>\n{}  \
             </capability>\n</device>\n",
            at.node_name(),
            what.path,
            what.parent,
            what.driver,
            at.domain(),
            at.bus(),
            at.slot(),
            at.function(),
            what.product,
            self.vendor,
            self.node,
            self.express(),
        )
    }

    /// Returns the element with the PCI Express link.
    fn express(&self) -> String {
        let Some(link) = &self.link else { return String::new() };
        let read = |link: &str| {
            link.split_once('x').map(|(speed, width)| format!("speed='{speed}' width='{width}'"))
        };
        let (now, most) = (read(link), read(self.most.as_ref().unwrap_or(link)));
        format!(
            "    <pci-express>\n      <link validity='cap' port='0' {}/>\n      <link validity='sta' {}/>\n    \
             </pci-express>\n",
            most.unwrap_or_default(),
            now.unwrap_or_default(),
        )
    }

    /// Returns the documents of the interface and of the disk of a function.
    fn children(&self) -> Vec<(String, String)> {
        let mut children = Vec::new();
        let parent = self.at.node_name();
        if let Some(net) = &self.net {
            let mac =
                format!("02:00:00:{:02x}:{:02x}:{:02x}", self.at.bus(), self.at.slot(), self.at.function());
            let name = format!("net_{net}_{}", mac.replace(':', "_"));
            let xml = format!(
                "<device>\n  <name>{name}</name>\n  <parent>{parent}</parent>\n  <capability type='net'>\n    \
                 <interface>{net}</interface>\n    <address>{mac}</address>\n    <link state='up'/>\n    \
                 <capability type='80203'/>\n  </capability>\n</device>\n"
            );
            children.push((name, xml));
        }
        if let Some(block) = &self.block {
            let name = format!("block_{block}_demo");
            let xml = format!(
                "<device>\n  <name>{name}</name>\n  <devnode type='dev'>/dev/{block}</devnode>\n  \
                 <devnode type='link'>/dev/disk/by-path/pci-{}-nvme-1</devnode>\n  <parent>computer</parent>\n  \
                 <capability type='storage'>\n    <block>/dev/{block}</block>\n    <drive_type>disk</drive_type>\n    \
                 <model>PM9A3</model>\n    <serial>demo-{block}</serial>\n    <size>1920383410176</size>\n    \
                 <logical_block_size>512</logical_block_size>\n    <num_blocks>3750748848</num_blocks>\n  \
                 </capability>\n</device>\n",
                self.at
            );
            children.push((name, xml));
        }
        children
    }
}

/// The part of a document that differs between a function and its VFs.
struct What<'a> {
    at: PciAddress,
    path: &'a str,
    parent: &'a str,
    driver: &'a str,
    id: &'a str,
    product: &'a str,
}

impl Guest {
    fn document(&self, number: u32) -> String {
        let mut ports = String::new();
        for port in 0..self.ports {
            let more = if port % 8 == 0 { " multifunction='on'" } else { "" };
            let _ = write!(
                ports,
                "    <controller type='pci' index='{index}' model='pcie-root-port'>\n      \
                 <model name='pcie-root-port'/>\n      <target chassis='{index}' port='{port:#x}'/>\n      \
                 <alias name='pci.{index}'/>\n      <address type='pci' domain='0x0000' bus='0x00' slot='{:#04x}' \
                 function='{:#x}'{more}/>\n    </controller>\n",
                1 + port / 8,
                port % 8,
                index = port + 1,
            );
        }
        let id = if self.running { format!(" id='{number}'") } else { String::new() };
        let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("hotslot demo guest {}", self.name).as_bytes());
        format!(
            "<domain type='kvm'{id}>\n  <name>{}</name>\n  <uuid>{uuid}</uuid>\n  <memory unit='KiB'>8388608</memory>\n  \
             <vcpu placement='static'>4</vcpu>\n  <os>\n    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>\n  \
             </os>\n  <devices>\n    <emulator>/usr/bin/qemu-system-x86_64</emulator>\n    \
             <controller type='pci' index='0' model='pcie-root'>\n      <alias name='pcie.0'/>\n    \
             </controller>\n{ports}    <memballoon model='none'/>\n  </devices>\n</domain>\n",
            self.name
        )
    }
}
