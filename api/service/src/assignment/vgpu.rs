//! Virtual GPUs on VFs: a VF gets its type before it is plugged, and loses it after its attachment has ended.
//!
//! The record says that the type is hotslot's before it is set. So a service that was killed in between takes it away when
//! the attachment has ended, like any other. A type is taken away only while it is the recorded one and no open attachment has
//! the VF; one that somebody else has set is never changed. All changes of a VF are made one after another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf, ids};
use hotslot_model::assignment::{Action, Attachment, Finding, Kind, Source, State, Vgpu};
use hotslot_model::device::{DevType, Device};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::AttachmentId;
use hotslot_model::rules::VgpuChoice;

use super::assignments::Assignments;
use super::request::AttachRequest;
use super::select::{Evaluation, Refused, check};
use super::vgpu_choice::{CHECK, VgpuChoices};
use crate::error::Error;
use crate::host::Host;
use crate::locks::KeyedGuard;

/// How long to wait before each attempt to take a type away.
const CLOSING: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(600)];

fn nothing_attached(request: &AttachRequest, reason: &str) -> Error {
    Error::Conflict(format!("nothing was attached to server {}: {reason}", request.server))
}

fn still_has(vf: PciAddress, of: &str, ended: AttachmentId) -> String {
    format!("{vf} still has the vGPU type {of} of attachment {ended}, which has ended")
}

/// Returns why nothing can open a VF: it is a virtual GPU without a type.
fn without_type(vf: &VgpuVf) -> Option<String> {
    vf.current.is_none().then(|| {
        format!(
            "{} has no vGPU type, so that no guest can open it; request one with vgpu_type (it can be: {})",
            vf.address,
            ids(vf.creatable.iter().map(|of| of.id.as_str()))
        )
    })
}

impl Assignments {
    /// Returns why no device of the host can be given a type that is asked for, as the outcome of a choice.
    pub(super) fn vgpu_refusal(&self, request: &AttachRequest, choices: &VgpuChoices) -> Option<Evaluation> {
        let reason = choices.refusal()?;
        let mut evaluation = Evaluation::default();
        evaluation.checks.push(check(CHECK, CheckResult::Fail, reason.to_owned()));
        evaluation.refused = Some(Refused::Together(nothing_attached(request, reason)));
        Some(evaluation)
    }

