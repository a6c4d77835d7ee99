//! Writes a large simulated host with PFS cards of VFS VFs each, and with GUESTS running guests of PORTS free ports:
//!
//! ```text
//! cargo run -p hotslot-driver --example simulated_host -- DIR PFS VFS GUESTS PORTS
//! ```

use std::path::Path;
use std::process::ExitCode;

use hotslot_driver::sim::generate::Size;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, numbers @ ..] = &words[..] else { return usage() };
    let numbers: Vec<u32> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [pfs, vfs, guests, ports] = numbers[..] else { return usage() };
    match (Size { pfs, vfs, guests, ports }).write(Path::new(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: simulated_host DIR PFS VFS GUESTS PORTS");
    ExitCode::from(2)
}
