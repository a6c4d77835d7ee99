//! The address of the service, and how the command line finds it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use hotslot_service::config::{Config, Listen, SOCKET, SOCKET_GROUP, unix_path};
use nix::unistd::{Gid, Group};
use reqwest::Url;

/// Where the service is.
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
    pub(crate) fn advice(&self, cause: Option<ErrorKind>) -> String {
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
}
