//! `hotslot version`: the versions of this program, of the service, and of the hypervisors of its hosts.

use serde_json::{Value, json};

use crate::Cli;
use crate::exit::{Exit, Failure};
use crate::host::{hypervisor, libvirt};
use crate::output::{self, Output};
use crate::table::aligned;
use crate::value::at;

/// Prints the versions. When no service answers, those of this program.
pub(crate) async fn run(cli: anyhow::Result<Cli>, output: Output) -> anyhow::Result<Exit> {
    let answer = match cli {
        Ok(cli) => of_service(&cli).await.map_err(|failure| {
            if failure.exit() == Exit::NotPermitted {
                format!("it answers, but does not show its version to you: {failure}")
            } else {
                failure.to_string()
            }
        }),
        Err(error) => Err(format!("{error:#}")),
    };
    let own = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "schema": hotslot_store::schema(),
        "build": env!("HOTSLOT_BUILD"),
    });
    if output.is_data() {
        let problem = answer.as_ref().err();
        let (service, hosts) = answer.clone().unwrap_or_default();
        let all = json!({ "program": own, "service": service, "hosts": hosts, "problem": problem });
        output::data(output, &all)?;
        return Ok(Exit::Done);
    }
    if output.is_names() {
        return output::names([at(&own, "/version")]).map(|()| Exit::Done);
    }
    let named = |of: &Value| format!("hotslot {}, schema {}", at(of, "/version"), at(of, "/schema"));
    let mut rows = vec![vec!["program".to_owned(), of_program()]];
    match answer {
        Ok((service, hosts)) => {
            rows.push(vec!["service".to_owned(), named(&service)]);
            for host in &hosts {
                let name = format!("host {}", at(host, "/hypervisor_hostname"));
                rows.push(vec![name, format!("libvirt {}, {}", libvirt(host), hypervisor(host))]);
            }
        }
        Err(problem) => rows.push(vec!["service".to_owned(), problem]),
    }
    output::print_table(&aligned(&rows))?;
    Ok(Exit::Done)
}

/// The program with the commit from which it was built.
fn of_program() -> String {
    let version = format!("hotslot {}, schema {}", env!("CARGO_PKG_VERSION"), hotslot_store::schema());
    format!("{version}, build {}", env!("HOTSLOT_BUILD"))
}

async fn of_service(cli: &Cli) -> Result<(Value, Vec<Value>), Failure> {
    let service = cli.client.item(&["service"], "service").await?;
    Ok((service, cli.client.items(&["os-hypervisors", "detail"], "hypervisors").await?))
}
