//! Checks of a libvirt URI: whether it is reachable, the versions of libvirt and QEMU, and the free ports of its
//! guests.

use std::path::Path;
use std::time::Duration;

use hotslot_driver::domain::DomainXml;
use hotslot_driver::hypervisor::{HostInfo, Hypervisor};
use hotslot_driver::libvirt::{Libvirt, Options};
use hotslot_driver::sim::Sim;
use hotslot_driver::topology::Topology;

use super::{Finding, Level};
use crate::address::Address;
use crate::host::dotted;
use hotslot_service::config::is_of_this_machine;

/// The time limit for connecting to libvirt.
const PATIENCE: Duration = Duration::from_secs(15);
/// The libvirt version that introduced `virDomainDetachDeviceAlias`, with which devices are detached.
const NEEDED: u64 = 4_004_000;
/// The oldest libvirt version whose documents are in the tests.
const TESTED: u64 = 9_000_000;
/// The libvirt versions that misread files of sysfs. The end is the version that does not.
const MISREADS: std::ops::Range<u64> = 12_002_000..12_009_000;
/// The maximum number of guests that a finding names.
const NAMED: usize = 10;

/// Runs every check of the libvirt at `uri`, or of a simulated host. `api` is the address of the API, where it is
/// known.
pub(super) async fn check(uri: &str, api: Option<&Address>) -> Vec<Finding> {
    if let Some(path) = uri.strip_prefix("sim://") {
        return match Sim::open(Path::new(path)) {
            Ok(sim) => check_with(uri, &*sim, api).await,
            Err(error) => {
                vec![Finding::bad(
                    "libvirt",
                    Level::Fail,
                    error.to_string(),
                    "give a URI such as qemu:///system",
                )]
            }
        };
    }
    let libvirt = Libvirt::connect(uri, Options::default());
    let tried = tokio::time::timeout(PATIENCE, libvirt.tried()).await;
    let reached = tried.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
    if let Err(reason) = reached {
        let says = format!("cannot connect to {uri}: {reason}");
        return vec![Finding::bad("libvirt", Level::Fail, says, remedy(uri, &reason))];
    }
    check_with(uri, &*libvirt, api).await
}

async fn check_with(uri: &str, hypervisor: &dyn Hypervisor, api: Option<&Address>) -> Vec<Finding> {
    let mut findings = match hypervisor.host().await {
        Ok(host) => versions(uri, &host),
        Err(error) => {
            vec![Finding::bad("libvirt", Level::Fail, error.to_string(), remedy(uri, &error.message))]
        }
    };
    findings.push(devices(hypervisor).await);
    match guests(hypervisor).await {
        Ok(guests) => {
            findings.push(ports(&guests));
            findings.extend(networks(&guests, api));
        }
        Err(failed) => findings.push(failed),
    }
    findings
}

fn versions(uri: &str, host: &HostInfo) -> Vec<Finding> {
    let found = dotted(host.libvirt_version);
    let libvirt = if host.libvirt_version < NEEDED {
        let says = format!("{found} at {uri} cannot detach devices by alias");
        Finding::bad("libvirt", Level::Fail, says, format!("upgrade to libvirt {} or newer", dotted(NEEDED)))
    } else if host.libvirt_version < TESTED {
        let says = format!("{found} at {uri} is older than the versions that hotslot is tested with");
        Finding::bad("libvirt", Level::Warn, says, format!("upgrade to libvirt {} or newer", dotted(TESTED)))
    } else if MISREADS.contains(&host.libvirt_version) {
        let says = format!(
            "{found} at {uri} misreads files of sysfs that end with a line break, such as the class of a PCI function"
        );
        Finding::bad(
            "libvirt",
            Level::Warn,
            says,
            format!("upgrade to libvirt {} or newer", dotted(MISREADS.end)),
        )
    } else {
        Finding::ok("libvirt", format!("{found} at {uri}"))
    };
    let kind = &host.hypervisor_type;
    let hypervisor = if kind != "QEMU" {
        let says = format!("{uri} is {kind}; hotslot supports QEMU only");
        Finding::bad("qemu", Level::Fail, says, "give a URI such as qemu:///system")
    } else {
        Finding::ok("qemu", dotted(host.hypervisor_version))
    };
    vec![libvirt, hypervisor]
}

