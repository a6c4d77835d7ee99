//! `hotslot serve`: runs the service until it receives SIGTERM or SIGINT. SIGHUP has it read its configuration again.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hotslot_api::http::{self, Listener};
use hotslot_service::config::{Api, Config, Listen, SOCKET_GROUP};
use hotslot_service::service::Service;
use hotslot_service::trace_export::Exporter;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Group, getegid};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{heap, logging, notify};

/// The time that running requests have to finish after a stop signal. Requests that are not finished by then are on
/// record, and the next start continues them.
const GRACE: Duration = Duration::from_secs(10);

/// How long the service manager may wait for the VFs of the profile.
const PROFILE: Duration = Duration::from_secs(30);

/// The number of file descriptors that are reserved for the database, hypervisors and webhooks.
const OWN_DESCRIPTORS: u64 = 256;

/// Runs the service with the configuration `file` until SIGTERM or SIGINT.
pub(crate) fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let mut config = match file {
        Some(file) if !file.exists() => anyhow::bail!(
            "there is no configuration {}; make it: an empty file means the defaults, and hotslot.example.toml in \
             share/hotslot of the installation has every key",
            file.display()
        ),
        Some(file) => Config::load(file).with_context(|| {
            let file = file.display();
            format!(
                "the configuration has mistakes; `hotslot config check {file}` shows all of them. The first"
            )
        })?,
        None => Config::default(),
    };
    logging::start(&config.log);
    for warning in file.iter().flat_map(|file| config.exposed(file)) {
        tracing::warn!("{warning}");
    }
    config.warn_without_effect();
    fit(&mut config.api, descriptors()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve(config, file.is_some()));
    // A hung libvirt call blocks its thread; it must not block the exit of the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Config, configured: bool) -> anyhow::Result<()> {
    let api = config.api.clone();
    // A signal to read the configuration again must not end a service that is starting.
    let mut hangup = signal(SignalKind::hangup())?;
    // The socket comes first, so that a second service fails here and does not touch the records of the first.
    let (listener, socket) = bind(&api).await.with_context(|| format!("cannot listen on {}", api.url()))?;
    let exporter = Exporter::start(&config.trace)?;
    let service = Service::start(config).await?;
    warn_of_no_devices(&service, configured);
    for host in service.hosts.iter() {
        tracing::info!(host = %host.name, uri = %host.uri, "host {} at {}", host.name, host.uri);
    }
    warn_of_open_doors(&service, &api);
    let mut bound = api.clone();
    if let Listener::Tcp(listener) | Listener::Tls(listener, _) = &listener {
        bound.listen = Listen::Tcp(listener.local_addr()?);
    }
    tracing::info!("listening on {}", bound.url());
    if let Listen::Unix(path) = &api.listen {
        warn_of_closed_directory(path);
    }
    let router = http::router(Arc::clone(&service));
    let (stopping, stop) = tokio::sync::watch::channel(false);
    let mut stopped = stop.clone();
    let asked = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let serving = api.clone();
    let mut server = tokio::spawn(async move { http::serve(listener, router, &serving, asked).await });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let url = bound.url();
    tokio::spawn(tell_ready(Arc::clone(&service), url.clone()));
    tokio::spawn(heap::give_back());
    tokio::select! {
        ended = &mut server => ended?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = reload_on(&mut hangup, &service, &url) => {}
    }
    tracing::info!("stopping");
    notify::stopping();
    service.lifecycle.stop();
    // Remove the socket before the listener closes: after that another service may create a socket with the same name.
    drop(socket);
    stopping.send_replace(true);
    let done = async {
        if !server.is_finished() {
            let _ = (&mut server).await;
        }
        // This includes requests whose clients have disconnected.
        service.lifecycle.requests_done().await;
    };
    if tokio::time::timeout(GRACE, done).await.is_err() {
        tracing::warn!(
            "some requests are not finished; they are on record, and the next start continues them"
        );
    }
    service.close().await;
    if let Some(exporter) = exporter {
        exporter.stop().await;
    }
    Ok(())
}

