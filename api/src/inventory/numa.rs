//! How near to the guest's memory a device has to be.

use crate::store::words;

words! {
    /// Nova's NUMA policies.
    NumaPolicy {
        /// On one of the guest's nodes, or not at all.
        Required = "required",
        /// On one of the guest's nodes if there is one free, else on any.
        Preferred = "preferred",
        /// On one of the guest's nodes, or of unknown node.
        Legacy = "legacy",
        /// On the same socket as one of the guest's nodes.
        Socket = "socket",
    }
}
