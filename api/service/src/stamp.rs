//! The version of a file that is read again when it changes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The facts by which one version of a file differs from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Changes with the owner and the mode too.
    changed: (i64, i64),
}

impl Stamp {
    /// Looks at a file.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let modified = (found.mtime(), found.mtime_nsec());
        let changed = (found.ctime(), found.ctime_nsec());
        Ok(Self { inode: found.ino(), size: found.size(), modified, changed })
    }
}
