//! The state that outlives the process: `DIR/state/` has one file per domain, and one per device that differs from its
//! document. A file is written under a temporary name and then renamed, so that it is never incomplete. Deleting the
//! folder resets the host.
//!
//! Several processes may have the directory open. Each locks it while it reads or changes something, and the number of
//! the last change shows whether another process has changed anything since.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::config::Guest;
use super::open_error::{LOCK_WAIT, Locked, OpenError};
use crate::mdev::Mdev;
use crate::pci::PciAddress;

/// The interval of the attempts to take the lock.
const LOCK_LOOK: Duration = Duration::from_millis(1);

/// The folder, or nothing when changes are kept in memory only.
#[derive(Debug)]
pub(super) struct Store {
    state: Option<PathBuf>,
    /// The lock file, which contains the number of the last change.
    lock: Option<File>,
    /// The number of the last change that this process knows.
    known: u64,
    /// When this process began to wait for the lock that another one keeps.
    locked_since: Option<Instant>,
}

/// A domain's file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SavedDomain {
    pub(super) name: String,
    pub(super) paused: bool,
    /// The running guest's document.
    pub(super) live: Option<String>,
    /// The definition; a domain with neither is gone.
    pub(super) persistent: Option<String>,
    /// The saved state of a run.
    #[serde(default)]
    pub(super) image: Option<SavedImage>,
    /// The aliases of the pending unplug requests.
    pub(super) pending: Vec<String>,
    /// The guest's behaviour, if it was changed from that in `host.toml`.
    pub(super) guest: Option<Guest>,
}

/// The saved state of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedImage {
    /// The live document.
    pub(super) live: String,
    /// Whether the next start restores it (`virsh managedsave`).
    pub(super) managed: bool,
}

/// A device's file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDevice {
    /// Whether the host has the device.
    pub(super) present: bool,
    /// The driver that is bound while no guest has the device.
    pub(super) driver: Option<String>,
    /// The document, if it is not in a file in `devices/`.
    pub(super) xml: Option<String>,
    /// The mediated devices on it, if they differ from those in files in `devices/`.
    #[serde(default)]
    pub(super) mdevs: Option<Vec<SavedMdev>>,
}

/// A mediated device in its parent's file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedMdev {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) mdev_type: String,
    pub(super) iommu_group: Option<u32>,
}

impl From<Mdev> for SavedMdev {
    fn from(mdev: Mdev) -> Self {
        let Mdev { uuid, name, mdev_type, parent: _, iommu_group } = mdev;
        Self { uuid, name, mdev_type, iommu_group }
    }
}

impl SavedMdev {
    pub(super) fn of(self, parent: PciAddress) -> Mdev {
        let Self { uuid, name, mdev_type, iommu_group } = self;
        Mdev { uuid, name, mdev_type, parent: Some(parent), iommu_group }
    }
}

/// The two kinds of files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Domain,
    Device,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Domain => "domains",
            Self::Device => "devices",
        }
    }
}

