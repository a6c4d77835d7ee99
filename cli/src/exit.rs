//! How a command ends: its exit code, and failures that know theirs.

use std::process::ExitCode;

/// What `--help` says of the exit codes.
pub(crate) const HELP: &str = "\
Exit codes:
    0  done
    1  failed for another reason; a check of `doctor` failed, `config check` or `drift` found something
    2  usage: arguments that make no sense, or a name that several things have
    3  not found
    4  refused as things are: busy, wrong state, no free port, the guest keeps the device; or a dry run says so
    5  the service or a host is away, or a listing lacks a host that is away
    6  bad request: an unknown alias, too few free devices
  130  interrupted; the service goes on with what it was asked
With several attachments at once, the highest of theirs.";

/// An exit code that scripts can decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Away = 5,
    BadRequest = 6,
    Interrupted = 130,
}

impl Exit {
    /// What an HTTP status is to a script.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            400 => Self::BadRequest,
            404 | 410 => Self::NotFound,
            409 => Self::Refused,
            503 => Self::Away,
            _ => Self::Failed,
        }
    }

    /// The exit code of a failure, from whichever of its causes knows one.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Failure>())
            .map_or(Self::Failed, |failure| failure.exit)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that knows its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_keeps_its_code_under_what_is_said_around_it() {
        let failure: Result<(), _> = Err(Failure::new(Exit::NotFound, "server x not found"));
        assert_eq!(Exit::of(&failure.context("attach").unwrap_err()), Exit::NotFound);
        assert_eq!(Exit::of(&anyhow::anyhow!("the disk is full")), Exit::Failed);
    }

    #[test]
    fn the_worst_is_the_highest() {
        let outcomes = [Exit::Done, Exit::Refused, Exit::NotFound];
        assert_eq!(outcomes.into_iter().max(), Some(Exit::Refused));
    }
}
