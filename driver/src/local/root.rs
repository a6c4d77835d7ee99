//! Reads and replaces the host's files below a directory.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::pci::PciAddress;

/// The PID namespace in which the host's init is process 1 (Linux, include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const HOST: &str = "pid:[4026531836]";

/// The directory that contains the host's `sys` and `proc`. Paths below it have no leading slash.
pub(super) struct Root {
    path: PathBuf,
    /// Why the first of the files and folders that exist and cannot be read is not readable.
    refused: RefCell<Option<String>>,
}

/// Whether an error says that there is no such file.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

impl Root {
    pub(super) fn new(sysroot: &Path) -> Self {
        let path = sysroot.canonicalize().unwrap_or_else(|_| sysroot.to_owned());
        Self { path, refused: RefCell::default() }
    }

    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.join(path)
    }

    pub(super) fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        fs::read(self.at(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Replaces what a file has. A file that is not there does not come into being: the driver does not have it.
    ///
    /// # Errors
    /// The error of the kernel, which for a file of sysfs is that of the driver.
    pub(super) fn overwrite(&self, path: impl AsRef<Path>, text: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.at(path))?;
        file.write_all(text.as_bytes())
    }

    /// Reads a file of process 1, the host's init, whose mounts and network are those of the host. Those of the service
    /// itself may be fewer: systemd gives a service with a sandbox its own view of the mounts.
    ///
    /// # Errors
    /// The file does not exist or cannot be read, or process 1 is not the host's init. The text says what to do.
    pub(super) fn of_init(&self, file: &str) -> Result<String, Hidden> {
        let namespace = fs::read_link(self.at("proc/self/ns/pid"));
        if namespace.is_ok_and(|namespace| namespace != Path::new(HOST)) {
            let why = "hotslot runs in a container, and process 1 there is not the host's; run it in the host's PID \
                       namespace";
            return Err(Hidden { absent: false, why: why.to_owned() });
        }
        self.read(format!("proc/1/{file}")).map_err(|error| {
            let absent = error.kind() == ErrorKind::NotFound;
            let hidden = absent && !self.at("proc/1").exists();
            let fix =
                "; /proc hides the processes of other users (hidepid, or ProtectProc in the service's unit)";
            Hidden { absent: absent && !hidden, why: format!("{error}{}", if hidden { fix } else { "" }) }
        })
    }

    /// Reads a file and trims it, as for sysfs files with one word or line. Returns `None` when it cannot be read.
    pub(super) fn word(&self, path: impl AsRef<Path>) -> Option<String> {
        let read = self.read(&path).inspect_err(|error| self.note(path.as_ref(), error));
        Some(read.ok()?.trim().to_owned())
    }

    /// Returns the sorted names in a folder; the list is empty when the folder cannot be read.
    pub(super) fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.at(&path)).inspect_err(|error| self.note(path.as_ref(), error));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    /// Returns why something that [`word`](Self::word) or [`list`](Self::list) found could not be read, and forgets it.
    pub(super) fn take_refused(&self) -> Option<String> {
        self.refused.take()
    }

    fn note(&self, path: &Path, error: &io::Error) {
        if !is_absent(error) {
            self.refused
                .borrow_mut()
                .get_or_insert_with(|| format!("/{} cannot be read: {error}", path.display()));
        }
    }

    /// Follows the links of a path. Returns `None` when the target does not exist or is outside of the directory.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let end = self.at(path).canonicalize().ok()?;
        end.strip_prefix(&self.path).ok().map(Path::to_owned)
    }
}

/// The reason why a file of the host's init is not known.
pub(super) struct Hidden {
    /// Process 1 is there and has no such file, as with a kernel that does not have what the file is about.
    pub(super) absent: bool,
    why: String,
}

impl Display for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Returns the PCI functions in a sysfs path, from the root bus down: the bridges, the endpoint, and devices in
/// between, such as a VMD controller. Functions in 32-bit domains, as behind a VMD controller, are left out.
pub(super) fn functions(path: &Path) -> impl Iterator<Item = PciAddress> {
    let whole = |name: &&str| name.len() >= "0000:00:00.0".len();
    path.iter().filter_map(|name| name.to_str()).filter(whole).filter_map(|name| name.parse().ok())
}
