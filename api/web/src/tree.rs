//! The PCI tree of a host as nested lists: NUMA nodes, root buses, bridges, functions, VFs. Functions of one IOMMU group
//! have a common outline.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::guests::Guests;
use crate::parts::{badge, device_status, function_name, function_page, guard, items, link_words, text};

/// The number of functions of a host up to which the tree has a line for each VF. Above it, a PF shows its VFs as a
/// picture and a link to their list.
const ALL_LINES: usize = 1000;

/// The maximum depth of bridges. A bus has at most 256 below it, and hosts have fewer than ten levels.
const DEEPEST: usize = 32;

/// The functions of a host, by what they are below of.
pub(crate) struct Tree<'a> {
    guests: &'a Guests<'a>,
    host: &'a str,
    all: &'a [Value],
    below: BTreeMap<&'a str, Vec<&'a Value>>,
    vfs: BTreeMap<&'a str, Vec<&'a Value>>,
    roots: Vec<&'a Value>,
}

impl<'a> Tree<'a> {
    pub(crate) fn of(guests: &'a Guests<'a>, host: &'a str, all: &'a [Value]) -> Self {
        let names: BTreeSet<_> = all.iter().map(|function| text(&function["dev_id"])).collect();
        let addresses: BTreeSet<_> = all.iter().map(|function| text(&function["address"])).collect();
        let mut tree =
            Self { guests, host, all, below: BTreeMap::new(), vfs: BTreeMap::new(), roots: Vec::new() };
        for function in all {
            let (parent, physical) = (text(&function["parent"]), text(&function["parent_addr"]));
            if addresses.contains(physical) {
                tree.vfs.entry(physical).or_default().push(function);
            } else if names.contains(parent) && parent != text(&function["dev_id"]) {
                tree.below.entry(parent).or_default().push(function);
            } else {
                tree.roots.push(function);
            }
        }
        tree
    }

    /// Returns the whole tree.
    pub(crate) fn show(&self) -> Markup {
        let mut nodes: BTreeMap<Option<u64>, BTreeMap<&str, Vec<&Value>>> = BTreeMap::new();
        for function in &self.roots {
            let node = self.node_of(function, 0);
            let bus = text(&function["address"]).get(..7).unwrap_or_default();
            nodes.entry(node).or_default().entry(bus).or_default().push(function);
        }
        html! {
            @for (node, buses) in &nodes {
                section.numa {
                    h2 { @match node {
                        Some(node) => { "NUMA node " (node) },
                        None => { "NUMA node not known" },
                    } }
                    div.buses {
                        @for (bus, functions) in buses {
                            div.bus {
                                h3 { "Root bus " code { (bus) } }
                                (self.list(functions, None, 0))
                            }
                        }
                    }
                }
            }
        }
    }

    /// Returns the NUMA node of a function, or that of the first function below it that has one.
    fn node_of(&self, function: &Value, depth: usize) -> Option<u64> {
        function["numa_node"].as_u64().or_else(|| {
            let below = self.below.get(text(&function["dev_id"])).filter(|_| depth < DEEPEST)?;
            below.iter().find_map(|function| self.node_of(function, depth + 1))
        })
    }

    /// Returns functions side by side. Neighbours of one IOMMU group have a common outline; `outlined` is the group that
    /// has one already.
    fn list(&self, functions: &[&Value], outlined: Option<u64>, depth: usize) -> Markup {
        let mut runs: Vec<(Option<u64>, Vec<&Value>)> = Vec::new();
        for function in functions {
            let group = shared_group(function).filter(|group| Some(*group) != outlined);
            match runs.last_mut() {
                Some((last, run)) if *last == group && group.is_some() => run.push(function),
                Some(_) | None => runs.push((group, vec![function])),
            }
        }
        html! {
            ul.tree {
                @for (group, run) in &runs {
                    @if let Some(group) = group {
                        li.group {
                            span.caption { "IOMMU group " (group) " · " (members(run[0])) " functions" }
                            ul.tree { @for function in run { (self.line(function, Some(*group), depth)) } }
                        }
                    } @else {
                        @for function in run { (self.line(function, outlined, depth)) }
                    }
                }
            }
        }
    }