/// Tells the service manager that the service is ready: requests are answered, and the VFs of the profile were made or
/// failed, so that what starts guests may follow. A host that is away delays it for a limited time.
async fn tell_ready(service: Arc<Service>, address: String) {
    if tokio::time::timeout(PROFILE, service.profiled()).await.is_err() {
        tracing::warn!(
            "not all that [[profile]] says was made yet; guests that need its VFs may fail to start"
        );
    }
    notify::ready(&service, &address);
}

/// Reads the configuration again on each signal. It does not end.
async fn reload_on(hangup: &mut Signal, service: &Arc<Service>, address: &str) {
    while hangup.recv().await.is_some() {
        // A host that does not answer must not delay the next signal.
        tokio::spawn(reload(Arc::clone(service), address.to_owned()));
    }
    std::future::pending().await
}

/// Reads the configuration again. What is wrong with it is logged, and the previous one stays in force.
async fn reload(service: Arc<Service>, address: String) {
    notify::reloading();
    if let Err(error) = service.settings.reload().await {
        tracing::error!("{error}");
    }
    notify::reloaded(&service, &address);
}

/// Warns when no device is assignable.
fn warn_of_no_devices(service: &Service, configured: bool) {
    if !configured {
        tracing::warn!(
            "no configuration file: the host is qemu:///system and no device is assignable; write a configuration \
             like hotslot.example.toml, and name it with --config"
        );
    } else if service.catalog.inventory().is_empty() {
        tracing::warn!("[pci] device_spec is empty: no device is assignable");
    }
}

/// Warns of clients who are the administrator because they can connect.
fn warn_of_open_doors(service: &Service, api: &Api) {
    if service.config.get().is_open() {
        let who = if api.demands_client_certificates() {
            "every owner of a client certificate"
        } else {
            "every user and program of this machine"
        };
        tracing::warn!(
            "[api] insecure_tcp: listen is a TCP port, {who} can connect to it, and each is the administrator; listen on \
             unix:/run/hotslot/api.sock to admit the members of one group only"
        );
    }
    if api.socket_mode.is_open_to_all()
        && matches!(api.listen, Listen::Unix(_))
        && service.callers.admit_all_locals()
    {
        tracing::warn!(
            "[api] socket_mode {:04o} lets every user of this machine connect, and without [[identity.local]] each is \
             the administrator",
            api.socket_mode.0
        );
    }
}

/// Raises the soft limit of open file descriptors to the hard limit, and returns the limit.
fn descriptors() -> anyhow::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Ok(hard),
        Err(error) => {
            tracing::warn!("the limit of open file descriptors stays at {soft}: {error}");
            Ok(soft)
        }
    }
}

/// Lowers the limit of connections to the number that the file descriptors allow, and the limit of event followers to
/// at most half of the connections, so that the other half stays free for short requests.
fn fit(api: &mut Api, descriptors: u64) {
    let enough = descriptors.saturating_sub(OWN_DESCRIPTORS).max(descriptors / 2);
    let connections = u64::from(api.connections.get()).min(enough);
    let lower = |limit: u64| u32::try_from(limit).ok().and_then(std::num::NonZeroU32::new);
    if let Some(connections) = lower(connections).filter(|connections| *connections < api.connections) {
        tracing::warn!(
            "the limit of {descriptors} open file descriptors allows {connections} connections instead of the {} of \
             [api] connections; raise LimitNOFILE (or `ulimit -Hn`)",
            api.connections
        );
        api.connections = connections;
    }
    if let Some(half) = lower(u64::from(api.connections.get()) / 2) {
        api.followers = api.followers.min(half);
    }
}

