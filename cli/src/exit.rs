//! The exit codes of the commands, and failures that have one.

use std::process::ExitCode;

/// The exit codes, as `--help` prints them.
pub(crate) const HELP: &str = "\
Exit codes:
    0  done
    1  failed for another reason; a check of `doctor` failed;
       `config check`, `drift` or `status` found a problem
    2  invalid arguments, or an ambiguous name
    3  not found
    4  refused: busy, wrong state, no free port, the guest keeps the device,
       too many requests; or a dry run found such a reason
    5  the service or a host is unreachable, or a list is incomplete
       because a host is unreachable
    6  bad request: an unknown alias, or too few free devices
    7  not identified: no token or password, or one that is not valid
    8  not permitted: the user or the token has no right to this,
       or the quota of the project is used up
  130  interrupted; the service continues with the request
When a command works on several attachments, its exit code is the highest of theirs.";

/// The exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unreachable = 5,
    BadRequest = 6,
    NotIdentified = 7,
    NotPermitted = 8,
    Interrupted = 130,
}

impl Exit {
    /// The exit code for an HTTP status.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            400 => Self::BadRequest,
            401 => Self::NotIdentified,
            403 => Self::NotPermitted,
            404 | 410 => Self::NotFound,
            409 | 429 => Self::Refused,
            503 => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    /// The exit code of the first [`Failure`] among the causes of an error, or [`Exit::Failed`].
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

/// A failure with its exit code and its message.
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
    fn a_failure_keeps_its_exit_code_when_context_is_added() {
        let failure: Result<(), _> = Err(Failure::new(Exit::NotFound, "server x not found"));
        assert_eq!(Exit::of(&failure.context("attach").unwrap_err()), Exit::NotFound);
        assert_eq!(Exit::of(&anyhow::anyhow!("the disk is full")), Exit::Failed);
    }

    #[test]
    fn the_most_severe_exit_code_is_the_highest() {
        let outcomes = [Exit::Done, Exit::Refused, Exit::NotFound];
        assert_eq!(outcomes.into_iter().max(), Some(Exit::Refused));
    }
}
