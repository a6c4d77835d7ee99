//! Keystone's API: the token of hotslot's own user, the validation of tokens of callers, and the tokens of people who
//! sign in with a password.

use std::path::Path;
use std::time::Duration;

use hotslot_model::identity::login::{LoginScope, Method, Reference, login};
use hotslot_model::time::Millis;
use hotslot_store::now;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::token::Token;
use crate::config::{Credential, Secret};
use crate::{tls, trace};

/// The maximum size of a response, in bytes. A token with a thousand access rules has about 200 KiB.
const BODY: usize = 1024 * 1024;

/// How many requests are sent to Keystone at the same time; the others wait.
const AT_ONCE: usize = 32;

/// How many people sign in at the same time; the others wait. Keystone hashes each password, which takes it long, and the
/// validation of tokens goes on meanwhile.
const SIGN_INS: usize = 4;

/// How long a credential that Keystone did not accept is not sent again, unless its file has changed: Keystone may lock
/// a user after a few failures.
const REFUSED: Duration = Duration::from_secs(60);

/// The own token is renewed when it is valid for less than this, or for less than a tenth of its lifetime.
const RENEW: Duration = Duration::from_secs(60);

/// Why Keystone did not say whether a token is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unavailable(pub(super) String);

/// A client of Keystone.
pub(super) struct Client {
    http: reqwest::Client,
    /// The URL of the v3 API.
    base: Url,
    credential: Credential,
    own: Mutex<Own>,
    permits: Semaphore,
    sign_ins: Semaphore,
}

/// The token of hotslot's own user.
#[derive(Default)]
struct Own {
    token: Option<HeaderValue>,
    renew_at: Millis,
    /// The SHA-256 of the last secret that Keystone did not accept, and when that was.
    refused: Option<([u8; 32], Instant)>,
}

