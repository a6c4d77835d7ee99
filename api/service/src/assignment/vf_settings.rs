//! Settings of VFs of NICs that libvirt has no word for: set before a VF is plugged, and put back after its attachment
//! has ended.
//!
//! The settings that a VF had are recorded before they are changed. So a service that was killed in between puts them
//! back when the attachment has ended, like any other.

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;
use hotslot_model::assignment::Attachment;

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
                // A VF that is created again has new settings.
                Err(error) if error.kind == ErrorKind::NoDevice => {}
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
}
