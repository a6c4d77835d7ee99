//! The adapter to real hosts.
