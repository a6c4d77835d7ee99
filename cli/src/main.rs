//! The `hotslot` binary.

fn main() {}
