//! Changes of the host's sysfs and hooks, for which root's rights are needed and libvirt has no call. A service without
//! these rights asks the helper (`hotslot host-helper`), a process of root that makes only the changes of [`Request`], and
//! checks each against what sysfs lists. A service that runs as root makes them itself.
//!
//! ```text
//! service ──one line of JSON──▶ /run/hotslot-helper.sock ──▶ helper ──▶ /sys
//!         ◀──one line of JSON──
//!         ───────────────────▶ /run/hotslot-hooks.sock ──▶ helper with --hooks ──▶ the command in hooks.toml
//! ```
//!
//! The hooks have a helper of their own, because they need more rights than changes of sysfs.

use std::io::{BufRead as _, BufReader, ErrorKind as IoKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::hook::When;
use crate::hypervisor::{Error, ErrorKind};
use crate::local;
use crate::pci::PciAddress;
use crate::vgpu::VgpuChange;

/// Which of the two helpers serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The one that changes sysfs.
    Sysfs,
    /// The one that runs hooks.
    Hooks,
}

impl Service {
    /// The name of its units, of which the socket is to be enabled.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Sysfs => "hotslot-helper",
            Self::Hooks => "hotslot-hooks",
        }
    }

    /// The path of its socket.
    fn socket(self) -> &'static Path {
        Path::new(match self {
            Self::Sysfs => "/run/hotslot-helper.sock",
            Self::Hooks => "/run/hotslot-hooks.sock",
        })
    }

    /// What only root may do without it.
    fn work(self) -> &'static str {
        match self {
            Self::Sysfs => "change files of sysfs",
            Self::Hooks => "run hooks",
        }
    }
}

/// The largest length of a request and of an answer, in bytes.
pub const MAX_LINE: usize = 4096;

/// The largest length of the message of an answer that would be too long, in characters. None takes more than four bytes.
const MAX_MESSAGE: usize = 900;

/// How long a request may take to be sent.
pub const SEND_LIMIT: Duration = Duration::from_secs(5);

/// A change that the helper makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Changes the vGPU type of a VF.
    SetVgpuType(VgpuChange),
    /// Changes the number of VFs of a PF.
    SetVfCount {
        /// The PF.
        address: PciAddress,
        /// The number that it must have before.
        from: u32,
        /// The number that it gets; at most what the PF supports.
        to: u32,
    },
    /// Runs the hook of the class of a function ([`local::run_hook`]). The helper finds the command by itself.
    RunHook {
        /// The function.
        address: PciAddress,
        /// The moment.
        when: When,
    },
}

/// What the helper answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Answer {
    /// The change was made, or there was nothing to change.
    Done,
    /// The change was not made.
    Refused { kind: ErrorKind, message: String },
}

impl Request {
    /// The function that is changed.
    pub fn address(&self) -> PciAddress {
        match self {
            Self::SetVgpuType(change) => change.address,
            Self::SetVfCount { address, .. } | Self::RunHook { address, .. } => *address,
        }
    }

    /// The helper that serves it.
    pub fn service(&self) -> Service {
        match self {
            Self::SetVgpuType(_) | Self::SetVfCount { .. } => Service::Sysfs,
            Self::RunHook { .. } => Service::Hooks,
        }
    }

    /// The change in words.
    pub fn operation(&self) -> String {
        match self {
            Self::SetVgpuType(change) => change.operation(),
            Self::SetVfCount { address, to, .. } => format!("set the number of VFs of {address} to {to}"),
            Self::RunHook { address, when } => format!("{when} {address}"),
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// Why it is none, for people.
    pub fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| format!("the request is not understood: {error}"))
    }

    /// Makes the change in the files below `sysroot`.
    ///
    /// # Errors
    /// Why it was not made.
    pub fn make(&self, sysroot: &Path) -> Result<(), Error> {
        match self {
            Self::SetVgpuType(change) => local::set_vgpu_type(sysroot, change),
            Self::SetVfCount { address, from, to } => local::set_vf_count(sysroot, *address, *from, *to),
            Self::RunHook { address, when } => local::run_hook(sysroot, *address, *when),
        }
    }
}

/// Writes the answer of the helper, a line without its end.
pub fn answer(outcome: Result<(), Error>) -> String {
    let Err(Error { kind, message, .. }) = outcome else {
        return serde_json::json!(Answer::Done).to_string();
    };
    let line = serde_json::json!(Answer::Refused { kind, message: message.clone() }).to_string();
    if line.len() < MAX_LINE {
        return line;
    }
    let start = message.chars().take(MAX_MESSAGE).chain(['…']).collect();
    serde_json::json!(Answer::Refused { kind, message: start }).to_string()
}

/// Makes a change of the files of this machine: by itself as root, or else through the helper. It waits until the driver has
/// made it, however long that takes.
///
/// # Errors
/// As [`Request::make`]; [`ErrorKind::Unsupported`] with what to do when there is no helper; [`ErrorKind::TimedOut`] when
/// the helper ended before it answered.
pub fn change(request: &Request) -> Result<(), Error> {
    if geteuid().is_root() {
        return request.make(Path::new("/"));
    }
    ask(request.service().socket(), request)
}

/// Checks that this process can make changes of sysfs.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with what to do.
pub fn available() -> Result<(), Error> {
    if geteuid().is_root() {
        return Ok(());
    }
    let service = Service::Sysfs;
    connect(service.socket(), service, service.work()).map(drop)
}

