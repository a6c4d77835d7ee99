//! An HTTP client of the service: it takes the segments of a path and returns JSON, or a failure with its exit code.
//!
//! The client connects over a unix socket, or over TCP with or without TLS, and never through a proxy. It follows no
//! redirect, which could lead a token to another machine. It waits for a response without a time limit, because a guest
//! may take minutes to release a device. Every POST carries an `Idempotency-Key`, so the client can safely send it again
//! when the connection breaks.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backon::{ConstantBuilder, Retryable as _};
use hotslot_service::config::is_of_this_machine;
use hotslot_service::tls;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;
use uuid::Uuid;

use crate::address::Address;
use crate::exit::{Exit, Failure};
use crate::remedy::by_commands;
use crate::tls::Tls;

/// How many times a POST is sent again when the connection breaks before the response arrives.
const RETRIES: usize = 5;
/// The delay before each of these retries.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The time limit for opening a connection, with the TLS handshake.
pub(crate) const CONNECT: Duration = Duration::from_secs(30);

/// What the page has that asks who somebody is, and no page of another program.
const SIGN_IN: &str = "<title>Sign in \u{b7} hotslot</title>";

/// The API version in the path of a resource: accelerators are Cyborg's `v1`, all others are Nova's `v2.1`.
fn version(path: &[&str]) -> &'static str {
    if path.first() == Some(&"accelerators") { "v1" } else { "v2.1" }
}

/// An HTTP client of one service.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: Address,
    base: Url,
}

impl Client {
    #[cfg(test)]
    pub(crate) fn new(address: Address) -> anyhow::Result<Self> {
        Self::with_token(address, &Tls::default(), None)
    }

    /// Returns a client that sends a token with each request.
    ///
    /// # Errors
    /// The token cannot be in a header, or everybody in the network could read it; or a file of `tls` cannot be used.
    pub(crate) fn with_token(address: Address, tls: &Tls, token: Option<String>) -> anyhow::Result<Self> {
        let (builder, base) = match &address {
            Address::Http(url) => (reqwest::Client::builder(), url.clone()),
            Address::Unix(path) => {
                (reqwest::Client::builder().unix_socket(path.as_path()), Url::parse("http://localhost")?)
            }
        };
        // Follow no redirect: reqwest would send the token to the other address too.
        let mut builder = builder
            .no_proxy()
            .redirect(Policy::none())
            .tls_backend_preconfigured(tls.client(&base)?)
            .connect_timeout(CONNECT);
        if let Some(token) = token {
            if base.scheme() != "https" && !is_of_this_machine(&base) {
                bail!(
                    "the token is not sent to {address}, because the connection is not encrypted; write https:// in \
                     --url or HOTSLOT_URL"
                );
            }
            let token = (HeaderName::from_static("x-auth-token"), secret_header(&token)?);
            builder = builder.default_headers(HeaderMap::from_iter([token]));
        }
        Ok(Self { http: builder.build()?, address, base })
    }

    /// Gets a resource. `path` has the segments of its path after the [`version`].
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Value, Failure> {
        self.send(Method::GET, version(path), path, None, None).await
    }

    /// Gets a resource and returns the value of its key `key`.
    pub(crate) async fn item(&self, path: &[&str], key: &str) -> Result<Value, Failure> {
        Ok(self.get(path).await?[key].take())
    }

    /// Gets all pages of a list; each page has its items in the key `key`.
    pub(crate) async fn items(&self, path: &[&str], key: &str) -> Result<Vec<Value>, Failure> {
        self.query(path, "", key).await
    }

