//! Cyborg's resources: cards (its devices, each with one deployable) and accelerator requests.
//!
//! Binding an accelerator request attaches a device for [`Holder::AcceleratorRequest`] like any other attach. Cyborg
//! posts an event to Nova when a bind ends; hotslot does not, so a client polls with `bind_state=resolved`, as Nova
//! does too.
//!
//! [`Holder::AcceleratorRequest`]: hotslot_model::assignment::Holder::AcceleratorRequest

mod arq;
mod card;
#[allow(clippy::module_inception)]
mod cyborg;
mod list;
pub(crate) mod settle;

pub use hotslot_store::ArqFilter;

pub use self::arq::{AccessScope, Bind};
pub use self::card::{Attribution, Card};
pub use self::cyborg::Cyborg;
