//! The holder of an assignment: an accelerator or an accelerator request.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::id::{AcceleratorId, ArqId};

/// The accelerator or accelerator request that an assignment was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// An accelerator.
    Accelerator(AcceleratorId),
    /// An accelerator request.
    AcceleratorRequest(ArqId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accelerator(id) => write!(f, "accelerator:{id}"),
            Self::AcceleratorRequest(id) => write!(f, "accelerator-request:{id}"),
        }
    }
}

impl Holder {
    /// Returns the English noun and the id, for messages.
    pub fn name(self) -> String {
        match self {
            Self::Accelerator(id) => format!("accelerator {id}"),
            Self::AcceleratorRequest(id) => format!("accelerator request {id}"),
        }
    }

    /// Returns the path whose DELETE releases it.
    pub fn path(self) -> String {
        match self {
            Self::Accelerator(id) => format!("/accelerators/{id}"),
            Self::AcceleratorRequest(id) => format!("/accelerator/v2/accelerator_requests/{id}"),
        }
    }
}

impl FromStr for Holder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':').map(|(noun, id)| (noun, id.parse::<Uuid>())) {
            Some(("accelerator", Ok(id))) => Ok(Self::Accelerator(AcceleratorId(id))),
            Some(("accelerator-request", Ok(id))) => Ok(Self::AcceleratorRequest(ArqId(id))),
            _ => Err(format!("`{text}` is no holder")),
        }
    }
}
