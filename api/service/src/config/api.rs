//! `[api]`: where the API listens, and its limits.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::secret_file::SecretFile;
use super::value::Seconds;

/// `[api]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where to listen: `unix:/path`, or an address with port. Without `tls` only a loopback address is allowed.
    pub listen: Listen,
    /// TLS of a TCP port. Without it, plain HTTP.
    pub tls: Option<Tls>,
    /// The access mode of the unix socket.
    pub socket_mode: SocketMode,
    /// The group of the unix socket, by name or number. Without it, the group `hotslot` if the system has that group.
    pub socket_group: Option<String>,
    /// Host names, in addition to those of this machine, that requests may have in their `Host` header.
    pub hosts: Vec<HostName>,
    /// The maximum number of open connections, at least 1.
    pub connections: NonZeroU32,
    /// The maximum number of clients that follow the events, at least 1.
    pub followers: NonZeroU32,
    /// The time limit for the header of a request from its first byte on, in seconds.
    pub header_timeout: Seconds,
    /// The time limit for the body of a request, in seconds.
    pub body_timeout: Seconds,
    /// How long a connection is kept without a request, or while its client reads nothing of the response, in seconds.
    pub idle_timeout: Seconds,
    /// The maximum number of attaches and detaches that run or wait on one host, at least 1. Further ones are refused.
    pub queue: NonZeroU32,
    /// The number of requests that each caller may send per second; 0 for no limit.
    pub rate: u32,
    /// The number of requests that each caller may send at once, at least 1.
    pub burst: NonZeroU32,
    /// Whether a proxy identifies callers.
    pub identity: IdentityFrom,
    /// A file with the secret that the proxy sends in `X-Hotslot-Proxy-Secret`. A proxy at the unix socket, or with
    /// a client certificate that `tls` demands, needs none.
    pub proxy_secret_file: Option<SecretFile>,
    /// Whether every client of a loopback port that shows no token is the administrator; for tests only.
    pub insecure_tcp: bool,
    /// How long the response to a POST with an `Idempotency-Key` is kept for repetitions, in seconds.
    pub idempotency_time: Seconds,
}

impl Api {
    const QUEUE: NonZeroU32 = NonZeroU32::new(100).unwrap();
    const CONNECTIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
    const BURST: NonZeroU32 = NonZeroU32::new(500).unwrap();
    const FOLLOWERS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
}

/// The default socket of the service and of the command line.
pub const SOCKET: &str = "/run/hotslot/api.sock";

/// The group that may use the socket when no other is configured.
pub const SOCKET_GROUP: &str = "hotslot";

/// The maximum number of `Idempotency-Key`s that are kept. When there are more, the oldest are removed.
pub const IDEMPOTENCY_KEYS: i64 = 100_000;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: Listen::Unix(SOCKET.into()),
            tls: None,
            socket_mode: SocketMode(0o660),
            socket_group: None,
            hosts: Vec::new(),
            connections: Self::CONNECTIONS,
            followers: Self::FOLLOWERS,
            header_timeout: Seconds(Duration::from_secs(10)),
            body_timeout: Seconds(Duration::from_secs(30)),
            idle_timeout: Seconds(Duration::from_secs(60)),
            queue: Self::QUEUE,
            rate: 100,
            burst: Self::BURST,
            identity: IdentityFrom::None,
            proxy_secret_file: None,
            insecure_tcp: false,
            idempotency_time: Seconds(Duration::from_secs(86_400)),
        }
    }
}

/// Whether a proxy identifies callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdentityFrom {
    /// No. Callers at the unix socket are identified by the kernel, and others by what `[identity]` configures.
    None,
    /// By the headers of keystonemiddleware, which a proxy in front sets.
    Headers,
}

/// `[api.tls]`: the files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The PEM file of the certificate, followed by those of the authorities between it and a root.
    pub certificate: PathBuf,
    /// The PEM file of the private key of the certificate.
    pub key: SecretFile,
    /// The PEM file of the authorities whose client certificates are accepted. Without it, no certificate is requested.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have a certificate of `client_ca`; by default they must.
    pub client_certificates: Option<ClientCertificates>,
}

