//! `hotslot serve`: the service, until it is told to stop.

use std::future::IntoFuture as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hotslot_api::config::{Config, Listen};
use hotslot_api::http;
use hotslot_api::service::Service;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

/// How long requests that are under way may take after the service was told to stop. What is not done by then
/// is on record and goes on at the next start.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let config = match file {
        Some(file) => Config::load(file)?,
        None => Config::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve(config, file.is_some()));
    // A libvirt call that hangs keeps its thread; it must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Config, configured: bool) -> anyhow::Result<()> {
    let listen = config.api.listen.clone();
    // The port first: a second service must not touch the records of the first.
    let socket = Socket::bind(&listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let service = Service::start(config).await?;
    if !configured {
        tracing::warn!(
            "no configuration file: serving qemu:///system with nothing assignable; \
             write one after hotslot.example.toml and give it by --config"
        );
    } else if service.inventory().is_empty() {
        tracing::warn!("[pci] device_spec is empty: nothing is assignable");
    }
    for host in &service.hosts {
        tracing::info!(host = %host.name, uri = %host.uri, "host {} at {}", host.name, host.uri);
    }
    tracing::info!("listening on {}", socket.name(&listen)?);
    let router = http::router(std::sync::Arc::clone(&service));
    let (stopping, stop) = tokio::sync::watch::channel(false);
    let mut stopped = stop.clone();
    let asked = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let server = async move {
        match socket {
            Socket::Tcp(listener) => {
                axum::serve(listener, router).with_graceful_shutdown(asked).into_future().await
            }
            Socket::Unix(listener) => {
                axum::serve(listener, router).with_graceful_shutdown(asked).into_future().await
            }
        }
    };
    let mut server = tokio::spawn(server);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = &mut server => ended??,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    service.stop();
    stopping.send_replace(true);
    let done = async {
        if !server.is_finished() {
            let _ = (&mut server).await;
        }
        // Those too whose clients have gone.
        service.requests_done().await;
    };
    if tokio::time::timeout(GRACE, done).await.is_err() {
        tracing::warn!(
            "requests are still under way; what they began is on record and goes on at the next start"
        );
    }
    service.store.close().await;
    if let Listen::Unix(path) = &listen {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Where it listens, with the port that the system chose for port 0.
    fn name(&self, listen: &Listen) -> std::io::Result<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Self::Unix(_) => Ok(listen.clone()),
        }
    }

    async fn bind(listen: &Listen) -> std::io::Result<Self> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Listen::Unix(path) => {
                // A socket that nobody answers on was left by a service that was killed; anything else is not ours.
                let left = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
                if left && UnixStream::connect(path).await.is_err_and(refused) {
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }
}
