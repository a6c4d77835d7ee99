//! Settings of VFs of NICs that libvirt has no word for: set before a VF is plugged, and put back after its attachment
//! has ended.
//!
//! The settings that a VF had are recorded before they are changed. So a service that was killed in between puts them
//! back when the attachment has ended, like any other. A VF that has lost them meanwhile, as after a restart of the host,
//! gets them again.

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;
use hotslot_model::assignment::{Action, Attachment, Finding, Kind, Source, State};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::AttachmentId;

use super::assignments::Assignments;
use super::select::check;
use crate::error::Error;
use crate::host::Host;

impl Assignments {
    /// Checks whether the settings of a VF can be changed: the check, and the error when they cannot.
    pub(super) async fn check_vf_settings(
        &self,
        host: &Host,
        vf: PciAddress,
        wanted: &VfSettings,
    ) -> (Check, Option<hypervisor::Error>) {
        let (result, message, error) = match host.hypervisor.vf_settings(vf).await {
            Ok(now) if wanted.changes(&now).is_empty() => {
                (CheckResult::Pass, format!("{vf} has the requested settings"), None)
            }
            Ok(_) => {
                (CheckResult::Pass, format!("the settings of {vf} are changed before it is plugged"), None)
            }
            Err(error) => (CheckResult::Fail, error.message.clone(), Some(error)),
        };
        (Check { device: Some(vf), ..check("vf-settings", result, message) }, error)
    }