impl Tls {
    /// Whether a client without a certificate is refused.
    pub fn demands_client_certificates(&self) -> bool {
        self.client_ca.is_some() && self.client_certificates != Some(ClientCertificates::Optional)
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.client_certificates.is_some() && self.client_ca.is_none() {
            let reason = "it needs client_ca, the authorities that sign the certificates of clients".into();
            problems.push(("[api.tls] client_certificates", reason));
        }
        let files = [
            ("[api.tls] certificate", Some(&self.certificate)),
            ("[api.tls] client_ca", self.client_ca.as_ref()),
        ];
        for (key, file) in files {
            if let Some(file) = file.filter(|file| !file.is_absolute()) {
                problems.push((key, format!("`{}` is not an absolute path", file.display())));
            }
        }
        problems
    }
}

/// Whether clients must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// A client without a certificate is served, and a certificate that is not valid is refused.
    Optional,
    /// A client without a valid certificate is refused.
    Required,
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and port.
    Tcp(SocketAddr),
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

/// Parses an address of the form `unix:/path`. Returns `None` when the text does not begin with `unix:`.
///
/// # Errors
/// The path is not absolute.
pub fn unix_path(text: &str) -> Option<Result<PathBuf, String>> {
    let path = Path::new(text.strip_prefix("unix:")?);
    Some(if path.is_absolute() {
        Ok(path.into())
    } else {
        Err(format!("`{text}` has no absolute path; write a path such as unix:{SOCKET}"))
    })
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("`{text}` is neither an address with port (127.0.0.1:9774) nor a socket (unix:/path)")
        })
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The access mode of a unix socket, written in octal digits: `"0660"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl SocketMode {
    /// Returns whether users other than the owner and the members of the socket's group may connect.
    pub fn is_open_to_all(self) -> bool {
        self.0 & 0o002 != 0
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self)
            .ok_or_else(|| format!("`{text}` is not an access mode; write octal digits such as \"0660\""))
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a host, or its IP address, without a port and in lower case. An IPv6 address is in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(pub String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        let name = !text.is_empty() && text.len() <= 253 && text.chars().all(plain);
        let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if name || address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(format!(
                "`{text}` is not a host name; write hotslot.example.org or [2001:db8::1], without a port"
            ))
        }
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Api {
    /// Returns the URL of the service: `unix:/path`, or `http://` or `https://` and the address.
    pub fn url(&self) -> String {
        match (&self.listen, &self.tls) {
            (Listen::Unix(path), _) => format!("unix:{}", path.display()),
            (Listen::Tcp(address), None) => format!("http://{address}"),
            (Listen::Tcp(address), Some(_)) => format!("https://{address}"),
        }
    }

    /// Whether a client without a certificate of `[api.tls] client_ca` is refused.
    pub fn demands_client_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::demands_client_certificates)
    }

    /// Returns the keys of TLS with values that do not fit together, each with what would be right.
    pub(super) fn tls_problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        match (&self.listen, &self.tls) {
            (Listen::Tcp(address), None) if !address.ip().is_loopback() => problems.push((
                "[api] listen",
                format!(
                    "{address} can be reached from other machines, which needs TLS; set certificate and key in \
                     [api.tls], or listen on 127.0.0.1, [::1] or unix:/path"
                ),
            )),
            (Listen::Unix(_), Some(_)) => problems.push((
                "[api] tls",
                "a unix socket does not use TLS; remove [api.tls], or listen on an address with port such as \
                 0.0.0.0:9774"
                    .into(),
            )),
            (Listen::Tcp(_) | Listen::Unix(_), _) => {}
        }
        problems.extend(self.tls.iter().flat_map(Tls::problems));
        problems
    }

    /// Returns whether the host name of a `Host` header is a name of this service: `localhost`, a loopback address, the
    /// address of `listen`, or a configured name. `name` has no port.
    pub fn is_known_host(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
        let own = match literal.parse::<IpAddr>() {
            Ok(address) => {
                address.is_loopback() || matches!(self.listen, Listen::Tcp(own) if own.ip() == address)
            }
            Err(_) => name == "localhost",
        };
        own || self.hosts.iter().any(|known| known.0 == name)
    }
}
