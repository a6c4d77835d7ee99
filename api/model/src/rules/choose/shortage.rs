//! The error of a request that gets too few devices: why, and what helps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hotslot_driver::pci::PciAddress;

use super::reason::Category;

/// A part of a request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Who asks: an alias, or what a device is held on behalf of.
    pub asker: String,
    /// How many devices or groups were wanted.
    pub wanted: usize,
    /// How many would do, were it the only part.
    pub free: usize,
    pub(super) whole_group: bool,
    pub(super) left_out: BTreeMap<Category, LeftOut>,
    /// The device that comes nearest to the alias, and in what it differs.
    pub(super) nearest: Option<String>,
    /// Why the parts cannot be served together, where each could be alone.
    pub(super) together: Option<String>,
    /// Every busy member of an IOMMU group that keeps another one back.
    pub(super) busy: BTreeSet<PciAddress>,
    /// What keeps the first of those back.
    pub(super) siblings: Option<Siblings>,
    /// Whether the same request could be served with `whole_group`, or without it where it asks for that.
    pub(super) other_way: bool,
}

/// The busy members of its IOMMU group that a device cannot be given without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Siblings {
    /// Those that would have to be unbound; none where that does not help, for one is the PF of the device.
    pub(super) unbind: Vec<PciAddress>,
    /// How many devices of the alias would have to be asked for at once; none where that does not help.
    pub(super) at_once: Option<usize>,
}

impl Siblings {
    /// What helps, the least trouble first. `whole_group`: whether asking for the whole group would.
    pub(super) fn remedies(&self, whole_group: bool) -> Vec<String> {
        let mut helps = Vec::new();
        helps.extend(whole_group.then(|| "ask with whole_group".to_owned()));
        helps.extend(self.at_once.map(|count| format!("ask for {count} of them at once")));
        if !self.unbind.is_empty() {
            let list = |name: fn(&PciAddress) -> String| self.unbind.iter().map(name).collect::<Vec<_>>();
            let (which, names) = (list(PciAddress::to_string), list(|address| address.node_name()));
            let commands =
                names.iter().map(|name| format!("virsh nodedev-detach {name}")).collect::<Vec<_>>();
            helps.push(format!("unbind {} first ({})", which.join(" and "), commands.join("; ")));
        }
        helps
    }
}

/// Units of the wanted kind that are left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: usize,
    /// The first of them, with its reason.
    pub(super) example: String,
}

impl std::error::Error for Shortage {}

impl Shortage {
    /// How many of the kind are withheld.
    pub fn withheld(&self) -> usize {
        self.left_out.get(&Category::Withheld).map_or(0, |left_out| left_out.count)
    }

    /// Whether there would be enough, were none of them withheld or kept back by a busy IOMMU group.
    pub fn is_withheld(&self) -> bool {
        let busy = self.left_out.get(&Category::Busy).map_or(0, |left_out| left_out.count);
        let withheld = self.withheld() + busy;
        let torn = self.together.is_some() && self.siblings.is_some();
        (withheld > 0 || torn) && self.free + withheld >= self.wanted
    }

    /// The functions whose host drivers keep others of their IOMMU groups back.
    pub fn busy(&self) -> &BTreeSet<PciAddress> {
        &self.busy
    }

    /// What helps.
    pub fn advice(&self) -> String {
        let mut helps = self.siblings.as_ref().map(|busy| busy.remedies(self.other_way)).unwrap_or_default();
        if self.together.is_some() {
            let how = if self.siblings.is_some() { "another number" } else { "fewer" };
            helps.push(format!("ask for {how} of them at once"));
            return helps.join(", or ");
        }
        let other_way = self.other_way;
        helps.extend(
            self.left_out.keys().filter_map(|category| category.advice(other_way)).map(str::to_owned),
        );
        helps.dedup();
        match &helps[..] {
            [] => "GET os-pci/detail lists what there is".to_owned(),
            helps => helps.join(", or "),
        }
    }

    /// Whether it matters if the request is for whole IOMMU groups or not.
    pub(super) fn is_of_groups(&self) -> bool {
        self.siblings.is_some() || self.left_out.contains_key(&Category::Group)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asker, wanted, free, whole_group, left_out, nearest, together, .. } = self;
        let what = if *whole_group { "IOMMU group(s)" } else { "device(s)" };
        write!(f, "{asker} asks for {wanted} {what}, {free} free")?;
        if let Some(together) = together {
            write!(f, ", but no choice was found that serves all parts of the request together: {together}")?;
        }
        if *free == 0 && left_out.is_empty() {
            write!(f, ": no assignable device is of this kind")?;
            if let Some(nearest) = nearest {
                write!(f, " (the nearest is {nearest})")?;
            }
        }
        for (nth, (category, LeftOut { count, example })) in left_out.iter().enumerate() {
            let mark = if nth == 0 { ":" } else { "," };
            write!(f, "{mark} {count} {} ({example})", category.words())?;
        }
        Ok(())
    }
}
