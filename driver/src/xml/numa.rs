//! Finds the host's NUMA nodes to which a guest's NUMA cells are pinned.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::read::{Fault, child, children, required_attribute, required_number};
use super::tree::Element;

/// The highest NUMA node that a Linux host can have (`MAX_NUMNODES`). Higher numbers are refused as mistakes.
const LAST_NODE: u32 = 1023;

/// Returns the host's NUMA nodes to which the guest's cells (`<cpu><numa><cell>`) are pinned, by the cell's own
/// `<numatune><memnode>` or else by `<numatune><memory>`. The result is empty when the guest has no cells or when they
/// are not pinned.
pub(super) fn nodes_of_cells(domain: &Element<'_>) -> Result<BTreeSet<u32>, Fault> {
    let cells = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
    let (Some(cells), Some(tune)) = (cells, child(domain, "numatune")) else { return Ok(BTreeSet::new()) };
    let common = child(tune, "memory").filter(|memory| memory.attribute("nodeset").is_some());
    let mut nodes = BTreeSet::new();
    for (position, cell) in (0u32..).zip(children(cells, "cell")) {
        let id = if cell.attribute("id").is_some() { required_number(cell, "id")? } else { position };
        let mut own = None;
        for memnode in children(tune, "memnode") {
            if required_number::<u32>(memnode, "cellid")? == id {
                own = Some(memnode);
            }
        }
        if let Some(pinned) = own.or(common) {
            nodes.extend(nodeset(pinned)?);
        }
    }
    Ok(nodes)
}

/// Reads libvirt's list of nodes (`0-1,^1,3`), from left to right.
fn nodeset(node: &Element<'_>) -> Result<BTreeSet<u32>, Fault> {
    let text: String = required_attribute(node, "nodeset")?;
    let mut nodes = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (taken_out, range) = match part.strip_prefix('^') {
            Some(number) => (true, self::node(number).map(|number| number..=number)),
            None => (false, range(part)),
        };
        let range = range.ok_or_else(|| {
            let expected = "expected a list of nodes such as 0-1,^1,3";
            Fault::at(node, format_args!("nodeset='{text}': `{part}`: {expected}, up to node {LAST_NODE}"))
        })?;
        if taken_out {
            nodes.retain(|node| !range.contains(node));
        } else {
            nodes.extend(range);
        }
    }
    Ok(nodes)
}

fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = node(first)?..=node(last)?;
    (!range.is_empty()).then_some(range)
}

fn node(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|node| digits && *node <= LAST_NODE)
}