    /// Gets all pages of a list, like [`items`](Self::items), with an encoded query string that filters it.
    pub(crate) async fn query(&self, path: &[&str], query: &str, key: &str) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        let mut query = Some(query.to_owned());
        while let Some(page) = query {
            let (items, next) = self.page(path, &page, key).await?;
            all.extend(items);
            query = next;
        }
        Ok(all)
    }

    /// Gets one page of a list. Returns its items and the query string of the next page, if there is one.
    pub(crate) async fn page(
        &self,
        path: &[&str],
        query: &str,
        key: &str,
    ) -> Result<(Vec<Value>, Option<String>), Failure> {
        let query = Some(query).filter(|query| !query.is_empty());
        let mut answer = self.send(Method::GET, version(path), path, query, None).await?;
        let Value::Array(items) = answer[key].take() else {
            return Err(self.strange(&format!("its response has no list `{key}`")));
        };
        let links = answer[format!("{key}_links")].take();
        let next = links.as_array().and_then(|links| links.iter().find(|link| link["rel"] == "next"));
        let next = next.and_then(|link| link["href"].as_str()?.split_once('?'));
        Ok((items, next.map(|(_, query)| query.to_owned())))
    }

    pub(crate) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.post_with(path, "", body).await
    }

    /// Sends a POST with an encoded query string.
    pub(crate) async fn post_with(&self, path: &[&str], query: &str, body: &Value) -> Result<Value, Failure> {
        let query = Some(query).filter(|query| !query.is_empty());
        self.send(Method::POST, version(path), path, query, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.send(Method::PUT, version(path), path, None, Some(body)).await
    }

    /// Deletes a resource. With `wait` the service responds when the resource is gone (v2), otherwise when it has
    /// accepted the request (v3). Returns the body of the response, which most responses do not have.
    pub(crate) async fn delete(&self, path: &[&str], query: &str, wait: bool) -> Result<Value, Failure> {
        // The path of v2 contains a project, and `-` stands for none.
        let version = if wait { "v2/-" } else { "v3" };
        let query = Some(query).filter(|query| !query.is_empty());
        self.send(Method::DELETE, version, path, query, None).await
    }

    /// Deletes a resource that is gone when the service responds.
    pub(crate) async fn remove(&self, path: &[&str], query: &str) -> Result<(), Failure> {
        let query = Some(query).filter(|query| !query.is_empty());
        self.send(Method::DELETE, version(path), path, query, None).await.map(drop)
    }

    /// Gets a path that has no version, such as `readyz`. A response with an error status is returned like any other.
    pub(crate) async fn probe(&self, path: &str) -> Result<Value, Failure> {
        let mut url = self.base.clone();
        url.set_path(path);
        let response = self.http.get(url).send().await.map_err(|error| self.unreachable(&error))?;
        response.json().await.map_err(|_| self.strange("its response is not JSON"))
    }

    /// Checks that the page of hotslot is at this address.
    ///
    /// # Errors
    /// Nobody answers there, or something else than hotslot.
    pub(crate) async fn expect_page(&self) -> Result<(), Failure> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["ui", "sign-in"]);
        }
        let answer = exchange(self.http.get(url).timeout(CONNECT)).await;
        let (status, page) = answer.map_err(|error| {
            if error.is_connect() || tls::Failure::of(&error).is_some() {
                return self.unreachable(&error);
            }
            let cause = if error.is_timeout() {
                format!("it did not answer within {} s", CONNECT.as_secs())
            } else {
                deepest(&error).map_or_else(|| error.to_string(), ToString::to_string)
            };
            self.no_page(&cause)
        })?;
        if status.is_success() && String::from_utf8_lossy(&page).contains(SIGN_IN) {
            return Ok(());
        }
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        let what = if self.base.path().trim_end_matches('/').ends_with("/ui") {
            "because the address has /ui already; leave /ui out of it"
        } else if status.is_redirection() || refused {
            "as a proxy does that asks who you are first; if there is one, open the page in a browser"
        } else {
            "and that is not the page of hotslot"
        };
        Err(self.no_page(&format!("it responded with status {status}, {what}")))
    }

    fn no_page(&self, found: &str) -> Failure {
        let message = format!(
            "the page of hotslot is not at {}/ui: {found}; correct the address (--url, HOTSLOT_URL or the context; \
             `hotslot status` shows whether hotslot is there)",
            self.address
        );
        Failure::new(Exit::Failed, message)
    }

    async fn send(
        &self,
        method: Method,
        version: &str,
        path: &[&str],
        query: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let mut url = self.base.clone();
        url.set_query(query);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(version.split('/')).extend(path);
        }
        let key = (method == Method::POST).then(|| Uuid::new_v4().to_string());
        let exchange = || {
            let mut request = self.http.request(method.clone(), url.clone());
            if let Some(key) = &key {
                request = request.header("idempotency-key", key);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            exchange(request)
        };
        let retries = if key.is_some() { RETRIES } else { 0 };
        // The first attempt is not repeated when it could not even connect: no service has received it.
        let mut connected = false;
        let (status, answer) = exchange
            .retry(ConstantBuilder::default().with_delay(RETRY_DELAY).with_max_times(retries))
            .when(|error: &reqwest::Error| {
                connected |= !error.is_connect();
                connected
            })
            .await
            .map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|_| self.strange("its response is not JSON"))
    }

    fn refused(&self, status: StatusCode, answer: &[u8]) -> Failure {
        let message = fault(answer).map(|message| match message.strip_prefix("no such path: ") {
            Some(path) => {
                let path = path.split(';').next().unwrap_or_default();
                format!(
                    "the service at {} has no path {path}; correct the address (--url, HOTSLOT_URL or the context)",
                    self.address
                )
            }
            None => by_commands(&message),
        });
        let message = message
            .unwrap_or_else(|| format!("the service at {} responded with status {status}", self.address));
        Failure::new(Exit::of_status(status.as_u16()), message)
    }

    /// Opens a stream of Server-Sent Events of the events that match `query`. The stream begins after the event with
    /// the id `last`, where one is given.
    pub(crate) async fn events(&self, query: &str, last: Option<&str>) -> Result<Response, Failure> {
        let mut url = self.base.clone();
        url.set_path("v2.1/events");
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        let mut request = self.http.get(url).header("accept", "text/event-stream");
        if let Some(id) = last {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            let answer = response.bytes().await.map_err(|error| self.unreachable(&error))?;
            return Err(self.refused(status, &answer));
        }
        Ok(response)
    }

    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = deepest(error);
        let kind = cause.and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        let address = &self.address;
        if let Some(failure) = tls::Failure::of(error) {
            let advice = Tls::advice(&failure);
            let message = format!("no TLS connection to the hotslot service at {address}: {failure}{advice}");
            return Failure::new(Exit::Unreachable, message);
        }
        let message = if error.is_connect() {
            format!("cannot reach the hotslot service at {address}: {cause}; {}", address.advice(kind))
        } else {
            format!(
                "lost the connection to the hotslot service at {address}: {cause}; the service may have begun the \
                 request, see `hotslot attachment list`"
            )
        };
        Failure::new(Exit::Unreachable, message)
    }

    pub(crate) fn strange(&self, what: &str) -> Failure {
        Failure::new(Exit::Failed, format!("the service at {} is not hotslot: {what}", self.address))
    }
}

