//! Keeps the files of a SQLite database private to hotslot's user. They contain stored answers, and every user who can
//! open them can also lock them.
//!
//! The files are created with private modes, whatever the umask. Modes that are open to other users, for example after
//! a copy, are corrected at start and logged.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

const FILE: u32 = 0o600;
const DIRECTORY: u32 = 0o700;
const OTHERS: u32 = 0o077;
const STICKY: u32 = 0o1000;

/// Opens a file for writing, and creates it if it does not exist. Existing content is kept.
pub(super) fn file(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create(true).truncate(false))
}

/// Creates a file. It is an error when the file exists.
pub(super) fn new_file(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create_new(true))
}

/// Opens a file. It is an error when the path is a symbolic link.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    options.mode(FILE).custom_flags(flags.bits()).open(path)
}

/// Creates the directory of a database if it does not exist, and corrects the modes of existing files. Returns the path
/// of the database with all links resolved. The names of the files that belong to the database derive from that path.
///
/// # Errors
/// Returns the I/O error when a file or directory cannot be created. Returns an error of the kind
/// [`io::ErrorKind::Other`], with a remedy, when a file or the directory belongs to another user, who could change the
/// records. A mode that cannot be corrected is only logged.
pub fn prepare(database: &Path) -> io::Result<PathBuf> {
    prepare_for(database, false)
}

/// Does the same as [`prepare`]. With `its_user`, root may do it for the user who owns the directory.
pub(super) fn prepare_for(database: &Path, its_user: bool) -> io::Result<PathBuf> {
    make_directory(&directory(database))?;
    let there = resolve(database)?;
    let parents = [database, &there].map(directory);
    let mut places = vec![(parents[1].clone(), there.file_name().unwrap_or_default())];
    // A user who can change the link can replace the database, so check the directory of the link too.
    if fs::canonicalize(&parents[0])? != parents[1] {
        places.push((fs::canonicalize(&parents[0])?, database.file_name().unwrap_or_default()));
    }
    for (directory, name) in places {
        let found = fs::metadata(&directory)?;
        let its_user = if its_user && geteuid().is_root() { found.uid() } else { 0 };
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if is_of(name, &entry.file_name()) {
                files.push((entry.path(), entry.metadata()?));
            }
        }
        check_owners(
            std::iter::once((&*directory, &found)).chain(files.iter().map(|(path, found)| (&**path, found))),
            its_user,
        )?;
        correct_directory(&directory, &found, name);
        for (path, found) in files.iter().filter(|(_, found)| found.is_file()) {
            correct_file(path, found);
        }
    }
    Ok(there)
}

fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(directory)
}

/// The largest number of links to follow, as in Linux.
const LINKS: usize = 40;

/// Returns the path with all links resolved, even when the file does not exist yet. Creates its directory.
///
/// # Errors
/// Returns the I/O error, also for too many links.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        match fs::read_link(&path) {
            Ok(target) => path = directory(&path).join(target),
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                make_directory(&directory(&path))?;
                return Ok(fs::canonicalize(directory(&path))?.join(name));
            }
        }
    }
    Err(nix::errno::Errno::ELOOP.into())
}

