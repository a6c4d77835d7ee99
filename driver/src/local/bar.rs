//! A function's base address registers (BARs): how much of a port's window it needs.

use std::path::Path;

use super::root::Root;
use crate::pci::PciAddress;

/// One base address register that decodes something, or the expansion ROM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Which register, 0 to 5; [`Bar::ROM`] for the expansion ROM. A 64-bit BAR has the number of its lower
    /// half.
    pub index: u8,
    /// Bytes that it decodes, 1 or more; PCI has powers of two only.
    pub size: u64,
    /// Memory or I/O ports.
    pub kind: BarKind,
    /// Whether it may lie in a bridge's prefetchable window.
    pub prefetchable: bool,
    /// Whether it may lie above 4 GiB.
    pub is_64bit: bool,
}

/// What a BAR decodes.
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

    /// One line of `resource`: first and last address and flags; nothing when the register is not there.
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

/// The BARs of a function, and its expansion ROM, in order of their index. Those of a VF are its own; the
/// windows that a PF keeps for its VFs and those of bridges are left out.
///
/// None when that is unknown: the host is remote, or does not show the device in the way that Linux does
/// (Documentation/PCI/sysfs-pci.rst, `resource`).
pub fn bars(sysroot: Option<&Path>, address: PciAddress) -> Option<Vec<Bar>> {
    let text = Root::new(sysroot?).read(format!("sys/bus/pci/devices/{address}/resource")).ok()?;
    let lines: Vec<&str> = text.lines().take(usize::from(Bar::ROM) + 1).collect();
    if lines.len() <= usize::from(Bar::ROM) {
        return None;
    }
    let bars: Result<Vec<_>, _> = (0..).zip(lines).map(|(index, line)| Bar::read(index, line)).collect();
    Some(bars.ok()?.into_iter().flatten().collect())
}
