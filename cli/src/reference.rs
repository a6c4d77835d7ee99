//! docs/reference/commands.md: the help of every command, as `hotslot help COMMAND` prints it. `HOTSLOT_RECORD=1 cargo test
//! -p hotslot reference::` writes it.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::{Arguments, exit};

const HEAD: &str = "\
# Commands

This is what `hotslot help` and `hotslot help COMMAND` print. The manual pages (`man hotslot-attach`) have the same text. The
options of the first section are options of every command. [How to](../how-to.md) shows the commands with their outputs.

<!-- Made from cli/src by `HOTSLOT_RECORD=1 cargo test -p hotslot reference::`. -->
";

/// Appends the help of a command and of those below it. Only the first one has the options that every command has.
fn write(text: &mut String, command: &Command, is_first: bool) {
    let mut shown = command.clone().term_width(110).mut_args(|argument| {
        let is_common = argument.is_global_set() || argument.get_id() == "help";
        let argument = argument.hide_env_values(true);
        if is_common && !is_first { argument.hide(true) } else { argument }
    });
    if is_first {
        shown = shown.after_help("");
    }
    let help = shown.render_long_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    let below =
        command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    below.for_each(|command| write(text, command, false));
}

/// Returns the help of all commands.
fn help() -> String {
    let (mut text, mut command) = (String::new(), Arguments::command());
    command.build();
    write(&mut text, &command, true);
    text
}

#[test]
fn the_reference_of_the_commands_is_true() {
    let mut text = HEAD.to_owned() + &help();
    let _ = write!(text, "\n## Exit codes\n\n```text\n{}\n```\n", exit::HELP);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/commands.md");
    if std::env::var_os("HOTSLOT_RECORD").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(
        written == text,
        "docs/reference/commands.md is not what the commands say; HOTSLOT_RECORD=1 writes it anew"
    );
}

/// The help says server for a domain of libvirt, and guest for what runs in it.
#[test]
fn the_help_uses_the_words_of_the_api() {
    let text = help().to_lowercase();
    for word in [
        "the guest: its",
        "this guest:",
        "to a guest",
        "from a guest",
        "instance",
        "eligible",
        "give away",
        " vm ",
    ] {
        let line = text.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "`{word}` has another name in hotslot");
    }
}