    /// Finds which VFs of a host can be of the types that a request asks for.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn vgpu_choices(
        &self,
        host: &Host,
        types: &BTreeSet<&str>,
    ) -> Result<VgpuChoices, Error> {
        if types.is_empty() {
            return Ok(VgpuChoices::default());
        }
        // A type that is left from an attachment that has ended takes a part of the card.
        let kept = self.clear_vgpu_types(host, None).await?.into_iter();
        let kept = kept.map(|(vf, error)| (vf, error.to_string())).collect();
        self.choices_besides(host, types, &kept).await
    }

    /// As [`vgpu_choices`](Self::vgpu_choices), and changes nothing: a VF that has the type of an attachment that has ended
    /// keeps it.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn vgpu_choices_as_they_are(
        &self,
        host: &Host,
        types: &BTreeSet<&str>,
    ) -> Result<VgpuChoices, Error> {
        if types.is_empty() {
            return Ok(VgpuChoices::default());
        }
        let left = self.store.left_vgpu_types(host.row.id).await?.into_iter();
        let kept = left.map(|(id, vf, of)| (vf, still_has(vf, &of, id))).collect();
        self.choices_besides(host, types, &kept).await
    }

    /// Finds which VFs of a host can be of each type, besides those that keep theirs.
    async fn choices_besides(
        &self,
        host: &Host,
        types: &BTreeSet<&str>,
        kept: &BTreeMap<PciAddress, String>,
    ) -> Result<VgpuChoices, Error> {
        let refused = |reason: &str| {
            let refused = types.iter().map(|wanted| VgpuChoice::refused(wanted, reason.to_owned()));
            VgpuChoices::new(refused, Vec::new())
        };
        let found = match host.hypervisor.vgpu_vfs(None).await {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(refused(&error.message)),
            found => found.map_err(host.error("read the vGPU types of VFs"))?,
        };
        if found.is_empty() {
            return Ok(refused(&format!(
                "host {} has no VFs with vGPU types, and vgpu_type {} is requested; load the vendor's vGPU driver and make \
                 the VFs, or request an accelerator with mdev_type",
                host.name,
                ids(types.iter().copied())
            )));
        }
        let of_types: Vec<_> = types.iter().map(|wanted| VgpuChoice::new(wanted, &found, kept)).collect();
        let choices = VgpuChoices::new(of_types, found);
        if choices.set() {
            match host.hypervisor.may_set_vgpu_types().await {
                Err(error) if error.kind == ErrorKind::Unsupported => return Ok(refused(&error.message)),
                may => may.map_err(host.error("see whether vGPU types can be set"))?,
            }
        }
        Ok(choices)
    }

    /// Checks that a device for which no vGPU type is requested can be taken as it is. Adds the check, and returns why the
    /// device cannot be attached.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn vgpu_as_it_is(
        &self,
        host: &Host,
        request: &AttachRequest,
        (device, found): (&Device, &HostDevice),
        checks: &mut Vec<Check>,
    ) -> Result<Option<Refused>, Error> {
        if device.facts.dev_type != DevType::Vf || found.vfio_manager().is_none() {
            return Ok(None);
        }
        let address = device.facts.address;
        let reason = match self.clear_vgpu_types(host, Some(address)).await?.remove(&address) {
            Some(left) => Some(left.to_string()),
            None => self.why_not_open(host, address).await?,
        };
        let Some(reason) = reason else { return Ok(None) };
        let error = nothing_attached(request, &reason);
        checks.push(Check { device: Some(address), ..check(CHECK, CheckResult::Fail, reason) });
        Ok(Some(Refused::One(device.id, error)))
    }

    /// Returns why nothing can open a VF: it is a virtual GPU without a type.
    async fn why_not_open(&self, host: &Host, address: PciAddress) -> Result<Option<String>, Error> {
        let vf = match self.vgpu_vf(host, address).await {
            // On another machine it is not known, and QEMU refuses to open it.
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(None),
            vf => vf.map_err(host.error(format!("read the vGPU types of {address}")))?,
        };
        Ok(vf.as_ref().and_then(without_type))
    }

    /// Returns the VFs of a host that nothing can open, because they have no vGPU type, each with the reason.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    pub(super) async fn vfs_without_type(&self, host: &Host) -> Result<BTreeMap<PciAddress, String>, Error> {
        let found = match host.hypervisor.vgpu_vfs(None).await {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(BTreeMap::new()),
            found => found.map_err(host.error("read the vGPU types of VFs"))?,
        };
        Ok(found.iter().filter_map(|vf| Some((vf.address, without_type(vf)?))).collect())
    }

    /// Gives the VF of an attachment the type that it is to have, unless it has that type.
    ///
    /// # Errors
    /// Why it has not.
    pub(super) async fn set_vgpu_type(
        &self,
        host: &Host,
        row: &Attachment,
        vf: PciAddress,
    ) -> Result<(), hypervisor::Error> {
        let Some(Vgpu { id, .. }) = &row.vgpu else { return Ok(()) };
        let change = VgpuChange { address: vf, from: None, to: Some(id.clone()) };
        let failed = |kind, message: String| hypervisor::Error::new(kind, change.operation(), message);
        let not_recorded = |error: Error| failed(ErrorKind::Refused, error.to_string());
        let _turn = self.vgpu_turn(host, vf).await.map_err(not_recorded)?;
        self.clear_vgpu_type(host, vf).await.map_err(not_recorded)?;
        let now = self.vgpu_vf(host, vf).await?;
        let now =
            now.ok_or_else(|| failed(ErrorKind::NoDevice, format!("{vf} has no vGPU types any more")))?;
        match &now.current {
            Some(now) if now == id => return Ok(()),
            // Another VF may do.
            Some(other) => {
                return Err(failed(ErrorKind::InUse, format!("somebody else has just set the type {other}")));
            }
            None if now.creatable.iter().all(|of| of.id != *id) => {
                let other = self.other_vf_of_request(host, row).await.map_err(not_recorded)?;
                let who = other.map_or_else(
                    || "others took what was left of this type on the card first".to_owned(),
                    |other| {
                        format!(
                            "{other}, which the same request has given a type, took what was left of this type on the card; \
                             request fewer of them"
                        )
                    },
                );
                return Err(failed(ErrorKind::InUse, who));
            }
            None => {}
        }
        let kept = self.store.own_vgpu_type(row.id).await;
        kept.map_err(|error| not_recorded(error.into()))?;
        host.hypervisor.set_vgpu_type(&change).await
    }

    /// Returns another VF of the same card that the request of an attachment has given a type.
    async fn other_vf_of_request(&self, host: &Host, row: &Attachment) -> Result<Option<PciAddress>, Error> {
        let facts = |row: &Attachment| self.store.device(row.device).map(|device| device.facts.clone());
        let Some(own) = facts(row) else { return Ok(None) };
        let mut others = self.store.own_vgpu_types(host.row.id).await?;
        others.retain(|other| other.request == row.request && other.id != row.id);
        let others = others.iter().filter_map(facts);
        let mut of_card = others.filter(|other| other.parent_addr == own.parent_addr);
        Ok(of_card.next().map(|other| other.address))
    }

    /// Takes the types away from the VFs of a host, or from one of them, whose attachments have ended. Returns the VFs that
    /// keep theirs for now, each with the reason.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn clear_vgpu_types(
        &self,
        host: &Host,
        only: Option<PciAddress>,
    ) -> Result<BTreeMap<PciAddress, Error>, Error> {
        let mut kept = BTreeMap::new();
        for (_, vf, _) in self.store.left_vgpu_types(host.row.id).await? {
            if only.is_some_and(|only| only != vf) || kept.contains_key(&vf) {
                continue;
            }
            let _turn = self.vgpu_turn(host, vf).await?;
            if let Err(error) = self.clear_vgpu_type(host, vf).await {
                kept.insert(vf, error);
            }
        }
        Ok(kept)
    }

    /// Does the same as [`clear_vgpu_types`](Self::clear_vgpu_types) for one VF.
    ///
    /// # Errors
    /// Why it keeps its type.
    pub(super) async fn clear_vgpu_type_of(&self, host: &Host, vf: PciAddress) -> Result<(), Error> {
        self.clear_vgpu_types(host, Some(vf)).await?.remove(&vf).map_or(Ok(()), Err)
    }

    /// Takes the type away from a VF that it has of an attachment that has ended. The caller has the turn of the VF.
    async fn clear_vgpu_type(&self, host: &Host, vf: PciAddress) -> Result<(), Error> {
        self.store.refresh().await?;
        for (id, address, of) in self.store.left_vgpu_types(host.row.id).await? {
            if address != vf {
                continue;
            }
            let left = still_has(vf, &of, id);
            if let Some(call) = host.overdue_call_at(vf) {
                return Err(Error::Conflict(format!("{left}: {call}")));
            }
            // The attachment may have come back under the same id, and the type with it.
            let rows = self.store.own_vgpu_types(host.row.id).await?;
            let at = |row: &Attachment| self.store.device(row.device).map(|device| device.facts.address);
            if rows.iter().all(|row| at(row) != Some(vf)) {
                if let Some(foreign) = host.foreign().get(&vf) {
                    let server = foreign.server;
                    return Err(Error::Conflict(format!("{left}, and server {server} has it")));
                }
                let now = self.vgpu_vf(host, vf).await.map_err(host.error(left.clone()))?;
                match now.and_then(|vf| vf.current) {
                    Some(now) if now == of => {
                        let change = VgpuChange { address: vf, from: Some(of.clone()), to: None };
                        match self.change_when_closed(host, &change).await {
                            Err(error) if error.kind == ErrorKind::NoDevice => {}
                            changed => changed.map_err(host.error(left))?,
                        }
                        tracing::info!(
                            host = %host.name, attachment.id = %id, pci.address = %vf,
                            "the vGPU type {of} was taken from VF {vf}"
                        );
                    }
                    Some(other) => tracing::warn!(
                        host = %host.name, pci.address = %vf,
                        "VF {vf} is left with the vGPU type {other}, which somebody else has set"
                    ),
                    None => {}
                }
            }
            self.store.vgpu_type_taken(id).await?;
        }
        Ok(())
    }

    /// Changes the type of a VF that a guest has just released. QEMU may still have it open for a moment, and then the driver
    /// refuses.
    async fn change_when_closed(&self, host: &Host, change: &VgpuChange) -> Result<(), hypervisor::Error> {
        let mut outcome = Ok(());
        for pause in CLOSING {
            tokio::time::sleep(pause).await;
            outcome = host.hypervisor.set_vgpu_type(change).await;
            if outcome.as_ref().err().is_none_or(|error| error.kind != ErrorKind::Refused) {
                break;
            }
        }
        outcome
    }

    /// Gives VFs their types again that hotslot had set and that were lost, as after a restart of the host, and takes away
    /// those of attachments that have ended.
    ///
    /// # Errors
    /// Errors of the database; the first error of the hypervisor.
    pub(super) async fn settle_vgpu_types(&self, host: &Host) -> Result<(), Error> {
        let kept = self.clear_vgpu_types(host, None).await?;
        let mut outcome = kept.into_values().next().map_or(Ok(()), Err);
        let mut lost = self.lost_vgpu_types(host).await?;
        // A type that somebody else has set stays.
        lost.retain(|(_, _, _, now)| now.is_none());
        if lost.is_empty() {
            return outcome;
        }
        for (row, vf, of, _) in lost {
            let Some(guard) = self.in_flight.try_enter(row.id).await? else { continue };
            let turn = self.vgpu_turn(host, vf).await?;
            // Nobody requested this just now, so it waits until the host is thawed.
            if self.hosts.refusal(host, HostChange::Other).await?.is_some() {
                return outcome;
            }
            let now = self.store.attachment(row.id).await?;
            if now.is_some_and(|now| now.state == State::Attached) && host.overdue_call_at(vf).is_none() {
                let change = VgpuChange { address: vf, from: None, to: Some(of.clone()) };
                let set = host.hypervisor.set_vgpu_type(&change).await;
                if set.is_ok() {
                    tracing::warn!(
                        host = %host.name, attachment.id = %row.id, pci.address = %vf,
                        "VF {vf} had lost its vGPU type {of}, and has it again"
                    );
                }
                let what = format!("VF {vf} of attachment {} has lost its vGPU type {of}", row.id);
                outcome = outcome.and(set.map_err(host.error(what)));
            }
            drop((turn, guard));
        }
        outcome
    }

    /// Returns the open attachments whose VFs have lost the types that hotslot had set, each with its type and the other one
    /// that the VF has now.
    async fn lost_vgpu_types(
        &self,
        host: &Host,
    ) -> Result<Vec<(Attachment, PciAddress, String, Option<String>)>, Error> {
        let mut rows = self.store.own_vgpu_types(host.row.id).await?;
        rows.retain(|row| row.state == State::Attached);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let found = match host.hypervisor.vgpu_vfs(None).await {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(Vec::new()),
            found => found.map_err(host.error("read the vGPU types of VFs"))?,
        };
        let lost = rows.into_iter().filter_map(|row| {
            let address = self.store.device(row.device)?.facts.address;
            let of = row.vgpu.as_ref()?.id.clone();
            let is_lost = |vf: &&VgpuVf| vf.address == address && vf.current.as_ref() != Some(&of);
            let now = found.iter().find(is_lost)?.current.clone();
            Some((row, address, of, now))
        });
        Ok(lost.collect())
    }

    /// Returns the disagreements about the types of VFs.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn of_vgpu_types(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let finding = |id: AttachmentId, vf: PciAddress, record: String, on_host: String| Finding {
            kind: Kind::VgpuType,
            server: None,
            attachment: Some(id),
            address: Some(vf),
            observations: vec![(Source::Record, record), (Source::Host, on_host)],
            action: Action::SetVgpuType(id),
        };
        let mut findings = Vec::new();
        for (id, vf, of) in self.store.left_vgpu_types(host.row.id).await? {
            let now = match self.vgpu_vf(host, vf).await {
                Ok(now) => {
                    let left = now.and_then(|vf| vf.current).filter(|now| *now == of);
                    left.map(|now| format!("it has the vGPU type {now}"))
                }
                Err(error) if error.kind == ErrorKind::Refused => Some(error.to_string()),
                Err(error) => return Err(host.error(format!("read the vGPU types of {vf}"))(error)),
            };
            let record = "hotslot has set its vGPU type, and the attachment has ended".to_owned();
            findings.extend(now.map(|now| finding(id, vf, record, now)));
        }
        for (row, vf, of, now) in self.lost_vgpu_types(host).await? {
            let record = format!("hotslot has set the vGPU type {of}");
            let mut found = finding(row.id, vf, record, "it has no vGPU type".to_owned());
            if let Some(now) = now {
                found.observations[1].1 = format!("somebody else has set the vGPU type {now}");
                found.action = Action::Manual(format!(
                    "shut the server off and take that type away (echo 0 > \
                     /sys/bus/pci/devices/{vf}/nvidia/current_vgpu_type); hotslot then sets its own"
                ));
            }
            findings.push(found);
        }
        Ok(findings)
    }

    /// Reads the types of a VF; `None` when it is no virtual GPU.
    async fn vgpu_vf(&self, host: &Host, vf: PciAddress) -> Result<Option<VgpuVf>, hypervisor::Error> {
        Ok(host.hypervisor.vgpu_vfs(Some(vf)).await?.pop())
    }

    /// Waits until nobody else changes the type of a VF.
    async fn vgpu_turn(&self, host: &Host, vf: PciAddress) -> Result<KeyedGuard, Error> {
        self.turns.of(format!("vGPU type of {vf} of host {}", host.row.id.0)).await
    }
}