fn connect(socket: &Path, service: Service, operation: &str) -> Result<UnixStream, Error> {
    UnixStream::connect(socket).map_err(|error| {
        let why = if matches!(error.kind(), IoKind::NotFound | IoKind::ConnectionRefused) {
            format!(
                "the helper of hotslot does not run, and only root may {}; run systemctl enable --now {}.socket on the host",
                service.work(),
                service.unit()
            )
        } else if error.kind() == IoKind::PermissionDenied {
            format!(
                "the helper of hotslot serves only the user hotslot ({}: {error}); run the service as that user",
                socket.display()
            )
        } else {
            format!("the helper of hotslot cannot be reached: {}: {error}", socket.display())
        };
        Error::new(ErrorKind::Unsupported, operation, format!("{why} (docs/devices.md, \"The helper\")"))
    })
}

fn ask(socket: &Path, request: &Request) -> Result<(), Error> {
    let operation = request.operation();
    let stream = connect(socket, request.service(), &operation)?;
    let lost = |error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::TimedOut,
            operation.as_str(),
            format!("the helper ended before it answered: {error}"),
        )
    };
    let line = serde_json::json!(request).to_string();
    stream.set_write_timeout(Some(SEND_LIMIT)).map_err(|error| lost(&error))?;
    // A helper that serves another user has answered before it has read anything, and its end of the socket is closed.
    if let Err(error) = (&stream).write_all(format!("{line}\n").as_bytes())
        && error.kind() != IoKind::BrokenPipe
    {
        return Err(lost(&error));
    }
    let mut line = String::new();
    let read = BufReader::new((&stream).take(MAX_LINE as u64)).read_line(&mut line);
    read.map_err(|error| lost(&error))?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Refused { kind, message }) => Err(Error::new(kind, operation, message)),
        Err(error) => Err(lost(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const ADDRESS: &str = "0000:41:00.4";

    fn change() -> Request {
        Request::SetVgpuType(VgpuChange {
            address: ADDRESS.parse().unwrap(),
            from: None,
            to: Some("nvidia-7".into()),
        })
    }

    #[test]
    fn requests_are_three_fixed_verbs_and_nothing_else() {
        let text = serde_json::json!(change()).to_string();
        assert_eq!(text, r#"{"address":"0000:41:00.4","from":null,"to":"nvidia-7","verb":"set-vgpu-type"}"#);
        assert_eq!(Request::parse(&text), Ok(change()));
        let count = r#"{"verb":"set-vf-count","address":"0000:41:00.0","from":0,"to":4}"#;
        assert_eq!(Request::parse(count).unwrap().operation(), "set the number of VFs of 0000:41:00.0 to 4");
        let hook = r#"{"verb":"run-hook","address":"0000:41:00.0","when":"scrub"}"#;
        assert_eq!(Request::parse(hook).unwrap().operation(), "scrub 0000:41:00.0");
        assert_eq!(Request::parse(hook).unwrap().service(), Service::Hooks);
        for wrong in [
            "",
            "{}",
            r#"{"verb":"run-hook","address":"0000:41:00.0","when":"later"}"#,
            r#"{"verb":"run-hook","address":"0000:41:00.0","when":"scrub","command":["/bin/sh"]}"#,
            "[]",
            r#"{"verb":"write","address":"0000:41:00.4"}"#,
            r#"{"verb":"set-vf-count","address":"../../x","from":0,"to":4}"#,
            r#"{"verb":"set-vf-count","address":"0000:41:00.0","from":0,"to":-1}"#,
            r#"{"verb":"set-vf-count","address":"0000:41:00.0","from":0,"to":4,"path":"/etc"}"#,
            r#"{"verb":"set-vgpu-type","address":"0000:41:00.4","from":null,"to":"a","path":"/etc"}"#,
        ] {
            assert!(Request::parse(wrong).unwrap_err().contains("not understood"), "{wrong}");
        }
    }

    #[test]
    fn the_helper_is_asked_and_its_answer_is_the_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let missing = ask(&socket, &change()).unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Unsupported);
        assert!(missing.message.contains("systemctl enable --now hotslot-helper.socket"), "{missing}");
        let listener = UnixListener::bind(&socket).unwrap();
        let refused = Error::new(ErrorKind::NoDevice, "x", "no such VF");
        let long = Error::new(ErrorKind::Refused, "x", "\u{1b}\u{1f680}".repeat(3000));
        let answers = [answer(Ok(())), answer(Err(refused)), answer(Err(long)), String::new()];
        let helper = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                assert_eq!(Request::parse(&line), Ok(change()));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(ask(&socket, &change()), Ok(()));
        let refused = ask(&socket, &change()).unwrap_err();
        assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::NoDevice, "no such VF"));
        let long = ask(&socket, &change()).unwrap_err();
        assert_eq!(long.kind, ErrorKind::Refused, "the whole line was read: {long}");
        assert_eq!(ask(&socket, &change()).unwrap_err().kind, ErrorKind::TimedOut);
        helper.join().unwrap();

        // A refusal that is sent before the request is read arrives all the same.
        for _ in 0..20 {
            std::fs::remove_file(&socket).unwrap();
            let listener = UnixListener::bind(&socket).unwrap();
            let answer = answer(Err(Error::new(ErrorKind::Unsupported, "x", "another user"))) + "\n";
            let helper = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(ask(&socket, &change()).unwrap_err().message, "another user");
            helper.join().unwrap();
        }
    }
}