/// The unix socket that this service created. Dropping the value removes the file, also when a later step of the start
/// fails.
struct Socket {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Socket {
    fn of(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: made.dev(), inode: made.ino() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_it = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(is_it) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn bind(api: &Api) -> anyhow::Result<(Listener, Option<Socket>)> {
    match &api.listen {
        Listen::Tcp(address) => {
            let tls = api.tls.as_ref().map(http::Tls::load).transpose();
            let tls = tls.map_err(|reason| anyhow!("[api.tls]: {reason}"))?;
            let listener = TcpListener::bind(address).await?;
            let listener = match tls {
                Some((tls, warnings)) => {
                    for warning in warnings {
                        tracing::warn!("[api.tls] {warning}");
                    }
                    Listener::Tls(listener, tls)
                }
                None => Listener::Tcp(listener),
            };
            Ok((listener, None))
        }
        Listen::Unix(path) => {
            create_directories(path.parent().unwrap_or(path)).with_context(|| {
                format!(
                    "the directory of {} does not exist and cannot be created; run as root, let systemd create it \
                     (RuntimeDirectory=hotslot), or set [api] listen to another path",
                    path.display()
                )
            })?;
            remove_stale_socket(path).await?;
            let group = group(api)?;
            // The umask limits the socket to its owner until `open_to_group` sets the group and mode.
            let listener = UnixListener::bind(path)?;
            let socket = Socket::of(path)?;
            open_to_group(path, api, group)?;
            Ok((Listener::Unix(listener), Some(socket)))
        }
    }
}

/// Removes a socket that a killed service has left.
///
/// # Errors
/// Another service answers on the socket, it cannot be connected to, or the file is not a socket.
async fn remove_stale_socket(path: &Path) -> anyhow::Result<()> {
    let Ok(left) = fs::symlink_metadata(path) else { return Ok(()) };
    if !left.file_type().is_socket() {
        bail!("a file that is no socket is there; remove it, or set [api] listen to another path");
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!(
            "another service answers there; stop it (`fuser -v {}` shows its process), or set [api] listen to another \
             path",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(error) => bail!(
            "the existing socket cannot be connected to: {error}; remove it if no service uses it, or set [api] listen \
             to another path"
        ),
    }
}

/// Creates a directory and its parents with mode 0755, so that other users can reach the socket in it.
fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        create_directories(above)?;
    }
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)),
        // Another process has created it in the meantime.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the group that the socket is to have, or `None` to leave it unchanged.
fn group(api: &Api) -> anyhow::Result<Option<Gid>> {
    let Some(name) = &api.socket_group else {
        let group = Group::from_name(SOCKET_GROUP)?;
        if group.is_none() {
            tracing::warn!(
                "there is no group `{SOCKET_GROUP}`, so only this user and root may connect; run `groupadd --system \
                 {SOCKET_GROUP}`, add users to it, and restart the service; or set [api] socket_group"
            );
        }
        return Ok(group.map(|group| group.gid));
    };
    if let Ok(number) = name.parse() {
        return Ok(Some(Gid::from_raw(number)));
    }
    match Group::from_name(name)? {
        Some(group) => Ok(Some(group.gid)),
        None => bail!(
            "[api] socket_group: there is no group `{name}`; run `groupadd --system {name}`, or name another group"
        ),
    }
}

/// Warns when a directory above the socket is closed to users who may connect to it, such as the directory of the
/// database.
fn warn_of_closed_directory(path: &Path) {
    let Ok(socket) = fs::metadata(path) else { return };
    let open_to_all = socket.mode() & 0o006 != 0;
    if !open_to_all && (socket.mode() & 0o060 == 0 || socket.gid() == getegid().as_raw()) {
        return;
    }
    let passes = |found: &fs::Metadata| {
        found.mode() & 0o001 != 0
            || (!open_to_all && found.mode() & 0o010 != 0 && found.gid() == socket.gid())
    };
    let closed = |directory: &&Path| fs::metadata(directory).is_ok_and(|found| !passes(&found));
    if let Some(directory) = path.ancestors().skip(1).find(closed) {
        tracing::warn!(
            "users who may connect to the socket cannot get through {}; set [api] listen to a path in a \
             directory that is open to them and does not contain the database, such as unix:/run/hotslot/api.sock",
            directory.display()
        );
    }
}

/// Sets the group of the socket, and then its mode. In this order the socket is never open to more users than
/// configured.
fn open_to_group(path: &Path, api: &Api, group: Option<Gid>) -> anyhow::Result<()> {
    if let Some(group) = group
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.as_raw()))
    {
        let why = format!("the group of the socket cannot be set to {group}: {error}");
        match &api.socket_group {
            Some(name) => bail!("{why}; run as root or as a member of {name}"),
            None => tracing::warn!("{why}; only this user and root may connect"),
        }
    }
    fs::set_permissions(path, Permissions::from_mode(api.socket_mode.0))?;
    Ok(())
}
