//! Chooses the devices that a request gets.
//!
//! A *unit* is what a part of a request can take: one device, or all functions of one IOMMU group. Each part
//! considers units in this order:
//!
//! 1. by NUMA rank ([`NumaPolicy::rank`]);
//! 2. by number of tags, fewest first, as Nova does, so that special devices remain for the requests that need them;
//! 3. devices that need no other device first (see below);
//! 4. by address, the VFs of one PF together, so that a request uses up one PF's VFs before it touches another PF.
//!
//! A guest can get a device only when no other member of its IOMMU group is bound to a host driver. A member that is
//! bound to a host driver is *busy*. When busy members are part of the same request, they are unbound too. So a
//! device whose group has busy members is offered only when the request can take all of them, and a choice that takes
//! some of them takes all.
//!
//! Either all parts of a request get their units, or none does. Each part takes the first free unit. When a later part
//! finds no free unit, units move between parts along an augmenting path (bipartite matching). The matching ignores
//! that some units exclude each other (a PF and its VFs, a group and its members). When its result has such a pair,
//! the search branches: one branch keeps the first unit, the other drops it. The search branches in the same way when
//! the result has only some of the busy members of a group: one branch takes all of them, the other takes none of the
//! members that need them. Choosing whole PFs is set packing, which is NP-hard, so the number of branches is limited
//! to [`CASES`].
//!
//! [`NumaPolicy::rank`]: super::numa::NumaPolicy::rank

mod candidates;
mod reason;
mod search;
mod shortage;
mod table;
#[cfg(test)]
pub(super) mod tests;

use std::collections::HashSet;
use std::sync::Arc;

pub use self::candidates::{CandidateSet, Wanted};
use self::reason::Reason;
use self::search::Search;
pub use self::shortage::Shortage;
use self::table::{Part, Table};
use crate::device::{DevType, Device};

/// The largest number of branches of one search. Over 4,096 devices they take about 0.2 s.
const CASES: usize = 500;

/// How many smaller numbers of devices are tried for the advice to a request that cannot be met.
const FEWER: usize = 8;

/// The devices of a host, candidates first. Each candidate has its position in the order of preference (from 0; all
/// members of one group have the same position). Every other device has the reason why it is not a candidate.
pub type Explanation<'a> = Vec<(&'a Arc<Device>, Result<usize, String>)>;

/// Chooses devices for all parts of a request. Returns a list of devices for each part, in order of preference. No
/// device is chosen twice, and never both a PF and a VF of it.
///
/// # Errors
/// Returns the [`Shortage`] of the first part that cannot be met.
pub fn choose<'a>(
    wanted: &[Wanted<'_>],
    candidate_set: &CandidateSet<'a>,
) -> Result<Vec<Vec<&'a Arc<Device>>>, Box<Shortage>> {
    let table = Table::new(candidate_set);
    serve(&table, wanted).map_err(|refusal| {
        // The parts of one alias are refused as one part.
        let merged = merged(wanted);
        let (wanted, (part, mut shortage)) = match serve(&table, &merged) {
            Err(refusal) if merged.len() < wanted.len() => (&merged[..], refusal),
            _ => (wanted, refusal),
        };
        // A caller can set whole_group unless an accelerator is attached, and not with options that are for VFs only.
        let settable = wanted.iter().all(|wanted| wanted.alias.is_named_by_caller() && !wanted.vf);
        let other = wanted.iter().map(|wanted| Wanted { whole_group: !wanted.whole_group, ..wanted.clone() });
        let works = || serve(&table, &other.collect::<Vec<_>>()).is_ok();
        shortage.other_way = settable && shortage.is_of_groups() && works();
        shortage.fewer = fewer(&table, wanted, part, shortage.free);
        shortage
    })
}

