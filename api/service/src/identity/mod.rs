//! Finds out who calls: by the unix socket, by hotslot's own tokens, or by the secret of a proxy.

mod local;
pub mod tokens;
mod unidentified;

use std::path::Path;

use hotslot_model::identity::{Caller, Peer};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::local::Locals;
use self::tokens::Tokens;
pub use self::unidentified::Unidentified;
use crate::config::{Config, ConfigError};

/// The minimum length of a proxy's secret, in bytes.
const SECRET: usize = 16;

/// The ways in which callers are identified.
pub struct Callers {
    locals: Locals,
    tokens: Option<Tokens>,
    /// The SHA-256 of the proxy's secret.
    proxy: Option<[u8; 32]>,
    insecure: bool,
}

impl Callers {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// The proxy's secret cannot be read or is too short.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let proxy = config.api.proxy_secret_file.as_deref().map(secret).transpose()?;
        Ok(Self {
            locals: Locals::new(config.identity.local.clone()),
            tokens: config.identity.tokens.clone().map(Tokens::new),
            proxy,
            insecure: config.api.insecure_tcp,
        })
    }

    /// Whether every local user who may connect to the unix socket is an administrator.
    pub fn admit_all_locals(&self) -> bool {
        self.locals.admit_all()
    }

    /// Whether requests may have tokens of hotslot's own.
    pub fn take_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Returns the caller with a token of hotslot's own.
    ///
    /// # Errors
    /// [`Unidentified::Unknown`] when there is no such token or it has expired; [`Unidentified::Away`] when the file of
    /// the tokens cannot be read.
    pub fn by_token(&self, token: &str) -> Result<Caller, Unidentified> {
        match &self.tokens {
            Some(tokens) => tokens.caller(token),
            None => Err(Unidentified::Unknown("this service has no tokens".to_owned())),
        }
    }

    /// Returns the caller at the other end of a connection; `None` for a connection of which nothing is known.
    ///
    /// # Errors
    /// [`Unidentified::Unknown`] for a TCP client, unless `[api] insecure_tcp` makes it the administrator;
    /// [`Unidentified::Refused`] for a local user to whom no `[[identity.local]]` applies.
    pub async fn by_peer(&self, peer: Option<Peer>) -> Result<Caller, Unidentified> {
        match peer {
            Some(Peer::Unix { uid, gid, pid }) => self.locals.caller(uid, gid, pid).await,
            Some(Peer::Tcp(address)) if self.insecure => Ok(Caller::insecure(Some(address))),
            Some(Peer::Tcp(_)) | None => {
                let how = if self.take_tokens() {
                    "send a token (Authorization: Bearer …; `hotslot token create` makes one)"
                } else {
                    "use the unix socket"
                };
                Err(Unidentified::Unknown(format!("the request does not show who calls; {how}")))
            }
        }
    }

    /// Whether the headers of a request that identify its caller come from the proxy: at a unix socket they do, because
    /// its mode and group say who may connect; elsewhere the request has the proxy's secret.
    pub fn trust_headers(&self, peer: Option<Peer>, secret: Option<&[u8]>) -> bool {
        match (&self.proxy, secret) {
            (Some(expected), Some(secret)) => {
                bool::from(expected.as_slice().ct_eq(Sha256::digest(secret).as_slice()))
            }
            (Some(_), None) => false,
            (None, _) => matches!(peer, Some(Peer::Unix { .. })) || self.insecure,
        }
    }
}

/// Reads the proxy's secret, and returns its SHA-256.
fn secret(path: &Path) -> Result<[u8; 32], ConfigError> {
    let bad = |reason: String| ConfigError::Value { key: "[api] proxy_secret_file".into(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| bad(format!("{}: {error}", path.display())))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() < SECRET {
        let advice = "`openssl rand -hex 32` generates one";
        return Err(bad(format!("{} has fewer than {SECRET} bytes; {advice}", path.display())));
    }
    Ok(Sha256::digest(text.as_bytes()).into())
}
