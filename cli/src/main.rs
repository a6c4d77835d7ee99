//! The `hotslot` binary: the service, and the command line.
//!
//! Each command is in a file of its own. The commands of [`ServiceCommand`] send requests to the service with
//! [`client`]; [`output`] prints the response, and [`exit`] has the exit codes.

mod accelerator;
mod address;
mod argument;
mod attach;
mod attachment;
mod capture;
mod client;
mod cloud;
mod columns;
mod complete;
mod config;
mod context;
mod db;
mod detach;
mod device;
mod device_name;
mod doctor;
mod drift;
mod event_stream;
mod events;
mod exit;
mod explain;
mod flavor;
mod heap;
mod host;
mod host_helper;
mod log_level;
mod logging;
mod login;
mod lookup;
mod notify;
mod output;
mod pci;
mod policy;
mod quota;
#[cfg(test)]
mod reference;
mod remedy;
mod serve;
mod server;
mod sim;
mod simulate;
mod size;
mod status;
mod table;
mod tls;
mod token;
mod top;
mod topology;
mod trace;
mod tree;
mod ui;
mod value;
mod version;
mod wait;
mod whoami;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::{ArgValueCompleter, CompleteEnv};

use crate::address::Address;
use crate::client::Client;
use crate::cloud::Cloud;
use crate::context::{Context, Contexts};
use crate::exit::{Exit, Failure};
use crate::login::Login;
use crate::output::Output;
use crate::tls::Tls;

/// Hot-plugs PCI devices into running libvirt guests, and reports the address at which the guest sees each device.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = exit::HELP,
    next_help_heading = "Options of every command"
)]
struct Arguments {
    /// The address of the service: unix:/path/to/socket, http://HOST:PORT or https://HOST:PORT. By default it is `[api]
    /// listen` of the configuration that --config or $HOTSLOT_CONFIG names. Without a named configuration it is the
    /// socket /run/hotslot/api.sock; when no service answers there, it is `[api] listen` of /etc/hotslot/hotslot.toml or
    /// /etc/hotslot.toml.
    #[arg(long, global = true, env = "HOTSLOT_URL")]
    url: Option<Address>,
    /// The context with the address of the service and the way to identify there; see `hotslot context --help`.
    #[arg(long, global = true, env = "HOTSLOT_CONTEXT", value_name = "NAME",
        add = ArgValueCompleter::new(context::completed))]
    context: Option<String>,
    #[command(flatten)]
    tls: Tls,
    /// The configuration file. Without one, `serve` and `db` use the defaults: the host is qemu:///system, and no
    /// device is assignable. The commands that talk to the service read its address from this file.
    #[arg(long, global = true, env = "HOTSLOT_CONFIG")]
    config: Option<PathBuf>,
    /// A file with the token with which the commands identify themselves to the service. Without it they use the
    /// variable HOTSLOT_TOKEN, where it is set. The unix socket needs no token.
    #[arg(long, global = true)]
    token_file: Option<PathBuf>,
    /// The cloud in clouds.yaml to whose Keystone the command authenticates. Without it, the OS_* variables of the
    /// OpenStack clients are used if OS_AUTH_URL is set. Without --url, the address of the service is then the endpoint
    /// of the service type `hotslot` in Keystone's catalog.
    #[arg(long, global = true, env = "OS_CLOUD", value_name = "NAME")]
    os_cloud: Option<String>,
    #[command(flatten)]
    output: Output,
    /// Whether the context in force has a cloud and no token, so that the variable of a token does not count.
    #[arg(skip)]
    only_cloud: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service, which serves the REST API and the page.
    Serve {
        /// Serve a made-up host, to try hotslot without root, hardware or libvirt. A link to the page is printed.
        #[arg(long)]
        simulate: bool,
    },
    /// Check whether this host can pass devices through to guests, and print a fix for each problem.
    Doctor(doctor::Doctor),
    /// Write the libvirt XML documents of a host into a directory, for bug reports and simulated hosts.
    #[command(after_help = "Example:\n  hotslot capture qemu:///system /tmp/node1")]
    Capture(capture::Capture),
    /// Trigger an event on a simulated host that a running service serves.
    #[command(after_help = sim::HELP)]
    Sim(sim::Sim),
    /// Back up or restore the SQLite database, or print its version.
    #[command(subcommand, after_help = db::HELP)]
    Db(db::DbCommand),
    /// Open the page in a browser, as the user who runs this, through the unix socket of the service.
    Ui,
    /// List, add, remove and choose contexts: names for services and how to identify there.
    #[command(subcommand, after_help = context::HELP)]
    Context(context::ContextCommand),
    /// Make, list and revoke tokens with which clients identify themselves.
    #[command(subcommand, after_help = token::HELP)]
    Token(token::TokenCommand),
    /// Show the rules of who may do what.
    #[command(subcommand, after_help = policy::HELP)]
    Policy(policy::PolicyCommand),
    /// Print the versions of this program, of the service, and of the libvirt of its hosts.
    Version,
    /// Print the completion script of a shell, which completes names that the service knows too.
    #[command(after_help = "Example:\n  source <(hotslot completions bash)")]
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    ManPages { directory: PathBuf },
    /// Make the changes of sysfs that the service asks for; systemd runs it as root with the service's socket.
    #[command(hide = true)]
    HostHelper(host_helper::HostHelper),
    #[command(flatten)]
    Service(ServiceCommand),
}

