//! Reads the host's files below a directory.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::pci::PciAddress;

/// The directory that contains the host's `sys` and `proc`. Paths below it have no leading slash.
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(sysroot: &Path) -> Self {
        Self(sysroot.canonicalize().unwrap_or_else(|_| sysroot.to_owned()))
    }

    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    pub(super) fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        fs::read(self.at(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads the first of the two files that can be read, or returns the error of the second one.
    pub(super) fn read_first(&self, paths: [&str; 2]) -> Result<String, io::Error> {
        self.read(paths[0]).or_else(|_| self.read(paths[1]))
    }

    /// Reads a file and trims it, as for sysfs files with one word or line. Returns `None` when it cannot be read.
    pub(super) fn word(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(self.read(path).ok()?.trim().to_owned())
    }

    /// Returns the sorted names in a folder; the list is empty when the folder cannot be read.
    pub(super) fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Follows the links of a path. Returns `None` when the target does not exist or is outside of the directory.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let end = self.at(path).canonicalize().ok()?;
        end.strip_prefix(&self.0).ok().map(Path::to_owned)
    }
}

/// Returns the PCI functions in a sysfs path, from the root bus down: the bridges, the endpoint, and devices in
/// between, such as a VMD controller. Functions in 32-bit domains, as behind a VMD controller, are left out.
pub(super) fn functions(path: &Path) -> impl Iterator<Item = PciAddress> {
    let whole = |name: &&str| name.len() >= "0000:00:00.0".len();
    path.iter().filter_map(|name| name.to_str()).filter(whole).filter_map(|name| name.parse().ok())
}
