//! A dry run of an attach: the devices that it would take, and all checks. It consists of the choice of devices alone.

use std::sync::Arc;

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::hypervisor::Scope;
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::quota::of_aliases;

use super::assignments::Assignments;
use super::request::{self, AttachRequest};
use super::select::{Evaluation, Exclusions, Refused, check};
use crate::error::Error;
use crate::quota::owner_of;

/// The result of a dry run of an attach.
#[derive(Debug)]
pub struct DryRun {
    /// The devices that the attach would take, each with its alias; empty when too few are free.
    pub devices: Vec<(String, Arc<Device>)>,
    /// All checks in the order in which they were made.
    pub checks: Vec<Check>,
}

impl DryRun {
    /// Returns whether no check failed.
    pub fn would_attach(&self) -> bool {
        self.checks.iter().all(|check| check.result != CheckResult::Fail)
    }
}

impl Assignments {
    /// Reports which devices an attach would take, with all checks. It claims no device and unbinds no driver.
    ///
    /// # Errors
    /// As [`Assignments::attach`], except that a failed check is part of the result.
    pub async fn dry_run(&self, request: &AttachRequest) -> Result<DryRun, Error> {
        self.known_aliases(request)?;
        let (host, _) = self.hosts.find(request.server).await?;
        host.ready().await?;
        let view = host.server(request.server).await?.ok_or(Error::NoServer(request.server))?;
        request.expect_owner(&view)?;
        let snapshot = self.snapshot(&host, &view, request).await?;
        let mut checks = vec![match self.hosts.refusal(&host, HostChange::Attach).await? {
            None => check("host-mode", CheckResult::Pass, format!("host {} admits changes", host.name)),
            Some(reason) => check("host-mode", CheckResult::Fail, reason),
        }];
        checks.push(match request::scope(&view, request.persistent) {
            Ok(scope) => check("scope", CheckResult::Pass, into(scope).to_owned()),
            Err(error) => check("scope", CheckResult::Fail, error.to_string()),
        });
        if let Some(mac) = request.network.as_ref().and_then(|network| network.mac) {
            checks.push(match self.mac_in_use(request).await? {
                None => check("mac-address", CheckResult::Pass, format!("no attachment has {mac}")),
                Some(in_use) => check("mac-address", CheckResult::Fail, in_use),
            });
        }
        let (mut evaluation, snapshot) =
            self.evaluate_twice(&host, &view, request, snapshot, &mut Exclusions::default()).await?;
        if let Some(project) = owner_of(&view) {
            checks.push(self.quota_check(&project, request, &evaluation).await?);
        }
        checks.push(match &evaluation.refused {
            Some(Refused::TooFew(short)) => check("choice", CheckResult::Fail, short.to_string()),
            Some(Refused::Together(error)) if evaluation.chosen.is_empty() => {
                check("choice", CheckResult::Fail, error.to_string())
            }
            Some(Refused::One(..) | Refused::Together(_)) | None => {
                let names: Vec<_> =
                    evaluation.chosen.iter().map(|chosen| chosen.device.facts.address.to_string()).collect();
                check("choice", CheckResult::Pass, format!("{} would be taken", names.join(", ")))
            }
        });
        if evaluation.checks.is_empty() {
            // Too few devices are free: check unavailable ones too, so that the checks report the reason for each.
            evaluation.checks = self
                .checks_of_unavailable(&host, &view, request, &snapshot, evaluation.refused.as_ref())
                .await?;
        }
        if let Some(Refused::TooFew(Error::TooFewFree { shortage, host, advice })) = &evaluation.refused
            && let Some(choice) = checks.iter_mut().find(|check| check.name == "choice")
        {
            // The checks of the devices say why they are not available.
            let failed = evaluation.checks.iter().filter(|check| check.result == CheckResult::Fail);
            let failed: Vec<_> = failed.map(|check| check.message.as_str()).collect();
            let is_told = |example: &str| failed.iter().any(|message| example.contains(message));
            choice.message = format!("host {host}: {}; {advice}", shortage.without(is_told));
        }
        if !snapshot.availability.knows_guards() {
            for check in evaluation.checks.iter_mut().filter(|check| check.name == "guard") {
                check.result = CheckResult::Unknown;
                check.message = "guards cannot be checked, because the host is another machine".into();
            }
        }
        let enough = !matches!(evaluation.refused, Some(Refused::TooFew(_)));
        checks.extend(evaluation.checks);
        let devices = evaluation.chosen.into_iter().filter(|_| enough);
        Ok(DryRun { devices: devices.map(|chosen| (chosen.alias, chosen.device)).collect(), checks })
    }

    /// Checks the quotas of a project for the devices that would be taken; a whole group counts with all its devices.
    async fn quota_check(
        &self,
        project: &str,
        request: &AttachRequest,
        evaluation: &Evaluation,
    ) -> Result<Check, Error> {
        let aliases: Vec<&str> = if evaluation.chosen.is_empty() {
            let parts = request.aliases.iter();
            parts.flat_map(|part| std::iter::repeat_n(part.name.as_str(), part.count)).collect()
        } else {
            evaluation.chosen.iter().map(|chosen| chosen.alias.as_str()).collect()
        };
        Ok(match self.store.would_exceed(project, &of_aliases(aliases)).await? {
            None => check("quota", CheckResult::Pass, format!("project {project} exceeds no quota")),
            Some(exceeded) => check("quota", CheckResult::Fail, exceeded.to_string()),
        })
    }
}

fn into(scope: Scope) -> &'static str {
    match scope {
        Scope::Live => "the device is added to the running guest, not to its definition",
        Scope::Config => "the device is added to the definition; the guest gets it at its next start",
        Scope::LiveAndConfig => "the device is added to the running guest and to its definition",
    }
}
