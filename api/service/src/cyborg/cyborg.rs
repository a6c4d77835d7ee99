//! The part of the service that keeps Cyborg's nouns.

use std::sync::Arc;

use hotslot_model::cyborg::{Attribute, DeviceProfile};
use hotslot_model::id::{ArqId, AttributeId, DeviceId, DeviceProfileId};
use hotslot_store::Store;

use crate::accelerator::Accelerators;
use crate::assignment::Assignments;
use crate::error::Error;
use crate::hosts::Hosts;
use crate::locks::InFlight;

/// Keeps cards, device profiles, attributes and accelerator requests.
pub struct Cyborg {
    pub(crate) store: Store,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) assignments: Arc<Assignments>,
    pub(crate) accelerators: Arc<Accelerators>,
    /// The accelerator requests that somebody works on.
    pub(crate) binding: Arc<InFlight<ArqId>>,
}

impl Cyborg {
    /// Records a device profile.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when there is one of its name or id; the database's.
    pub async fn create_device_profile(&self, new: &DeviceProfile) -> Result<(), Error> {
        Ok(self.store.create_device_profile(new).await?)
    }

    /// Removes device profiles, all or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] when an accelerator request was made by one; the database's.
    pub async fn delete_device_profiles(&self, ids: &[DeviceProfileId]) -> Result<(), Error> {
        // A request that is shown as deleted must not keep its profile from being deleted.
        self.settle_arqs().await?;
        Ok(self.store.delete_device_profiles(ids).await?)
    }

    /// Records an attribute of a deployable.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has one of that key; the database's.
    pub async fn create_attribute(
        &self,
        deployable: DeviceId,
        key: &str,
        value: &str,
    ) -> Result<Attribute, Error> {
        Ok(self.store.create_attribute(deployable, key, value).await?)
    }

    /// Removes an attribute; false when there is none of that id.
    ///
    /// # Errors
    /// The database's.
    pub async fn delete_attribute(&self, id: AttributeId) -> Result<bool, Error> {
        Ok(self.store.delete_attribute(id).await?)
    }
}