impl Client {
    /// Returns a client that trusts the authorities of the file `ca`, or those of the system.
    pub(super) fn new(
        base: Url,
        ca: Option<&Path>,
        credential: Credential,
        timeout: Duration,
    ) -> Result<Self, String> {
        let tls = tls::client(tls::authorities_for(&base, ca)?, None)?;
        // Send passwords and tokens to the configured URL only: use no proxy and follow no redirect.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .timeout(timeout)
            .user_agent(concat!("hotslot/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        let (permits, sign_ins) = (Semaphore::new(AT_ONCE), Semaphore::new(SIGN_INS));
        Ok(Self { http, base, credential, own: Mutex::default(), permits, sign_ins })
    }

    fn url(&self, query: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/auth/tokens", self.base.path()));
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        url
    }

    /// Validates a token, which may have expired within Keystone's `allow_expired_window` if `allow_expired` is set.
    /// Returns the token and the size of its description in bytes, or `None` when it is not valid.
    pub(super) async fn validate(
        &self,
        token: &HeaderValue,
        allow_expired: bool,
    ) -> Result<Option<(Token, usize)>, Unavailable> {
        let mut own = self.own_token(None).await?;
        let mut renewed = false;
        loop {
            let (status, body) = self.ask(&own, token, allow_expired).await?;
            match status {
                StatusCode::OK => {
                    let parsed = Token::parse(&body).map_err(|reason| {
                        Unavailable(format!("its response is not a description of a token: {reason}"))
                    })?;
                    return Ok(Some((parsed, body.len())));
                }
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !renewed => {
                    own = self.own_token(Some(&own)).await?;
                    renewed = true;
                }
                StatusCode::UNAUTHORIZED => {
                    let reason = "it does not accept the token that it has just given to hotslot's own user";
                    return Err(Unavailable(reason.into()));
                }
                StatusCode::FORBIDDEN => {
                    let reason = "hotslot's own user may not validate tokens; give it the role `service` in its project";
                    return Err(Unavailable(reason.into()));
                }
                other => return Err(Unavailable(format!("it responded with status {other}"))),
            }
        }
    }

    /// Obtains a token for the body of a login. Returns `None` when Keystone does not accept it.
    pub(super) async fn token_for(&self, login: &Value) -> Result<Option<HeaderValue>, Unavailable> {
        let _permit = self.sign_ins.acquire().await;
        let request = self.http.post(self.url("nocatalog")).headers(trace::headers()).json(login);
        let response = request.send().await;
        let response = response.map_err(|error| unreachable(&error))?;
        match response.status() {
            StatusCode::CREATED => {
                let token = response.headers().get("x-subject-token").cloned();
                let none = || Unavailable("its response to a password has no token".into());
                token.map(Some).ok_or_else(none)
            }
            // Without the right to the project it is 401 too; 400 is for a name that no user can have.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Ok(None),
            other => Err(Unavailable(format!("it responded with status {other} to a password"))),
        }
    }

    /// Sends the request that validates a token.
    async fn ask(
        &self,
        own: &HeaderValue,
        token: &HeaderValue,
        allow_expired: bool,
    ) -> Result<(StatusCode, Vec<u8>), Unavailable> {
        let mut headers = HeaderMap::new();
        headers.insert("x-auth-token", own.clone());
        headers.insert("x-subject-token", token.clone());
        // Without this header, Keystone refuses the tokens of application credentials that have access rules.
        headers.insert("openstack-identity-access-rules", HeaderValue::from_static("1.0"));
        let query = if allow_expired { "nocatalog&allow_expired=1" } else { "nocatalog" };
        let _permit = self.permits.acquire().await;
        let response = self.http.get(self.url(query)).headers(headers).headers(trace::headers()).send().await;
        let response = response.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let body = if status == StatusCode::OK { body(response).await? } else { Vec::new() };
        Ok((status, body))
    }

    /// Returns a token of hotslot's own user that differs from `other`, and is valid for a while.
    pub(super) async fn own_token(&self, other: Option<&HeaderValue>) -> Result<HeaderValue, Unavailable> {
        let mut own = self.own.lock().await;
        if let Some(token) = own.token.as_ref().filter(|token| Some(*token) != other && now() < own.renew_at)
        {
            return Ok(token.clone());
        }
        let secret = self.credential.file().read().map_err(Unavailable)?;
        let digest: [u8; 32] = Sha256::digest(secret.0.as_bytes()).into();
        let not_accepted = || {
            let file = self.credential.file();
            Unavailable(format!(
                "it does not accept the credential of hotslot's own user; correct the secret in {file} or the user in \
                 [identity.keystone]"
            ))
        };
        if own.refused.is_some_and(|(refused, at)| refused == digest && at.elapsed() < REFUSED) {
            return Err(not_accepted());
        }
        let credential = authentication(&self.credential, &secret);
        let request = self.http.post(self.url("")).headers(trace::headers()).json(&credential);
        let response = request.send().await.map_err(|error| unreachable(&error))?;
        match response.status() {
            StatusCode::CREATED => {}
            StatusCode::UNAUTHORIZED => {
                *own = Own { refused: Some((digest, Instant::now())), ..Own::default() };
                return Err(not_accepted());
            }
            other => {
                return Err(Unavailable(format!(
                    "it responded with status {other} when hotslot's own user authenticated"
                )));
            }
        }
        let mut token = response.headers().get("x-subject-token").cloned();
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        let described = Token::parse(&body(response).await?).ok();
        let (Some(token), Some(described)) = (token, described) else {
            let reason = "its response has no token for hotslot's own user";
            return Err(Unavailable(reason.into()));
        };
        let left = described.expires_at.saturating_sub(now());
        let early = (left / 10).min(RENEW.as_millis() as Millis);
        *own = Own {
            token: Some(token.clone()),
            renew_at: described.expires_at.saturating_sub(early),
            refused: None,
        };
        Ok(token)
    }
}

/// Returns the body of the request with which hotslot's own user authenticates.
fn authentication(credential: &Credential, secret: &Secret) -> Value {
    let named = |(name, domain): &(String, String)| Reference::named(name, domain);
    match credential {
        Credential::Password { user, project, .. } => {
            login(&Method::Password(&named(user), &secret.0), &LoginScope::Project(named(project)))
        }
        Credential::ApplicationCredential { id, .. } => {
            let credential = Reference::Id(id.clone());
            let method = Method::ApplicationCredential { credential, user: None, secret: &secret.0 };
            login(&method, &LoginScope::Default)
        }
    }
}

/// Receives a body that is not too large.
async fn body(mut response: Response) -> Result<Vec<u8>, Unavailable> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > BODY {
            return Err(Unavailable(format!("its response has more than {BODY} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unreachable(error: &reqwest::Error) -> Unavailable {
    if error.is_timeout() {
        return Unavailable("it does not respond in time".into());
    }
    if let Some(failure) = tls::Failure::of(error) {
        return Unavailable(format!("it cannot be reached: {}", failure.in_configuration()));
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // The outer causes repeat the URL.
    let cause = if cause.is::<reqwest::Error>() { "the request failed".into() } else { cause.to_string() };
    Unavailable(format!("it cannot be reached: {cause}"))
}
