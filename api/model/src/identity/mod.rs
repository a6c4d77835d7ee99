//! Who calls, and what the caller may do.

pub mod access_rule;
pub mod login;
