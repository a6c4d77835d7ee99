//! One of the processes that work on a database at once.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

/// What the locks begin with by which others know that a process is alive.
pub(crate) const PROCESS: &str = "process ";

/// A row of `processes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id; the name of its lock. It has another one after it was taken for dead.
    pub id: Arc<str>,
    /// The machine that it runs on.
    pub host: String,
    /// Its number there.
    pub pid: i64,
}

impl Process {
    /// This one.
    pub(crate) fn this() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let id = format!("{PROCESS}{} {}", Uuid::new_v4(), here().unwrap_or_default());
        Self { id: id.into(), host: host.trim().to_owned(), pid: i64::from(std::process::id()) }
    }

    /// Whether it ran on this machine, and is there no more.
    pub fn has_exited(&self) -> bool {
        here().is_some_and(|here| self.id.ends_with(&format!(" {here}")))
            && !Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// What tells this machine, as long as it runs, and its process numbers from all others; none where that is not said.
fn here() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let numbers = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), numbers.display()))
}
