//! Cyborg's nouns: cards (its devices, each with one deployable), device profiles and accelerator requests.
//!
//! A request is bound on the road that every attach goes, on behalf of [`Holder::AcceleratorRequest`]. Nobody is told
//! of it: where Cyborg posts an event to Nova, whoever waits asks for `bind_state=resolved`, as Nova does too.
//!
//! [`Holder::AcceleratorRequest`]: crate::accelerator::Holder::AcceleratorRequest

mod arq;
mod card;
mod profile;

pub use self::arq::{ArqView, Bind, Reach};
pub(crate) use self::card::card_of;
pub use self::card::{Attribution, Card};
pub use self::profile::{Group, MAX_UNITS};
