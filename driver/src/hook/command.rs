//! Runs a command with a time limit, and keeps the end of its output.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::text;

/// Where programs are found that a command names without a path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of the output is kept, in bytes.
const KEPT: usize = 64 << 10;

/// How much of the output a message has, in characters.
const SHOWN: usize = 600;

/// How often it is looked whether the command has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How long the rest of the output is waited for when the command has ended: a process that it has left may hold the pipe.
const REST: Duration = Duration::from_millis(500);

/// Runs a command in a process group of its own, with an empty environment and standard input. `program` is where the first
/// of the words was found. Returns the end of what it wrote to its output and its errors. A command that has not ended at its
/// limit is killed with its group, and waited for, however long the kernel takes for that.
///
/// # Errors
/// Why it did not succeed, with the end of its output, for people.
pub(super) fn run(program: &Path, words: &[String], limit: Duration) -> Result<String, String> {
    let (name, arguments) = words.split_first().ok_or("it is empty")?;
    let not_started = |error: std::io::Error| format!("{name} cannot be started: {error}");
    let (mut reader, writer) = std::io::pipe().map_err(not_started)?;
    let mut command = Command::new(program);
    // Some programs do what their name says.
    command.arg0(name).args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(not_started)?).stderr(writer);
    let mut child = command.spawn().map_err(not_started)?;
    // The pipe ends when no process has its other end.
    drop(command);
    let output = Arc::new(Mutex::new(Vec::new()));
    let (ended, end) = mpsc::channel::<()>();
    let kept = Arc::clone(&output);
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut part) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&part[..length]);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
        }
        drop(ended);
    });
    let until = Instant::now() + limit;
    let lost = |error: std::io::Error| format!("it cannot be waited for: {error}");
    let status = loop {
        match child.try_wait().map_err(lost)? {
            Some(status) => break Some(status),
            None if Instant::now() >= until => break None,
            None => std::thread::sleep(LOOK),
        }
    };
    if status.is_none() {
        // It may have ended in this moment; then there is nothing to kill.
        let _ = i32::try_from(child.id()).map(|id| killpg(Pid::from_raw(id), Signal::SIGKILL));
        child.wait().map_err(lost)?;
    }
    let _ = end.recv_timeout(REST);
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let output = String::from_utf8_lossy(&output).into_owned();
    match status {
        Some(status) if status.success() => Ok(output),
        status => Err(format!("{}; {}", outcome(status, limit), shown(&output))),
    }
}

fn outcome(status: Option<ExitStatus>, limit: Duration) -> String {
    match status {
        Some(status) => format!("it ended with {status}"),
        None => format!("it had not ended after {} s and was killed", limit.as_secs()),
    }
}

/// Returns the end of an output in one line that is safe to show.
fn shown(output: &str) -> String {
    let lines: Vec<_> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "it wrote nothing".into();
    }
    let whole = text::escape(&lines.join(" / ")).into_owned();
    let surplus = whole.chars().count().saturating_sub(SHOWN);
    let end: String = whole.chars().skip(surplus).collect();
    format!("the end of its output: {}{end}", if surplus > 0 { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, String> {
        run(Path::new("/bin/sh"), &["/bin/sh".into(), "-c".into(), script.into()], limit)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_end_of_the_output_of_a_command_that_fails_is_shown_in_one_safe_line() {
        assert_eq!(sh("echo a; echo b >&2", LONG).unwrap(), "a\nb\n");
        assert_eq!(sh("exit 2", LONG).unwrap_err(), "it ended with exit status: 2; it wrote nothing");
        let error = sh("printf 'one\\n\\033[2Jtwo\\n'; kill -9 $$", LONG).unwrap_err();
        assert!(error.contains("signal: 9") && error.contains("one / \\u{1b}[2Jtwo"), "{error}");
        let error =
            sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; false", LONG).unwrap_err();
        assert!(
            error.contains("output: …") && error.ends_with("/ line 2999") && error.len() < 800,
            "{error}"
        );
        let error = run(Path::new("/no/such/program"), &["/no/such/program".into()], LONG).unwrap_err();
        assert!(error.contains("/no/such/program cannot be started: No such file"), "{error}");
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_what_it_has_started() {
        let begun = Instant::now();
        let error = sh("echo begun; sleep 600 & sleep 600", Duration::from_millis(300)).unwrap_err();
        assert!(
            error.contains("it had not ended after 0 s and was killed; the end of its output: begun"),
            "{error}"
        );
        // What a command leaves in the background may keep its output open.
        assert_eq!(sh("setsid sleep 3 & echo done", LONG).unwrap(), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_command_has_nothing_of_the_environment() {
        assert_eq!(sh("echo $HOME $USER $CARGO; cat; pwd", LONG).unwrap(), "\n/\n");
    }
}
