//! The caller of a request, and the rules of what a caller may do.
//!
//! ```text
//! role, refusal ← caller ← actor, requirement ← policy      a file uses those before it
//! ```

pub mod access_rule;
mod actor;
mod caller;
pub mod login;
pub mod policy;
mod refusal;
mod requirement;
mod role;

pub use actor::{Actor, global_request_id};
pub use caller::{Caller, Origin, Peer, Scope, User, Via};
pub use policy::Policy;
pub use refusal::Refusal;
pub use requirement::{Requirement, Target};
pub use role::{Role, SERVICE};
