//! The address of the service, and how the command line finds it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use hotslot_service::config::{Api, Config, Listen, SOCKET, SOCKET_GROUP, unix_path};
use nix::unistd::{Gid, Group};
use reqwest::Url;

/// The address of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Http(Url),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return path.map(Self::Unix);
        }
        match Url::parse(text) {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(Self::Http(url)),
            Ok(_) | Err(_) => {
                Err("write http://127.0.0.1:9774, https://HOST:PORT or unix:/path/to/socket".into())
            }
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

/// The places where a configuration file is looked for, in this order.
pub(crate) const CONFIGURATIONS: [&str; 2] = ["/etc/hotslot/hotslot.toml", "/etc/hotslot.toml"];

impl Address {
    /// Returns the address of the service when `--url` does not give one. With a named configuration, it is the address
    /// that this file has. Otherwise it is the default socket or, when no service answers there, the address in a
    /// configuration file in one of the usual places.
    ///
    /// # Errors
    /// The named configuration is not valid, or it leaves the port to the system.
    pub(crate) fn found(named: Option<&Path>) -> anyhow::Result<Self> {
        let socket = Self::Unix(SOCKET.into());
        let Some(named) = named else {
            match UnixStream::connect(SOCKET) {
                Ok(_) => return Ok(socket),
                // The service is there, but this user may not connect to it.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(socket),
                Err(_) => {}
            }
            let config = CONFIGURATIONS.iter().find_map(|file| Config::load(Path::new(file)).ok());
            return Ok(config.and_then(|config| Self::of(&config.api)).unwrap_or(socket));
        };
        let config = Config::load(named).with_context(|| {
            format!(
                "the address of the service cannot be read from the configuration; correct the file (`hotslot config \
                 check {}`), or give the address with --url",
                named.display()
            )
        })?;
        Self::of(&config.api).with_context(|| {
            format!(
                "{}: [api] listen has port 0, so the system chooses the port; give the address with --url",
                named.display()
            )
        })
    }

    /// The address of a service with this configuration, or `None` when the system chooses the port. A service that
    /// listens on all addresses is reached by the first of its configured names, which its certificate should have.
    fn of(api: &Api) -> Option<Self> {
        let url = match (&api.listen, api.hosts.first()) {
            (Listen::Tcp(address), _) if address.port() == 0 => return None,
            (Listen::Tcp(address), Some(host)) if address.ip().is_unspecified() => {
                format!("https://{}:{}", host.0, address.port())
            }
            (Listen::Tcp(_) | Listen::Unix(_), _) => api.url(),
        };
        url.parse().ok()
    }

    /// Advice for a user who cannot connect to this address; `cause` is the kind of the I/O error.
    pub(crate) fn advice(&self, cause: Option<ErrorKind>) -> String {
        let Self::Unix(path) = self else {
            return "is `hotslot serve` running? (--url or HOTSLOT_URL gives its address)".into();
        };
        if cause != Some(ErrorKind::PermissionDenied) {
            return "is `hotslot serve` running? (`systemctl status hotslot`; --url or HOTSLOT_URL gives its \
                    address)"
                .into();
        }
        let denied = |error: io::Error| error.kind() == ErrorKind::PermissionDenied;
        let hidden = |file: &&Path| file.symlink_metadata().is_err_and(denied);
        if let Some(directory) = path.ancestors().filter(hidden).last().and_then(Path::parent) {
            return format!(
                "the directory {} does not let this user in; put the socket into another directory ([api] listen = \
                 \"unix:{SOCKET}\"), or run this command as root",
                directory.display()
            );
        }
        let group = path.metadata().ok().map(|socket| socket.gid()).filter(|group| *group != 0);
        let name = |gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
        match group.and_then(name) {
            Some(group) => format!(
                "only members of the group {group} may connect; run `usermod -aG {group} USER` as root and log in \
                 again, or run this command as root"
            ),
            None => format!(
                "only root may connect, because the socket has no group of its own; run `groupadd --system \
                 {SOCKET_GROUP}` and `usermod -aG {SOCKET_GROUP} USER` as root, restart the service and log in again; \
                 or run this command as root"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_http_url_or_a_unix_socket() {
        for good in [
            "http://127.0.0.1:9774",
            "https://node1.example:9774",
            "http://[::1]:9774",
            "unix:/run/hotslot/api.sock",
        ] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["127.0.0.1:9774", "localhost", "ftp://127.0.0.1", "unix:api.sock", "http://", ""] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_address_is_read_from_a_named_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hotslot.toml");
        let found = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Address::found(Some(&file))
        };
        assert_eq!(found("[api]\nlisten = 'unix:/a.sock'").unwrap().to_string(), "unix:/a.sock");
        let error = format!("{:#}", found("[api]\nlisten = '127.0.0.1:0'\ninsecure_tcp = true").unwrap_err());
        assert!(error.contains("hotslot.toml") && error.contains("--url"), "{error}");
        let error = format!("{:#}", found("[api]\nlisen = 'x'").unwrap_err());
        assert!(error.contains("hotslot.toml: line 2") && error.contains("`listen`"), "{error}");
    }

    #[test]
    fn the_address_follows_from_the_listen_setting() {
        for (listen, address) in [
            ("unix:/run/a.sock", Some("unix:/run/a.sock")),
            ("127.0.0.1:9774", Some("http://127.0.0.1:9774")),
            ("[::1]:80", Some("http://[::1]")),
            ("127.0.0.1:0", None),
        ] {
            let api = Api { listen: listen.parse().unwrap(), ..Api::default() };
            let found = Address::of(&api).map(|address| address.to_string());
            assert_eq!(found.as_deref(), address, "{listen}");
        }
        let hosts = vec!["node1.example".parse().unwrap()];
        let api = Api { listen: "0.0.0.0:9774".parse().unwrap(), hosts, ..Api::default() };
        assert_eq!(Address::of(&api).unwrap().to_string(), "https://node1.example:9774");
    }
}
