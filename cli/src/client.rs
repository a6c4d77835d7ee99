//! The service as its client sees it: paths in, JSON or a failure with its exit code out.
//!
//! Only this machine is spoken to, over loopback or a unix socket: no TLS, no proxy. An answer is waited for as
//! long as it takes, since a guest may take minutes to let a device go. What is posted has a key of its own, so that
//! it is done once although it is sent again when the connection breaks.

use std::error::Error as _;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use hotslot_service::config::{Config, Listen, SOCKET, SOCKET_GROUP};
use nix::unistd::{Gid, Group};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;
use uuid::Uuid;

use crate::exit::{Exit, Failure};

/// How long a service that is there keeps silent at most while it is followed.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a POST is sent again when the connection breaks before it is answered, and how long after.
const SENT_AGAIN: u32 = 5;
const SEND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Http(Url),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if Path::new(path).is_absolute() {
                Ok(Self::Unix(path.into()))
            } else {
                Err("a socket needs an absolute path, such as unix:/run/hotslot/api.sock".into())
            };
        }
        match Url::parse(text) {
            Ok(url) if url.scheme() == "http" && url.has_host() => Ok(Self::Http(url)),
            Ok(_) | Err(_) => Err("write http://127.0.0.1:9774 or unix:/path/to/socket".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the configuration may lie.
const CONFIGURATIONS: [&str; 2] = ["/etc/hotslot/hotslot.toml", "/etc/hotslot.toml"];

impl Address {
    /// Where the service is when no address is given: where the configuration says that is named; when none is, at the
    /// default socket, or where a configuration says that lies in its usual place.
    ///
    /// # Errors
    /// What is wrong with the configuration that is named.
    pub(crate) fn found(named: Option<&Path>) -> anyhow::Result<Self> {
        let socket = Self::Unix(SOCKET.into());
        let Some(named) = named else {
            match UnixStream::connect(SOCKET) {
                Ok(_) => return Ok(socket),
                // It is there, only not for this user.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(socket),
                Err(_) => {}
            }
            let config = CONFIGURATIONS.iter().find_map(|file| Config::load(Path::new(file)).ok());
            return Ok(config.and_then(|config| Self::of(&config.api.listen)).unwrap_or(socket));
        };
        let config = Config::load(named).with_context(|| {
            format!(
                "the configuration does not say where the service is; mend it (`hotslot config check {}`), or say it by \
                 --url",
                named.display()
            )
        })?;
        Self::of(&config.api.listen).with_context(|| {
            format!("{}: [api] listen leaves the port to the system; say it by --url", named.display())
        })
    }

    /// Where a service is that listens so; none when the system chooses the port.
    fn of(listen: &Listen) -> Option<Self> {
        match listen {
            Listen::Tcp(address) if address.port() == 0 => None,
            Listen::Tcp(_) | Listen::Unix(_) => listen.to_string().parse().ok(),
        }
    }

    /// What to do when it cannot be connected to.
    fn advice(&self, cause: Option<ErrorKind>) -> String {
        let Self::Unix(path) = self else {
            return "is `hotslot serve` running? (--url or HOTSLOT_URL says where)".into();
        };
        if cause != Some(ErrorKind::PermissionDenied) {
            return "is `hotslot serve` running? (`systemctl status hotslot`; --url or HOTSLOT_URL says where)".into();
        }
        let denied = |error: io::Error| error.kind() == ErrorKind::PermissionDenied;
        let hidden = |file: &&Path| file.symlink_metadata().is_err_and(denied);
        if let Some(directory) = path.ancestors().filter(hidden).last().and_then(Path::parent) {
            return format!(
                "the directory {} does not let this user in: put the socket into one that does ([api] listen = \
                 \"unix:{SOCKET}\"), or run this as root",
                directory.display()
            );
        }
        let group = path.metadata().ok().map(|socket| socket.gid()).filter(|group| *group != 0);
        let name = |gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
        match group.and_then(name) {
            Some(group) => format!(
                "it is for the group {group}: run as root `usermod -aG {group} USER`, then log in again; or run this as \
                 root"
            ),
            None => format!(
                "it is for root, as it has no group of its own: run as root `groupadd --system {SOCKET_GROUP}` and \
                 `usermod -aG {SOCKET_GROUP} USER`, start the service again and log in again; or run this as root"
            ),
        }
    }
}

/// The version under which a resource is asked for: Cyborg's are not Nova's.
fn version(path: &[&str]) -> &'static str {
    if path.first() == Some(&"accelerators") { "v1" } else { "v2.1" }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: Address,
    base: Url,
}

impl Client {
    pub(crate) fn new(address: Address) -> anyhow::Result<Self> {
        let builder = reqwest::Client::builder().no_proxy();
        let (builder, base) = match &address {
            Address::Http(url) => (builder, url.clone()),
            Address::Unix(path) => (builder.unix_socket(path.as_path()), Url::parse("http://localhost")?),
        };
        Ok(Self { http: builder.build()?, address, base })
    }

    /// One resource, by the segments of its path below [`version`].
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Value, Failure> {
        self.send(Method::GET, version(path), path, None, None).await
    }

    /// What a resource has under `key`.
    pub(crate) async fn item(&self, path: &[&str], key: &str) -> Result<Value, Failure> {
        Ok(self.get(path).await?[key].take())
    }

    /// The list that a resource has under `key`, all its pages.
    pub(crate) async fn items(&self, path: &[&str], key: &str) -> Result<Vec<Value>, Failure> {
        self.query(path, "", key).await
    }

    /// [`items`](Self::items), narrowed by a query string.
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

    /// One page of a list, and the query string of the next.
    pub(crate) async fn page(
        &self,
        path: &[&str],
        query: &str,
        key: &str,
    ) -> Result<(Vec<Value>, Option<String>), Failure> {
        let query = Some(query).filter(|query| !query.is_empty());
        let mut answer = self.send(Method::GET, version(path), path, query, None).await?;
        let Value::Array(items) = answer[key].take() else {
            return Err(self.strange(&format!("its answer has no list `{key}`")));
        };
        let links = answer[format!("{key}_links")].take();
        let next = links.as_array().and_then(|links| links.iter().find(|link| link["rel"] == "next"));
        let next = next.and_then(|link| link["href"].as_str()?.split_once('?'));
        Ok((items, next.map(|(_, query)| query.to_owned())))
    }

    pub(crate) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.send(Method::POST, version(path), path, None, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.send(Method::PUT, version(path), path, None, Some(body)).await
    }

    /// Deletes and waits until it is gone (v2), or only asks for it (v3); `query` as in [`query`](Self::query).
    pub(crate) async fn delete(&self, path: &[&str], query: &str, wait: bool) -> Result<(), Failure> {
        // v2 has a tenant in its path; nobody is asked which.
        let version = if wait { "v2/-" } else { "v3" };
        let query = Some(query).filter(|query| !query.is_empty());
        self.send(Method::DELETE, version, path, query, None).await.map(drop)
    }

    /// Deletes what is gone once it is answered; `query` as in [`query`](Self::query).
    pub(crate) async fn remove(&self, path: &[&str], query: &str) -> Result<(), Failure> {
        let query = Some(query).filter(|query| !query.is_empty());
        self.send(Method::DELETE, version(path), path, query, None).await.map(drop)
    }

    /// A path that belongs to no version, such as `readyz`; 503 is an answer there.
    pub(crate) async fn probe(&self, path: &str) -> Result<Value, Failure> {
        let mut url = self.base.clone();
        url.set_path(path);
        let response = self.http.get(url).send().await.map_err(|error| self.unreachable(&error))?;
        response.json().await.map_err(|_| self.strange("it answers no JSON"))
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
        let mut request = self.http.request(method.clone(), url);
        let mut again = 0;
        if method == Method::POST {
            request = request.header("idempotency-key", Uuid::new_v4().to_string());
            again = SENT_AGAIN;
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let (status, answer) = loop {
            request = match (request.try_clone(), exchange(request).await) {
                (_, Ok(answer)) => break answer,
                // Nobody has heard of it when there was no connection to begin with.
                (Some(same), Err(error)) if again > 0 && !(error.is_connect() && again == SENT_AGAIN) => same,
                (_, Err(error)) => return Err(self.unreachable(&error)),
            };
            again -= 1;
            tokio::time::sleep(SEND_AGAIN_AFTER).await;
        };
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|_| self.strange("it answers no JSON"))
    }

    fn refused(&self, status: StatusCode, answer: &[u8]) -> Failure {
        let message = fault(answer).map(by_commands);
        let message = message.unwrap_or_else(|| format!("the service at {} answered {status}", self.address));
        Failure::new(Exit::of_status(status.as_u16()), message)
    }

    /// What happens from now on, as Server-Sent Events: from an id on, where one was heard.
    pub(crate) async fn follow(&self, query: &str, heard: Option<&str>) -> Result<Stream<'_>, Failure> {
        let mut url = self.base.clone();
        url.set_path("v2.1/events");
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        let mut request = self.http.get(url).header("accept", "text/event-stream");
        if let Some(id) = heard {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            let answer = response.bytes().await.map_err(|error| self.unreachable(&error))?;
            return Err(self.refused(status, &answer));
        }
        Ok(Stream { client: self, response, buffer: Vec::new() })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause = error.source();
        while let Some(deeper) = cause.and_then(|cause| cause.source()) {
            cause = Some(deeper);
        }
        let kind = cause.and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        let address = &self.address;
        let message = if error.is_connect() {
            format!("cannot reach the hotslot service at {address}: {cause}; {}", address.advice(kind))
        } else {
            format!(
                "lost the hotslot service at {address}: {cause}; what it began is on record: \
                 `hotslot attachment list`"
            )
        };
        Failure::new(Exit::Away, message)
    }

    fn strange(&self, what: &str) -> Failure {
        Failure::new(Exit::Failed, format!("what is at {} is not hotslot: {what}", self.address))
    }
}

