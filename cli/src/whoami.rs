//! `hotslot whoami`: who the service takes the caller for, and with which rights.

use serde_json::Value;

use crate::Cli;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::table::{Column, column};

/// Prints who the service takes the caller for.
pub(crate) async fn run(cli: &Cli) -> anyhow::Result<Exit> {
    let caller = cli.client.item(&["caller"], "caller").await?;
    let lines = [
        column("User", "/user_name").name(),
        column("User id", "/user_id"),
        column("Roles", "/roles"),
        column("Scope", "/scope"),
        column("Project", "/project_id"),
        Column::new("Identified by", |caller| identified_by(caller).to_owned()),
    ];
    output::show(cli.output, &caller, &lines).map(|()| Exit::Done)
}

fn identified_by(caller: &Value) -> &str {
    match caller["identified_by"].as_str().unwrap_or_default() {
        "socket" => "the unix socket",
        "token" => "a token of hotslot",
        "keystone" => "Keystone",
        "headers" => "the headers of a proxy",
        "insecure" => "nothing: every client of the port is the administrator",
        other => other,
    }
}

/// Returns the project of the caller.
///
/// # Errors
/// [`Exit::Usage`] when the caller's roles apply to no single project.
pub(crate) async fn project(cli: &Cli) -> anyhow::Result<String> {
    let caller = cli.client.item(&["caller"], "caller").await?;
    caller["project_id"].as_str().map(str::to_owned).ok_or_else(|| {
        let message = "name a project: your roles are not those of a single project (see `hotslot whoami`)";
        Failure::new(Exit::Usage, message).into()
    })
}
