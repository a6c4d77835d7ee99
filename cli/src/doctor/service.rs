//! Checks of the service on this machine: who may connect to it, who may read its files, and how it runs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hotslot_api::http;
use hotslot_service::config::{self, Config, SOCKET_GROUP};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixStream;

use super::{Finding, Level};
use crate::address::{Address, CONFIGURATIONS};

/// The access of users other than the owner.
const OTHERS: u32 = 0o077;
/// Write access of users other than the owner.
const OTHERS_WRITE: u32 = 0o022;

/// Runs every check. `named` is the configuration file of `--config`; without one, the usual places are tried.
pub(super) async fn check(named: Option<&Path>, address: Option<&Address>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(Address::Unix(path)) = address {
        findings.push(socket(path));
        findings.extend(process(path).await);
    }
    let file = named.map(PathBuf::from).or_else(|| {
        CONFIGURATIONS.into_iter().map(PathBuf::from).find(|file| file.symlink_metadata().is_ok())
    });
    let config = file.as_deref().map(Config::load);
    findings.extend(file.as_deref().and_then(configuration));
    // An invalid file is what `config check` is for; the database is then the default one.
    let config = config.and_then(Result::ok).unwrap_or_default();
    findings.extend(config.api.tls.as_ref().map(certificate));
    let exposed = file.iter().flat_map(|file| config.exposed(file));
    findings.extend(exposed.map(|says| {
        Finding::bad("secrets", Level::Warn, says, "give the file to the user of the service, with mode 0600")
    }));
    findings.extend(config.without_effect().into_iter().map(|says| {
        let fix = file.as_deref().map_or_else(String::new, |file| format!("edit {}", file.display()));
        Finding::bad("no effect", Level::Warn, says, fix)
    }));
    if let Some(path) = config.database.url.strip_prefix("sqlite://") {
        findings.extend(database(Path::new(path)));
    }
    findings
}

/// Checks who may connect.
fn socket(path: &Path) -> Finding {
    let check = "socket";
    let shown = path.display();
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) => {
            let fix = "start the service: `systemctl start hotslot`";
            return Finding::bad(check, Level::Info, format!("{shown} cannot be used: {error}"), fix);
        }
    };
    let (mode, group) = (found.mode() & 0o7777, group(found.gid()));
    let says = format!("{shown} has mode {mode:04o} and group {group}");
    if mode & 0o002 != 0 {
        let says = format!("{says}, so every user of this machine may connect");
        return Finding::bad(check, Level::Warn, says, "set [api] socket_mode = \"0660\"");
    }
    if mode & 0o020 != 0 && found.gid() == 0 {
        let fix = format!(
            "to let other users connect, run `groupadd --system {SOCKET_GROUP}` and `usermod -aG {SOCKET_GROUP} USER`, \
             and restart the service"
        );
        return Finding::bad(check, Level::Info, format!("{says}: only root may connect"), fix);
    }
    Finding::ok(check, says)
}

/// Checks under which user and unit the process runs that listens on a socket. Returns nothing when none does, or when
/// this user may not connect.
async fn process(path: &Path) -> Vec<Finding> {
    let Ok(peer) = UnixStream::connect(path).await.and_then(|stream| stream.peer_cred()) else {
        return Vec::new();
    };
    let name = user(peer.uid());
    let user = if peer.uid() == 0 {
        let says = "the service runs as root, and a fault in it would have root's rights";
        let fix = "run it under the unit of the package, packaging/hotslot.service, as user hotslot";
        Finding::bad("user", Level::Warn, says, fix)
    } else {
        Finding::ok("user", format!("the service runs as {name}"))
    };
    let of_process = |file| peer.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/{file}")).ok());
    let cgroup = of_process("cgroup");
    let mut findings = vec![user, unit(cgroup.as_deref().and_then(unit_of), watchdog)];
    findings.extend(of_process("status").and_then(|status| open_files(&status, &name)));
    findings
}