/// The commands that talk to the service. The exceptions are `config check`, `config show` and `config schema`, which are
/// grouped with the other `config` commands.
#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// List and show the hosts, and restrict what may be changed on them.
    #[command(subcommand)]
    Host(host::HostCommand),
    /// List and show the configured flavors.
    #[command(subcommand)]
    Flavor(flavor::FlavorCommand),
    /// List and show the PCI devices of the hosts.
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// List and show the records of the assignable devices.
    #[command(subcommand, after_help = pci::HELP)]
    Pci(pci::PciCommand),
    /// Explain why a device is offered or not, or which devices a request for an alias would get.
    #[command(after_help = explain::HELP)]
    Explain(explain::Explain),
    /// Print the PCI tree of a host, or of a server with its free ports.
    #[command(after_help = topology::HELP)]
    Topology(topology::Topology),
    /// Check a configuration file, and list and change the rules: device_spec, aliases and extra_info.
    #[command(subcommand, after_help = config::HELP)]
    Config(config::ConfigCommand),
    /// List and show the servers, which are the domains of libvirt, and set their projects and their free ports.
    #[command(subcommand)]
    Server(server::ServerCommand),
    /// List and show the attachments of devices to servers.
    #[command(subcommand)]
    Attachment(attachment::AttachmentCommand),
    /// Print or follow the events of devices, attachments and rules.
    #[command(after_help = events::HELP)]
    Events(events::Events),
    /// Attach devices to a server: all of them, or none.
    #[command(after_help = attach::HELP)]
    Attach(attach::Attach),
    /// Detach devices from servers, and wait until their guests have released them.
    #[command(after_help = detach::HELP)]
    Detach(detach::Detach),
    /// Manage accelerators: named devices for a server or for the host itself.
    #[command(subcommand, after_help = accelerator::HELP)]
    Accelerator(accelerator::AcceleratorCommand),
    /// Show and set how much of each resource a project may use.
    #[command(subcommand, after_help = quota::HELP)]
    Quota(quota::QuotaCommand),
    /// Print who the service takes you for, and with which rights.
    Whoami,
    /// Print the state of the service on one screen, with an exit code for monitoring.
    #[command(after_help = status::HELP)]
    Status,
    /// Follow the hosts, the attaches and detaches that are under way, and the latest events on one screen.
    #[command(after_help = top::HELP)]
    Top(top::Top),
    /// Show and set the levels of the service's log.
    #[command(after_help = log_level::HELP)]
    LogLevel(log_level::LogLevel),
    /// Report where the records, the guests and the hosts disagree, and repair it with --repair.
    #[command(after_help = drift::HELP)]
    Drift(drift::Drift),
}

/// The client and the output format, for the commands that talk to the service.
struct Cli {
    client: Client,
    output: Output,
}

fn main() -> ExitCode {
    CompleteEnv::with_factory(Arguments::command).complete();
    let matches = command().try_get_matches().unwrap_or_else(|error| plainer(error).exit());
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    arguments
        .in_context(|option| matches.value_source(option) == Some(ValueSource::CommandLine))
        .and_then(run)
        .unwrap_or_else(|error| {
            output::complain(&format!("{error:#}"));
            Exit::of(&error)
        })
        .into()
}

/// Returns the definition of the command line. A variable of the environment that is empty is like none.
fn command() -> clap::Command {
    Arguments::command().mut_args(|argument| {
        let value = argument.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) {
            argument.env(None::<&'static str>)
        } else {
            argument
        }
    })
}

