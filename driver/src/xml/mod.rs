//! Documents in and out: text in, values out; values in, text out. No connection is known here.

pub mod capabilities;
pub mod domain;
pub mod hostdev;
pub mod mdev;
pub mod nodedev;
mod numa;
mod read;
mod rendered;
mod spec;
pub(crate) mod tree;

/// A document that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: <{element}>: {reason}")]
pub struct XmlError {
    /// Which document: `domain g1`, `node device pci_0000_3b_00_1`, or its kind where the name was not reached.
    pub document: String,
    /// The element that could not be understood, as a path: `devices/hostdev/source/address`.
    pub element: String,
    /// What is wrong with it.
    pub reason: String,
}
