//! What may be changed on a host: an administrator can freeze it or drain it.

use crate::string_enum;
use crate::time::Millis;

string_enum! {
    /// What may be changed on a host.
    HostMode {
        /// Everything.
        Open = "open",
        /// Nothing new is attached, and what is attached can be detached.
        Draining = "draining",
        /// Nothing, until an administrator thaws the host. Work that has begun is completed.
        Frozen = "frozen",
        /// Nothing, as the configuration says.
        ReadOnly = "read-only",
    }
}

/// Why not everything may be changed on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restriction {
    /// What may be changed.
    pub mode: HostMode,
    /// Who decided it, for people; `None` for the configuration.
    pub by: Option<String>,
    /// The reason that was given.
    pub reason: Option<String>,
    /// When it was decided; `None` for the configuration.
    pub since: Option<Millis>,
}

/// A change of a host that somebody requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostChange {
    /// Something new is attached.
    Attach,
    /// Any other change.
    Other,
}

impl Restriction {
    /// The restriction of a host that the configuration makes read-only.
    pub fn by_configuration() -> Self {
        Self { mode: HostMode::ReadOnly, by: None, reason: None, since: None }
    }

    /// Returns why a change of the host `name` is refused, and what to do; `None` when it is permitted.
    pub fn refusal(&self, name: &str, change: HostChange) -> Option<String> {
        let by = self.by.as_deref().unwrap_or("the configuration");
        let reason = self.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        match (self.mode, change) {
            (HostMode::Open, _) | (HostMode::Draining, HostChange::Other) => None,
            (HostMode::Draining, HostChange::Attach) => Some(format!(
                "host {name} is being drained by {by}{reason}: nothing new is attached there until it is opened again \
                 (PUT os-hypervisors/{name}/mode)"
            )),
            (HostMode::Frozen, _) => Some(format!(
                "host {name} was frozen by {by}{reason}: nothing is changed there until it is opened again \
                 (PUT os-hypervisors/{name}/mode)"
            )),
            (HostMode::ReadOnly, _) => Some(format!(
                "host {name} is read-only by the configuration: nothing is changed there until `mode` is removed from \
                 its [[hypervisor]] entry and the service is restarted"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_decided_it_and_what_to_do() {
        let restriction = |mode| Restriction {
            mode,
            by: Some("user alice (uid 1000)".into()),
            reason: Some("new firmware".into()),
            since: Some(1),
        };
        use HostChange::{Attach, Other};
        let frozen = "host node1 was frozen by user alice (uid 1000) (new firmware): nothing is changed there until \
                      it is opened again (PUT os-hypervisors/node1/mode)";
        let draining = "host node1 is being drained by user alice (uid 1000) (new firmware): nothing new is attached \
                        there until it is opened again (PUT os-hypervisors/node1/mode)";
        let read_only = Restriction::by_configuration().refusal("node1", Other).unwrap();
        for (mode, change, expected) in [
            (HostMode::Open, Attach, None),
            (HostMode::Open, Other, None),
            (HostMode::Draining, Attach, Some(draining)),
            (HostMode::Draining, Other, None),
            (HostMode::Frozen, Attach, Some(frozen)),
            (HostMode::Frozen, Other, Some(frozen)),
            (HostMode::ReadOnly, Attach, Some(&*read_only)),
        ] {
            assert_eq!(restriction(mode).refusal("node1", change).as_deref(), expected, "{mode} {change:?}");
        }
        assert!(read_only.contains("[[hypervisor]]"), "{read_only}");
    }
}
