//! A function's base address registers (BARs), from which its need for memory behind a port follows.

use std::path::Path;

use super::root::Root;
use crate::pci::PciAddress;

/// A base address register in use, or that of the expansion ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The number of the register, 0 to 5; [`Bar::ROM`] for the expansion ROM. A 64-bit BAR has the number of its lower
    /// half.
    pub index: u8,
    /// The size in bytes, at least 1. PCI only has powers of two.
    pub size: u64,
    /// Memory or I/O ports.
    pub kind: BarKind,
    /// Whether it may be in a bridge's prefetchable window.
    pub prefetchable: bool,
    /// Whether it may be above 4 GiB.
    pub is_64bit: bool,
}

/// The address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Memory.
    Memory,
    /// I/O ports.
    Io,
}

impl Bar {
    /// The index of the expansion ROM (`PCI_ROM_RESOURCE` in Linux, include/linux/pci.h).
    pub const ROM: u8 = 6;

    /// Reads a line of `resource`: first address, last address and flags. Returns `None` for an unused register.
    fn read(index: u8, line: &str) -> Result<Option<Self>, NotUnderstood> {
        let number = |word: &str| {
            let digits = word.strip_prefix("0x").filter(|digits| !digits.starts_with('+'))?;
            u64::from_str_radix(digits, 16).ok()
        };
        let words: Option<Vec<u64>> = line.split_whitespace().map(number).collect();
        let Some(&[start, end, flags]) = words.as_deref() else { return Err(NotUnderstood) };
        let kind = match (flags & IORESOURCE_MEM != 0, flags & IORESOURCE_IO != 0) {
            (true, false) => BarKind::Memory,
            (false, true) => BarKind::Io,
            (false, false) => return Ok(None),
            (true, true) => return Err(NotUnderstood),
        };
        let size = end.checked_sub(start).and_then(|size| size.checked_add(1)).ok_or(NotUnderstood)?;
        let (prefetchable, is_64bit) = (flags & IORESOURCE_PREFETCH != 0, flags & IORESOURCE_MEM_64 != 0);
        Ok(Some(Self { index, size, kind, prefetchable, is_64bit }))
    }
}

struct NotUnderstood;

// Linux, include/linux/ioport.h.
const IORESOURCE_IO: u64 = 0x0000_0100;
const IORESOURCE_MEM: u64 = 0x0000_0200;
const IORESOURCE_PREFETCH: u64 = 0x0000_2000;
const IORESOURCE_MEM_64: u64 = 0x0010_0000;

/// Returns the BARs of a function and its expansion ROM, in order of their index. The resources that a PF reserves for
/// its VFs, and the windows of bridges, are left out.
///
/// Returns `None` when the BARs are unknown: the host is remote, or its sysfs does not have the device's `resource`
/// file in Linux's format (Linux, Documentation/PCI/sysfs-pci.rst).
pub fn bars(sysroot: Option<&Path>, address: PciAddress) -> Option<Vec<Bar>> {
    let text = Root::new(sysroot?).read(format!("sys/bus/pci/devices/{address}/resource")).ok()?;
    let lines: Vec<&str> = text.lines().take(usize::from(Bar::ROM) + 1).collect();
    if lines.len() <= usize::from(Bar::ROM) {
        return None;
    }
    let bars: Result<Vec<_>, _> = (0..).zip(lines).map(|(index, line)| Bar::read(index, line)).collect();
    Some(bars.ok()?.into_iter().flatten().collect())
}