/// Replaces the usage line of an error by the one of `--help`. clap's own line of an error has the options that were given, and
/// those that variables of the environment give, as if they were required. Where only a command is missing, its help is
/// printed, which lists the commands.
fn plainer(mut error: clap::Error) -> clap::Error {
    // A misspelt option would become the name of something after `--`, so clap's tip to write it so is wrong here.
    if let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) {
        let tips: Vec<_> =
            tips.into_iter().filter(|tip| !tip.to_string().contains(" as a value, use ")).collect();
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    let Some(usage) = error.get(ContextKind::Usage) else { return error };
    let mut command = Arguments::command();
    command.build();
    for word in usage.to_string().trim_start_matches("Usage:").split_whitespace().skip(1) {
        match command.find_subcommand(word).cloned() {
            Some(inner) => command = inner,
            None => break,
        }
    }
    if error.kind() == ErrorKind::MissingSubcommand {
        eprint!("{}", command.render_help());
        std::process::exit(Exit::Usage as i32);
    }
    error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
    error
}

impl Arguments {
    /// Takes over the values of the context that applies, if one does. `is_given` is whether the command line itself has an
    /// option, rather than a variable.
    fn in_context(mut self, is_given: impl Fn(&str) -> bool) -> anyhow::Result<Self> {
        if matches!(self.command, Command::Serve { simulate: true }) && is_given("config") {
            let message = "--simulate has a configuration of its own; leave out --config";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        if !self.command.uses_service() {
            return Ok(self);
        }
        self.only_cloud = is_given("os_cloud") && self.token_file.is_none();
        let named = self.context.as_deref();
        if named.is_some() && is_given("url") {
            let message = "give either --url or a context (--context, HOTSLOT_CONTEXT)";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        if named.is_none() && (self.url.is_some() || self.config.is_some() || self.os_cloud.is_some()) {
            return Ok(self);
        }
        let contexts = Contexts::read()?;
        let Some((name, context)) = contexts.pick(named)? else { return Ok(self) };
        self.url = context.address(name)?;
        if self.token_file.is_none() {
            if let Some(file) = &context.token_file {
                context::expect_private(file)?;
            }
            self.token_file = context.token_file.clone();
        }
        self.only_cloud |= context.cloud.is_some();
        if !is_given("os_cloud") && (context.cloud.is_some() || context.token_file.is_some()) {
            self.os_cloud = context.cloud.clone();
        }
        self.tls = self.tls.trusting(context.ca_file.clone());
        Ok(self)
    }

    /// What the options for a connection say.
    fn given(&self) -> Context {
        Context {
            url: self.url.as_ref().map(Address::to_string),
            token_file: self.token_file.clone(),
            ca_file: self.tls.ca_file().map(Path::to_owned),
            cloud: self.os_cloud.clone(),
        }
    }
}

impl Command {
    /// Whether the command connects to the service.
    fn uses_service(&self) -> bool {
        match self {
            Self::Service(ServiceCommand::Config(config::ConfigCommand::Local(_))) => false,
            Self::Doctor(_) | Self::Version | Self::Ui | Self::Service(_) => true,
            Self::Serve { .. }
            | Self::Capture(_)
            | Self::Sim(_)
            | Self::Db(_)
            | Self::Context(_)
            | Self::Token(_)
            | Self::Policy(_)
            | Self::Completions { .. }
            | Self::ManPages { .. }
            | Self::HostHelper(_) => false,
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let given = arguments.given();
    let config = arguments.config.as_deref();
    let own = || match &arguments.token_file {
        None if arguments.only_cloud => Ok(None),
        file => token::own(file.as_deref()),
    };
    let url = || arguments.url.clone().map_or_else(|| Address::found(config), Ok);
    if matches!(arguments.command, Command::Serve { .. } | Command::Db(_) | Command::Token(_)) {
        // Files that these commands create are readable by hotslot's user only.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    }
    match arguments.command {
        Command::Serve { simulate } => {
            heap::keep_small();
            if simulate { simulate::run() } else { serve::run(config) }.map(|()| Exit::Done)
        }
        Command::Doctor(doctor) => {
            let own = own()?;
            until_done(doctor.run(url(), &arguments.tls, own, config, arguments.output))
        }
        Command::Capture(capture) => until_done(capture.run()),
        Command::Db(command) => until_done(command.run(config, arguments.output)),
        Command::Version => until_done(async {
            let (url, cloud) = (arguments.url, arguments.os_cloud.as_deref());
            let client = match own() {
                Ok(own) => connect(url, arguments.tls, own, cloud, config).await,
                Err(error) => Err(error),
            };
            let cli = client.map(|client| Cli { client, output: arguments.output });
            version::run(cli, arguments.output).await
        }),
        Command::Ui => until_done(async { ui::run(url()?, &arguments.tls, arguments.output).await }),
        Command::Sim(sim) => sim.run(),
        Command::Context(command) => command.run(given, arguments.output),
        Command::Token(command) => command.run(config, arguments.output),
        Command::Policy(command) => command.run(config, arguments.output),
        Command::Completions { shell } => {
            output::print(&complete::script(shell)?)?;
            Ok(Exit::Done)
        }
        Command::ManPages { directory } => {
            clap_mangen::generate_to(Arguments::command(), directory)?;
            Ok(Exit::Done)
        }
        Command::HostHelper(helper) => helper.run(),
        // These commands need no service, and their file may not even have a valid address of one.
        Command::Service(ServiceCommand::Config(config::ConfigCommand::Local(command))) => {
            command.run(config, arguments.output)
        }
        Command::Service(command) => until_done(async {
            let (url, cloud) = (arguments.url, arguments.os_cloud.as_deref());
            let client = connect(url, arguments.tls, own()?, cloud, config).await?;
            command.run(&Cli { client, output: arguments.output }).await
        }),
    }
}

/// Returns a client of the service: with hotslot's own token where there is one, or with a token of Keystone's if a
/// cloud is configured. Without `url`, the address of the service is then in Keystone's catalog.
async fn connect(
    url: Option<Address>,
    tls: Tls,
    own: Option<String>,
    cloud: Option<&str>,
    config: Option<&Path>,
) -> anyhow::Result<Client> {
    let cloud = if own.is_some() { None } else { Cloud::found(cloud)? };
    let Some(cloud) = cloud else {
        return Client::with_token(url.map_or_else(|| Address::found(config), Ok)?, &tls, own);
    };
    let login = Login::to(&cloud, url.is_none()).await?;
    let address = url.or(login.endpoint.map(Address::Http)).context("Keystone's catalog has no address")?;
    Client::with_token(address, &tls.trusting(cloud.cacert), Some(login.token))
}

fn until_done(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    // A hung libvirt call blocks its thread; it must not block the exit of the process.
    runtime.shutdown_background();
    outcome
}

impl ServiceCommand {
    async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::Host(command) => command.run(cli).await,
            Self::Flavor(command) => command.run(cli).await,
            Self::Device(command) => command.run(cli).await,
            Self::Pci(command) => command.run(cli).await,
            Self::Explain(command) => command.run(cli).await,
            Self::Topology(command) => command.run(cli).await,
            Self::Config(command) => command.run(cli).await,
            Self::Server(command) => command.run(cli).await,
            Self::Attachment(command) => command.run(cli).await,
            Self::Events(command) => command.run(cli).await,
            Self::Attach(command) => command.run(cli).await,
            Self::Detach(command) => command.run(cli).await,
            Self::Accelerator(command) => command.run(cli).await,
            Self::Quota(command) => command.run(cli).await,
            Self::Drift(command) => command.run(cli).await,
            Self::Status => status::run(cli).await,
            Self::Whoami => whoami::run(cli).await,
            Self::Top(command) => command.run(cli).await,
            Self::LogLevel(command) => command.run(cli).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn valid_command_lines_are_accepted_and_invalid_ones_refused() {
        for line in [
            "hotslot host list",
            "hotslot --os-cloud lab host list",
            "hotslot -o json device list --all",
            "hotslot device list --host node1 -l",
            "hotslot device show pci_0000_3b_00_1 --host node1",
            "hotslot server show vm1 --url unix:/run/hotslot/api.sock",
            "hotslot server set vm1 --project 7c1f",
            "hotslot policy list -o json",
            "hotslot server set vm1 --no-project",
            "hotslot attach vm1 a1 b1:2 0000:05:00.0 --live-only",
            "hotslot detach vm1 vf 05:00.0 -q",
            "hotslot detach vm1 --all",
            "hotslot host show node1 -o wide --no-headers",
            "hotslot flavor show gzm -o yaml",
            "hotslot attachment list -o name",
            "hotslot attach vm1 --flavor gzm --dry-run -o json",
            "hotslot attach vm1 a1 b1:2 --dry-run --whole-group --numa-policy preferred",
            "hotslot attach vm1 vf --mac 52:54:00:12:34:56 --vlan 100 --physical-network net1 --trusted",
            "hotslot serve --simulate",
            "hotslot ui --url unix:/run/hotslot/api.sock",
            "hotslot attachment list vm1 -o json",
            "hotslot attachment list -l",
            "hotslot detach 3f2a 91c0 --no-wait",
            "hotslot accelerator list -l",
            "hotslot accelerator show gpu0",
            "hotslot accelerator create gpu0 --uuid 8e45a2ea-5364-4b0d-a252-bf8becaa606e",
            "hotslot accelerator create gpu0 --spec {\"device_type\":\"GPU\"}",
            "hotslot accelerator spec gpu0 {\"device_type\":\"GPU\",\"num\":2}",
            "hotslot accelerator attach gpu0 vm1",
            "hotslot accelerator attach gpu0 --host node1 --driver vfio-pci",
            "hotslot accelerator detach gpu0 --timeout 30s",
            "hotslot accelerator delete gpu0",
            "hotslot drift",
            "hotslot quota show 7c1f",
            "hotslot quota set 7c1f pci_attachments=8 pci_attachments:gpu=-1",
            "hotslot quota reset 7c1f",
            "hotslot drift --repair --host node1 -o json",
            "hotslot pci list --host node1 --vendor 8086 --product 10ca --type type-VF --status available -l",
            "hotslot pci list --server vm1 --extra rack=r1 --extra switch=tor-3 -o json",
            "hotslot pci show 20000000-0000-4000-8000-000000000001",
            "hotslot pci show 3b:00.1 --host node1",
            "hotslot pci stats --host node1",
            "hotslot pci cleaned 7",
            "hotslot pci scrub 7",
            "hotslot pci cleaned 3b:00.1 --host node1",
            "hotslot explain 3b:00.1 --host node1",
            "hotslot explain vf --server vm1 --whole-group",
            "hotslot explain vf --host node1 -o json",
            "hotslot events",
            "hotslot events -f --since 0 --kind attachment.state --server vm1 -o json",
            "hotslot events --last 20 --host node1 --device 3b:00.1",
            "hotslot topology node1",
            "hotslot topology vm1 --server",
            "hotslot config check /etc/hotslot/hotslot.toml -o json",
            "hotslot config show /etc/hotslot/hotslot.toml",
            "hotslot config reload -o json",
            "hotslot log-level",
            "hotslot log-level info,hotslot_driver=debug",
            "hotslot log-level --reset",
            "hotslot status -o json",
            "hotslot version",
            "hotslot db version --config /etc/hotslot/hotslot.toml",
            "hotslot config device-spec list",
            "hotslot config whitelist list",
            "hotslot config alias add {\"name\":\"a1\"}",
            "hotslot config extra-info remove 3 --force",
            "hotslot db backup /var/backups/hotslot.db --config /etc/hotslot/hotslot.toml",
            "hotslot db restore /var/backups/hotslot.db",
            "hotslot doctor --uri qemu+ssh://node2/system",
        ] {
            Arguments::try_parse_from(line.split(' ')).unwrap();
        }
        for line in [
            "hotslot server set vm1",
            "hotslot server set vm1 --project 7c1f --no-project",
            "hotslot attach vm1",
            "hotslot detach",
            "hotslot device show eth0",
            "hotslot attach vm1 a1:0",
            "hotslot attach vm1 a1 --flavor gzm",
            "hotslot attach vm1 a1 --vlan 4096",
            "hotslot accelerator create gpu0 --spec 7",
            "hotslot accelerator attach gpu0",
            "hotslot accelerator attach gpu0 vm1 --host node1",
            "hotslot accelerator attach gpu0 vm1 --driver vfio-pci",
            "hotslot accelerator attach gpu0 --host node1 --driver igb",
            "hotslot pci cleaned eth0",
            "hotslot explain",
            "hotslot explain vf:0",
            "hotslot events --since x",
            "hotslot events --since 3 --last 4",
            "hotslot events --kind attachments",
            "hotslot pci list --status free",
            "hotslot pci list --extra rack",
            "hotslot pci list --vendor intel",
            "hotslot quota set 7c1f",
            "hotslot quota set 7c1f instances=1",
            "hotslot topology",
            "hotslot topology a --host --server",
            "hotslot log-level loud",
            "hotslot log-level debug --reset",
            "hotslot db backup",
            "hotslot config alias add a1",
            "hotslot config whitelist remove",
        ] {
            assert_eq!(Arguments::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
