//! Which devices a request gets.
//!
//! What can be given is a *unit*: one device, or all functions of one IOMMU group. Each part of a request is
//! offered units in this order:
//!
//! 1. the NUMA rank of [`NumaPolicy::rank`];
//! 2. devices with fewer tags first, as Nova does: what is special is kept for those who ask for it;
//! 3. devices that need no other one first (see below);
//! 4. by address, the VFs of one PF together: they are packed, so that other PFs stay whole.
//!
//! A guest gets a device only when no other member of its IOMMU group is bound to a host driver. Such busy members
//! are taken from their drivers when they are part of the same request. So a device of a group with busy members
//! is offered only where the request can take all of them, and no choice takes a part of them.
//!
//! All parts are served together, or none. A part takes the first free unit; where none is left for a later part,
//! units that are taken change hands along an augmenting path (bipartite matching). That does not see units that
//! exclude each other (a PF and its VFs, a group and its members): such a pair in the outcome makes two cases, one
//! that has the one, one that does not, until a choice without such pairs is found. In the same way a group of which
//! not all busy members are taken makes two cases: one that takes all of them, one that takes none of the members
//! that need them. Choosing whole PFs is a hard problem (set packing), so the cases are limited to [`CASES`].
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

/// How many cases of pairs that exclude each other, and of groups that are torn, are looked at: over 4,096 devices, about 0.2 s.
const CASES: usize = 500;

/// The devices of a host, candidates first, with each one's place in the order in which they would be taken (from
/// 0; all members of a group have the same), or why it is none.
pub type Explanation<'a> = Vec<(&'a Arc<Device>, Result<usize, String>)>;

/// Chooses devices for all parts of a request: for each its devices, in order of preference. No device is given
/// twice, and no PF beside its own VF.
///
/// # Errors
/// [`Shortage`] of the first part that is short.
pub fn choose<'a>(
    wanted: &[Wanted<'_>],
    scene: &CandidateSet<'a>,
) -> Result<Vec<Vec<&'a Arc<Device>>>, Box<Shortage>> {
    let table = Table::new(scene);
    serve(&table, wanted).map_err(|mut shortage| {
        // No flag goes with what is only said by addresses, or is for VFs of NICs alone.
        let settable = wanted.iter().all(|wanted| wanted.alias.is_configured() && !wanted.vf);
        let other = wanted.iter().map(|wanted| Wanted { whole_group: !wanted.whole_group, ..wanted.clone() });
        let works = || serve(&table, &other.collect::<Vec<_>>()).is_ok();
        shortage.other_way = settable && shortage.is_of_groups() && works();
        shortage
    })
}

/// Says of each device of a host what a request for as many of its kind as `wanted` says would find.
pub fn explain<'a>(wanted: &Wanted<'_>, scene: &CandidateSet<'a>) -> Explanation<'a> {
    let table = Table::new(scene);
    let mut told: Explanation<'a> = Vec::new();
    let part = table.parts(std::slice::from_ref(wanted)).into_iter().next();
    let candidates = part.map(|part| part.candidates).unwrap_or_default();
    for (place, unit) in candidates.iter().enumerate() {
        told.extend(table.units[*unit].iter().map(|device| (*device, Ok(place))));
    }
    let candidates: HashSet<usize> = candidates.into_iter().collect();
    for (unit, verdict) in table.offers(wanted).filter(|(unit, _)| !candidates.contains(unit)) {
        let devices = table.units[unit].iter();
        match verdict {
            Err(reason) => {
                told.extend(devices.map(|device| {
                    let why = reason.of(device, wanted);
                    // What withholds it names the guest that uses its vDPA device, or says how to take that away.
                    let of_vdpa = device.facts.dev_type == DevType::Vdpa && matches!(reason, Reason::Kind);
                    let held = scene.withheld.get(&device.id).filter(|_| of_vdpa);
                    (*device, Err(held.map_or(why.clone(), |held| format!("{why}; {held}"))))
                }));
            }
            Ok(_) => told.extend(devices.map(|device| {
                let whole = Wanted { whole_group: true, ..wanted.clone() };
                let works = wanted.alias.is_configured() && table.is_offered_whole(&whole, device);
                let remedies = table.siblings(wanted, device, true).remedies(works).join(", or ");
                let why = table.not_viable(device);
                (*device, Err(if remedies.is_empty() { why } else { format!("{why}; {remedies}") }))
            })),
        }
    }
    told
}

/// Chooses units for all parts of a request from a prepared table.
fn serve<'a>(
    table: &Table<'_, 'a>,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Vec<&'a Arc<Device>>>, Box<Shortage>> {
    let parts = table.parts(wanted);
    let alone = wanted.len() == 1;
    if let Some(part) = parts.iter().position(|part| part.candidates.len() < part.count) {
        return Err(Box::new(table.shortage(&wanted[part], &parts[part], alone)));
    }
    let mut search = Search { table, units: &table.units, parts: &parts, cases: CASES };
    let mut out = vec![false; table.units.len()];
    let taker = search.solve(&mut out, &mut Vec::new()).map_err(|part| {
        let (together, torn) = search.hindrance(&out);
        let mut shortage = table.shortage(&wanted[part], &parts[part], alone);
        shortage.together = Some(together);
        if let Some(device) = torn {
            shortage.busy.extend(table.needs(device));
            shortage.siblings = Some(table.siblings(&wanted[part], device, false));
        }
        Box::new(shortage)
    })?;
    let devices = |(index, part): (usize, &Part)| {
        let taken = part.candidates.iter().filter(|unit| taker[**unit] == Some(index));
        taken.flat_map(|unit| &table.units[*unit]).copied().collect()
    };
    Ok(parts.iter().enumerate().map(devices).collect())
}