    /// Sets the requested settings of the VF of an attachment.
    ///
    /// # Errors
    /// Why they were not set.
    pub(super) async fn set_vf_settings(
        &self,
        host: &Host,
        row: &Attachment,
        vf: PciAddress,
    ) -> Result<(), hypervisor::Error> {
        let wanted = row.network.as_ref().map(|network| network.vf_settings()).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(());
        }
        let not_recorded = |error: Error| {
            hypervisor::Error::new(ErrorKind::Refused, format!("change the settings of VF {vf}"), error)
        };
        // The settings that an earlier attachment left are put back first.
        self.put_back_vf_settings(host, Some(vf)).await.map_err(not_recorded)?;
        let now = host.hypervisor.vf_settings(vf).await?;
        let changes = wanted.changes(&now);
        if changes.is_empty() {
            return Ok(());
        }
        let kept = self.store.keep_vf_settings(row.id, &changes.replaced(&now)).await;
        kept.map_err(|error| not_recorded(error.into()))?;
        host.hypervisor.set_vf_settings(vf, &changes).await
    }

    /// Puts back the settings of the VFs of a host, or of one of them, whose attachments have ended. It goes on with the
    /// others after one failed.
    ///
    /// # Errors
    /// Errors of the database; the first error of the hypervisor.
    pub(super) async fn put_back_vf_settings(
        &self,
        host: &Host,
        only: Option<PciAddress>,
    ) -> Result<(), Error> {
        let wanted = |vf: PciAddress| only.is_none_or(|only| only == vf);
        if !self.store.changed_vf_settings(host.row.id).await?.iter().any(|(_, vf, _)| wanted(*vf)) {
            return Ok(());
        }
        let _turn = self.turns.of(format!("settings of the VFs of host {}", host.row.id.0)).await?;
        self.store.refresh().await?;
        let mut outcome = Ok(());
        for (id, vf, before) in self.store.changed_vf_settings(host.row.id).await? {
            if !wanted(vf) || host.overdue_call_at(vf).is_some() {
                continue;
            }
            let putting_back = async {
                let changes = before.changes(&host.hypervisor.vf_settings(vf).await?);
                if changes.is_empty() {
                    return Ok(());
                }
                host.hypervisor.set_vf_settings(vf, &changes).await
            };
            match putting_back.await {
                Ok(()) => tracing::info!(
                    host = %host.name, attachment.id = %id, pci.address = %vf, "the settings of VF {vf} were put back"
                ),
                // The settings are gone with the VF: one that is created again has new ones. The kernel also has no such VF to
                // show while the PF has no network interface here, and then the VF keeps what it has.
                Err(error) if error.kind == ErrorKind::NoDevice && is_gone(host, vf).await => {}
                Err(error) => {
                    let what = format!("VF {vf} still has settings of attachment {id}, which has ended");
                    outcome = outcome.and(Err(host.error(what)(error)));
                    continue;
                }
            }
            self.store.vf_settings_put_back(id).await?;
        }
        outcome
    }

    /// Puts back the settings of the VFs of a host whose attachments have ended, and sets those again that VFs of open
    /// attachments have lost.
    ///
    /// # Errors
    /// Errors of the database; the first error of the hypervisor.
    pub(super) async fn settle_vf_settings(&self, host: &Host) -> Result<(), Error> {
        let mut outcome = self.put_back_vf_settings(host, None).await;
        let lost = self.lost_vf_settings(host).await?;
        if lost.is_empty() {
            return outcome;
        }
        for (row, vf, changes) in lost {
            let Some(guard) = self.in_flight.try_enter(row.id).await? else { continue };
            let turn = self.turns.of(format!("settings of the VFs of host {}", host.row.id.0)).await?;
            // Nobody requested this just now, so it waits until the host is thawed.
            if self.hosts.refusal(host, HostChange::Other).await?.is_some() {
                return outcome;
            }
            let now = self.store.attachment(row.id).await?;
            if now.is_some_and(|now| now.state == State::Attached) && host.overdue_call_at(vf).is_none() {
                let set = host.hypervisor.set_vf_settings(vf, &changes).await;
                if set.is_ok() {
                    tracing::warn!(
                        host = %host.name, attachment.id = %row.id, pci.address = %vf,
                        "VF {vf} had lost settings of its attachment, and has them again"
                    );
                }
                let what = format!("VF {vf} of attachment {} has lost its settings", row.id);
                outcome = outcome.and(set.map_err(host.error(what)));
            }
            drop((turn, guard));
        }
        outcome
    }

    /// Returns the open attachments whose VFs have other settings than were requested, with those that differ.
    async fn lost_vf_settings(
        &self,
        host: &Host,
    ) -> Result<Vec<(Attachment, PciAddress, VfSettings)>, Error> {
        let mut lost = Vec::new();
        for row in self.store.attachments().await? {
            let wanted = row.network.as_ref().map(|network| network.vf_settings()).unwrap_or_default();
            if row.hypervisor != host.row.id || row.state != State::Attached || wanted.is_empty() {
                continue;
            }
            let Some(device) = self.store.device(row.device) else { continue };
            let vf = device.facts.address;
            match host.hypervisor.vf_settings(vf).await {
                // The VF is gone, or this process has lost the right to change its settings.
                Err(error) if matches!(error.kind, ErrorKind::NoDevice | ErrorKind::Unsupported) => {}
                now => {
                    let changes = wanted.changes(&now.map_err(host.error(format!("read VF {vf}")))?);
                    if !changes.is_empty() {
                        lost.push((row, vf, changes));
                    }
                }
            }
        }
        Ok(lost)
    }

    /// Returns the disagreements about the settings of VFs.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn of_vf_settings(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let finding = |id: AttachmentId, vf: PciAddress, record: &str, on_host: String| Finding {
            kind: Kind::VfSettings,
            server: None,
            attachment: Some(id),
            address: Some(vf),
            observations: vec![(Source::Record, record.to_owned()), (Source::Host, on_host)],
            action: Action::SetVfSettings(id),
        };
        let mut findings = Vec::new();
        for (id, vf, before) in self.store.changed_vf_settings(host.row.id).await? {
            let on_host = match host.hypervisor.vf_settings(vf).await {
                Ok(now) if before.changes(&now).is_empty() => continue,
                Ok(_) => "it still has them".to_owned(),
                Err(error) if error.kind == ErrorKind::NoDevice && is_gone(host, vf).await => continue,
                Err(error) => format!("they cannot be read: {}", error.message),
            };
            let record = "hotslot has changed its settings, and the attachment has ended";
            findings.push(finding(id, vf, record, on_host));
        }
        for (row, vf, changes) in self.lost_vf_settings(host).await? {
            let record = "hotslot has set what was requested";
            findings.push(finding(row.id, vf, record, format!("it has not: {changes}")));
        }
        Ok(findings)
    }
}

/// Whether the host has no function at an address.
async fn is_gone(host: &Host, address: PciAddress) -> bool {
    let found = host.hypervisor.device(address).await;
    found.is_err_and(|error| error.kind == ErrorKind::NoDevice)
}
