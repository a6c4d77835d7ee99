//! Assignments: a function, or a mediated device, that a server or the host itself has or is to have.

mod any;
pub mod drift;
mod holder;
mod rows;
mod state;

pub use any::{Assignment, AssignmentKey, AssignmentKind, Change};
pub use drift::{Action, Finding, Kind, Source, Trigger};
pub use holder::Holder;
pub use rows::{
    Adopted, Adoption, Attachment, Binding, Mdev, MdevReservation, Network, NewAttachment, NewBinding,
    Reservation, Vgpu, VgpuOwner,
};
pub use state::{InnerAddress, InnerSource, NOT_IN_SERVER, Observation, Record, Settled, State};
