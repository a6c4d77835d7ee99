//! Accelerator requests: what one is, is told by what was last meant to be and by the assignment that it holds.

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
        /// It was made.
        Initial = "Initial",
        /// It is being bound.
        BindStarted = "BindStarted",
        /// Its device is in its server.
        Bound = "Bound",
        /// It was bound and is no longer; it may be bound again.
        Unbound = "Unbound",
        /// No device came to its server.
        BindFailed = "BindFailed",
        /// Its device did not leave its server.
        UnbindFailed = "UnbindFailed",
        /// It is being deleted.
        Deleting = "Deleting",
    }
}

/// Where an accelerator request is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArqTarget {
    /// The host's name.
    pub hostname: String,
    /// The resource provider of the deployable.
    pub rp: Uuid,
    /// The server that gets the device.
    pub server: ServerId,
}

/// A row of `accelerator_requests`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arq {
    /// Its id.
    pub id: ArqId,
    /// The name of the device profile that it asks by.
    pub profile: String,
    /// Which of the profile's groups, from 0.
    pub group: usize,
    /// The resource class of that group that it is a unit of.
    pub class: String,
    /// Whose it is; none: nobody was asked who they are.
    pub project: Option<String>,
    /// What was last meant to be, or came of it.
    pub state: ArqState,
    /// The reason for that state, for people.
    pub reason: Option<String>,
    /// Where it is bound, is being bound, or was when that failed.
    pub target: Option<ArqTarget>,
    /// When it was made.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Option<Millis>,
}

/// An accelerator request, with what it holds.
#[derive(Debug, Clone)]
pub struct ArqView {
    /// Its row.
    pub row: Arq,
    /// Its device, or the part of one, on the way to its server, in it, or on the way out.
    pub held: Option<(Assignment, Arc<Device>)>,
}

impl ArqView {
    /// What it is.
    pub fn state(&self) -> ArqState {
        seen(self.row.state, self.held.as_ref().map(|(by, _)| by.state()))
    }

    /// Whether it is bound to a server, or on its way there.
    pub fn is_of(&self, server: ServerId) -> bool {
        self.row.target.as_ref().is_some_and(|target| target.server == server)
    }

    /// The device that its server has, or of which it has a part.
    pub fn handle(&self) -> Option<(&Assignment, &Device)> {
        let (by, device) = self.held.as_ref()?;
        (by.state() != State::Attaching).then_some((by, &**device))
    }
}

/// What a request is: by what was last meant to be, and by its attachment or mediated device, if one is open.
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
        // What failed is taken back.
        (Some(State::Detaching), ArqState::BindStarted | ArqState::BindFailed) => ArqState::BindFailed,
        // Its server has it as long as it has not let go.
        (Some(State::Detaching), ArqState::Initial | ArqState::Bound | ArqState::Unbound) => ArqState::Bound,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_request_is_what_its_attachment_says() {
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
