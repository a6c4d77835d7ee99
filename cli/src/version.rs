//! `hotslot version`: the versions of this program, of the service, and of what the service uses.

use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};

/// Prints the versions. Without a service that answers, those of this program.
pub(crate) async fn run(client: anyhow::Result<Client>, format: Format) -> anyhow::Result<Exit> {
    let service = match client {
        Ok(client) => client.item(&["service"], "service").await.map_err(|failure| failure.to_string()),
        Err(error) => Err(format!("{error:#}")),
    };
    let own = json!({ "version": env!("CARGO_PKG_VERSION"), "schema": hotslot_store::schema() });
    if format == Format::Json {
        let (service, problem) = match service {
            Ok(service) => (service, None),
            Err(problem) => (Value::Null, Some(problem)),
        };
        output::json(&json!({ "program": own, "service": service, "problem": problem }))?;
        return Ok(Exit::Done);
    }
    let mut rows =
        vec![row("program", &format!("hotslot {}, schema {}", text(&own["version"]), own["schema"]))];
    match service {
        Ok(service) => {
            let (version, schema) = (text(&service["version"]), &service["schema"]);
            rows.push(row("service", &format!("hotslot {version}, schema {schema}")));
            for host in service["hosts"].as_array().into_iter().flatten() {
                let versions = match host["libvirt"].as_str() {
                    Some(libvirt) => {
                        let (name, version) = (text(&host["hypervisor"]), text(&host["hypervisor_version"]));
                        format!("libvirt {libvirt}, {name} {version}")
                    }
                    None => "does not answer".to_owned(),
                };
                rows.push(row(&format!("host {}", text(&host["name"])), &versions));
            }
        }
        Err(problem) => rows.push(row("service", &problem)),
    }
    output::print(&output::aligned(&rows))?;
    Ok(Exit::Done)
}

fn row(what: &str, version: &str) -> Vec<String> {
    vec![what.to_owned(), version.to_owned()]
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
