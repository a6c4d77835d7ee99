//! A libvirtd for one test, in session mode, with all its files in a temporary directory.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::host_file;

/// An unprivileged user, because a libvirtd of root runs in system mode, whatever its socket is.
const NOBODY: u32 = 65534;

pub(crate) struct Daemon {
    dir: TempDir,
    process: Option<Child>,
}

impl Daemon {
    /// Starts the daemon. It ends after a minute without a client, in case the test is killed.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conf = format!("unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\n", dir.path().display());
        std::fs::write(dir.path().join("libvirtd.conf"), conf).unwrap();
        host_file(dir.path());
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut daemon = Self { dir, process: None };
        daemon.start_again();
        daemon
    }

    pub(crate) fn start_again(&mut self) {
        let dir = self.dir.path();
        _ = std::fs::remove_file(self.socket());
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let user = NOBODY.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "/usr/sbin/libvirtd"]);
            command
        } else {
            Command::new("/usr/sbin/libvirtd")
        };
        command.args(["--timeout", "60", "-f"]).arg(dir.join("libvirtd.conf"));
        command.arg("--pid-file").arg(dir.join("pid")).env_clear().current_dir(dir);
        for name in ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(name, dir);
        }
        // Do not load QEMU's driver and others even if they are installed; the test driver is built in.
        command.env("LIBVIRT_DRIVER_DIR", dir.join("none"));
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.expect("libvirtd (Debian: libvirt-daemon) does not start"));
        let begun = Instant::now();
        // The socket's file exists before the daemon listens on it.
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let log = || std::fs::read_to_string(dir.join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "libvirtd does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The URI of the daemon's test driver, which reads [`host_file`].
    pub(crate) fn uri(&self) -> String {
        let host = self.dir.path().join("host.xml");
        format!("test+unix://{}?socket={}", host.display(), self.socket().display())
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            self.signal_to(&process, "KILL");
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        self.signal_to(self.process.as_ref().unwrap(), signal);
    }

    fn signal_to(&self, process: &Child, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &process.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {signal}: {status}");
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("libvirt-sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().unwrap().uid() == 0
}
