//! `[api]`: where and how requests are taken.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::value::Seconds;

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where to listen: `unix:/path`, or a loopback address with port.
    pub listen: Listen,
    /// The access mode of the unix socket.
    pub socket_mode: SocketMode,
    /// The group of the unix socket, by name or number; none is [`SOCKET_GROUP`] where the system has it.
    pub socket_group: Option<String>,
    /// The names, beside those of this machine, by which callers may address the service in `Host`.
    pub hosts: Vec<HostName>,
    /// How many connections may be open at a time, at least 1.
    pub connections: NonZeroU32,
    /// How many clients may follow the events at a time, at least 1.
    pub followers: NonZeroU32,
    /// How long a request's header may take from its first byte on, in seconds.
    pub header_timeout: Seconds,
    /// How long a request's body may take, in seconds.
    pub body_timeout: Seconds,
    /// How long a connection is kept on which nothing is asked, or whose client takes nothing of its answer, in
    /// seconds.
    pub idle_timeout: Seconds,
    /// How many attaches and detaches may be under way or waiting on one host, at least 1; more are refused.
    pub queue: NonZeroU32,
    /// Who says who calls.
    pub identity: IdentityFrom,
    /// How long a POST with an `Idempotency-Key` is known when it is sent again, in seconds.
    pub idempotency_time: Seconds,
}

impl Api {
    const QUEUE: NonZeroU32 = NonZeroU32::new(100).unwrap();
    const CONNECTIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
    const FOLLOWERS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
}

/// The socket that the service listens on, and the command line looks for, when nothing else is said.
pub const SOCKET: &str = "/run/hotslot/api.sock";

/// The group that may use the socket when no other is configured.
pub const SOCKET_GROUP: &str = "hotslot";

/// How many `Idempotency-Key`s are known at most; of more, the oldest are forgotten.
pub const IDEMPOTENCY_KEYS: i64 = 100_000;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: Listen::Unix(SOCKET.into()),
            socket_mode: SocketMode(0o660),
            socket_group: None,
            hosts: Vec::new(),
            connections: Self::CONNECTIONS,
            followers: Self::FOLLOWERS,
            header_timeout: Seconds(Duration::from_secs(10)),
            body_timeout: Seconds(Duration::from_secs(30)),
            idle_timeout: Seconds(Duration::from_secs(60)),
            queue: Self::QUEUE,
            identity: IdentityFrom::None,
            idempotency_time: Seconds(Duration::from_secs(86_400)),
        }
    }
}

/// Who says who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityFrom {
    /// Nobody: whoever reaches the socket is the administrator.
    None,
    /// A proxy in front, in the headers of keystonemiddleware.
    Headers,
}

/// Where the API listens. Nothing but this machine can reach it until there is identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address and port.
    Tcp(SocketAddr),
    /// A unix socket's path.
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
        Err(format!("`{text}` names no absolute path; write a path such as unix:{SOCKET}"))
    })
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is neither an address with port (127.0.0.1:9774) nor a socket (unix:/path)")
        })?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!(
                "{address} can be reached from other machines, and hotslot asks nobody who they are yet; \
                 listen on 127.0.0.1, [::1] or unix:/path, and put what authenticates in front"
            ))
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
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
    /// Whether users may connect who are neither the owner nor in the socket's group.
    pub fn is_open_to_all(self) -> bool {
        self.0 & 0o002 != 0
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self)
            .ok_or_else(|| format!("`{text}` is no access mode; write octal digits such as \"0660\""))
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a host, or its IP address, without a port; in small letters.
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
                "`{text}` is no host name; write hotslot.example.org or [2001:db8::1], without a port"
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
    /// Whether a `Host` names this service: this machine's own names, or one that is configured. `name` has no port.
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
