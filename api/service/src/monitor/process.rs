//! The metrics of the process, with the names that Prometheus' clients use in all languages. What the kernel does not
//! tell is left out.

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

/// When the process began to serve, in seconds since 1970.
static STARTED: LazyLock<f64> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());

/// Notes that the process begins to serve now.
pub(crate) fn note_start() {
    LazyLock::force(&STARTED);
}

/// Reads the metrics of the process.
pub(super) fn metrics() -> Registry {
    let mut registry = Registry::with_prefix("process");
    let started: Gauge<f64, AtomicU64> = Gauge::default();
    started.set(*STARTED);
    let help = "When the process began to serve, in seconds since 1970";
    registry.register_with_unit("start_time", help, Unit::Seconds, started);
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let time = [usage.user_time(), usage.system_time()];
        let used: Counter<f64, AtomicU64> = Counter::default();
        used.inc_by(time.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum());
        registry.register_with_unit("cpu", "User and system CPU time", Unit::Seconds, used);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line?.split_whitespace().next()?.parse::<i64>().ok()
    };
    for (key, name, help) in
        [("VmRSS", "resident_memory", "Resident memory"), ("VmSize", "virtual_memory", "Virtual memory")]
    {
        if let Some(kibibytes) = number(key) {
            registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(kibibytes * 1024));
        }
    }
    if let Some(threads) = number("Threads") {
        registry.register("threads", "Threads", ConstGauge::new(threads));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
        registry.register("open_fds", "Open file descriptors", ConstGauge::new(open));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let soft = i64::try_from(soft).unwrap_or(i64::MAX);
        registry.register("max_fds", "The largest number of open file descriptors", ConstGauge::new(soft));
    }
    registry
}
