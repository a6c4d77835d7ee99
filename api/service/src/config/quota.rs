//! `[quota]`: the limits of projects for which none were set.

use std::collections::BTreeMap;

use hotslot_model::quota::{Limit, Limits, Resource};
use schemars::JsonSchema;
use serde::Deserialize;

/// `[quota]`. Each limit is a number from 0 up, or -1 for no limit.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// The devices and mediated devices in the servers of a project.
    pub pci_attachments: Limit,
    /// Of those, the devices that were requested by an alias, by the name of the alias.
    pub alias: BTreeMap<String, Limit>,
    /// The accelerators that a project creates.
    pub accelerators: Limit,
    /// The accelerator requests of a project.
    pub accelerator_requests: Limit,
    /// The bytes of the specs of a project's accelerators together.
    pub accelerator_spec_bytes: Limit,
    /// The `Idempotency-Key`s of a project's requests whose answers are kept.
    pub idempotency_keys: Limit,
}

impl Default for Quota {
    /// Attachments are limited by the devices that there are; records that need no device are limited here.
    fn default() -> Self {
        let of = |limit| Limit::new(limit).unwrap_or(Limit::UNLIMITED);
        Self {
            pci_attachments: Limit::UNLIMITED,
            alias: BTreeMap::new(),
            accelerators: of(1000),
            accelerator_requests: of(1000),
            accelerator_spec_bytes: of(1024 * 1024),
            idempotency_keys: of(10_000),
        }
    }
}

impl Quota {
    /// Returns the limits by resource.
    pub fn limits(&self) -> Limits {
        let fixed = [
            (Resource::Attachments, self.pci_attachments),
            (Resource::Accelerators, self.accelerators),
            (Resource::AcceleratorRequests, self.accelerator_requests),
            (Resource::SpecBytes, self.accelerator_spec_bytes),
            (Resource::IdempotencyKeys, self.idempotency_keys),
        ];
        let aliases = self.alias.iter().map(|(name, limit)| (Resource::AttachmentsOf(name.clone()), *limit));
        Limits(fixed.into_iter().chain(aliases).collect())
    }
}
