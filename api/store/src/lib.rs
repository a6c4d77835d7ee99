//! The records in SQLite or PostgreSQL, one file for each table. Statements are static, use `$n` for their values, and
//! work on both databases (`sql.rs`).

mod accelerators;
pub mod actor;
mod adopt;
mod advice;
mod arqs;
mod assignments;
mod attachments;
mod attributes;
mod backup;
mod bindings;
mod cache;
mod cards;
mod clock;
mod columns;
mod commits;
mod config;
mod device_profiles;
mod devices;
mod draft;
mod ended;
pub mod error;
mod events;
mod executor;
mod hypervisors;
mod idempotency;
mod locks;
mod mdevs;
mod notices;
mod overdue;
mod pool;
mod private;
mod process;
mod processes;
mod quotas;
mod sql;
#[cfg(test)]
mod tests;
mod url;
mod webhooks;
mod writer;

pub use arqs::ArqFilter;
pub use backup::{backup, lock, restore};
pub use cache::HostDevices;
pub use clock::now;
pub use ended::Ended;
pub use error::Error;
pub use events::EventBounds;
pub use hypervisors::HypervisorRow;
pub use locks::{Held, Locks};
pub use pool::Store;
pub use private::{make, prepare};
pub use process::Process;
pub use processes::{Heard, Notification};
pub use url::{check_url, is_postgres, sqlite_file};
pub use webhooks::DeadLetter;
