//! What outlives the process: `DIR/state/`, one file a domain and one a device that differs from its
//! document. Each is written beside its place and renamed into it, so that it is old or new, never half.
//! Deleting the folder starts afresh.
//!
//! Several processes may have it open. Each locks it for as long as it looks or changes something there, and
//! finds by the number of the last change whether another one was there since.

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

/// How often it is looked whether the lock is free.
const LOCK_LOOK: Duration = Duration::from_millis(1);

/// The folder, or nothing when what happens is kept in memory only.
#[derive(Debug)]
pub(super) struct Store {
    state: Option<PathBuf>,
    /// Locked for each look or change. The number of the last change stands in it.
    lock: Option<File>,
    /// The last change that this process knows of.
    known: u64,
    /// Since when another process has had the lock, as far as this one has tried.
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
    /// What was saved of a run.
    #[serde(default)]
    pub(super) image: Option<SavedImage>,
    /// The aliases that the guest was asked to let go.
    pub(super) pending: Vec<String>,
    /// How the guest behaves, when it was told otherwise than in `host.toml`.
    pub(super) guest: Option<Guest>,
}

/// A saved run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedImage {
    /// The guest's document as it ran.
    pub(super) live: String,
    /// Whether the next start goes on with it (`virsh managedsave`).
    pub(super) managed: bool,
}

/// A device's file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDevice {
    /// Whether the host has it.
    pub(super) present: bool,
    /// The driver that it has while no guest has it.
    pub(super) driver: Option<String>,
    /// Its document, when it is in no file of `devices/`.
    pub(super) xml: Option<String>,
    /// The mediated devices made of it, when they are others than those in files of `devices/`.
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
    /// Opens the directory. One that cannot be written to is read only.
    pub(super) fn open(dir: &Path) -> Self {
        match Self::writable(dir) {
            Ok(lock) => {
                let mut store =
                    Self { state: Some(dir.join("state")), lock: Some(lock), known: 0, locked_since: None };
                store.known = store.last_change();
                store
            }
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "simulated host: cannot write; changes are kept in memory");
                Self { state: None, lock: None, known: 0, locked_since: None }
            }
        }
    }

    /// The number of the last change, by whomever.
    fn last_change(&self) -> u64 {
        let mut number = [0; 8];
        let read = self.lock.as_ref().map(|lock| lock.read_exact_at(&mut number, 0));
        // It is empty before the first one.
        read.map_or(self.known, |_| u64::from_le_bytes(number))
    }

    /// Whether another process has changed something since this one looked.
    pub(super) fn is_behind(&self) -> bool {
        self.last_change() != self.known
    }

    /// Keeps other processes out until [`leave`](Self::leave). Answers whether another one has changed something
    /// since this one looked.
    ///
    /// # Errors
    /// Another process has kept this one out for too long: it was stopped in the middle.
    pub(super) fn enter(&mut self) -> Result<bool, Locked> {
        while let Some(Err(error)) = self.lock.as_ref().map(File::try_lock) {
            match error {
                TryLockError::WouldBlock => {
                    // Who comes after one that waited in vain does not wait as long again.
                    if self.locked_since.get_or_insert_with(Instant::now).elapsed() >= LOCK_WAIT {
                        return Err(Locked);
                    }
                    std::thread::sleep(LOCK_LOOK);
                }
                TryLockError::Error(error) => {
                    tracing::warn!(%error, "simulated host: other processes cannot be kept out");
                    break;
                }
            }
        }
        self.locked_since = None;
        let last = self.last_change();
        Ok(std::mem::replace(&mut self.known, last) != last)
    }

    /// Lets other processes in.
    pub(super) fn leave(&self) {
        if let Some(Err(error)) = self.lock.as_ref().map(File::unlock) {
            tracing::warn!(%error, "simulated host: other processes are kept out");
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

    /// Lets the directory go and writes no more.
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

    /// Writes one file. Failing to do so is worth a warning: the simulated host goes on in memory.
    pub(super) fn write(&mut self, kind: Kind, name: &str, saved: &impl Serialize) {
        let (Some(state), Some(lock)) = (&self.state, &self.lock) else { return };
        // First, so that others look also when this process is killed in between.
        self.known += 1;
        if let Err(error) = lock.write_all_at(&self.known.to_le_bytes(), 0) {
            tracing::warn!(%error, "simulated host: other processes do not see a change");
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

/// The files of a folder with an ending, in order of name. No folder is an empty one.
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

/// A file's name without its ending.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_keeps_the_lock_is_not_waited_for_without_end() {
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
