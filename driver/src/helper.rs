//! Changes of the host's sysfs, for which root's rights are needed and libvirt has no call. A service without these rights
//! asks the helper (`hotslot host-helper`), a process of root that makes only the changes of [`Request`], and checks each
//! against what sysfs lists. A service that runs as root makes them itself.
//!
//! ```text
//! service ──one line of JSON──▶ /run/hotslot-helper.sock ──▶ helper ──▶ /sys
//!         ◀──one line of JSON──
//! ```

use std::io::{BufRead as _, BufReader, ErrorKind as IoKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Error, ErrorKind};
use crate::local;
use crate::pci::PciAddress;
use crate::vgpu::VgpuChange;

/// The socket of the helper.
pub const SOCKET: &str = "/run/hotslot-helper.sock";

/// The largest length of a request and of an answer, in bytes.
pub const MAX_LINE: usize = 4096;

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
            Self::SetVfCount { address, .. } => *address,
        }
    }

    /// The change in words.
    pub fn operation(&self) -> String {
        match self {
            Self::SetVgpuType(change) => change.operation(),
            Self::SetVfCount { address, to, .. } => format!("set the number of VFs of {address} to {to}"),
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
        }
    }
}

/// Writes the answer of the helper, a line without its end.
pub fn answer(outcome: Result<(), Error>) -> String {
    let answer = match outcome {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Refused { kind: error.kind, message: error.message },
    };
    serde_json::json!(answer).to_string()
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
    ask(Path::new(SOCKET), request)
}

/// Checks that this process can make changes.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with what to do.
pub fn available() -> Result<(), Error> {
    if geteuid().is_root() {
        return Ok(());
    }
    connect(Path::new(SOCKET), "change files of sysfs").map(drop)
}

fn connect(socket: &Path, operation: &str) -> Result<UnixStream, Error> {
    UnixStream::connect(socket).map_err(|error| {
        let why = if matches!(error.kind(), IoKind::NotFound | IoKind::ConnectionRefused) {
            "the helper of hotslot does not run, and only root may change files of sysfs; run systemctl enable --now \
             hotslot-helper.socket on the host"
                .to_owned()
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
    let stream = connect(socket, &operation)?;
    let lost = |error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::TimedOut,
            operation.as_str(),
            format!("the helper ended before it answered: {error}"),
        )
    };
    let line = serde_json::json!(request).to_string();
    stream.set_write_timeout(Some(SEND_LIMIT)).map_err(|error| lost(&error))?;
    (&stream).write_all(format!("{line}\n").as_bytes()).map_err(|error| lost(&error))?;
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
    fn requests_are_two_fixed_verbs_and_nothing_else() {
        let text = serde_json::json!(change()).to_string();
        assert_eq!(text, r#"{"address":"0000:41:00.4","from":null,"to":"nvidia-7","verb":"set-vgpu-type"}"#);
        assert_eq!(Request::parse(&text), Ok(change()));
        let count = r#"{"verb":"set-vf-count","address":"0000:41:00.0","from":0,"to":4}"#;
        assert_eq!(Request::parse(count).unwrap().operation(), "set the number of VFs of 0000:41:00.0 to 4");
        for wrong in [
            "",
            "{}",
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
        let answers = [answer(Ok(())), answer(Err(refused)), String::new()];
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
        assert_eq!(ask(&socket, &change()).unwrap_err().kind, ErrorKind::TimedOut);
        helper.join().unwrap();
    }
}
