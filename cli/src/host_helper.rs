//! `hotslot host-helper`: the process of root that makes the few changes of sysfs that the service asks for, or with
//! `--hooks` runs the administrator's hooks. systemd starts it with its socket (`hotslot-helper.socket`,
//! `hotslot-hooks.socket`) as standard input, and it ends when nobody has asked for a while.
//!
//! It serves one user and root, whom the kernel names (SO_PEERCRED). A request is one line, of a fixed length at most and
//! within a fixed time; it names a verb, a PCI address and values, and no path or command ([`Request`]).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hotslot_driver::helper::{MAX_LINE, Request, SEND_LIMIT, Service, answer};
use hotslot_driver::hypervisor::{Error, ErrorKind};
use hotslot_driver::pci::PciAddress;
use nix::unistd::User;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::exit::Exit;

/// How long the helper waits for a connection before it ends. systemd starts it again with the next one.
const IDLE: Duration = Duration::from_secs(60);

/// The largest number of connections at once.
const CONNECTIONS: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct HostHelper {
    /// The user that it serves, besides root.
    #[arg(long, default_value = "hotslot")]
    user: String,
    /// Runs the hooks of /etc/hotslot/hooks.toml, and changes no file of sysfs.
    #[arg(long)]
    hooks: bool,
    /// The directory that contains the host's `sys`.
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
}

/// The functions that are being changed. While a driver has not ended a change, the next one is refused: it would wait in
/// the kernel, and take effect when nobody expects it any more.
type Changing = Arc<Mutex<BTreeSet<PciAddress>>>;

impl HostHelper {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let user = User::from_name(&self.user).with_context(|| format!("look up user {}", self.user))?;
        let user = user.with_context(|| {
            format!("there is no user {}; name the user of the service with --user", self.user)
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let service = if self.hooks { Service::Hooks } else { Service::Sysfs };
        let served = runtime.block_on(serve(user.uid.as_raw(), self.root, service));
        // A change that a driver does not end keeps its thread.
        runtime.shutdown_background();
        served.map(|()| Exit::Done)
    }
}

/// Serves the socket that is the standard input.
async fn serve(user: u32, root: PathBuf, service: Service) -> anyhow::Result<()> {
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let unit = service.unit();
    let started = || format!("host-helper is started by systemd; run systemctl enable --now {unit}.socket");
    listener.local_addr().with_context(started)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener).with_context(started)?;
    let (changing, room) = (Changing::default(), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let place = Arc::clone(&room).acquire_owned().await?;
        let stream = match timeout(IDLE, listener.accept()).await {
            Ok(accepted) => accepted.context("accept a connection")?.0,
            Err(_) => {
                drop(place);
                if room.available_permits() == CONNECTIONS {
                    return Ok(());
                }
                continue;
            }
        };
        let (changing, root) = (Arc::clone(&changing), root.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = converse(stream, user, &root, service, &changing).await {
                eprintln!("hotslot host-helper: {error:#}");
            }
        });
    }
}

/// Answers one request.
async fn converse(
    mut stream: UnixStream,
    user: u32,
    root: &Path,
    service: Service,
    changing: &Changing,
) -> anyhow::Result<()> {
    let peer = stream.peer_cred().context("read who connected")?;
    let outcome = if peer.uid() == user || peer.uid() == 0 {
        let mut line = String::new();
        let mut lines = BufReader::new((&mut stream).take(MAX_LINE as u64));
        let read = timeout(SEND_LIMIT, lines.read_line(&mut line)).await;
        if read.context("a request took too long")?.context("read a request")? == 0 {
            // Somebody looked whether the helper is there.
            return Ok(());
        }
        match Request::parse(&line) {
            Ok(request) if request.service() != service => {
                let reason = format!("{}.socket serves that", request.service().unit());
                Err(Error::new(ErrorKind::Refused, request.operation(), reason))
            }
            Ok(request) => change(request, peer.uid(), root, changing).await,
            Err(reason) => Err(Error::new(ErrorKind::Refused, "read a request", reason)),
        }
    } else {
        let reason = format!("user {} may not use the helper", peer.uid());
        Err(Error::new(ErrorKind::Unsupported, "use the helper", reason))
    };
    let line = format!("{}\n", answer(outcome));
    timeout(SEND_LIMIT, stream.write_all(line.as_bytes())).await.context("the answer was not taken")??;
    Ok(())
}

/// Makes a change, unless one of the same function has not ended.
async fn change(request: Request, user: u32, root: &Path, changing: &Changing) -> Result<(), Error> {
    let (address, operation, root) = (request.address(), request.operation(), root.to_owned());
    let all = || changing.lock().unwrap_or_else(PoisonError::into_inner);
    if !all().insert(address) {
        let reason = format!("an earlier change of {address} has not ended; try again when it has");
        // Whoever asks for a hook waits for the earlier one.
        let kind = match request.service() {
            Service::Sysfs => ErrorKind::Refused,
            Service::Hooks => ErrorKind::InUse,
        };
        return Err(Error::new(kind, operation, reason));
    }
    let made = tokio::task::spawn_blocking(move || request.make(&root)).await;
    all().remove(&address);
    let outcome = made.unwrap_or_else(|error| Err(Error::new(ErrorKind::Refused, operation.as_str(), error)));
    match &outcome {
        Ok(()) => eprintln!("user {user}: {operation}: done"),
        Err(error) => eprintln!("user {user}: {error}"),
    }
    outcome
}