async fn devices(hypervisor: &dyn Hypervisor) -> Finding {
    let check = "devices";
    let install = "install and start libvirt's node device driver (libvirt-daemon-driver-nodedev; \
                   `systemctl enable --now virtnodedevd.socket` where libvirt runs as several daemons)";
    match hypervisor.devices().await {
        Ok(devices) if devices.is_empty() => {
            Finding::bad(check, Level::Fail, "libvirt lists no PCI devices", install)
        }
        Ok(devices) => {
            let grouped = devices.iter().filter(|device| device.iommu_group.is_some() && !device.bridge);
            let says = format!(
                "{} PCI functions, {} of them endpoints in an IOMMU group",
                devices.len(),
                grouped.count()
            );
            Finding::ok(check, says)
        }
        Err(error) => Finding::bad(check, Level::Fail, error.to_string(), install),
    }
}

/// Returns the guests' documents: the live one of a running guest, otherwise the definition. A domain that is gone in the
/// meantime or cannot be read is left out.
async fn guests(hypervisor: &dyn Hypervisor) -> Result<Vec<DomainXml>, Finding> {
    let domains = hypervisor.domains().await.map_err(|error| {
        Finding::bad("guests", Level::Fail, error.to_string(), "run `virsh list --all` for details")
    })?;
    let mut documents = Vec::new();
    for domain in &domains {
        let Ok(view) = hypervisor.domain(domain.uuid).await else { continue };
        documents.extend(view.live.or(view.persistent));
    }
    Ok(documents)
}

fn named<'a>(guests: impl IntoIterator<Item = &'a DomainXml>) -> (usize, String) {
    let names: Vec<_> = guests.into_iter().map(|guest| guest.name.as_str()).collect();
    let more = if names.len() > NAMED { ", …" } else { "" };
    (names.len(), format!("{}{more}", names[..names.len().min(NAMED)].join(", ")))
}

/// Checks whether guests can reach the API through the host's loopback: user networking and passt lead there.
fn networks(guests: &[DomainXml], api: Option<&Address>) -> Option<Finding> {
    let check = "guest networks";
    let (count, names) = named(guests.iter().filter(|guest| guest.user_network));
    if count == 0 {
        return None;
    }
    let on = format!("user networking or passt is used by {names}");
    match api {
        Some(api @ Address::Http(url)) if is_of_this_machine(url) => {
            let says = format!("{on}: such a guest can connect to {api}, the API on this machine's loopback");
            let fix = "set [api] listen = \"unix:/run/hotslot/api.sock\", and restart the service";
            Some(Finding::bad(check, Level::Warn, says, fix))
        }
        Some(api @ Address::Http(_)) => {
            let says =
                format!("{on}; such a guest can connect to {api} if the other machines of the network can");
            Some(Finding::ok(check, says))
        }
        Some(Address::Unix(_)) => {
            Some(Finding::ok(check, format!("{on}; such a guest cannot reach the API on a unix socket")))
        }
        None => None,
    }
}

/// Checks whether each guest has a free hot-plug port.
fn ports(guests: &[DomainXml]) -> Finding {
    let check = "guests";
    let (full, names) =
        named(guests.iter().filter(|guest| Topology::of(guest).free_ports().count_for(true) == 0));
    if full == 0 {
        return Finding::ok(check, format!("{}, each with a free hot-plug port", guests.len()));
    }
    let says = format!("{full} of {} have no free hot-plug port: {names}", guests.len());
    let fix = "run `hotslot server prepare GUEST --ports N`, and power-cycle the guest (i440fx: `virsh edit`, and add \
               <controller type='pci' model='pci-bridge'/>)";
    Finding::bad(check, Level::Warn, says, fix)
}

