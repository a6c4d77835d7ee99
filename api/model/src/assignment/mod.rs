//! Assignments: a device, or a part of one, that a server or the host itself is to have or has.

pub mod drift;
mod holder;
mod promise;
mod rows;
mod state;

pub use drift::{Action, Finding, Kind, Source, Trigger};
pub use holder::Holder;
pub use promise::Promise;
pub use rows::{
    Adoption, Attachment, Binding, Change, HeldBy, Mdev, MdevReservation, Network, NewAttachment, NewBinding,
    Reservation,
};
pub use state::{InnerAddress, InnerSource, Observation, Record, Settled, State};
