//! Parses the mounts and swap areas that procfs lists.
//!
//! The crate `procfs` is not used, because it leaves the escapes of blanks in paths as they are: a mount point with a blank
//! would not be found.

use std::path::{Path, PathBuf};

/// One line of `mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug)]
pub(super) struct Mount {
    /// `MAJOR:MINOR`. The major number is 0 when the file system is not on exactly one block device.
    pub(super) device: String,
    /// The mount point.
    pub(super) point: PathBuf,
    /// The type of the file system: `ext4`.
    pub(super) fstype: String,
    /// The source: `/dev/sda1`, or any text.
    pub(super) source: String,
    /// The file system's own options.
    pub(super) options: String,
}

impl Mount {
    pub(super) fn read(line: &str) -> Option<Self> {
        let (mount, of) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, _, point) = (mount.next()?, mount.next()?, mount.next()?);
        let (major, minor) = device.split_once(':')?;
        major.parse::<u32>().ok().zip(minor.parse::<u32>().ok())?;
        let mut of = of.split(' ');
        let (fstype, source) = (of.next()?, of.next()?);
        Some(Self {
            device: device.to_owned(),
            point: Some(PathBuf::from(unescaped(point))).filter(|point| point.is_absolute())?,
            fstype: fstype.to_owned(),
            source: unescaped(source),
            options: unescaped(of.next().unwrap_or_default()),
        })
    }

    /// Whether it is on exactly one block device, which its device number identifies.
    pub(super) fn has_device(&self) -> bool {
        !self.device.starts_with("0:")
    }

    /// The paths in `/dev` that it names: its source (bcachefs joins several with colons) and external journals or
    /// logs.
    pub(super) fn nodes(&self) -> Vec<&str> {
        let source = Some(self.source.as_str()).filter(|source| {
            source.starts_with("/dev/") && !matches!(self.fstype.as_str(), "tmpfs" | "ramfs" | "devtmpfs")
        });
        let others = self.options.split(',').filter_map(|option| {
            let (name, node) = option.split_once('=')?;
            matches!(name, "logdev" | "rtdev" | "journal_path").then_some(node)
        });
        source.into_iter().flat_map(split_nodes).chain(others).collect()
    }
}

/// Splits `/dev/a:/dev/b` into its parts. A name may also contain colons (`by-path/pci-0000:00:1f.2`).
fn split_nodes(source: &str) -> Vec<&str> {
    let starts = source.match_indices(":/dev/").map(|(at, _)| at);
    let ends: Vec<usize> = starts.chain([source.len()]).collect();
    let mut from = 0;
    ends.into_iter().map(|end| &source[std::mem::replace(&mut from, end + 1)..end]).collect()
}

/// Reads the path of a block device or file from a line of `/proc/swaps`.
pub(super) fn swap(line: &str) -> Option<PathBuf> {
    let path = unescaped(line.split_whitespace().next()?);
    let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(&path));
    path.is_absolute().then(|| path.to_owned())
}

/// Decodes procfs's escapes of blanks and other characters: a backslash and three octal digits (`\040`).
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                bytes.extend(&part.as_bytes()[3..]);
            }
            None => {
                bytes.push(b'\\');
                bytes.extend(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mount_is_read_with_and_without_optional_fields() {
        let plain = Mount::read("22 1 254:1 / /mnt/a\\040b rw - ext4 /dev/vda1 rw").unwrap();
        assert_eq!((plain.device.as_str(), plain.point.to_str()), ("254:1", Some("/mnt/a b")));
        assert_eq!(plain.nodes(), ["/dev/vda1"]);
        let nodes = "/dev/a:/dev/disk/by-path/pci-0000:00:1f.2-ata-1";
        let line = &format!("22 1 0:40 / / rw shared:1 master:2 - bcachefs {nodes} rw");
        assert_eq!(
            Mount::read(line).unwrap().nodes(),
            ["/dev/a", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"]
        );
        let line = "22 1 8:1 / /x rw - xfs /dev/sda1 rw,logdev=/dev/sdb1,noquota";
        assert_eq!(Mount::read(line).unwrap().nodes(), ["/dev/sda1", "/dev/sdb1"]);
        assert!(Mount::read("22 1 0:40 / / rw - tmpfs /dev/none rw").unwrap().nodes().is_empty());
    }

    #[test]
    fn a_line_that_is_no_mount_is_refused() {
        for line in
            ["", "-", " - ", "1 2 8:1 / / rw", "1 2 8 / / rw - ext4 /dev/sda1", "1 2 8:1 / x rw - ext4 y z"]
        {
            assert!(Mount::read(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_swap_file_with_a_blank_in_its_name_and_a_deleted_one_are_read() {
        let read = |line| swap(line).unwrap().display().to_string();
        assert_eq!(read("/var/swap\\040file\\040(deleted)  file  1 0 -2"), "/var/swap file");
        assert_eq!(read("/dev/dm-1 partition 1 0 -2"), "/dev/dm-1");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*", escaped in "[0-9\\\\é /:-]*") {
            for text in [text, escaped] {
                let _ = (Mount::read(&text), swap(&text), split_nodes(&text));
                let line = format!("1 2 0:1 / /{text} rw - {text} /dev/{text} {text}");
                let _ = Mount::read(&line).map(|mount| mount.nodes().len());
            }
        }
    }
}