    fn line(&self, function: &Value, group: Option<u64>, depth: usize) -> Markup {
        let below = self.below.get(text(&function["dev_id"])).filter(|_| depth < DEEPEST);
        let vfs = self.vfs.get(text(&function["address"]));
        html! {
            li {
                (entry(self.guests, self.host, function))
                @if let Some(vfs) = vfs { (self.vfs(function, vfs)) }
                @if let Some(below) = below { (self.list(below, group, depth + 1)) }
            }
        }
    }

    /// Returns the VFs of a PF: a picture, and a list that is closed at first.
    fn vfs(&self, physical: &Value, vfs: &[&Value]) -> Markup {
        let free = vfs.iter().filter(|vf| device_status(vf).1 == "free").count();
        let address = text(&physical["address"]);
        let summary = html! {
            (picture(vfs))
            " " (vfs.len()) " VFs, " (free) " free"
        };
        html! {
            @if self.all.len() > ALL_LINES {
                p.vfs {
                    a href={ "host?host=" (part(self.host)) "&q=" (part(address)) } { (summary) }
                }
            } @else {
                details.vfs id={ "vfs-" (address) } {
                    summary { (summary) }
                    ul.tree { @for vf in vfs { li { (entry(self.guests, self.host, vf)) } } }
                }
            }
        }
    }
}

/// Returns the number of the IOMMU group of a function that shares it with others.
fn shared_group(function: &Value) -> Option<u64> {
    let group = &function["iommu_group"];
    group["number"].as_u64().filter(|_| items(&group["members"]).len() > 1)
}

fn members(function: &Value) -> usize {
    items(&function["iommu_group"]["members"]).len()
}

/// Returns VFs as a row of small squares, in the colours of their status.
fn picture(vfs: &[&Value]) -> Markup {
    const COLUMNS: usize = 32;
    let (columns, rows) = (vfs.len().min(COLUMNS), vfs.len().div_ceil(COLUMNS));
    html! {
        svg.cells width=(columns * 9) height=(rows * 9) viewBox={ "0 0 " (columns * 9) " " (rows * 9) } aria-hidden="true" {
            @for (number, vf) in vfs.iter().enumerate() {
                rect class=(device_status(vf).1) x=(number % COLUMNS * 9) y=(number / COLUMNS * 9) width="8" height="8" {}
            }
        }
    }
}

/// Returns the line of a function: what it is, whether it is free, and who has it.
fn entry(guests: &Guests<'_>, host: &str, function: &Value) -> Markup {
    let (word, colour) = device_status(function);
    let address = text(&function["address"]);
    html! {
        div.entry {
            a.address href=(function_page(host, address)) { (address) }
            span.name { (function_name(function)) @if let Some(kind) = kind(function) { " " small.kind { (kind) } } }
            @if colour != "none" || word != "bridge" { (badge(word, colour)) }
            (guests.holder(function))
            (guard(function))
            (facts(function))
        }
    }
}

fn kind(function: &Value) -> Option<&'static str> {
    match text(&function["dev_type"]) {
        "type-PF" => Some("PF"),
        "type-VF" => Some("VF"),
        "vdpa" => Some("vDPA"),
        _ => None,
    }
}

/// Returns the driver, the link and the names of interfaces and disks of a function.
fn facts(function: &Value) -> Markup {
    let names = [&function["net"], &function["block"]];
    html! {
        span.facts {
            @for name in names.into_iter().flat_map(items) { code { (text(name)) } " " }
            @if let Some(driver) = function["driver"].as_str().filter(|_| function["bridge"] != true) {
                span.driver title="host driver" { (driver) } " "
            }
            @if let Some((link, below)) = link_words(&function["link"]).filter(|_| function["bridge"] != true) {
                span.linkspeed.slow[below] title=(if below { "below the maximum of the function" } else { "PCI Express link" }) {
                    (link)
                }
            }
        }
    }
}
