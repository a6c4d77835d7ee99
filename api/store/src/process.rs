//! A process that uses the database together with others.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

/// The prefix of the locks that show that a process is alive.
pub(crate) const PROCESS: &str = "process ";

/// A row of `processes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The id, which is also the name of the lock that shows that the process is alive. A process that other processes
    /// removed from the record gets a new id.
    pub id: Arc<str>,
    /// The name of the machine on which it runs.
    pub host: String,
    /// The process id on that machine.
    pub pid: i64,
}

impl Process {
    /// Returns a row for this process, with a new id.
    pub(crate) fn this() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let id = format!("{PROCESS}{} {}", Uuid::new_v4(), here().unwrap_or_default());
        Self { id: id.into(), host: host.trim().to_owned(), pid: i64::from(std::process::id()) }
    }

    /// Whether the process ran on this machine and has exited.
    pub fn has_exited(&self) -> bool {
        here().is_some_and(|here| self.id.ends_with(&format!(" {here}")))
            && !Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// Returns a text that identifies the current boot of this machine and the PID namespace, or `None` when the kernel
/// does not report them.
fn here() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let numbers = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), numbers.display()))
}
