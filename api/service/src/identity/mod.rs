//! Finds out who calls: by the unix socket, by hotslot's own tokens, by tokens of Keystone, or by the secret of a proxy.

mod local;
pub mod tokens;
mod unidentified;
pub(crate) mod watch;

use hotslot_model::identity::{Caller, Peer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::local::Locals;
use self::tokens::Tokens;
pub use self::unidentified::Unidentified;
use crate::config::{Config, ConfigError, Secret, SecretFile};
use crate::keystone::{Failure, Issued, Keystone};

/// The minimum length of a proxy's secret, in bytes.
const SECRET: usize = 16;

/// The tokens of a request, and the route that it goes to.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The token of the user.
    pub token: &'a str,
    /// The token of the service that sends the request for the user.
    pub service_token: Option<&'a str>,
    /// The type of the service in Keystone's catalog to which the request goes.
    pub service: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path, percent-encoded.
    pub path: &'a str,
}

impl From<Failure> for Unidentified {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotValid | Failure::ServiceNotValid | Failure::NotAccepted => {
                Self::Unknown(failure.to_string())
            }
            Failure::Unavailable => Self::Away(failure.to_string()),
        }
    }
}

/// The ways in which callers are identified.
pub struct Callers {
    locals: Locals,
    tokens: Option<Tokens>,
    keystone: Option<Keystone>,
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
        let proxy = config.api.proxy_secret_file.as_ref().map(secret).transpose()?;
        Ok(Self {
            locals: Locals::new(config.identity.local.clone()),
            tokens: config.identity.tokens.clone().map(Tokens::new),
            keystone: config.identity.keystone.as_ref().map(Keystone::new).transpose()?,
            proxy,
            insecure: config.api.insecure_tcp,
        })
    }

    /// Whether every local user who may connect to the unix socket is an administrator.
    pub fn admit_all_locals(&self) -> bool {
        self.locals.admit_all()
    }

    /// Whether requests may have tokens.
    pub fn take_tokens(&self) -> bool {
        self.tokens.is_some() || self.keystone.is_some()
    }

    /// The Keystone that validates tokens.
    pub fn keystone(&self) -> Option<&Keystone> {
        self.keystone.as_ref()
    }

    /// Checks that tokens can be validated; `None` when there are no tokens.
    ///
    /// # Errors
    /// Returns what cannot be used, and the reason.
    pub async fn check(&self) -> Option<Result<(), (&'static str, String)>> {
        if let Some(Err(reason)) = self.tokens.as_ref().map(Tokens::check) {
            return Some(Err(("the file of the tokens cannot be used", reason)));
        }
        match &self.keystone {
            Some(keystone) => {
                let about = |reason| ("Keystone cannot be asked about tokens", reason);
                Some(keystone.check().await.map_err(about))
            }
            None => self.tokens.as_ref().map(|_| Ok(())),
        }
    }

    /// Returns why the present file of the tokens is not used, when those that were read before stay valid.
    pub fn outdated_tokens(&self) -> Option<String> {
        self.tokens.as_ref().and_then(Tokens::outdated)
    }

    /// Whether Keystone has to be asked about a token: it is not one of hotslot's own, and no answer about it is known.
    pub fn asks_keystone(&self, token: &str) -> bool {
        let is_own = self.tokens.is_some() && tokens::is_own(token);
        !is_own && self.keystone.as_ref().is_some_and(|keystone| !keystone.knows(token))
    }

    /// Returns the caller with a token of hotslot's own or of Keystone's.
    ///
    /// # Errors
    /// [`Unidentified::Unknown`] when the token is not valid; [`Unidentified::Refused`] when it may not be used for this
    /// request; [`Unidentified::Away`] when the file of the tokens cannot be read, or Keystone does not answer.
    pub async fn by_token(&self, shown: &Shown<'_>) -> Result<Caller, Unidentified> {
        match (&self.tokens, &self.keystone) {
            (Some(tokens), keystone) if keystone.is_none() || tokens::is_own(shown.token) => {
                tokens.caller(shown.token)
            }
            (_, Some(keystone)) => Self::by_keystone(keystone, shown).await,
            (_, None) => Err(Unidentified::Unknown("this service has no tokens".to_owned())),
        }
    }

    /// Obtains a token of Keystone's for the body of a login, such as one with a password.
    ///
    /// # Errors
    /// [`Unidentified::Unknown`] when Keystone does not accept it, or there is no Keystone; [`Unidentified::Away`] when
    /// Keystone does not answer.
    pub async fn sign_in(&self, login: &Value) -> Result<Issued, Unidentified> {
        match &self.keystone {
            Some(keystone) => Ok(keystone.sign_in(login).await?),
            None => Err(Unidentified::Unknown("this service takes no passwords; use a token".to_owned())),
        }
    }

    async fn by_keystone(keystone: &Keystone, shown: &Shown<'_>) -> Result<Caller, Unidentified> {
        let tokens = keystone.authenticate(shown.token, shown.service_token).await?;
        // As in keystonemiddleware: a service does more for a user than the user may request.
        let admitted = tokens.by_service || tokens.user.admits(shown.service, shown.method, shown.path);
        if !admitted {
            return Err(Unidentified::Refused(format!(
                "the access rules of the application credential do not allow {} {} of the service type {}; create one \
                 with such a rule",
                shown.method, shown.path, shown.service
            )));
        }
        Ok(tokens.caller())
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
                let how = match (&self.keystone, &self.tokens) {
                    (Some(_), _) => {
                        "send a token of Keystone's (X-Auth-Token; `openstack token issue` prints one)"
                    }
                    (None, Some(_)) => {
                        "send a token (Authorization: Bearer …; `hotslot token create` makes one)"
                    }
                    (None, None) => "use the unix socket",
                };
                Err(Unidentified::Unknown(format!("the request does not show who calls; {how}")))
            }
        }
    }

    /// Whether the headers of a request that identify its caller come from the proxy: where a secret is configured, the
    /// request has it; without one they do at a unix socket, because its mode and group say who may connect, and over a
    /// connection whose client has shown a certificate of `[api.tls] client_ca` (`certified`).
    pub fn trust_headers(&self, peer: Option<Peer>, certified: bool, secret: Option<&[u8]>) -> bool {
        match (&self.proxy, secret) {
            (Some(expected), Some(secret)) => {
                bool::from(expected.as_slice().ct_eq(Sha256::digest(secret).as_slice()))
            }
            (Some(_), None) => false,
            (None, _) => matches!(peer, Some(Peer::Unix { .. })) || certified || self.insecure,
        }
    }
}

/// Reads the proxy's secret, and returns its SHA-256.
fn secret(file: &SecretFile) -> Result<[u8; 32], ConfigError> {
    let bad = |reason: String| ConfigError::Value { key: "[api] proxy_secret_file".into(), reason };
    let Secret(text) = file.read().map_err(bad)?;
    if text.len() < SECRET {
        let advice = "`openssl rand -hex 32` generates one";
        return Err(bad(format!("{file} has fewer than {SECRET} bytes; {advice}")));
    }
    Ok(Sha256::digest(text.as_bytes()).into())
}
