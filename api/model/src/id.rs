//! An id type per noun, so that a signature names its nouns.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A server: a libvirt domain's UUID.
    ServerId
);
uuid_id!(
    /// An assignment of any kind: an attachment, a binding or a mediated device. In a server's domain, its device has
    /// the alias `ua-<id>`.
    AttachmentId
);
uuid_id!(
    /// One request for devices: all its attachments succeed, or none.
    RequestId
);

uuid_id!(
    /// An accelerator: what is given away under a name of its own.
    AcceleratorId
);
uuid_id!(
    /// A device profile: what accelerator requests ask for by its name.
    DeviceProfileId
);
uuid_id!(
    /// An accelerator request: one device that is asked for by a device profile.
    ArqId
);
uuid_id!(
    /// An attribute: something that is said of a deployable.
    AttributeId
);

/// A row of `pci_devices`, as Nova's `os-pci` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DeviceId(pub i64);

/// A row of `events`: a later one has a higher id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct EventId(pub i64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A row of `hypervisors`: Nova's `compute_node_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HypervisorId(pub i64);