/// What the service says by its paths, and the commands that do the same.
const COMMANDS: [(&str, &str); 9] = [
    ("GET os-pci_attachments lists", "`hotslot attachment list` lists"),
    ("GET os-pci/detail lists", "`hotslot pci list -l` lists"),
    ("GET os-pci lists", "`hotslot pci list` lists"),
    ("GET os-hypervisors lists", "`hotslot host list` lists"),
    ("GET servers lists", "`hotslot server list` lists"),
    ("GET /accelerators lists", "`hotslot accelerator list` lists"),
    ("change or remove it under os-pci-config", "change or remove it (`hotslot config`)"),
    ("; GET it until it is attached", "; `hotslot accelerator show` says when it is attached"),
    ("; DELETE it again", "; run `hotslot accelerator detach` again"),
];

/// A remedy of the service in the words of the command line, where it has a command for it.
fn by_commands(mut message: String) -> String {
    for (path, command) in COMMANDS {
        if message.contains(path) {
            message = message.replace(path, command);
        }
    }
    message
}

/// Server-Sent Events as they come.
pub(crate) struct Stream<'a> {
    client: &'a Client,
    response: reqwest::Response,
    /// What came of the next message.
    buffer: Vec<u8>,
}

/// One of them; what it lacks is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) data: String,
}

