//! The error of a request that finds too few devices: the reasons, and what the caller can do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hotslot_driver::pci::PciAddress;

use super::reason::{Category, NOT_VF};

/// The part of a request that cannot be met, and the reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The text that names the part in messages, from `Alias::requester`.
    pub requester: String,
    /// The number of devices or IOMMU groups that the part requests.
    pub wanted: usize,
    /// The number of devices or IOMMU groups that the part could take if it were the only part.
    pub free: usize,
    pub(super) whole_group: bool,
    pub(super) left_out: BTreeMap<Category, LeftOut>,
    /// The device that matches the alias best, and the keys in which it differs.
    pub(super) nearest: Option<String>,
    /// The reason why the parts cannot be met together, when each of them could be met alone.
    pub(super) together: Option<String>,
    /// All functions whose host driver makes another member of their IOMMU group unavailable.
    pub(super) busy: BTreeSet<PciAddress>,
    /// The busy members that the first such device needs.
    pub(super) siblings: Option<Siblings>,
    /// Whether the same request could be met with the opposite value of `whole_group`.
    pub(super) other_way: bool,
    /// The number of devices with which the request could be met, or 0 to leave the part out; `None` when neither is known
    /// to help.
    pub(super) fewer: Option<usize>,
}

/// What can be done about the busy members of a device's IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Siblings {
    /// The members to unbind from their host drivers. Empty when one of them is the PF of the device: unbinding a
    /// PF removes its VFs.
    pub(super) unbind: Vec<PciAddress>,
    /// The number of devices to request at once so that the request takes the whole group. `None` when no number
    /// helps.
    pub(super) at_once: Option<usize>,
}

impl Siblings {
    /// Returns what the caller can do, the easiest first. `whole_group` says whether a request for the whole group
    /// would succeed, and `unbinding` whether enough devices would be free after the members were unbound.
    pub(super) fn remedies(&self, whole_group: bool, unbinding: bool) -> Vec<String> {
        let mut helps = Vec::new();
        helps.extend(whole_group.then(|| "ask with whole_group".to_owned()));
        helps.extend(self.at_once.map(|count| format!("ask for {count} of them at once")));
        if unbinding && !self.unbind.is_empty() {
            let list = |name: fn(&PciAddress) -> String| self.unbind.iter().map(name).collect::<Vec<_>>();
            let (which, names) = (list(PciAddress::to_string), list(|address| address.node_name()));
            let commands =
                names.iter().map(|name| format!("virsh nodedev-detach {name}")).collect::<Vec<_>>();
            helps.push(format!("unbind {} first ({})", which.join(" and "), commands.join("; ")));
        }
        helps
    }
}

/// The units that match the alias but are left out for reasons of one category.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: usize,
    /// The device that makes the first of these units unavailable to the request.
    pub(super) first: PciAddress,
    /// The first of these units, with its reason.
    pub(super) example: String,
}

impl std::error::Error for Shortage {}

impl Shortage {
    /// The number of matching units that are unavailable.
    pub fn unavailable(&self) -> usize {
        self.left_out.get(&Category::Unavailable).map_or(0, |left_out| left_out.count)
    }

    /// Whether enough units would be free if none were unavailable, blocked by a host driver in its IOMMU group, or of
    /// another type of virtual GPU.
    pub fn is_unavailable(&self) -> bool {
        let count = |category| self.left_out.get(&category).map_or(0, |left_out: &LeftOut| left_out.count);
        let unavailable = self.unavailable() + count(Category::Busy) + count(Category::Vgpu);
        let torn = self.together.is_some() && self.siblings.is_some();
        (unavailable > 0 || torn) && self.free + unavailable >= self.wanted
    }

    /// The functions whose host drivers make other members of their IOMMU groups unavailable.
    pub fn busy(&self) -> &BTreeSet<PciAddress> {
        &self.busy
    }

