//! The files of the host, below a directory.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::pci::PciAddress;

/// The directory that has the host's `sys` and `proc`. Paths below it are given without a leading slash.
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

    /// The first of the files that can be read; of none, why not the last.
    pub(super) fn read_first(&self, paths: [&str; 2]) -> Result<String, io::Error> {
        self.read(paths[0]).or_else(|_| self.read(paths[1]))
    }

    /// A file of one word or line, as most of sysfs is; none when there is no such file.
    pub(super) fn word(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(self.read(path).ok()?.trim().to_owned())
    }

    /// The names in a folder, in order; nothing when there is no such folder.
    pub(super) fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Where a path ends when its links are followed; none when it ends nowhere, or outside.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let end = self.at(path).canonicalize().ok()?;
        end.strip_prefix(&self.0).ok().map(Path::to_owned)
    }
}

/// The PCI functions in a sysfs path, from the root bus down: the bridges, the endpoint, and what stands
/// between (a VMD controller; the functions behind it are in 32-bit domains, which cannot be assigned).
pub(super) fn functions(path: &Path) -> impl Iterator<Item = PciAddress> {
    let whole = |name: &&str| name.len() >= "0000:00:00.0".len();
    path.iter().filter_map(|name| name.to_str()).filter(whole).filter_map(|name| name.parse().ok())
}
