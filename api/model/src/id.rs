//! One id type for each kind of record, so that ids of different kinds cannot be mixed up.

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
    /// The id of a server: the UUID of its libvirt domain.
    ServerId
);
uuid_id!(
    /// An assignment of any kind: an attachment, a binding or a mediated device. In a server's domain, its device has
    /// the alias `ua-<id>`.
    AttachmentId
);
uuid_id!(
    /// The id of a request for devices. Either all attachments of a request succeed, or none.
    RequestId
);

uuid_id!(
    /// The id of an accelerator.
    AcceleratorId
);
uuid_id!(
    /// The id of a Cyborg device profile.
    DeviceProfileId
);
uuid_id!(
    /// The id of a Cyborg accelerator request (ARQ), which requests one device of a device profile.
    ArqId
);
uuid_id!(
    /// The id of an attribute of a Cyborg deployable.
    AttributeId
);

/// The id of a row of `pci_devices`, as in Nova's `os-pci`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DeviceId(pub i64);

/// The id of a row of `events`. Later events have higher ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct EventId(pub i64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a row of `hypervisors`, which is Nova's `compute_node_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HypervisorId(pub i64);
