//! Reads and writes libvirt's documents: text to values, and values to text. No connection is used here.

pub mod capabilities;
pub mod domain;
pub mod hostdev;
pub mod mdev;
pub mod nodedev;
mod numa;
pub(crate) mod ownership;
mod read;
mod rendered;
mod spec;
pub(crate) mod tree;

/// A document that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: <{element}>: {reason}")]
pub struct XmlError {
    /// The document: `domain g1` or `node device pci_0000_3b_00_1`, or only its kind when its name could not be read.
    pub document: String,
    /// The element that could not be read, as a path: `devices/hostdev/source/address`.
    pub element: String,
    /// What is wrong with the element.
    pub reason: String,
}
