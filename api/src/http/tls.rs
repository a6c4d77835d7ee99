//! TLS of the API: which certificate the service shows, and which client certificates it accepts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware;
use hotslot_service::config;
use hotslot_service::stamp::Stamp;
use hotslot_service::tls;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::body::SCHEME;
use super::certificate::{ClientCertificate, out_of_date};

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

impl Tls {
    /// Reads the files. Returns also what is wrong with files that are in use nevertheless: everybody can read the key,
    /// or clients refuse the certificate because of its date.
    ///
    /// # Errors
    /// Says which file cannot be used, and why.
    pub fn load(config: &config::Tls) -> Result<(Self, Vec<String>), String> {
        let files = stamps(config);
        let (server, warnings) = server(config)?;
        let loaded = Loaded { server, files, looked: Instant::now() };
        Ok((Self { config: config.clone(), loaded: Mutex::new(loaded) }, warnings))
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
                    Ok((server, warnings)) => {
                        tracing::info!("the files of [api.tls] have changed and are in use");
                        for warning in warnings {
                            tracing::warn!("[api.tls] {warning}");
                        }
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
    let key = config.key.path().ok();
    let files = [Some(&config.certificate), key.as_ref(), config.client_ca.as_ref()];
    files.into_iter().flatten().map(|file| Stamp::of(file).ok()).collect()
}

/// Reads the files, and returns the settings of a TLS server, and what is wrong with the files nevertheless.
fn server(config: &config::Tls) -> Result<(Arc<ServerConfig>, Vec<String>), String> {
    let (certificate, key_file) = (config.certificate.display(), config.key.path()?);
    let (chain, key) = tls::identity(&config.certificate, &key_file)?;
    let key_file = key_file.display();
    let mut warnings = Vec::new();
    if config.key.is_open_to_all() {
        warnings
            .push(format!("key: every user of this machine can read {key_file}; run `chmod o= {key_file}`"));
    }
    if let Some(reason) = chain.first().and_then(|first| out_of_date(first)) {
        warnings.push(format!("certificate: clients refuse {certificate}, because it {reason}; renew it"));
    }
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
    let unfit =
        |error| format!("{certificate} and {key_file} do not fit together or cannot be used: {error}");
    let mut server = builder.with_single_cert(chain, key).map_err(unfit)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection checks the client certificate anew. A resumed session would not, and needs memory besides.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((Arc::new(server), warnings))
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
