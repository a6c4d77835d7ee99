//! A short soak; `src/bin/soak.rs` says what one is, and how to have a long one.

use std::process::Command;

#[test]
fn a_short_soak_finds_no_inconsistency() {
    let soak =
        Command::new(env!("CARGO_BIN_EXE_soak")).args(["--seconds", "8", "--seed", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&soak.stdout);
    println!("{said}");
    assert!(soak.status.success(), "{said}\n{}", String::from_utf8_lossy(&soak.stderr));
}