    /// Returns what the caller can do, as one line. It has only what would be enough.
    pub fn advice(&self) -> String {
        let missing = self.wanted.saturating_sub(self.free);
        let count = |category| self.left_out.get(&category).map_or(0, |left_out: &LeftOut| left_out.count);
        let mut helps = match &self.siblings {
            Some(busy) => {
                let unbinding_is_enough = self.together.is_some() || count(Category::Busy) >= missing;
                busy.remedies(self.other_way, unbinding_is_enough)
            }
            None => Vec::new(),
        };
        if self.together.is_none() {
            let advised: Vec<_> = self
                .left_out
                .iter()
                .filter_map(|(category, left_out)| {
                    Some((category.advice(self.other_way, missing, left_out.first)?, left_out.count))
                })
                .collect();
            let enough: Vec<_> = advised.iter().filter(|(_, count)| *count >= missing).collect();
            if !enough.is_empty() {
                helps.extend(enough.into_iter().map(|(advice, _)| advice.clone()));
            } else if advised.iter().map(|(_, count)| count).sum::<usize>() >= missing && helps.is_empty() {
                let all: Vec<_> = advised.into_iter().map(|(advice, _)| advice).collect();
                helps.push(all.join(" and "));
            }
        }
        let another = "ask for another device";
        if self.left_out.contains_key(&Category::Unavailable)
            && self.requester.parse::<PciAddress>().is_ok()
            && !helps.iter().any(|help| help.ends_with(another))
        {
            helps.push(another.to_owned());
        }
        let at_once = if self.together.is_some() { " at once" } else { "" };
        helps.extend(self.fewer.map(|count| match count {
            0 => format!("leave {} out", self.requester),
            count => format!("ask for {count} of them{at_once}"),
        }));
        helps.dedup();
        match &helps[..] {
            [] => "GET os-pci/detail lists the devices".to_owned(),
            helps => helps.join(", or "),
        }
    }

    /// Returns what a caller can do who may not see the host, as one line without anything about it.
    pub fn advice_without_host(&self) -> String {
        let mut helps = Vec::new();
        helps.extend(self.other_way.then(|| {
            let way = if self.whole_group { "without" } else { "with" };
            format!("ask {way} whole_group")
        }));
        if self.left_out.contains_key(&Category::NotVf) {
            helps.push(NOT_VF.to_owned());
        }
        if self.left_out.contains_key(&Category::Vgpu) {
            helps.push("ask for another vGPU type".to_owned());
        }
        helps.extend(self.fewer.filter(|count| *count > 0).map(|count| format!("ask for {count}")));
        if self.left_out.keys().any(|category| matches!(category, Category::InUse | Category::Relative)) {
            helps.push("wait until some are free, or detach others".to_owned());
        }
        match &helps[..] {
            [] => "ask for another kind of device, or ask an administrator why".to_owned(),
            helps => helps.join(", or "),
        }
    }

    /// Whether the value of `whole_group` can be the reason for the shortage.
    pub(super) fn is_of_groups(&self) -> bool {
        self.siblings.is_some() || self.left_out.contains_key(&Category::Group)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &|_| false)
    }
}

impl Shortage {
    /// Returns the text without the examples for which `is_told` holds, because something else says the same.
    pub fn without(&self, is_told: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text, &is_told);
        text
    }

    fn write(&self, f: &mut dyn fmt::Write, is_told: &dyn Fn(&str) -> bool) -> fmt::Result {
        let Self { requester, wanted, free, whole_group, left_out, nearest, together, .. } = self;
        let what = if *whole_group { "IOMMU group(s)" } else { "device(s)" };
        write!(f, "{requester} asks for {wanted} {what}, {free} free")?;
        if let Some(together) = together {
            write!(f, ", but no choice was found that serves all parts of the request together: {together}")?;
        }
        if *free == 0 && left_out.is_empty() {
            write!(f, ": no assignable device matches")?;
            if let Some(nearest) = nearest {
                write!(f, " (closest: {nearest})")?;
            }
        }
        for (nth, (category, LeftOut { count, example, .. })) in left_out.iter().enumerate() {
            let mark = if nth == 0 { ":" } else { "," };
            write!(f, "{mark} {count} {}", category.words())?;
            if !is_told(example) {
                write!(f, " ({example})")?;
            }
        }
        Ok(())
    }
}
