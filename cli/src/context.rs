//! Contexts: names for services, each with its address and how the user identifies there. They are in a file of the user.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use clap_complete::{ArgValueCompleter, CompletionCandidate};
use hotslot_model::json;
use hotslot_service::config::is_plain_name;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::address::Address;
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::table::{Column, column};

/// What `--help` says about contexts.
pub(crate) const HELP: &str = "\
A context has the values of --url, --token-file, --ca-file and --os-cloud under a name. They are in the file \
contexts.toml in $XDG_CONFIG_HOME/hotslot, or in ~/.config/hotslot; tokens are never in it, only the names of their files.
What a command uses, the first that there is:
  1. the context that --context or $HOTSLOT_CONTEXT names
  2. --url or $HOTSLOT_URL; --config or $HOTSLOT_CONFIG; --os-cloud or $OS_CLOUD
  3. the context that `hotslot context use` has chosen
  4. the default socket, or the address in /etc/hotslot/hotslot.toml or /etc/hotslot.toml
With a context, --token-file, --ca-file and --os-cloud replace what it has. $HOTSLOT_TOKEN and the OS_* variables count only \
where it names neither a token file nor a cloud.
Examples:
  hotslot context add lab --url https://lab.example.org:9774 --ca-file lab-ca.pem \\
    --token-file ~/.config/hotslot/lab
  hotslot context use lab
  hotslot --context lab server list";

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List the contexts. A star marks the one that commands use.
    List,
    /// Have the commands use a context from now on.
    Use {
        /// The name of the context.
        #[arg(add = ArgValueCompleter::new(completed))]
        name: String,
    },
    /// Save the --url, --token-file, --ca-file and --os-cloud of this command line as a context.
    Add {
        /// The name: 1 to 64 letters, digits, `-`, `_` or `.`. A context with this name is replaced.
        name: String,
    },
    /// Remove a context. The files that it names stay.
    Remove {
        /// The name of the context.
        #[arg(add = ArgValueCompleter::new(completed))]
        name: String,
    },
}

/// A service, and how the user identifies there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) url: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
    /// The name of the cloud in `clouds.yaml`.
    pub(crate) cloud: Option<String>,
}

impl Context {
    /// The address of the service; `None` when it is in the catalog of a cloud.
    pub(crate) fn address(&self, name: &str) -> anyhow::Result<Option<Address>> {
        let parsed = self.url.as_ref().map(|url| url.parse().map_err(anyhow::Error::msg)).transpose();
        parsed.with_context(|| format!("the url of the context {name}"))
    }
}

/// The file of the contexts.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The name of the context that commands use.
    current: Option<String>,
    context: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file. A user who has none has no contexts.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let Some(file) = file() else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).context(format!("cannot read {}", file.display())),
        };
        toml::from_str(&text).map_err(|error| {
            let line = 1 + text[..error.span().map_or(0, |span| span.start)].matches('\n').count();
            let reason = json::plain(error.message().trim_end()).replace('\n', ", ");
            anyhow::anyhow!(
                "{} is not a file of contexts: line {line}: {reason}; `hotslot context --help` says how to add contexts",
                file.display()
            )
        })
    }

    /// Returns the context with this name, or without a name the one that commands use; `None` when they use none.
    pub(crate) fn pick(&self, name: Option<&str>) -> anyhow::Result<Option<(&str, &Context)>> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        match self.context.get_key_value(name) {
            Some((name, context)) => Ok(Some((name, context))),
            None => Err(unknown(name)),
        }
    }

    /// Writes the file, for its user only.
    fn write(&self) -> anyhow::Result<()> {
        let file = file().context("the variables HOME and XDG_CONFIG_HOME are not set; set one of them")?;
        let write = || -> io::Result<()> {
            let directory = file.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(directory)?;
            let mut new = tempfile::NamedTempFile::new_in(directory)?;
            new.write_all(toml::to_string(self).map_err(io::Error::other)?.as_bytes())?;
            new.as_file().set_permissions(Permissions::from_mode(0o600))?;
            new.persist(&file).map(drop).map_err(io::Error::from)
        };
        write().with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Completes the name of a context.
pub(crate) fn completed(current: &OsStr) -> Vec<CompletionCandidate> {
    let contexts = Contexts::read().unwrap_or_default();
    let begins = |name: &String| name.as_bytes().starts_with(current.as_encoded_bytes());
    contexts.context.into_keys().filter(begins).map(CompletionCandidate::new).collect()
}

/// The file of the user.
fn file() -> Option<PathBuf> {
    let configured = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = configured.or_else(|| Some(std::env::home_dir()?.join(".config")))?;
    Some(directory.join("hotslot/contexts.toml"))
}

fn unknown(name: &str) -> anyhow::Error {
    let message = format!("context {name} not found; `hotslot context list` lists them");
    Failure::new(Exit::NotFound, message).into()
}

/// Checks that nobody but its owner can read the file of a token.
pub(crate) fn expect_private(token_file: &Path) -> anyhow::Result<()> {
    let file = token_file.display();
    let mode = fs::metadata(token_file).with_context(|| format!("cannot read the token from {file}"))?;
    let mode = mode.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("others may read the token in {file} (mode {mode:04o}); run `chmod 600 {file}`");
    }
    Ok(())
}

