//! The search that assigns units to the parts of a request.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::table::{Part, Table};
use crate::device::Device;

/// For each unit the index of the part that takes it, if any. `Err` has the index of the first part with too few
/// units.
pub(super) type Solution = Result<Vec<Option<usize>>, usize>;

pub(super) struct Search<'t, 'a> {
    pub(super) table: &'t Table<'t, 'a>,
    pub(super) units: &'t [Vec<&'a Arc<Device>>],
    pub(super) parts: &'t [Part],
    /// The number of branches that the search may still try.
    pub(super) cases: usize,
}

impl<'a> Search<'_, 'a> {
    /// Finds a choice that has every unit of `must` and none of `out`, in which no two units exclude each other and no
    /// IOMMU group is torn. A group is torn when the choice has some of its busy members and lacks others.
    pub(super) fn solve(&mut self, out: &mut [bool], must: &mut Vec<usize>) -> Solution {
        let taker = self.matching(out, must)?;
        let Some((unit, other)) = self.clash(&taker) else {
            return match self.torn(&taker) {
                Some(unit) => self.solve_whole(unit, taker[unit].unwrap_or_default(), out, must),
                None => Ok(taker),
            };
        };
        let short = taker[unit].max(taker[other]).unwrap_or_default();
        if self.cases == 0 {
            return Err(short);
        }
        self.cases -= 1;
        let excluded = |rival: &usize| !out[*rival] && *rival != unit && self.exclude(unit, *rival);
        let with: Vec<usize> = (0..self.units.len()).filter(excluded).collect();
        let without = vec![unit];
        // Try the preference of the earlier part first.
        let cases = if taker[unit] <= taker[other] { [with, without] } else { [without, with] };
        for left_out in cases {
            left_out.iter().for_each(|unit| out[*unit] = true);
            let solution = self.solve(out, must);
            left_out.iter().for_each(|unit| out[*unit] = false);
            if solution.is_ok() {
                return solution;
            }
        }
        Err(short)
    }

    /// Continues from a choice that has `unit` but not every device that it needs: first with all busy members of its
    /// group, then without the members that need others. `short` is the part that has the unit.
    fn solve_whole(
        &mut self,
        unit: usize,
        short: usize,
        out: &mut [bool],
        must: &mut Vec<usize>,
    ) -> Solution {
        if self.cases == 0 {
            return Err(short);
        }
        self.cases -= 1;
        let [device] = self.units[unit][..] else { return Err(short) };
        let group = self.table.candidate_set.groups.get(&device.facts.address);
        let busy = group.and_then(|group| self.table.busy.get(group)).into_iter().flatten();
        let places: Vec<usize> = busy.filter_map(|member| self.table.places.get(member)).copied().collect();
        let known = must.len();
        must.extend(places.into_iter().filter(|place| !must[..known].contains(place)).collect::<Vec<_>>());
        let solution = self.solve(out, must);
        must.truncate(known);
        if solution.is_ok() {
            return solution;
        }
        let needy = |place: &usize| {
            let member = &self.table.candidate_set.devices[*place];
            let of_group = self.table.candidate_set.groups.get(&member.facts.address) == group;
            of_group && !out[*place] && self.table.needs(member).next().is_some()
        };
        let left_out: Vec<usize> = (0..self.table.candidate_set.devices.len()).filter(needy).collect();
        left_out.iter().for_each(|place| out[*place] = true);
        let solution = self.solve(out, must);
        left_out.iter().for_each(|place| out[*place] = false);
        solution.map_err(|_| short)
    }

    /// Returns a single device of a choice that lacks a busy member of the device's IOMMU group, if there is one.
    fn torn(&self, taker: &[Option<usize>]) -> Option<usize> {
        if self.table.busy.is_empty() {
            return None;
        }
        let lacks = |unit: &usize| {
            let device = &self.table.candidate_set.devices[*unit];
            let there =
                |address| self.table.places.get(&address).is_some_and(|place| taker[*place].is_some());
            taker[*unit].is_some() && !self.table.needs(device).all(there)
        };
        (0..self.table.candidate_set.devices.len()).find(lacks)
    }

    /// Returns two units of a choice that exclude each other, if there are any. The first one (the group, or the PF)
    /// is the one that excludes more units.
    fn clash(&self, taker: &[Option<usize>]) -> Option<(usize, usize)> {
        let chosen = || self.units.iter().enumerate().filter(|(unit, _)| taker[*unit].is_some());
        let mut holder = HashMap::new();
        for (unit, device) in chosen().flat_map(|(unit, members)| members.iter().map(move |m| (unit, m))) {
            // Groups come after single devices, and no device is in two groups.
            if let Some(single) = holder.insert(device.facts.address, unit) {
                return Some((unit, single));
            }
        }
        let mut pairs = chosen().flat_map(|(unit, members)| members.iter().map(move |m| (unit, m)));
        pairs.find_map(|(unit, device)| {
            let pf = holder.get(&device.facts.parent_addr?)?;
            (*pf != unit).then_some((*pf, unit))
        })
    }

    /// Returns the reason why no choice serves all parts. When a torn group is the reason, also returns the device that
    /// lacks a member of its group.
    pub(super) fn obstacle(&self, out: &[bool]) -> (String, Option<&'a Arc<Device>>) {
        let taker = self.matching(out, &[]).ok();
        let Some((unit, other)) = taker.as_ref().and_then(|taker| self.clash(taker)) else {
            let torn = taker.and_then(|taker| self.torn(&taker));
            let torn = torn.and_then(|unit| self.units[unit].first());
            let why = torn.map(|device| self.table.not_viable(device));
            return (why.unwrap_or_else(|| "they ask for the same devices".to_owned()), torn.copied());
        };
        let mut pairs =
            self.units[unit].iter().flat_map(|one| self.units[other].iter().map(move |it| (one, it)));
        let why = pairs.find_map(|(one, other)| {
            let (address, vf) = (one.facts.address, other.facts.address);
            if one.id == other.id {
                return Some(format!("{address} cannot be attached both alone and with its IOMMU group"));
            }
            let of_pf = other.facts.parent_addr == Some(address);
            of_pf.then(|| format!("PF {address} and its VF {vf} cannot both be attached"))
        });
        (why.unwrap_or_else(|| "a PF and its VFs cannot both be attached".to_owned()), None)
    }

    /// Whether two units exclude each other.
    fn exclude(&self, one: usize, other: usize) -> bool {
        self.units[one].iter().any(|one| {
            self.units[other].iter().any(|other| {
                one.id == other.id
                    || one.facts.parent_addr == Some(other.facts.address)
                    || other.facts.parent_addr == Some(one.facts.address)
            })
        })
    }

    /// Assigns to each part the number of units that it requests: no unit twice, none of `out`, all of `must`. Ignores
    /// that units may exclude each other.
    fn matching(&self, out: &[bool], must: &[usize]) -> Solution {
        let mut taker = vec![None; self.units.len()];
        for unit in must {
            if out[*unit] || !self.place(*unit, &mut taker, &mut vec![false; self.parts.len()]) {
                return Err(0);
            }
        }
        for (part, Part { count, .. }) in self.parts.iter().enumerate() {
            // A unit that is taken stays taken; it can only move to another part.
            let has = taker.iter().filter(|taker| **taker == Some(part)).count();
            for _ in has..*count {
                if !self.augment(part, out, &mut taker) {
                    return Err(part);
                }
            }
        }
        Ok(taker)
    }

    /// Assigns a unit to a part that has room for it, if necessary by moving another unit of that part to another part.
    fn place(&self, unit: usize, taker: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        for (part, Part { count, candidates }) in self.parts.iter().enumerate() {
            if seen[part] || !candidates.contains(&unit) {
                continue;
            }
            seen[part] = true;
            let has: Vec<usize> = (0..taker.len()).filter(|held| taker[*held] == Some(part)).collect();
            if has.len() < *count || has.into_iter().any(|held| self.place(held, taker, seen)) {
                taker[unit] = Some(part);
                return true;
            }
        }
        false
    }

    /// Assigns one more unit to a part: a free one, or one of another part that takes a free one in its place, and so
    /// on. The search is breadth first, so that as few units as possible move.
    fn augment(&self, part: usize, out: &[bool], taker: &mut [Option<usize>]) -> bool {
        // For each part that the search has reached: the unit that it would give up, and the part that would get it.
        let mut gives = vec![None; self.parts.len()];
        let mut queue = VecDeque::from([part]);
        while let Some(asks) = queue.pop_front() {
            for unit in self.parts[asks].candidates.iter().copied().filter(|unit| !out[*unit]) {
                match taker[unit] {
                    None => {
                        taker[unit] = Some(asks);
                        let mut giver = asks;
                        while let Some((given, to)) = gives[giver] {
                            taker[given] = Some(to);
                            giver = to;
                        }
                        return true;
                    }
                    Some(holder) if holder != part && gives[holder].is_none() => {
                        gives[holder] = Some((unit, asks));
                        queue.push_back(holder);
                    }
                    Some(_) => {}
                }
            }
        }
        false
    }
}
