//! Settings of a connection to libvirt: keepalive, reconnecting and time limits.

use std::time::Duration;

/// Settings of a connection: keepalive, reconnecting and time limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The interval of keepalive messages on an idle connection, in whole seconds. Zero disables keepalive.
    pub keepalive: Duration,
    /// How many keepalive messages may stay unanswered before the connection is closed.
    pub keepalive_count: u32,
    /// The wait before the first attempt to reconnect. It doubles with each attempt.
    pub reconnect_first: Duration,
    /// The longest wait between two attempts.
    pub reconnect_longest: Duration,
    /// The time limit of the first attempt to connect. It doubles with each attempt that reaches it, up to one hour.
    pub open_limit: Duration,
    /// The time limit of a call that reads.
    pub read_limit: Duration,
    /// The time limit of attach, detach and other changes. The first device pins all of the guest's memory, and some
    /// devices take seconds to reset.
    pub change_limit: Duration,
    /// The number of calls that run at once; a value below 2 counts as 2. Keep it below libvirtd's
    /// `max_client_requests` (5): otherwise slow calls block keepalive, and the connection is closed.
    pub parallel_calls: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(5),
            keepalive_count: 3,
            reconnect_first: Duration::from_millis(250),
            reconnect_longest: Duration::from_secs(30),
            open_limit: Duration::from_secs(60),
            read_limit: Duration::from_secs(15),
            change_limit: Duration::from_secs(120),
            parallel_calls: 4,
        }
    }
}