impl ContextCommand {
    /// `given` has what the options of the command line say.
    pub(crate) fn run(self, given: Context, output: Output) -> anyhow::Result<Exit> {
        let mut contexts = Contexts::read()?;
        match self {
            Self::List => {
                let all: Vec<_> =
                    contexts.context.iter().map(|(name, it)| shown(&contexts, name, it)).collect();
                output::list(output, "contexts", &all, &columns())?;
            }
            Self::Use { name } => {
                contexts.pick(Some(&name))?;
                contexts.current = Some(name.clone());
                contexts.write()?;
                output::done(output, "commands now use", &name, &json!({ "current": name }))?;
            }
            Self::Add { name } => {
                let context = checked(&name, given)?;
                contexts.context.insert(name.clone(), context);
                contexts.write()?;
                let shown = shown(&contexts, &name, &contexts.context[&name]);
                output::done(output, "added", &name, &shown)?;
                if contexts.current.is_none() {
                    output::note(output, &format!("`hotslot context use {name}` has the commands use it"));
                }
            }
            Self::Remove { name } => {
                contexts.context.remove(&name).ok_or_else(|| unknown(&name))?;
                contexts.current.take_if(|current| *current == name);
                contexts.write()?;
                output::done(output, "removed", &name, &json!({ "removed": name }))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// Checks a new context, and makes the names of its files absolute.
fn checked(name: &str, given: Context) -> anyhow::Result<Context> {
    if !is_plain_name(name) {
        bail!("`{name}` cannot be the name of a context; write 1 to 64 letters, digits, `-`, `_` or `.`");
    }
    if given.url.is_none() && given.cloud.is_none() {
        let message = "give the address of the service with --url, or a cloud with --os-cloud";
        return Err(Failure::new(Exit::Usage, message).into());
    }
    if let Some(file) = &given.token_file {
        expect_private(file)?;
    }
    let absolute = |file: Option<PathBuf>| {
        let absolute = |file: PathBuf| {
            fs::canonicalize(&file).with_context(|| format!("cannot find {}", file.display()))
        };
        file.map(absolute).transpose()
    };
    Ok(Context { token_file: absolute(given.token_file)?, ca_file: absolute(given.ca_file)?, ..given })
}

fn shown(contexts: &Contexts, name: &str, context: &Context) -> Value {
    json!({
        "name": name,
        "current": contexts.current.as_deref() == Some(name),
        "url": context.url,
        "cloud": context.cloud,
        "token_file": context.token_file,
        "ca_file": context.ca_file,
    })
}

fn columns() -> Vec<Column<'static>> {
    vec![
        Column::new("USED", |context| if context["current"] == true { "*" } else { "" }.to_owned()),
        column("NAME", "/name").name(),
        column("URL", "/url").wrapped(),
        column("CLOUD", "/cloud"),
        column("TOKEN FILE", "/token_file").wrapped(),
        column("CA FILE", "/ca_file").wide(),
    ]
}