impl Stream<'_> {
    /// The next message; none when the service ended it.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(message) = message(&mut self.buffer) {
                return Ok(Some(message));
            }
            // A service that says nothing for so long, not even that it is there, is not there.
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            match chunk {
                Ok(Ok(Some(bytes))) => self.buffer.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(self.client.unreachable(&error)),
                Err(_) => return Err(self.client.strange("it has been silent for too long")),
            }
        }
    }
}

/// Takes the first whole message out of what came.
fn message(buffer: &mut Vec<u8>) -> Option<Message> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let rest = buffer.split_off(end + 2);
    let text = String::from_utf8_lossy(buffer).into_owned();
    *buffer = rest;
    let mut message = Message::default();
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => message.id = id.to_owned(),
            Some(("data", data)) => message.data += data,
            Some(_) | None => {}
        }
    }
    Some(message)
}

/// Sends a request, and receives all of its answer.
async fn exchange(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), reqwest::Error> {
    let response = request.send().await?;
    Ok((response.status(), response.bytes().await?.to_vec()))
}

/// A query string of these pairs, escaped.
pub(crate) fn query_string(pairs: &[(&str, String)]) -> anyhow::Result<String> {
    let url = Url::parse_with_params("http://localhost", pairs)?;
    Ok(url.query().unwrap_or_default().to_owned())
}

/// The message of a fault: `{"itemNotFound": {"code": 404, "message": "…"}}`.
fn fault(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let (_, fault) = body.as_object()?.iter().next()?;
    Some(fault["message"].as_str()?.to_owned())
}

/// What `ask` makes of a service that answers one request with these bytes, and what it was asked.
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

