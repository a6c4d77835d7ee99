//! `hotslot doctor`: checks whether a host can pass devices through to guests, and prints a fix for each problem.
//!
//! ```text
//! machine       this machine: CPU, IOMMU, VFIO, SR-IOV, state directory; tests choose the root of the file system
//! hypervisor    the hypervisor at a libvirt URI, and its guests
//! ```

mod hypervisor;
mod machine;

use std::path::Path;

use clap::Args;
use hotslot_service::config::SOCKET;
use serde_json::{Value, json};

use crate::address::Address;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::tls::Tls;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The libvirt URI to check.
    #[arg(long, default_value = "qemu:///system")]
    uri: String,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    check: &'static str,
    level: Level,
    says: String,
    fix: Option<String>,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// No problem.
    Ok,
    /// Useful to know.
    Info,
    /// Passthrough works with restrictions.
    Warn,
    /// No device can be passed through until this is fixed.
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, says: says.into(), fix: None }
    }

    fn bad(check: &'static str, level: Level, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level, says: says.into(), fix: Some(fix.into()) }
    }

    fn json(&self) -> Value {
        json!({ "check": self.check, "level": self.level.word(), "says": self.says, "fix": self.fix })
    }
}

impl Doctor {
    /// Runs all checks and prints the findings. The exit code is [`Exit::Failed`] when a check fails.
    pub(crate) async fn run(
        self,
        service: anyhow::Result<Address>,
        tls: &Tls,
        format: Format,
    ) -> anyhow::Result<Exit> {
        let mut findings = if is_local(&self.uri) {
            machine::look(Path::new("/"))
        } else {
            let says =
                format!("{} is on another machine; its IOMMU and VFIO cannot be checked from here", self.uri);
            vec![Finding::bad("machine", Level::Info, says, "run `hotslot doctor` on that machine")]
        };
        findings.extend(hypervisor::look(&self.uri).await);
        findings.push(look_at_service(service, tls).await?);
        if format == Format::Json {
            output::json(&findings.iter().map(Finding::json).collect())?;
        } else {
            output::print(&report(&findings))?;
        }
        let fails = findings.iter().any(|finding| finding.level == Level::Fail);
        Ok(if fails { Exit::Failed } else { Exit::Done })
    }
}

/// Whether a libvirt URI has no host name, such as `qemu:///system` or `qemu+unix:///system?socket=…`.
fn is_local(uri: &str) -> bool {
    uri.split_once("://").is_none_or(|(_, rest)| rest.starts_with('/'))
}

async fn look_at_service(address: anyhow::Result<Address>, tls: &Tls) -> anyhow::Result<Finding> {
    let address = match address {
        Ok(address) => address,
        Err(error) => {
            let fix = "correct the configuration, or give the address of the service with --url";
            return Ok(Finding::bad("service", Level::Warn, format!("{error:#}"), fix));
        }
    };
    let said = address.to_string();
    let by_tcp = matches!(address, Address::Http(_)) && !address.uses_tls();
    let (level, says) = match Client::new(address, tls)?.probe("readyz").await {
        Ok(ready) if by_tcp && ready["status"] == "ready" => {
            let says =
                format!("ready at {said}, which every user and program of this machine can connect to");
            let fix = format!("set [api] listen = \"unix:{SOCKET}\"");
            return Ok(Finding::bad("service", Level::Warn, says, fix));
        }
        Ok(ready) if ready["status"] == "ready" => (Level::Ok, format!("ready at {said}")),
        Ok(ready) => (Level::Info, format!("not ready at {said}: {ready}")),
        Err(failure) => (Level::Info, failure.to_string()),
    };
    Ok(Finding { check: "service", level, says, fix: None })
}

/// Formats the findings for people, each fix below its finding.
fn report(findings: &[Finding]) -> String {
    let rows = findings.iter().flat_map(|finding| {
        let row = [finding.level.word(), finding.check, &finding.says].map(str::to_owned).to_vec();
        let fix = finding.fix.iter().map(|fix| vec![String::new(), String::new(), format!("fix: {fix}")]);
        std::iter::once(row).chain(fix).collect::<Vec<_>>()
    });
    output::aligned(&rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_is_printed_below_its_finding() {
        let findings = [Finding::ok("kvm", "good"), Finding::bad("iommu", Level::Fail, "off", "turn it on")];
        assert_eq!(
            report(&findings),
            "ok     kvm     good\nfail   iommu   off\n               fix: turn it on\n"
        );
    }

    #[test]
    fn a_uri_without_a_host_name_is_local() {
        for local in ["qemu:///system", "qemu+unix:///system?socket=/run/x", "test:///default"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["qemu+ssh://node2/system", "qemu+tls://[::1]/system"] {
            assert!(!is_local(remote), "{remote}");
        }
    }
}
