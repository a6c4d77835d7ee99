//! Cyborg's nouns: cards (its devices, each with one deployable), device profiles and accelerator requests.
//!
//! A request is bound on the road that every attach goes, on behalf of [`Holder::AcceleratorRequest`]. Nobody is told
//! of it: where Cyborg posts an event to Nova, whoever waits asks for `bind_state=resolved`, as Nova does too.
//!
//! [`Holder::AcceleratorRequest`]: hotslot_model::assignment::Holder::AcceleratorRequest

mod arq;
mod card;
#[allow(clippy::module_inception)]
mod cyborg;
pub(crate) mod settle;

pub use self::arq::{AccessScope, Bind};
pub use self::card::{Attribution, Card};
pub use self::cyborg::Cyborg;
