//! The records, to be read: whoever answers a request reads them here, and changes them through the parts of the service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotslot_model::assignment::{Attachment, Mdev};
use hotslot_model::cyborg::DeviceProfile;
use hotslot_model::device::Device;
use hotslot_model::event::{Event, EventFilter};
use hotslot_model::id::{AttachmentId, DeviceId, EventId, HypervisorId, ServerId};
use hotslot_store::{DeadLetter, Error, EventBounds, Store};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

/// How long a commit shows that the database accepts commits.
const WRITTEN: Duration = Duration::from_secs(5);

/// The time limit for such a commit.
const PATIENCE: Duration = Duration::from_secs(10);

/// The records, to be read.
pub struct Records(Store, Mutex<Option<Instant>>);

impl Records {
    pub(crate) fn new(store: Store) -> Self {
        Self(store, Mutex::default())
    }

    /// Every device on record.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.0.devices()
    }

    /// The devices of a host.
    pub fn devices_of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        self.0.devices_of(host)
    }

    /// One device; `None` when it is not on record, or put aside.
    pub fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.0.device(id)
    }

    /// The devices after one, at most `limit` of those that pass, in the order of their ids.
    pub fn devices_after(
        &self,
        after: Option<DeviceId>,
        limit: usize,
        passes: impl Fn(&Device) -> bool,
    ) -> Vec<Arc<Device>> {
        self.0.devices_after(after, limit, passes)
    }

    /// One device, also one that was put aside.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn known_device(&self, id: DeviceId) -> Result<Option<Arc<Device>>, Error> {
        self.0.known_device(id).await
    }

    /// Whether a UUID is, or was, that of a device.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn is_device(&self, uuid: Uuid) -> Result<bool, Error> {
        self.0.is_device(uuid).await
    }

    /// The device that a page marker names; `None` when there is none.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn marker(&self, text: &str) -> Result<Option<DeviceId>, Error> {
        self.0.marker(text).await
    }

    /// The attachments that have not ended, the oldest first.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        self.0.attachments().await
    }

    /// The attachments that have not ended, the oldest first: at most `most`, of one project or of all, and those that
    /// come after a marker, where one is given. `None` when there is no such attachment.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn attachments_after(
        &self,
        project: Option<&str>,
        marker: Option<AttachmentId>,
        most: usize,
    ) -> Result<Option<Vec<Attachment>>, Error> {
        let after = match marker {
            None => None,
            Some(id) => match self.0.attachment(id).await? {
                Some(row) if project.is_none_or(|project| row.project.as_deref() == Some(project)) => {
                    Some(row)
                }
                Some(_) | None => return Ok(None),
            },
        };
        Ok(Some(self.0.attachments_after(project, after.as_ref(), most).await?))
    }

    /// The attachments of a server that have not ended, the oldest first.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn attachments_of(&self, server: ServerId) -> Result<Vec<Attachment>, Error> {
        self.0.attachments_of(server).await
    }

    /// The attachments that ended last, of one server or of all, the last first.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn ended_attachments(
        &self,
        server: Option<ServerId>,
        limit: u32,
    ) -> Result<Vec<Attachment>, Error> {
        self.0.ended_attachments(server, limit).await
    }

    /// The mediated devices that have not ended, the oldest first.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.0.mdevs().await
    }

    /// Every device profile.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn device_profiles(&self) -> Result<Vec<DeviceProfile>, Error> {
        self.0.device_profiles().await
    }

    /// The events after one that pass a filter, at most `limit`.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn events(
        &self,
        since: EventId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, Error> {
        self.0.events(since, filter, limit).await
    }

    /// The ids of the oldest and the last event.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn event_bounds(&self) -> Result<EventBounds, Error> {
        self.0.event_bounds().await
    }

    /// The event after which there are `count` that pass a filter.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn before_newest(&self, filter: &EventFilter, count: usize) -> Result<EventId, Error> {
        self.0.before_newest(filter, count).await
    }

    /// The id of the last event that was committed, as it changes.
    pub fn event_ids(&self) -> watch::Receiver<EventId> {
        self.0.event_ids()
    }

    /// The newest events that a webhook did not accept, at most `limit`, and how many there are.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn dead_letters(&self, webhook: &str, limit: u32) -> Result<(Vec<DeadLetter>, i64), Error> {
        self.0.dead_letters(webhook, limit).await
    }

    /// Asks the database for an answer.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.ping().await
    }

    /// Checks that the database accepts commits. A commit that was accepted a short time ago is enough, because clients
    /// without identity can ask for this.
    ///
    /// # Errors
    /// The database's; also when it does not answer in time.
    pub async fn try_to_write(&self) -> Result<(), Error> {
        let mut written = self.1.lock().await;
        if written.is_some_and(|at| at.elapsed() < WRITTEN) {
            return self.ping().await;
        }
        let late = |_| Error::io(std::io::ErrorKind::TimedOut.into());
        tokio::time::timeout(PATIENCE, self.0.try_to_write()).await.map_err(late)??;
        *written = Some(Instant::now());
        Ok(())
    }

    /// The id of this process among those that share the database; `None` when none can.
    pub fn worker(&self) -> Option<Arc<str>> {
        self.0.worker()
    }

    /// The id of this process for a task that begins now; `None` when no other process can share the database.
    pub fn new_worker(&self) -> Option<Arc<str>> {
        self.0.new_worker()
    }
}