/// Checks whether the service sees which processes have a device open, by the capabilities in its `/proc/PID/status`
/// (Linux, include/uapi/linux/capability.h). Returns `None` when the file does not tell them.
fn open_files(status: &str, user: &str) -> Option<Finding> {
    const DAC_OVERRIDE: u64 = 1 << 1;
    const DAC_READ_SEARCH: u64 = 1 << 2;
    const SYS_PTRACE: u64 = 1 << 19;
    let check = "open files";
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    if mask & SYS_PTRACE != 0 && mask & (DAC_OVERRIDE | DAC_READ_SEARCH) != 0 {
        return Some(Finding::ok(check, "the service sees which processes have a device open"));
    }
    let says = format!(
        "the service runs as {user} without the capabilities to see the open files of other users, so that an attach does \
         not notice when one of their processes has the device open"
    );
    let fix = "look with `fuser -v` before you attach a device that has device nodes, or give the service the capabilities: \
               docs/devices.md, \"Who has a device open\"";
    Some(Finding::bad(check, Level::Info, says, fix))
}

/// Returns the systemd unit in the text of `/proc/PID/cgroup`, if it is a service.
fn unit_of(cgroup: &str) -> Option<&str> {
    cgroup.lines().filter_map(|line| line.rsplit('/').next()).find(|name| name.ends_with(".service"))
}

/// Checks whether systemd starts the service again when it ends or hangs.
fn unit(unit: Option<&str>, watchdog: impl Fn(&str) -> Option<String>) -> Finding {
    let check = "unit";
    let fix = "run the service under the unit of the package, packaging/hotslot.service";
    let Some(unit) = unit else {
        let says = "the service does not run under a systemd unit, so nothing starts it again when it fails";
        return Finding::bad(check, Level::Info, says, fix);
    };
    match watchdog(unit).as_deref() {
        Some("0" | "infinity" | "") => {
            let says = format!("{unit} has no watchdog, so nothing starts the service again when it hangs");
            Finding::bad(check, Level::Info, says, "set WatchdogSec=60s and Type=notify in the unit")
        }
        Some(limit) => Finding::ok(check, format!("{unit}, with a watchdog of {limit}")),
        None => Finding::bad(
            check,
            Level::Info,
            format!("{unit}; its watchdog is unknown"),
            "run `systemctl show`",
        ),
    }
}

