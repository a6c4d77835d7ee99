//! `hotslot capture`: writes a host's documents into a directory, exactly as libvirt prints them, for bug reports, for
//! tests and for [`crate::sim`].

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A host's documents, each with the name of its node device or domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Documents {
    /// Node devices: PCI functions, and the network interfaces, vDPA, block and mediated devices on them.
    pub devices: Vec<(String, String)>,
    /// Domains: the live document of a running domain, or the definition of a domain that is shut off.
    pub domains: Vec<(String, String)>,
}

/// The reason why a capture was not written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The directory is not empty.
    #[error("{} is not empty; name a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// A file or directory cannot be created.
    #[error("{}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Documents {
    /// Writes `devices/<name>.xml` and `domains/<name>.xml` below `dir`. The directory is created if it does not exist;
    /// otherwise it must be empty.
    ///
    /// # Errors
    /// [`CaptureError::NotEmpty`] when `dir` is not empty, and [`CaptureError::Write`] when a file or directory cannot
    /// be created. Files that were already written stay.
    pub fn write(&self, dir: &Path) -> Result<(), CaptureError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CaptureError::Write { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        if fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
            return Err(CaptureError::NotEmpty(dir.to_owned()));
        }
        for (folder, documents) in [("devices", &self.devices), ("domains", &self.domains)] {
            let folder = dir.join(folder);
            fs::create_dir(&folder).map_err(failed(&folder))?;
            for (name, document) in documents {
                let file = folder.join(file_name(name));
                fs::write(&file, document).map_err(failed(&file))?;
            }
        }
        Ok(())
    }
}

/// Makes a file name from any name. Other characters than letters, digits, `-`, `_` and `.` are written as `%` and two
/// hexadecimal digits. A long name is truncated and gets a hash of the whole name.
fn file_name(name: &str) -> String {
    let mut safe = String::new();
    for (position, byte) in name.bytes().enumerate() {
        match byte {
            b'.' if position == 0 => safe.push_str("%2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => safe.push(byte.into()),
            _ => _ = write!(safe, "%{byte:02x}"),
        }
    }
    const LONGEST: usize = 200;
    if safe.len() > LONGEST {
        safe.truncate(LONGEST);
        let whole = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes());
        _ = write!(safe, "~{}", whole.simple());
    }
    safe + ".xml"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        Documents {
            devices: vec![pair("pci_0000_3b_00_1", "<device/>\n")],
            domains: vec![pair("g1", "<domain/>\n"), pair("../../etc/x y", "<domain id='2'/>")],
        }
    }

    #[test]
    fn writes_every_document_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("node1");
        documents().write(&host).unwrap();
        let read = |file: &str| fs::read_to_string(host.join(file)).unwrap();
        assert_eq!(read("devices/pci_0000_3b_00_1.xml"), "<device/>\n");
        assert_eq!(read("domains/g1.xml"), "<domain/>\n");
        assert_eq!(read("domains/%2e.%2f..%2fetc%2fx%20y.xml"), "<domain id='2'/>");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was written outside");
    }

    #[test]
    fn refuses_a_directory_that_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        assert!(matches!(documents().write(dir.path()), Err(CaptureError::NotEmpty(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn long_names_are_shortened_and_stay_distinct() {
        let (one, two) = (file_name(&"ü".repeat(300)), file_name(&"ü".repeat(301)));
        assert_ne!(one, two);
        assert!(one.len() <= 255 && two.len() <= 255);
    }
}