impl Store {
    /// Opens the directory. If it cannot be written to, changes are kept in memory.
    pub(super) fn open(dir: &Path) -> Self {
        match Self::writable(dir) {
            Ok(lock) => {
                let mut store =
                    Self { state: Some(dir.join("state")), lock: Some(lock), known: 0, locked_since: None };
                store.known = store.last_change();
                store
            }
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "simulated host: cannot write to the directory; changes are kept in memory only");
                Self { state: None, lock: None, known: 0, locked_since: None }
            }
        }
    }

    /// The number of the last change by any process.
    fn last_change(&self) -> u64 {
        let mut number = [0; 8];
        let read = self.lock.as_ref().map(|lock| lock.read_exact_at(&mut number, 0));
        // The file is empty before the first change.
        read.map_or(self.known, |_| u64::from_le_bytes(number))
    }

    /// Whether another process has made a change that this one does not know.
    pub(super) fn is_behind(&self) -> bool {
        self.last_change() != self.known
    }

    /// Locks the directory until [`leave`](Self::leave). Returns whether another process has changed something since
    /// this one held the lock.
    ///
    /// # Errors
    /// [`Locked`] when another process has kept the lock for [`LOCK_WAIT`], because it was stopped.
    pub(super) fn enter(&mut self) -> Result<bool, Locked> {
        while let Some(Err(error)) = self.lock.as_ref().map(File::try_lock) {
            match error {
                TryLockError::WouldBlock => {
                    // The time counts from the first attempt: after one call waited in vain, the next one does not wait
                    // as long again.
                    if self.locked_since.get_or_insert_with(Instant::now).elapsed() >= LOCK_WAIT {
                        return Err(Locked);
                    }
                    std::thread::sleep(LOCK_LOOK);
                }
                TryLockError::Error(error) => {
                    tracing::warn!(%error, "simulated host: cannot lock the directory against other processes");
                    break;
                }
            }
        }
        self.locked_since = None;
        let last = self.last_change();
        Ok(std::mem::replace(&mut self.known, last) != last)
    }

    /// Unlocks the directory.
    pub(super) fn leave(&self) {
        if let Some(Err(error)) = self.lock.as_ref().map(File::unlock) {
            tracing::warn!(%error, "simulated host: cannot unlock the directory for other processes");
        }
    }

    fn writable(dir: &Path) -> io::Result<File> {
        for kind in [Kind::Domain, Kind::Device] {
            fs::create_dir_all(dir.join("state").join(kind.folder()))?;
        }
        File::options().create(true).truncate(false).read(true).write(true).open(dir.join("lock"))
    }

    /// Whether changes outlive the process.
    pub(super) fn is_durable(&self) -> bool {
        self.state.is_some()
    }

    /// Closes the directory. Later changes are not written.
    pub(super) fn close(&mut self) {
        (self.state, self.lock) = (None, None);
    }

    /// Reads all files of a kind, by name.
    pub(super) fn read<T: DeserializeOwned>(
        dir: &Path,
        kind: Kind,
    ) -> Result<BTreeMap<String, T>, OpenError> {
        let mut files = BTreeMap::new();
        for (path, text) in read_folder(&dir.join("state").join(kind.folder()), "json")? {
            let saved = serde_json::from_str(&text)
                .map_err(|error| OpenError::Text { path: path.clone(), reason: error.to_string() })?;
            files.insert(stem(&path), saved);
        }
        Ok(files)
    }

    /// Writes one file. A failure is only logged: the simulated host goes on in memory.
    pub(super) fn write(&mut self, kind: Kind, name: &str, saved: &impl Serialize) {
        let (Some(state), Some(lock)) = (&self.state, &self.lock) else { return };
        // The number is written first, so that other processes read again even when this one is killed before the file
        // is written.
        self.known += 1;
        if let Err(error) = lock.write_all_at(&self.known.to_le_bytes(), 0) {
            tracing::warn!(%error, "simulated host: cannot announce a change to other processes");
        }
        let path = state.join(kind.folder()).join(name).with_extension("json");
        let temporary = path.with_extension("new");
        let written = serde_json::to_vec_pretty(saved)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "simulated host: a change is kept in memory only");
        }
    }
}

/// Reads the files of a folder with this extension, in order of name. A missing folder counts as empty.
pub(super) fn read_folder(folder: &Path, ending: &str) -> Result<Vec<(PathBuf, String)>, OpenError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail(folder))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail(folder))?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read_to_string(&path).map_err(fail(&path)).map(|text| (path, text)))
        .collect()
}

/// A file's name without its extension.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_process_that_keeps_the_lock_ends_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut stopped = Store::open(dir.path());
        let mut other = Store::open(dir.path());
        assert_eq!(stopped.enter(), Ok(false));
        let begun = Instant::now();
        assert_eq!(other.enter(), Err(Locked));
        assert!(begun.elapsed() >= LOCK_WAIT && begun.elapsed() < 3 * LOCK_WAIT);
        let begun = Instant::now();
        assert_eq!(other.enter(), Err(Locked));
        assert!(begun.elapsed() < LOCK_WAIT, "the second does not wait again");
        stopped.leave();
        assert_eq!(other.enter(), Ok(false));
    }
}