/// What `ask` makes of a service that has these answers, by path and query below `/v2.1` or `/v1`, and what it was asked.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_http_or_a_socket() {
        for good in ["http://127.0.0.1:9774", "http://[::1]:9774", "unix:/run/hotslot/api.sock"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["127.0.0.1:9774", "localhost", "https://127.0.0.1", "unix:api.sock", "http://", ""] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_that_is_named_says_where_the_service_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hotslot.toml");
        let found = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Address::found(Some(&file))
        };
        assert_eq!(found("[api]\nlisten = 'unix:/a.sock'").unwrap().to_string(), "unix:/a.sock");
        let error = format!("{:#}", found("[api]\nlisten = '127.0.0.1:0'").unwrap_err());
        assert!(error.contains("hotslot.toml") && error.contains("--url"), "{error}");
        let error = format!("{:#}", found("[api]\nlisen = 'x'").unwrap_err());
        assert!(error.contains("hotslot.toml: line 2") && error.contains("`listen`"), "{error}");
    }

    #[test]
    fn remedies_name_the_commands() {
        for (said, told) in [
            (
                "server x not found; GET servers lists those there are",
                "server x not found; `hotslot server list` lists those there are",
            ),
            ("no id; GET os-pci lists them", "no id; `hotslot pci list` lists them"),
            (
                "of a1; GET os-pci/detail lists what there is",
                "of a1; `hotslot pci list -l` lists what there is",
            ),
            ("busy", "busy"),
        ] {
            assert_eq!(by_commands(said.to_owned()), told);
        }
    }

    #[test]
    fn an_address_is_where_the_service_listens() {
        for (listen, address) in [
            ("unix:/run/a.sock", Some("unix:/run/a.sock")),
            ("127.0.0.1:9774", Some("http://127.0.0.1:9774")),
            ("[::1]:80", Some("http://[::1]")),
            ("127.0.0.1:0", None),
        ] {
            let found = Address::of(&listen.parse().unwrap()).map(|address| address.to_string());
            assert_eq!(found.as_deref(), address, "{listen}");
        }
    }

    #[test]
    fn a_query_is_escaped() {
        let pairs = [("rack", "a&b=c d".to_owned()), ("host", "büro".to_owned())];
        assert_eq!(query_string(&pairs).unwrap(), "rack=a%26b%3Dc+d&host=b%C3%BCro");
        assert_eq!(query_string(&[]).unwrap(), "");
    }

    #[test]
    fn messages_are_taken_as_they_are_whole() {
        let mut buffer = b": \nid: 3\n\nid: 4\nevent: device.status\ndata: {\"id\": 4}\n\nid: 5\nda".to_vec();
        let expected = |id: &str, data: &str| Some(Message { id: id.into(), data: data.into() });
        assert_eq!(message(&mut buffer), expected("3", ""));
        assert_eq!(message(&mut buffer), expected("4", "{\"id\": 4}"));
        assert_eq!(message(&mut buffer), None);
        buffer.extend(b"ta: {}\n\n");
        assert_eq!(message(&mut buffer), expected("5", "{}"));
        assert_eq!(buffer, b"");
    }

    #[test]
    fn a_fault_says_its_message() {
        let body = br#"{"conflictingRequest": {"code": 409, "message": "busy"}}"#;
        assert_eq!(fault(body).as_deref(), Some("busy"));
        for other in ["", "<html>", "{}", "[]", r#"{"x": 1}"#] {
            assert_eq!(fault(other.as_bytes()), None, "{other}");
        }
    }

    /// A resource whose answer is these bytes, and what was asked.
    async fn answered(answer: &'static str) -> (Result<Value, Failure>, String) {
        super::answered(answer, async |client| client.get(&["servers", "a/b ?"]).await).await
    }

    #[tokio::test]
    async fn a_unix_socket_is_spoken_to_and_names_are_escaped() {
        let (outcome, request) = answered("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(outcome.unwrap()["a"], 1);
        assert!(request.starts_with("GET /v2.1/servers/a%2Fb%20%3F HTTP/1.1"), "{request}");
    }

    #[tokio::test]
    async fn what_is_not_hotslot_is_told() {
        let (outcome, _) = answered("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        assert!(outcome.unwrap_err().to_string().contains("is not hotslot"));
        let (outcome, _) = answered("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        assert!(outcome.unwrap_err().to_string().contains("502 Bad Gateway"));
    }

    #[tokio::test]
    async fn a_service_that_goes_away_is_told_from_one_that_was_not_there() {
        let failure = answered("").await.0.unwrap_err();
        assert!(failure.to_string().contains("lost the hotslot service"), "{failure}");
        assert_eq!(failure.exit(), Exit::Away);
    }

    #[tokio::test]
    async fn what_is_posted_is_sent_again_with_its_key_when_the_connection_breaks() {
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
    async fn a_service_that_is_not_there_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("api.sock"));
        let failure = Client::new(address).unwrap().get(&["servers"]).await.unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("cannot reach the hotslot service at unix:/"), "{said}");
        assert!(said.contains("No such file"), "{said}");
        assert_eq!(Exit::of(&failure.into()), Exit::Away);
    }
}