/// Returns the fix for a libvirt that cannot be connected to. It is chosen by the words of the error message.
fn remedy(uri: &str, reason: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["ssh: ", "Host key"]) {
        "`ssh` to that machine must work without a prompt for the user who runs the service".into()
    } else if says(&["Permission denied", "authentication", "polkit", "access denied"]) {
        "give this user access: run `usermod -aG libvirt USER` and log in again, or run as root".into()
    } else if says(&["No such file or directory"]) {
        "run `systemctl enable --now libvirtd` (or virtqemud.socket and virtnodedevd.socket); if there is no such \
         unit, install libvirt-daemon-system and qemu-system-x86"
            .into()
    } else if says(&["Connection refused", "Connection reset", "no answer within"]) {
        "libvirt does not answer: run `systemctl restart libvirtd` (or virtqemud), and read `journalctl -u \
         libvirtd`"
            .into()
    } else if says(&["QEMU binary", "emulator"]) {
        "install qemu-system-x86, and restart libvirtd".into()
    } else if says(&["no connection driver", "unable to connect to server", "no polkit"]) {
        format!("check that {uri} is right; libvirt's QEMU driver is in libvirt-daemon-driver-qemu")
    } else {
        format!("run `virsh -c '{uri}' version` to try the same, and read `journalctl -u libvirtd`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(libvirt_version: u64, hypervisor_type: &str) -> HostInfo {
        HostInfo {
            hostname: "node1".into(),
            hypervisor_type: hypervisor_type.into(),
            hypervisor_version: 10_000_002,
            libvirt_version,
            simulated: false,
        }
    }

    fn levels(findings: &[Finding]) -> Vec<Level> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn an_untested_version_is_a_warning_and_a_too_old_one_a_failure() {
        let levels_of = |version, kind| levels(&versions("qemu:///system", &host(version, kind)));
        assert_eq!(levels_of(11_003_000, "QEMU"), [Level::Ok, Level::Ok]);
        assert_eq!(levels_of(6_000_000, "QEMU"), [Level::Warn, Level::Ok]);
        for (version, level) in [
            (12_001_000, Level::Ok),
            (12_002_000, Level::Warn),
            (12_008_001, Level::Warn),
            (12_009_000, Level::Ok),
        ] {
            assert_eq!(levels_of(version, "QEMU"), [level, Level::Ok], "{version}");
        }
        let fix = versions("qemu:///system", &host(12_004_000, "QEMU")).remove(0).fix.unwrap();
        assert_eq!(fix, "upgrade to libvirt 12.9.0 or newer");
        assert_eq!(levels_of(4_000_000, "QEMU"), [Level::Fail, Level::Ok]);
        assert_eq!(levels_of(11_003_000, "LXC"), [Level::Ok, Level::Fail]);
    }

    #[test]
    fn each_typical_error_has_a_fix() {
        for (reason, fix) in [
            (
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
                "usermod -aG libvirt",
            ),
            ("authentication unavailable: no polkit agent available", "usermod -aG libvirt"),
            (
                "Failed to connect socket to '/x': No such file or directory",
                "systemctl enable --now libvirtd",
            ),
            ("Failed to connect socket to '/x': Connection refused", "systemctl restart libvirtd"),
            ("no connection driver available for xen:///system", "check that xen:///system is right"),
            ("Cannot recv data: ssh: Could not resolve hostname node9", "`ssh` to that machine"),
            ("something new", "virsh -c 'xen:///system' version"),
        ] {
            let remedy = remedy("xen:///system", reason);
            assert!(remedy.contains(fix), "{reason}: {remedy}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_one_failed_finding() {
        let findings = check("qemu+unix:///system?socket=/nonexistent/libvirt-sock", None).await;
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.says.contains("No such file or directory"), "{}", finding.says);
    }

    #[tokio::test]
    async fn a_hypervisor_other_than_qemu_is_a_failure() {
        let findings = check("test:///default", None).await;
        assert_eq!(levels(&findings)[..2], [Level::Ok, Level::Fail], "{findings:?}");
    }
}
