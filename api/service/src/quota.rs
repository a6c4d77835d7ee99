//! Quotas of projects: what is limited, what was set, and what is used. The store checks them when something is reserved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::text;
use hotslot_model::quota::{Limit, Limits, Resource, Usage};
use hotslot_store::Store;

use crate::error::Error;
use crate::inventory::Catalog;

/// The largest length of the id of a project, in characters, as in Nova's database.
const PROJECT: usize = 255;

/// The quotas of projects.
pub struct Quotas {
    pub(crate) store: Store,
    pub(crate) catalog: Arc<Catalog>,
}

/// Returns the project that owns a server, against whose quota its devices count; `None` when nobody's do.
pub(crate) fn owner_of(view: &DomainView) -> Option<String> {
    view.ownership().project().map(str::to_owned)
}

/// Checks the id of a project, which nothing but a quota may know here.
fn is_project(id: &str) -> Result<(), Error> {
    let wrong =
        |reason: String| Err(Error::Invalid(format!("project id: {reason}; send the id of a project")));
    if id.is_empty() || id.chars().count() > PROJECT {
        return wrong(format!("it must have 1 to {PROJECT} characters"));
    }
    text::visible(id).or_else(|reason| wrong(reason.to_string()))
}

impl Quotas {
    /// Returns the limits that a project has when none were set for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that no project can have.
    pub fn defaults(&self, project: &str) -> Result<BTreeMap<Resource, Limit>, Error> {
        is_project(project)?;
        Ok(self.with(&Limits::default()))
    }

    /// Returns the limits of a project.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that no project can have; errors of the database.
    pub async fn limits(&self, project: &str) -> Result<BTreeMap<Resource, Limit>, Error> {
        is_project(project)?;
        Ok(self.with(&self.store.limits_of(project).await?))
    }

    /// Returns the limits of a project, and how much of each resource it uses.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    pub async fn usage(&self, project: &str) -> Result<BTreeMap<Resource, (Limit, Usage)>, Error> {
        let mut found = BTreeMap::new();
        for (resource, limit) in self.limits(project).await? {
            let usage = self.store.usage(project, &resource).await?;
            found.insert(resource, (limit, usage));
        }
        Ok(found)
    }

    /// Sets limits of a project and returns all its limits. What the project has stays, even when it is more.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that no project can have, or an alias that does not exist; errors of the database.
    pub async fn set(&self, project: &str, limits: &Limits) -> Result<BTreeMap<Resource, Limit>, Error> {
        is_project(project)?;
        let known: BTreeSet<_> = self.limits(project).await?.into_keys().collect();
        for resource in limits.0.keys() {
            if let (Resource::AttachmentsOf(name), false) = (resource, known.contains(resource)) {
                let names = self.catalog.inventory();
                let names: Vec<_> = names.alias_names().collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(Error::UnknownAlias { name: name.clone(), known });
            }
        }
        self.store.set_limits(project, limits).await?;
        tracing::info!(project, "the quota of project {project} was set: {}", described(limits));
        self.limits(project).await
    }

    /// Removes the limits that were set for a project, so that the defaults apply again.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    pub async fn reset(&self, project: &str) -> Result<(), Error> {
        is_project(project)?;
        self.store.reset_limits(project).await?;
        tracing::info!(project, "the quota of project {project} is the default again");
        Ok(())
    }

    /// Returns the limits in force for each resource, where `own` are those that were set for the project.
    fn with(&self, own: &Limits) -> BTreeMap<Resource, Limit> {
        let (inventory, defaults) = (self.catalog.inventory(), self.store.default_limits());
        let aliases = inventory.alias_names().map(|name| Resource::AttachmentsOf(name.to_owned()));
        let known = defaults.0.keys().chain(own.0.keys()).cloned();
        let all: BTreeSet<_> = Resource::FIXED.into_iter().chain(aliases).chain(known).collect();
        let limit = |resource: &Resource| own.get(resource).or(defaults.get(resource));
        all.into_iter()
            .map(|resource| {
                let limit = limit(&resource).unwrap_or(Limit::UNLIMITED);
                (resource, limit)
            })
            .collect()
    }
}

fn described(limits: &Limits) -> String {
    let limits = limits.0.iter().map(|(resource, limit)| format!("{resource} {}", limit.get()));
    limits.collect::<Vec<_>>().join(", ")
}