/// Explains for each device of a host whether the request `wanted`, on its own, could get it, and why not.
pub fn explain<'a>(wanted: &Wanted<'_>, candidate_set: &CandidateSet<'a>) -> Explanation<'a> {
    let table = Table::new(candidate_set);
    let mut explained: Explanation<'a> = Vec::new();
    let part = table.parts(std::slice::from_ref(wanted)).into_iter().next();
    let candidates = part.map(|part| part.candidates).unwrap_or_default();
    for (place, unit) in candidates.iter().enumerate() {
        explained.extend(table.units[*unit].iter().map(|device| (*device, Ok(place))));
    }
    let candidates: HashSet<usize> = candidates.into_iter().collect();
    for (unit, verdict) in table.verdicts(wanted).filter(|(unit, _)| !candidates.contains(unit)) {
        let devices = table.units[unit].iter();
        match verdict {
            Err(reason) => {
                explained.extend(devices.map(|device| {
                    let why = reason.of(device, wanted);
                    // For a vDPA device, add the reason from `unavailable`: it names the guest that uses the device,
                    // or says how to remove the vDPA device.
                    let of_vdpa = device.facts.dev_type == DevType::Vdpa && matches!(reason, Reason::Kind);
                    let held = candidate_set.unavailable.get(&device.id).filter(|_| of_vdpa);
                    (*device, Err(held.map_or(why.clone(), |held| format!("{why}; {held}"))))
                }));
            }
            Ok(_) => explained.extend(devices.map(|device| {
                let whole = Wanted { whole_group: true, ..wanted.clone() };
                let works = wanted.alias.is_named_by_caller() && table.is_usable_whole(&whole, device);
                let remedies = table.siblings(wanted, device, true).remedies(works, true).join(", or ");
                let why = table.not_viable(device);
                (*device, Err(if remedies.is_empty() { why } else { format!("{why}; {remedies}") }))
            })),
        }
    }
    explained
}

/// Returns the parts of a request with those of one alias as one part.
fn merged<'a>(wanted: &[Wanted<'a>]) -> Vec<Wanted<'a>> {
    let mut merged = Vec::<Wanted<'a>>::new();
    for part in wanted {
        match merged.iter_mut().find(|other| other.alias.name == part.alias.name) {
            Some(same) => same.count = same.count.saturating_add(part.count),
            None => merged.push(part.clone()),
        }
    }
    merged
}

/// Returns the largest number of devices for which the part would be met, with the other parts as they are; 0 to leave
/// the part out. `free` is the number that it could take if it were the only part. `None` when there is none, or when it
/// is not found soon.
fn fewer(table: &Table<'_, '_>, wanted: &[Wanted<'_>], part: usize, free: usize) -> Option<usize> {
    let most = free.min(wanted[part].count.saturating_sub(1));
    let works = |count: &usize| {
        let mut fewer = wanted.to_vec();
        if *count == 0 {
            fewer.remove(part);
        } else {
            fewer[part].count = *count;
        }
        !fewer.is_empty() && serve(table, &fewer).is_ok()
    };
    (1..=most).rev().take(FEWER).chain([0]).find(works)
}

/// The devices of each part of a request, or the part that cannot be met and why.
type Served<'a> = Result<Vec<Vec<&'a Arc<Device>>>, (usize, Box<Shortage>)>;

/// Chooses devices for all parts of a request from a prepared table.
fn serve<'a>(table: &Table<'_, 'a>, wanted: &[Wanted<'_>]) -> Served<'a> {
    let parts = table.parts(wanted);
    let alone = wanted.len() == 1;
    if let Some(part) = parts.iter().position(|part| part.candidates.len() < part.count) {
        return Err((part, Box::new(table.shortage(&wanted[part], &parts[part], alone))));
    }
    let mut search = Search { table, units: &table.units, parts: &parts, cases: CASES };
    let mut out = vec![false; table.units.len()];
    let taker = search.solve(&mut out, &mut Vec::new()).map_err(|part| {
        let (together, torn) = search.obstacle(&out);
        let mut shortage = table.shortage(&wanted[part], &parts[part], alone);
        shortage.together = Some(together);
        if let Some(device) = torn {
            shortage.busy.extend(table.needs(device));
            shortage.siblings = Some(table.siblings(&wanted[part], device, false));
        }
        (part, Box::new(shortage))
    })?;
    Ok(taken(table, &parts, &taker))
}

/// As [`choose`]. Returns `None` when the devices are too few, or when some of them exclude each other.
pub(super) fn choose_simply<'a>(
    wanted: &[Wanted<'_>],
    candidate_set: &CandidateSet<'a>,
) -> Option<Vec<Vec<&'a Arc<Device>>>> {
    let table = Table::new(candidate_set);
    let parts = table.parts(wanted);
    let mut search = Search { table: &table, units: &table.units, parts: &parts, cases: 0 };
    let taker = search.solve(&mut vec![false; table.units.len()], &mut Vec::new()).ok()?;
    Some(taken(&table, &parts, &taker))
}

/// Returns the devices of each part, in order of preference.
fn taken<'a>(table: &Table<'_, 'a>, parts: &[Part], taker: &[Option<usize>]) -> Vec<Vec<&'a Arc<Device>>> {
    let devices = |(index, part): (usize, &Part)| {
        let chosen = part.candidates.iter().filter(|unit| taker[**unit] == Some(index));
        chosen.flat_map(|unit| &table.units[*unit]).copied().collect()
    };
    parts.iter().enumerate().map(devices).collect()
}