/// Returns the cause of an error that has no further cause.
fn deepest(error: &reqwest::Error) -> Option<&(dyn std::error::Error + 'static)> {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(|cause| cause.source()) {
        cause = Some(deeper);
    }
    cause
}

/// Returns a token as the value of a header, which no log shows.
///
/// # Errors
/// The token has characters that a header cannot have.
pub(crate) fn secret_header(token: &str) -> anyhow::Result<HeaderValue> {
    let value = HeaderValue::from_str(token).ok();
    let mut value = value.context("the token has characters that no token has")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Sends a request, and receives the complete response.
async fn exchange(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), reqwest::Error> {
    let response = request.send().await?;
    Ok((response.status(), response.bytes().await?.to_vec()))
}

/// Encodes pairs of keys and values as a query string.
pub(crate) fn query_string(pairs: &[(&str, String)]) -> anyhow::Result<String> {
    let url = Url::parse_with_params("http://localhost", pairs)?;
    Ok(url.query().unwrap_or_default().to_owned())
}

/// Returns the message of an error response in Nova's format: `{"itemNotFound": {"code": 404, "message": "…"}}`.
fn fault(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let (_, fault) = body.as_object()?.iter().next()?;
    Some(fault["message"].as_str()?.to_owned())
}

/// Runs `ask` with a client of a test service that responds to one request with these bytes. Returns the result and the
/// request.
#[cfg(test)]
pub(crate) async fn answered<T>(answer: &'static str, ask: impl AsyncFnOnce(Client) -> T) -> (T, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let service = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let outcome = ask(Client::new(Address::Unix(path)).unwrap()).await;
    (outcome, service.await.unwrap())
}

/// Runs `ask` with a client of a test service that has these responses: path and query after `/v2.1/` or `/v1/`, status
/// and body. It responds to any other path with 404. Returns the result and the requests.
#[cfg(test)]
pub(crate) async fn answering<T>(
    answers: Vec<(&'static str, u16, Value)>,
    ask: impl AsyncFnOnce(Client) -> T,
) -> (T, Vec<String>) {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let service = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request
                .split(' ')
                .nth(1)
                .and_then(|path| path.strip_prefix("/v2.1/").or(path.strip_prefix("/v1/")))
                .unwrap();
            let nothing =
                (path, 404, serde_json::json!({ "itemNotFound": { "message": format!("no {path}") } }));
            let (_, status, body) = answers.iter().find(|answer| answer.0 == path).unwrap_or(&nothing);
            let answer = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            log.lock().unwrap().push(request);
        }
    });
    let outcome = ask(Client::new(Address::Unix(path)).unwrap()).await;
    service.abort();
    let asked = asked.lock().unwrap().clone();
    (outcome, asked)
}

