//! Which devices are assignable, which aliases match them, and which of them a request gets.
//!
//! The rules are Nova's: requests never get a device that no `device_spec` matches; an alias stands for a kind of
//! device, not for one device; a request gets a PF only when the alias names `type-PF`.

mod alias;
mod choose;
mod config;
mod conflict;
mod extra_info;
mod foreign;
mod free;
mod host_facts;
pub mod identity;
mod inventory;
mod keys;
mod numa;
mod parse;
mod placement;
mod pool;
mod profile;
mod request;
#[allow(clippy::module_inception, reason = "the rules are the noun of this folder")]
mod rules;
mod spec;
#[cfg(test)]
mod tests;
mod vgpu_choice;

pub use alias::{Alias, AliasGrammar, AliasSpec};
pub use choose::{CandidateSet, Explanation, Shortage, Wanted, choose, explain};
pub use config::{Entry, ExtraInfo as ExtraInfoEntry, Pci, Unguarded};
pub use conflict::Conflicts;
pub use extra_info::ExtraInfo;
pub use foreign::Foreign;
pub use free::{FreeDevices, Surroundings, Unavailable};
pub use identity::is_still;
pub use inventory::Inventory;
pub use keys::{SLOT_PATH, VDPA, is_grouping_key};
pub use numa::NumaPolicy;
pub use parse::{NULL, SpecError};
pub use placement::{class_of, custom, declared_traits};
pub use pool::{Pool, Stat, pools, stats};
pub use profile::{MAX_VFS, Profile, ProfileChange, ProfileEntry, Profiles, number_of_vfs};
pub use request::{AliasRequest, AliasRequests, MAX_DEVICES, RequestError};
pub use rules::{Problem, Rule, RuleKind, Rules, Source};
pub use spec::DeviceSpec;
pub use vgpu_choice::{VgpuChoice, same_vgpu_type};