/// Asks systemd for the time limit of a unit's watchdog: `1min`, or `0` for none.
fn watchdog(unit: &str) -> Option<String> {
    let output =
        Command::new("systemctl").args(["show", "-p", "WatchdogUSec", "--value", "--", unit]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Checks who may read and change the configuration. Returns `None` when this user cannot see the file.
fn configuration(file: &Path) -> Option<Finding> {
    let check = "configuration";
    let found = file.metadata().ok()?;
    let mode = found.mode() & 0o7777;
    let says = format!("{} has mode {mode:04o} and owner {}", file.display(), user(found.uid()));
    let fix =
        format!("run `chmod 600 {0}` and `chown hotslot: {0}` (the user of the service)", file.display());
    Some(if mode & OTHERS_WRITE != 0 {
        Finding::bad(check, Level::Warn, format!("{says}: other users may change it"), fix)
    } else if mode & OTHERS != 0 && fs::read_to_string(file).is_ok_and(|text| has_secret(&text)) {
        Finding::bad(check, Level::Warn, format!("{says}: other users may read the secrets in it"), fix)
    } else {
        Finding::ok(check, says)
    })
}

/// Whether a configuration has the secret of a webhook or a database URL with a password. An invalid one may have any.
fn has_secret(text: &str) -> bool {
    Config::parse(text).map_or(true, |config| config.has_secret())
}

/// Checks the certificate and key of the API.
fn certificate(tls: &config::Tls) -> Finding {
    let check = "certificate";
    let shown = tls.certificate.display();
    match http::Tls::load(tls) {
        Ok((_, warnings)) if warnings.is_empty() => {
            Finding::ok(check, format!("{shown} is valid now and fits its key"))
        }
        Ok((_, warnings)) => {
            let fix = "the service uses the corrected files without a restart";
            Finding::bad(check, Level::Warn, warnings.join("; "), fix)
        }
        Err(reason) => {
            let fix =
                "correct the files that [api.tls] names, and run this as root or as the user of the service";
            Finding::bad(check, Level::Warn, reason, fix)
        }
    }
}

/// Checks who may read the files of a SQLite database. Returns `None` when there are none, or when this user may not
/// even list them.
fn database(path: &Path) -> Option<Finding> {
    let check = "database";
    let (directory, name) = (path.parent()?, path.file_name()?.to_str()?);
    let entries = fs::read_dir(directory).ok()?.flatten();
    let files = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
    let open: Vec<_> = files
        .filter(|entry| entry.metadata().is_ok_and(|found| found.is_file() && found.mode() & OTHERS != 0))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if !path.exists() {
        return None;
    }
    let shown = path.display();
    let mode = directory.metadata().ok()?.mode() & 0o7777;
    Some(if !open.is_empty() {
        let says = format!("other users may open {} in {}", open.join(", "), directory.display());
        Finding::bad(
            check,
            Level::Warn,
            says,
            format!("run `chmod 600 {shown}*`, or restart the service, which does it"),
        )
    } else if mode & OTHERS_WRITE != 0 && mode & 0o1000 == 0 {
        let says =
            format!("{} has mode {mode:04o}: other users may replace the database", directory.display());
        Finding::bad(check, Level::Warn, says, format!("run `chmod 700 {}`", directory.display()))
    } else {
        Finding::ok(check, format!("only the owner of {shown} may open it"))
    })
}

fn user(id: u32) -> String {
    let found = User::from_uid(Uid::from_raw(id)).ok().flatten();
    found.map_or_else(|| format!("user {id}"), |user| user.name)
}

fn group(id: u32) -> String {
    let found = Group::from_gid(Gid::from_raw(id)).ok().flatten();
    found.map_or_else(|| id.to_string(), |group| group.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_in_the_cgroup() {
        assert_eq!(unit_of("0::/system.slice/hotslot.service\n"), Some("hotslot.service"));
        assert_eq!(unit_of("0::/user.slice/user-0.slice/session-3.scope\n"), None);
        assert_eq!(
            unit_of("5:memory:/x\n1:name=systemd:/system.slice/hotslot.service\n"),
            Some("hotslot.service")
        );
    }

    #[test]
    fn the_capabilities_tell_whether_open_files_are_seen() {
        let found = |mask: &str| open_files(&format!("Name:\thotslot\nCapEff:\t{mask}\n"), "hotslot");
        assert_eq!(found("000001ffffffffff").unwrap().level, Level::Ok);
        assert_eq!(found("0000000000080004").unwrap().level, Level::Ok);
        for lacking in ["0000000000000000", "0000000000080000", "0000000000000004"] {
            let finding = found(lacking).unwrap();
            assert!(finding.level == Level::Info && finding.says.contains("runs as hotslot"), "{lacking}");
        }
        assert!(found("x").is_none() && open_files("", "hotslot").is_none());
    }

    #[test]
    fn a_unit_without_a_watchdog_is_reported() {
        let found = |watchdog: Option<&str>| unit(Some("hotslot.service"), |_| watchdog.map(str::to_owned));
        assert_eq!(found(Some("1min")).level, Level::Ok);
        for none in [Some("0"), Some("infinity"), None] {
            assert_eq!(found(none).level, Level::Info);
        }
        assert!(unit(None, |_| None).says.contains("nothing starts it again"));
    }

    #[test]
    fn a_configuration_with_a_secret_is_found() {
        for (text, secret) in [
            ("", false),
            ("[database]\nurl = 'postgres://hotslot:s3cret@localhost/hotslot'", true),
            ("[database]\nurl = 'postgres://hotslot@localhost/hotslot?password=s3cret'", true),
            ("[database]\nurl = 'postgres://hotslot@localhost/a:b'", false),
            ("[[webhook]]\nname = 'w'\nurl = 'http://127.0.0.1/'\nsecret = '0123456789abcdef'", true),
            ("secret = not valid", true),
        ] {
            assert_eq!(has_secret(text), secret, "{text}");
        }
    }
}
