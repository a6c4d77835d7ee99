//! TLS of the API: which certificate the service shows, and which client certificates it accepts.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware;
use hotslot_service::config;
use hotslot_service::tls;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::body::SCHEME;
use super::certificate::ClientCertificate;

/// How often the files are checked for changes, when clients connect.
const LOOK: Duration = Duration::from_secs(1);

/// The certificate, key and client authorities of `[api.tls]`. They are read again when the files change.
#[derive(Debug)]
pub struct Tls {
    config: config::Tls,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    /// The state of the files when they were last read, with or without success.
    files: Vec<Option<Stamp>>,
    looked: Instant,
}

/// What differs after a file was written or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Says which file cannot be used, and why.
    pub fn load(config: &config::Tls) -> Result<Self, String> {
        let files = stamps(config);
        let loaded = Loaded { server: server(config)?, files, looked: Instant::now() };
        Ok(Self { config: config.clone(), loaded: Mutex::new(loaded) })
    }

    /// Returns what a new connection uses. When the files have changed since the last look, it reads them again; files
    /// that cannot be used are logged once, and the previous certificate stays in use.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK {
            loaded.looked = Instant::now();
            let files = stamps(&self.config);
            if files != loaded.files {
                loaded.files = files;
                match server(&self.config) {
                    Ok(server) => {
                        tracing::info!("the files of [api.tls] have changed and are in use");
                        loaded.server = server;
                    }
                    Err(reason) => tracing::error!(
                        "the files of [api.tls] have changed and cannot be used: {reason}; the previous certificate \
                         stays in use until they are corrected or the service is restarted"
                    ),
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.server))
    }
}

fn stamps(config: &config::Tls) -> Vec<Option<Stamp>> {
    let files = [Some(&config.certificate), Some(&config.key), config.client_ca.as_ref()];
    let stamp = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        let modified = (found.mtime(), found.mtime_nsec());
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Stamp { inode: found.ino(), size: found.size(), modified, changed })
    };
    files.into_iter().flatten().map(stamp).collect()
}

/// Reads the files, and returns the settings of a TLS server.
fn server(config: &config::Tls) -> Result<Arc<ServerConfig>, String> {
    if fs::metadata(&config.key).is_ok_and(|found| found.permissions().mode() & 0o007 != 0) {
        let key = config.key.display();
        tracing::warn!("[api.tls] key: every user of this machine can use {key}; run `chmod o= {key}`");
    }
    let (chain, key) = tls::identity(&config.certificate, &config.key)?;
    let builder = ServerConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(|error| error.to_string())?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let authorities = Arc::new(tls::authorities(file)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities, tls::provider());
            let verifier = match config.demands_client_certificates() {
                true => verifier,
                false => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(
                verifier.build().map_err(|error| format!("{}: {error}", file.display()))?,
            )
        }
    };
    let unfit = |error| {
        let (certificate, key) = (config.certificate.display(), config.key.display());
        format!("{certificate} and {key} do not fit together or cannot be used: {error}")
    };
    let mut server = builder.with_single_cert(chain, key).map_err(unfit)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection checks the client certificate anew. A resumed session would not, and needs memory besides.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}

/// Returns the verified client certificate of a connection after its handshake.
pub(super) fn client(connection: &ServerConnection) -> Option<Arc<ClientCertificate>> {
    let certificate = connection.peer_certificates()?.first()?;
    Some(Arc::new(ClientCertificate::read(certificate).unwrap_or_default()))
}

/// Waits for the first byte of a client, and returns whether it begins a request of HTTP instead of TLS.
pub(super) async fn is_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    // A record of TLS begins with a number below 32, and a method of HTTP with a capital letter.
    stream.peek(&mut first).await.is_ok_and(|length| length == 1 && first[0].is_ascii_uppercase())
}

/// Makes links in the responses begin with `https://`.
pub(super) fn with_https_links(router: Router) -> Router {
    router.layer(middleware::map_request(async |mut request: Request| {
        request.headers_mut().insert(SCHEME, HeaderValue::from_static("https"));
        request
    }))
}
