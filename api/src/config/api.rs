//! `[api]`: where and how requests are taken.

use std::fmt;
use std::net::SocketAddr;
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
    /// Where to listen: a loopback address with port, or `unix:/path`.
    pub listen: Listen,
    /// How many attaches and detaches may be under way or waiting on one host, at least 1; more are refused.
    pub queue: NonZeroU32,
    /// Who says who calls.
    pub identity: IdentityFrom,
    /// How long a POST with an `Idempotency-Key` is known when it is sent again, in seconds.
    pub idempotency_time: Seconds,
}

impl Api {
    const QUEUE: NonZeroU32 = NonZeroU32::new(100).unwrap();
}

/// How many `Idempotency-Key`s are known at most; of more, the oldest are forgotten.
pub const IDEMPOTENCY_KEYS: i64 = 100_000;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9774))),
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

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if Path::new(path).is_absolute() {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("`{text}` names no absolute path; write unix:/run/hotslot/api.sock"))
            };
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
