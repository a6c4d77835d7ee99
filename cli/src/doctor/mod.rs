//! `hotslot doctor`: checks whether a host can pass devices through to guests, and prints a fix for each problem.
//!
//! ```text
//! machine       this machine: CPU, IOMMU, VFIO, SR-IOV, state directory; tests choose the root of the file system
//! facts         facts about this machine that explain what a guest gets
//! hypervisor    the hypervisor at a libvirt URI, and its guests
//! service       the service on this machine: its socket, its files, its user and its unit
//! ```

mod facts;
mod hypervisor;
mod machine;
mod service;

use std::path::Path;

use clap::Args;
use hotslot_service::config::SOCKET;
use serde_json::{Value, json};

use crate::address::Address;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::table::aligned;
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
        token: Option<String>,
        config: Option<&Path>,
        output: Output,
    ) -> anyhow::Result<Exit> {
        let mut findings = if is_local(&self.uri) {
            let mut findings = machine::check(Path::new("/"));
            findings.extend(facts::check(Path::new("/")));
            findings
        } else {
            let says =
                format!("{} is on another machine; its IOMMU and VFIO cannot be checked from here", self.uri);
            vec![Finding::bad("machine", Level::Info, says, "run `hotslot doctor` on that machine")]
        };
        findings.extend(hypervisor::check(&self.uri, service.as_ref().ok()).await);
        findings.extend(service::check(config, service.as_ref().ok()).await);
        findings.push(check_service(service, tls, token).await);
        if output.is_data() {
            output::data(output, &findings.iter().map(Finding::json).collect())?;
        } else if output.is_names() {
            output::names(findings.iter().map(|finding| finding.check.to_owned()))?;
        } else {
            output::print_table(&report(&findings))?;
        }
        let fails = findings.iter().any(|finding| finding.level == Level::Fail);
        Ok(if fails { Exit::Failed } else { Exit::Done })
    }
}

/// Whether a libvirt URI has no host name, such as `qemu:///system` or `qemu+unix:///system?socket=…`.
fn is_local(uri: &str) -> bool {
    uri.split_once("://").is_none_or(|(_, rest)| rest.starts_with('/'))
}

async fn check_service(address: anyhow::Result<Address>, tls: &Tls, token: Option<String>) -> Finding {
    let address = match address {
        Ok(address) => address,
        Err(error) => {
            let fix = "correct the configuration, or give the address of the service with --url";
            return Finding::bad("service", Level::Warn, format!("{error:#}"), fix);
        }
    };
    let shown = address.to_string();
    let open = |ready: &Value| ready["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty());
    let client = match Client::with_token(address, tls, token) {
        Ok(client) => client,
        Err(error) => {
            let fix = "correct the option, the variable or the file that it names";
            return Finding::bad("service", Level::Warn, format!("not asked at {shown}: {error:#}"), fix);
        }
    };
    let (level, says) = match client.probe("readyz").await {
        Ok(ready) if open(&ready) => {
            let says = format!("answers at {shown}: {}", ready["warnings"][0].as_str().unwrap_or_default());
            let fix = format!("set [api] listen = \"unix:{SOCKET}\"");
            return Finding::bad("service", Level::Warn, says, fix);
        }
        Ok(ready) if ready["status"] == "ready" => (Level::Ok, format!("ready at {shown}")),
        Ok(ready) => (Level::Info, format!("not ready at {shown}: {ready}")),
        Err(failure) => (Level::Info, failure.to_string()),
    };
    Finding { check: "service", level, says, fix: None }
}

/// Formats the findings for people, each fix below its finding.
fn report(findings: &[Finding]) -> String {
    let rows = findings.iter().flat_map(|finding| {
        let row = [finding.level.word(), finding.check, &finding.says].map(str::to_owned).to_vec();
        let fix = finding.fix.iter().map(|fix| vec![String::new(), String::new(), format!("fix: {fix}")]);
        std::iter::once(row).chain(fix).collect::<Vec<_>>()
    });
    aligned(&rows.collect::<Vec<_>>())
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
