//! The part of the service that keeps accelerators.

use std::sync::Arc;

use hotslot_store::Store;

use crate::assignment::Assignments;
use crate::config::Config;
use crate::current::Current;
use crate::hosts::Hosts;

/// Keeps accelerators, and attaches and detaches them.
pub struct Accelerators {
    pub(crate) config: Arc<Current<Config>>,
    pub(crate) store: Store,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) assignments: Arc<Assignments>,
}
