//! Helpers of the tests about file modes and about other users of the machine.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hotslot_tests::binary;

/// The user id of an unprivileged user.
const NOBODY: &str = "65534";

/// Runs a shell command as that user.
pub(crate) fn as_nobody(line: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", line]);
    command.output().expect("setpriv")
}

/// Copies the program to where every user may run it. Another process makes the copy: a file that this process has open
/// for writing is also open in the programs that other tests start at this moment, and Linux does not run such a file.
pub(crate) fn program_for_all(dir: &Path) -> PathBuf {
    let program = dir.join("hotslot");
    let copied = Command::new("cp").args(["--no-clobber", "--"]).arg(binary()).arg(&program).status();
    assert!(copied.expect("cp").success());
    program
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// Returns the error output of `hotslot serve` with this database URL; fails the test when the service starts.
pub(crate) fn refused_to_serve(dir: &Path, url: &str) -> String {
    let config = dir.join("refused.toml");
    fs::write(
        &config,
        format!("[api]\nlisten = \"127.0.0.1:0\"\ninsecure_tcp = true\n[database]\nurl = \"{url}\"\n"),
    )
    .unwrap();
    let mut command = Command::new("timeout");
    let output = command.arg("10").arg(binary()).args(["serve", "--config"]).arg(&config).output().unwrap();
    assert!(output.status.code() == Some(1), "{url}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
