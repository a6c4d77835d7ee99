//! Measurements for the benchmarks.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_driver::sim::{Sim, control, control_of};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use crate::Hotslot;

/// Returns a quantile in milliseconds. `part` is from 0 to 1. Sorts the times.
pub fn quantile(times: &mut [Duration], part: f64) -> f64 {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3
}

/// Prints the median and the 99th percentile, and returns the median in milliseconds.
pub fn report(what: &str, times: &mut [Duration]) -> f64 {
    let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
    println!("{what:44} p50 {p50:8.2} ms   p99 {p99:8.2} ms   ({} times)", times.len());
    p50
}

/// Returns the resident memory of a process in MiB.
pub fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// The time after which the service has returned free memory to the kernel.
pub const HEAP_IS_SMALL: Duration = Duration::from_secs(12);

/// The argument with which a benchmark runs itself to open simulated hosts alone.
const HOSTS_ALONE: &str = "--hosts-alone";

/// Opens the simulated hosts in these folders in a process of its own, which is this program once more, and returns in
/// words what memory and processor time they need. The program calls [`opens_hosts_alone`] first.
pub fn hosts_alone(folders: &[PathBuf]) -> String {
    let own = std::env::current_exe().expect("this program");
    let alone = Command::new(own).arg(HOSTS_ALONE).args(folders).output().expect("this program");
    String::from_utf8_lossy(&alone.stdout).trim().to_owned()
}

/// Does the work of [`hosts_alone`] when this process was started by it, and returns whether it was.
pub fn opens_hosts_alone() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != HOSTS_ALONE) {
        return false;
    }
    let own = std::process::id();
    let before = resident(own);
    let start = Instant::now();
    let hosts: Vec<_> = arguments.map(|folder| Sim::open(Path::new(&folder)).expect("a host")).collect();
    let time = start.elapsed();
    println!("{:.1} MiB, opened in {:.0} ms", resident(own) - before, time.as_secs_f64() * 1e3);
    drop(hosts);
    true
}

/// Returns one of the kernel's files of each thread of a process.
fn of_threads<T>(process: u32, file: &str, read: impl Fn(&str) -> Option<T>) -> HashMap<OsString, T> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let samples = threads.filter_map(|thread| {
        // A thread may end in the meantime.
        let thread = thread.expect("a thread");
        Some((thread.file_name(), read(&std::fs::read_to_string(thread.path().join(file)).ok()?)?))
    });
    samples.collect()
}

/// Returns the processor time of each thread of a process.
pub fn cpu(process: u32) -> HashMap<OsString, Duration> {
    // The first number is in nanoseconds (Linux, Documentation/scheduler/sched-stats.rst).
    of_threads(process, "schedstat", |figures| {
        figures.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    })
}

/// Returns the number of context switches to the threads of a process.
pub fn switches(process: u32) -> u64 {
    let count = |status: &str| {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        Some(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>())
    };
    of_threads(process, "status", count).values().sum()
}

/// Returns the processor time that the simulated host has needed in each of some processes, the first of which made it.
pub fn simulated(processes: &[Hotslot]) -> Duration {
    let host = processes[0].host_dir();
    let answers = processes.iter().enumerate().map(|(index, service)| match index {
        0 => control(&host, "statistics"),
        _ => control_of(service.pid(), &host, "statistics"),
    });
    answers.map(|answer| processor_time(&answer.expect("the host's control socket"))).sum()
}

fn processor_time(answer: &str) -> Duration {
    let statistics: Value = serde_json::from_str(answer.trim_start_matches("ok ")).expect("JSON");
    Duration::from_nanos(statistics["cpu_ns"].as_u64().expect("a number"))
}

/// Measures writing and committing two rows with a sync on this disk.
pub async fn durable_transactions(rounds: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}/floor.db?mode=rwc", dir.path().display());
    let mut db = SqliteConnection::connect(&url).await.expect("a database");
    for line in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)",
    ] {
        db.execute(line).await.expect("a statement");
    }
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        db.execute("BEGIN; INSERT INTO t (text) VALUES ('a'); INSERT INTO t (text) VALUES ('b'); COMMIT")
            .await
            .expect("a transaction");
        times.push(start.elapsed());
    }
    times
}