/// Returns a list, or `None` when the caller may not have it.
pub(crate) fn permitted(list: Result<Vec<Value>, Failure>) -> Result<Option<Vec<Value>>, Failure> {
    match list {
        Err(failure) if failure.exit() == Exit::NotPermitted => Ok(None),
        list => list.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        let pairs = [("rack", "a&b=c d".to_owned()), ("host", "büro".to_owned())];
        assert_eq!(query_string(&pairs).unwrap(), "rack=a%26b%3Dc+d&host=b%C3%BCro");
        assert_eq!(query_string(&[]).unwrap(), "");
    }

    #[test]
    fn the_message_of_an_error_response_is_found() {
        let body = br#"{"conflictingRequest": {"code": 409, "message": "busy"}}"#;
        assert_eq!(fault(body).as_deref(), Some("busy"));
        for other in ["", "<html>", "{}", "[]", r#"{"x": 1}"#] {
            assert_eq!(fault(other.as_bytes()), None, "{other}");
        }
    }

    /// Gets a resource from a service that responds with these bytes; also returns the request.
    async fn answered(answer: &'static str) -> (Result<Value, Failure>, String) {
        super::answered(answer, async |client| client.get(&["servers", "a/b ?"]).await).await
    }

    #[tokio::test]
    async fn a_token_is_not_sent_to_where_a_response_redirects() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        other.set_nonblocking(true).unwrap();
        let target = format!("http://{}/", other.local_addr().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let service = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let answer = format!(
                "HTTP/1.1 307 -\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let client = Client::with_token(address, &Tls::default(), Some("s3cret".to_owned())).unwrap();
        let got = tokio::time::timeout(Duration::from_millis(500), client.get(&["servers"])).await;
        assert!(service.await.unwrap().contains("x-auth-token: s3cret"));
        assert_eq!(
            other.accept().err().map(|error| error.kind()),
            Some(io::ErrorKind::WouldBlock),
            "{got:?}"
        );
        assert!(got.unwrap().is_err(), "a redirect is no answer");
    }

    #[tokio::test]
    async fn a_request_goes_through_a_unix_socket_and_its_path_is_escaped() {
        let (outcome, request) = answered("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(outcome.unwrap()["a"], 1);
        assert!(request.starts_with("GET /v2.1/servers/a%2Fb%20%3F HTTP/1.1"), "{request}");
    }

    #[tokio::test]
    async fn a_response_of_another_service_is_an_error() {
        let (outcome, _) = answered("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        assert!(outcome.unwrap_err().to_string().contains("is not hotslot"));
        let (outcome, _) = answered("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        assert!(outcome.unwrap_err().to_string().contains("502 Bad Gateway"));
    }

    #[tokio::test]
    async fn a_lost_connection_is_reported_as_lost() {
        let failure = answered("").await.0.unwrap_err();
        assert!(failure.to_string().contains("lost the connection to the hotslot service"), "{failure}");
        assert_eq!(failure.exit(), Exit::Unreachable);
    }

    #[tokio::test]
    async fn a_post_is_retried_with_the_same_key_when_the_connection_breaks() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let service = tokio::spawn(async move {
            let mut keys = Vec::new();
            for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
                keys.push(key.unwrap().to_owned());
            }
            keys
        });
        let client = Client::new(Address::Unix(path)).unwrap();
        assert_eq!(client.post(&["x"], &Value::Null).await.unwrap()["a"], 1);
        let keys = service.await.unwrap();
        assert!(keys[0].len() == 36 && keys[0] == keys[1], "{keys:?}");
    }

    #[tokio::test]
    async fn a_missing_service_is_reported_with_its_address_and_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("api.sock"));
        let failure = Client::new(address).unwrap().get(&["servers"]).await.unwrap_err();
        let message = failure.to_string();
        assert!(message.contains("cannot reach the hotslot service at unix:/"), "{message}");
        assert!(message.contains("No such file"), "{message}");
        assert_eq!(Exit::of(&failure.into()), Exit::Unreachable);
    }
}
