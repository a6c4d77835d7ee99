//! How a connection to libvirt is kept, and how long is waited for what.

use std::time::Duration;

/// How to keep a connection and how long to wait for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How often an idle connection is tested, in whole seconds; zero leaves keepalive off.
    pub keepalive: Duration,
    /// How many tests may go unanswered before the connection is given up.
    pub keepalive_count: u32,
    /// The wait before the first try to reconnect; it doubles from try to try.
    pub reconnect_first: Duration,
    /// The longest wait between two tries.
    pub reconnect_longest: Duration,
    /// How long the first try to connect waits for an answer before the next one is made; twice as long from try to
    /// try, up to an hour.
    pub open_limit: Duration,
    /// How long a call that reads may take.
    pub read_limit: Duration,
    /// How long attach and detach may take: the first device pins all of the guest's memory, some devices
    /// take seconds to reset.
    pub change_limit: Duration,
    /// How many calls are under way at once. Less than libvirtd's `max_client_requests` (5), or slow calls
    /// hold up keepalive and the connection is given up.
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