/// Creates the file of a database if it does not exist. SQLite creates its other files with the mode of this one.
///
/// # Errors
/// Returns the I/O error.
pub fn make(database: &Path) -> io::Result<()> {
    match new_file(database) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns the directory of a file.
pub(super) fn directory(file: &Path) -> PathBuf {
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.unwrap_or(Path::new(".")).to_owned()
}

/// Returns an error when a file belongs to neither hotslot's user nor root nor the user `other`. The error has one
/// command that corrects all files.
fn check_owners<'a>(found: impl Iterator<Item = (&'a Path, &'a Metadata)>, other: u32) -> io::Result<()> {
    let user = geteuid().as_raw();
    let others: Vec<_> = found.filter(|(_, found)| ![user, 0, other].contains(&found.uid())).collect();
    let Some((first, found)) = others.first() else { return Ok(()) };
    // Without -h, chown would change the owner of the target of a link.
    let links = if others.iter().any(|(_, found)| found.is_symlink()) { " -h" } else { "" };
    let files: Vec<_> = others.iter().map(|(path, _)| quoted(path)).collect();
    let root = if geteuid().is_root() { "" } else { " as root" };
    Err(io::Error::other(format!(
        "{} belongs to the user {}, who could change the records of hotslot, which runs as the user {user}; if it is \
         hotslot's, run{root}: chown{links} {user} {}; if not, name another place in [database] url",
        first.display(),
        found.uid(),
        files.join(" ")
    )))
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    if path.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter)) {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

/// Whether a file is the database, or a file that SQLite or hotslot keeps with it: its log, its lock, or the previous
/// database after a restore.
fn is_of(database: &OsStr, file: &OsStr) -> bool {
    let rest = file.as_bytes().strip_prefix(database.as_bytes());
    rest.is_some_and(|rest| {
        [&b""[..], b"-wal", b"-shm", b"-journal", b".lock"].contains(&rest)
            || rest.starts_with(b".before-restore")
            || rest.starts_with(b".restored")
    })
}

fn correct_file(path: &Path, found: &Metadata) {
    if found.mode() & OTHERS == 0 {
        return;
    }
    let corrected = open(path, OpenOptions::new().read(true))
        .and_then(|file| file.set_permissions(Permissions::from_mode(FILE)));
    log_correction(path, found, FILE, corrected);
}

fn correct_directory(path: &Path, found: &Metadata, database: &OsStr) {
    if found.mode() & OTHERS == 0 {
        return;
    }
    if !is_own(path, found, database) {
        tracing::warn!(
            "the database is in {}, which is open to other users ({:04o}); its files are private, but use a directory \
             for hotslot alone: [database] url = \"sqlite:///var/lib/hotslot/hotslot.db\"",
            path.display(),
            found.mode() & 0o7777
        );
        return;
    }
    log_correction(path, found, DIRECTORY, fs::set_permissions(path, Permissions::from_mode(DIRECTORY)));
}

fn log_correction(path: &Path, found: &Metadata, mode: u32, corrected: io::Result<()>) {
    let (path, was) = (path.display(), found.mode() & 0o7777);
    match corrected {
        Ok(()) => tracing::warn!(
            "{path} was open to other users ({was:04o}); only hotslot's user can open it now ({mode:04o})"
        ),
        Err(error) => tracing::warn!(
            "{path} is open to other users ({was:04o}), and that cannot be changed: {error}; run: chmod {mode:04o} \
             {path}"
        ),
    }
}

/// Whether a directory has only files of the database and sockets, so that no one else needs access to it.
fn is_own(path: &Path, found: &Metadata, database: &OsStr) -> bool {
    let user = geteuid().as_raw();
    // Directories such as `/`, `/srv`, `/var/lib` and `/home/me` have other files, or will have.
    let shared = ["/", "/var", "/usr", "/home", "/mnt", "/media"];
    let parent = path.parent().unwrap_or(path);
    found.uid() == user
        && found.mode() & STICKY == 0
        && !path.starts_with("/usr")
        && !shared.iter().any(|shared| parent == Path::new(shared))
        && std::env::var_os("HOME").is_none_or(|home| path != Path::new(&home))
        && fs::read_dir(path).is_ok_and(|entries| {
            entries.flatten().all(|entry| {
                is_of(database, &entry.file_name()) || entry.file_type().is_ok_and(|kind| kind.is_socket())
            })
        })
}

/// Gives a file the owner of another one, if permitted.
pub(super) fn own_as(path: &Path, other: &Metadata) {
    let _ = std::os::unix::fs::chown(path, Some(other.uid()), Some(other.gid()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn open_modes_are_corrected_except_those_of_shared_directories() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a/b/hotslot.db");
        prepare(&database).unwrap();
        make(&database).unwrap();
        make(&database).unwrap();
        assert_eq!([&dir.path().join("a"), &dir.path().join("a/b")].map(|dir| mode(dir)), [0o700; 2]);
        assert_eq!(mode(&database), 0o600);
        let beside = |name: &str| database.with_file_name(name);
        for (name, was, is) in [
            ("hotslot.db", 0o644, 0o600),
            ("hotslot.db-wal", 0o666, 0o600),
            ("hotslot.db-shm", 0o644, 0o600),
            ("hotslot.db.lock", 0o640, 0o600),
            ("hotslot.db.before-restore", 0o604, 0o600),
        ] {
            fs::write(beside(name), "").unwrap();
            chmod(&beside(name), was);
            chmod(&dir.path().join("a/b"), 0o755);
            prepare(&database).unwrap();
            assert_eq!((mode(&beside(name)), mode(&dir.path().join("a/b"))), (is, 0o700), "{name}");
        }
        // Other files keep their modes, and then the directory keeps its mode too.
        for name in ["hotslot.db2", "hotslot.db.toml", "hotslot.db-notes", "other.db"] {
            fs::write(beside(name), "").unwrap();
            chmod(&beside(name), 0o644);
            chmod(&dir.path().join("a/b"), 0o755);
            prepare(&database).unwrap();
            assert_eq!((mode(&beside(name)), mode(&dir.path().join("a/b"))), (0o644, 0o755), "{name}");
        }
        // A link is not followed.
        std::os::unix::fs::symlink(beside("other.db"), beside("hotslot.db-journal")).unwrap();
        for shared in [0o1777, 0o1755] {
            chmod(&dir.path().join("a/b"), shared);
            chmod(&database, 0o644);
            prepare(&database).unwrap();
            assert_eq!((mode(&database), mode(&dir.path().join("a/b"))), (0o600, shared));
        }
        assert_eq!(mode(&beside("other.db")), 0o644);
    }

    #[test]
    fn system_directories_are_never_private() {
        for path in ["/", "/tmp", "/var/lib", "/usr/share", "/etc", "/root", "/dev/shm"] {
            let Ok(found) = fs::metadata(path) else { continue };
            assert!(!is_own(Path::new(path), &found, OsStr::new("hotslot.db")), "{path}");
        }
    }
}
