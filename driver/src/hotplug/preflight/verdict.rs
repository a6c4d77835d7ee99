//! The verdict of a preflight: the facts that it judges, its checks and their results.

use crate::device::HostDevice;
use crate::hypervisor::{Error, ErrorKind};
use crate::local::OpenNodes;
use crate::pci::PciAddress;

/// The facts about one device that is to be plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The function, as the hypervisor describes it now.
    pub device: HostDevice,
    /// Why the host needs the device; `None` when no guard found a reason.
    pub guard: Option<Guarded>,
    /// Whether libvirt binds the drivers (`managed='yes'`).
    pub managed: bool,
    /// The reset methods, as the kernel names them (`flr`, `bus`, `pm`); `None` when they are not known.
    pub reset: Option<Vec<String>>,
    /// The memory BARs; `None` when they are not known.
    pub bars: Option<Vec<Bar>>,
    /// The device nodes, and who has one open; `None` when that is not known.
    pub open_nodes: Option<OpenNodes>,
    /// The hook that runs before the function is taken from its host driver; `None` when there is none.
    pub drain: Option<String>,
}

impl From<HostDevice> for Facts {
    /// The facts that the hypervisor alone reports: guard, reset methods, BARs and device nodes are not
    /// known.
    fn from(device: HostDevice) -> Self {
        Self { device, guard: None, managed: true, reset: None, bars: None, open_nodes: None, drain: None }
    }
}

/// A reason why the host itself needs a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The reason, for people.
    pub reason: String,
    /// Whether the operator overrides it (`[pci] unguarded`).
    pub overridden: bool,
}

/// One memory BAR of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The size in bytes, a power of two.
    pub size: u64,
    /// Whether it is 64-bit and prefetchable. Behind a port only such memory can be above 4 GiB.
    pub prefetchable64: bool,
}

/// The choices of the operator and of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Whether a device without any reset method is refused.
    pub require_reset: bool,
    /// Whether devices of one IOMMU group that are requested together may be plugged together. The caller then unbinds
    /// their host drivers first, with [`free_group`](crate::hotplug::free_group).
    pub whole_groups: bool,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckResult {
    /// The check found no obstacle.
    Pass,
    /// The device cannot be plugged.
    Fail,
    /// The check could not be made; the message says why.
    Unknown,
}

/// One check of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The name of the check: one of those in this module's documentation.
    pub name: &'static str,
    /// The device that was checked; `None` when the check is about the domain or about all devices together.
    pub device: Option<PciAddress>,
    /// The result.
    pub result: CheckResult,
    /// The finding, for people.
    pub message: String,
    /// What the operator can do about it, if there is anything.
    pub cure: Option<String>,
}

/// The results of all checks, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The checks.
    pub checks: Vec<Check>,
    refusal: Option<Refusal>,
}

impl Verdict {
    /// Returns the first check that failed, as an error, or `None` when the devices may be plugged.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

/// The reason why the devices cannot be plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The device that failed its check, so that the caller can choose another one; `None` when the check was about the
    /// domain or about all devices together.
    pub device: Option<PciAddress>,
    /// An error of the kind that libvirt would return. Its message ends with what to do about it.
    pub error: Error,
}

/// A finding of a check: its result and message. `kind` and `cure` only count for a failure.
pub(super) struct Finding {
    pub(super) result: CheckResult,
    kind: ErrorKind,
    pub(super) message: String,
    pub(super) cure: Option<String>,
}

impl Finding {
    pub(super) fn pass(message: impl Into<String>) -> Self {
        let result = CheckResult::Pass;
        Self { result, kind: ErrorKind::Refused, message: message.into(), cure: None }
    }

    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self { result: CheckResult::Unknown, ..Self::pass(message) }
    }

    pub(super) fn fail(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { result: CheckResult::Fail, kind, ..Self::pass(message) }
    }

    pub(super) fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }
}

impl Verdict {
    pub(super) fn new() -> Self {
        Self { checks: Vec::new(), refusal: None }
    }

    pub(super) fn add(
        &mut self,
        operation: &str,
        name: &'static str,
        device: Option<PciAddress>,
        found: Finding,
    ) {
        let Finding { result, kind, message, cure } = found;
        if result == CheckResult::Fail && self.refusal.is_none() {
            let text = cure.iter().fold(message.clone(), |text, cure| text + "; " + cure);
            self.refusal = Some(Refusal { device, error: Error::new(kind, operation, text) });
        }
        self.checks.push(Check { name, device, result, message, cure });
    }
}
