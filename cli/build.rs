//! Puts the commit that is built, with its day, into the program as `HOTSLOT_BUILD`, for `hotslot version`. Both are those
//! of the sources, so that the same sources give the same program.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HOTSLOT_BUILD");
    println!("cargo:rustc-env=HOTSLOT_BUILD={}", build());
}

/// The variable of this name where the sources have no history; else the commit. A build for development does not follow
/// the commits, because each of them would have it built again.
fn build() -> String {
    if let Some(build) = std::env::var("HOTSLOT_BUILD").ok().filter(|build| !build.is_empty()) {
        return build;
    }
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "for development".to_owned();
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    // The directory may be in a repository of something else.
    let commit = git(&["ls-files", "--error-unmatch", "build.rs"])
        .and_then(|_| git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]));
    match (commit, git(&["log", "-1", "--format=%cs"])) {
        (Some(commit), Some(day)) => format!("{commit} of {day}"),
        _ => "unknown".to_owned(),
    }
}

/// The output of git, if it ends well.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
