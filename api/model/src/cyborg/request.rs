//! Accelerator requests (ARQs). The state that the API shows follows from the recorded state and from the assignment
//! that the request holds.

use std::sync::Arc;

use uuid::Uuid;

use crate::assignment::{Assignment, State};
use crate::device::Device;
use crate::id::{ArqId, ServerId};
use crate::string_enum;
use crate::time::Millis;

string_enum! {
    /// Cyborg's states of an accelerator request.
    ArqState {
        /// The request was created.
        Initial = "Initial",
        /// The request is being bound.
        BindStarted = "BindStarted",
        /// The device is attached to the server.
        Bound = "Bound",
        /// The request was bound before and can be bound again.
        Unbound = "Unbound",
        /// No device could be attached to the server.
        BindFailed = "BindFailed",
        /// The device could not be detached from the server.
        UnbindFailed = "UnbindFailed",
        /// The request is being deleted.
        Deleting = "Deleting",
    }
}

/// The host and server to which an accelerator request is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArqTarget {
    /// The name of the host.
    pub hostname: String,
    /// The resource provider of the deployable.
    pub rp: Uuid,
    /// The server that gets the device.
    pub server: ServerId,
}

/// A row of `accelerator_requests`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arq {
    /// The id.
    pub id: ArqId,
    /// The name of its device profile.
    pub profile: String,
    /// The index of the group in the profile, from 0.
    pub group: usize,
    /// The resource class in that group. The request is for one unit of it.
    pub class: String,
    /// The project of the owner, or `None` when callers are not identified.
    pub project: Option<String>,
    /// The recorded state: the last intended state, or the result of the last operation. See [`ArqView::state`].
    pub state: ArqState,
    /// The reason for that state, as text.
    pub reason: Option<String>,
    /// The target to which it is bound or being bound, or for which binding failed.
    pub target: Option<ArqTarget>,
    /// When the request was created.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
}

/// An accelerator request and the assignment that it holds.
#[derive(Debug, Clone)]
pub struct ArqView {
    /// The row of the request.
    pub row: Arq,
    /// The open attachment or mediated device that the request holds, and the device or the parent device.
    pub held: Option<(Assignment, Arc<Device>)>,
}

impl ArqView {
    /// Returns the state that the API shows.
    pub fn state(&self) -> ArqState {
        seen(self.row.state, self.held.as_ref().map(|(by, _)| by.state()))
    }

    /// Whether the target of the request is this server.
    pub fn is_of(&self, server: ServerId) -> bool {
        self.row.target.as_ref().is_some_and(|target| target.server == server)
    }

    /// Returns the device that the server has, or whose mediated device the server has. Returns `None` while the device
    /// is being attached.
    pub fn handle(&self) -> Option<(&Assignment, &Device)> {
        let (by, device) = self.held.as_ref()?;
        (by.state() != State::Attaching).then_some((by, &**device))
    }
}

/// Returns the state of a request from its recorded state and the state of its attachment or mediated device, if any.
pub fn seen(meant: ArqState, attachment: Option<State>) -> ArqState {
    match (attachment, meant) {
        (None | Some(State::Detached | State::Failed), ArqState::Bound | ArqState::UnbindFailed) => {
            ArqState::Unbound
        }
        (None | Some(State::Detached | State::Failed), meant) => meant,
        (Some(_), ArqState::Deleting) => ArqState::Deleting,
        (Some(State::Attaching), _) => ArqState::BindStarted,
        (Some(State::Attached | State::Detaching), ArqState::UnbindFailed) => ArqState::UnbindFailed,
        (Some(State::Attached), _) => ArqState::Bound,
        // Binding has failed; the device is being detached again.
        (Some(State::Detaching), ArqState::BindStarted | ArqState::BindFailed) => ArqState::BindFailed,
        // The server has the device until the guest releases it.
        (Some(State::Detaching), ArqState::Initial | ArqState::Bound | ArqState::Unbound) => ArqState::Bound,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_state_follows_from_the_recorded_state_and_the_attachment() {
        let table: Value = serde_json::from_str(include_str!("../../tests/data/arq_state.json")).unwrap();
        let columns = ["none", "attaching", "attached", "detaching"];
        for meant in ArqState::ALL {
            for column in columns {
                let attachment: Option<State> = (column != "none").then(|| column.parse().unwrap());
                let is = seen(*meant, attachment);
                assert_eq!(table[meant.as_str()][column], is.as_str(), "{meant}, attachment {column}");
            }
            for ended in [State::Detached, State::Failed] {
                assert_eq!(seen(*meant, Some(ended)), seen(*meant, None), "{meant}, attachment {ended}");
            }
        }
        assert_eq!(table.as_object().unwrap().len(), ArqState::ALL.len());
    }
}
