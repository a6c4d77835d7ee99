//! `hotslot token`: makes, lists and revokes the service's own tokens. It changes the file; a running service reads the
//! file again by itself.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use hotslot_service::config::{Age, Config};
use hotslot_service::identity::tokens::{Token, TokenFile, TokensError};
use hotslot_store::sqlite_file;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::address::CONFIGURATIONS;
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::table::{Column, column};
use crate::value::{at, time};

pub(crate) const HELP: &str = "\
Examples:
  hotslot token create ci --role member --project 7c1f --expires 90d
  hotslot token list
  hotslot token revoke ci
The file is [identity] tokens of the configuration (--config, or /etc/hotslot/hotslot.toml), or /etc/hotslot/tokens. \
When root makes it, it gets the owner of the database, or of the configuration where the database is PostgreSQL, so \
that the service can read it.";

/// The file, when no configuration names another one.
const FILE: &str = "/etc/hotslot/tokens";

/// The variable from which the command line takes a token.
const VARIABLE: &str = "HOTSLOT_TOKEN";

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and print it. It is printed only now.
    Create(Create),
    /// List the tokens.
    List,
    /// Revoke a token. A running service refuses it after at most a second.
    Revoke {
        /// The name of the token.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name of the token: 1 to 64 letters, digits, `-`, `_` or `.`.
    name: String,
    /// The role: reader, member, manager, admin or service. The option may be repeated.
    #[arg(long = "role", required = true, value_name = "ROLE")]
    roles: Vec<String>,
    /// The id of the project in which the token has its role. Without one, the role applies to the whole system.
    #[arg(long)]
    project: Option<String>,
    /// After what time the token expires, such as 90d or 12h. Without it, the token is valid until it is revoked.
    #[arg(long)]
    expires: Option<Age>,
}

impl TokenCommand {
    pub(crate) fn run(self, config: Option<&Path>, output: Output) -> anyhow::Result<Exit> {
        let found = CONFIGURATIONS.iter().map(Path::new).find(|file| file.exists());
        let config = config.or(found);
        let loaded = config.map(Config::load).transpose()?.unwrap_or_default();
        let path = loaded.identity.tokens.unwrap_or_else(|| PathBuf::from(FILE));
        // The service may never have run; then the directory of its database tells who it is.
        let database = sqlite_file(&loaded.database.url).ok();
        let database = database.iter().flat_map(|file| file.ancestors().take(2)).find(|path| path.exists());
        let like = database.or(config).map(Path::to_owned);
        let mut file = TokenFile::open(&path).map_err(failure)?.owned_like(like);
        match self {
            Self::Create(create) => {
                let roles: BTreeSet<_> = create.roles.iter().map(|role| role.to_ascii_lowercase()).collect();
                let expires = create.expires.map(|age| age.0);
                let text = file.create(&create.name, roles, create.project, expires);
                output::print(&format!("{}\n", text.map_err(failure)?))?;
            }
            Self::List => {
                let all: Vec<_> = file.tokens.iter().map(shown).collect();
                let columns = [
                    column("NAME", "/name").name(),
                    column("ROLES", "/roles"),
                    column("PROJECT", "/project"),
                    Column::new("EXPIRES", expiry),
                    Column::new("CREATED", |token| time(token, "/created")),
                ];
                output::list(output, "tokens", &all, &columns)?;
            }
            Self::Revoke { name } => {
                file.revoke(&name).map_err(failure)?;
                output::done(output, "revoked", &name, &json!({ "name": name, "status": "revoked" }))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn failure(error: TokensError) -> anyhow::Error {
    let (exit, text) = (exit(&error), error.to_string());
    let advice = match &error {
        TokensError::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
            "; become root, or the user of the service"
        }
        TokensError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
            "; create its directory, or name another file as [identity] tokens in the configuration of the service, and \
             that configuration by --config"
        }
        TokensError::Io { .. }
        | TokensError::Unknown(_)
        | TokensError::Taken(_)
        | TokensError::Wrong(_)
        | TokensError::Exposed(_) => "",
    };
    Failure::new(exit, text + advice).into()
}

fn exit(error: &TokensError) -> Exit {
    match error {
        TokensError::Unknown(_) => Exit::NotFound,
        TokensError::Taken(_) => Exit::Refused,
        TokensError::Wrong(_) => Exit::Usage,
        TokensError::Io { .. } | TokensError::Exposed(_) => Exit::Failed,
    }
}

/// When a token expires, or that it has expired.
fn expiry(token: &Value) -> String {
    match (token["expired"] == true, at(token, "/expires")) {
        (true, _) => "expired".to_owned(),
        (false, never) if never == "-" => "never".to_owned(),
        (false, _) => time(token, "/expires"),
    }
}

fn shown(token: &Token) -> Value {
    json!({
        "name": token.name,
        "roles": token.roles,
        "project": token.project,
        "expires": token.expires.map(seconds),
        "expired": token.has_expired(),
        "created": seconds(token.created),
    })
}

/// A time in whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns the token with which the command line identifies itself: that of `--token-file`, or of `HOTSLOT_TOKEN`.
///
/// # Errors
/// The file cannot be read, or has no token.
pub(crate) fn own(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let text = match file {
        Some(file) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the token from {}", file.display()))?,
        ),
        None => std::env::var(VARIABLE).ok(),
    };
    let text = text.map(|text| text.trim().to_owned());
    if let (Some(file), Some("")) = (file, text.as_deref()) {
        bail!("{} has no token; `hotslot token create` makes one", file.display());
    }
    Ok(text.filter(|text| !text.is_empty()))
}
