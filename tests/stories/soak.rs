//! A short soak test; see `src/bin/soak.rs` for its description and for long runs.

use std::process::Command;

#[test]
fn a_short_soak_finds_no_inconsistency() {
    let soak =
        Command::new(env!("CARGO_BIN_EXE_soak")).args(["--seconds", "8", "--seed", "1"]).output().unwrap();
    let output = String::from_utf8_lossy(&soak.stdout);
    println!("{output}");
    assert!(soak.status.success(), "{output}\n{}", String::from_utf8_lossy(&soak.stderr));
}
