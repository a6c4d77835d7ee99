//! Hooks: commands of the administrator that run on a host itself, as root, when a function of some class is about to be
//! taken from its host driver ([`When::Drain`]), or before its next owner may have it ([`When::Scrub`]).
//!
//! They are in a file of the host that only root can write ([`FILE`]). The service reads it to know which classes have
//! hooks. Whoever runs them ([`local::run_hook`](crate::local::run_hook)) reads it again, so that nobody else chooses a
//! command. NVMe controllers have a scrub without any file: all their namespaces are formatted with `nvme format`.

mod command;
mod nvme;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::pci::{PciAddress, PciClass};
use crate::text;

/// The file of the hooks, below the root directory of the host.
pub const FILE: &str = "etc/hotslot/hooks.toml";

/// Why no hook of a host runs that is or may be another machine.
pub const OF_ANOTHER_MACHINE: &str =
    "the host is another machine, and hooks run only where the service runs; run a service of hotslot on it";

/// The longest time limit of a hook, in seconds: a day.
const LONGEST: u64 = 86_400;

/// The placeholder in a command for the address of the function.
const ADDRESS: &str = "{address}";

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Before a function is taken from its host driver.
    Drain,
    /// After a use, before the next owner may have the function.
    Scrub,
}

impl When {
    /// The time limit of a hook that names none.
    fn usual_limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Drain => 30,
            Self::Scrub => 3600,
        })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "drain",
            Self::Scrub => "scrub",
        })
    }
}

/// The hooks of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    hook: Vec<Hook>,
}

/// `[[hook]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hook {
    /// A class of PCI functions, such as `display controller`.
    class: String,
    when: When,
    /// An absolute path and arguments, in which `{address}` stands for the address of the function.
    command: Vec<String>,
    /// In seconds.
    timeout: Option<u64>,
}

/// What runs for a function at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    name: String,
    limit: Duration,
    work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    Command(Vec<String>),
    FormatNvme,
}

impl Hooks {
    /// Reads a file of hooks. Without the file there are none.
    ///
    /// # Errors
    /// What is wrong with the file and what would be right, for people. A file that others than root, or than the user
    /// of this process, own or can write is wrong too.
    pub fn read(path: &Path) -> Result<Self, String> {
        let wrong = |reason: String| format!("{}: {reason}", path.display());
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            file => file.map_err(|error| wrong(error.to_string()))?,
        };
        // The file that is read, also when another one gets its name meanwhile.
        let metadata = file.metadata().map_err(|error| wrong(error.to_string()))?;
        expect_private(&metadata).map_err(|reason| wrong(format!("{reason}, and hooks run as root")))?;
        let mut content = String::new();
        file.read_to_string(&mut content).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&content).map_err(wrong)
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// What is wrong and what would be right, for people.
    pub fn parse(content: &str) -> Result<Self, String> {
        let hooks: Self = toml::from_str(content).map_err(|error| {
            let line = error.span().map(|span| content[..span.start].matches('\n').count() + 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{line}{}", text::escape(error.message()))
        })?;
        let classes = PciClass::descriptions();
        let mut seen = BTreeSet::new();
        for (index, hook) in hooks.hook.iter().enumerate() {
            let wrong = |key: &str, reason: String| Err(format!("[[hook]][{index}] {key}: {reason}"));
            let (class, when) = (text::escape(&hook.class), hook.when);
            if !classes.contains(hook.class.as_str()) {
                let known = classes.iter().copied().collect::<Vec<_>>().join(", ");
                return wrong("class", format!("`{class}` is not a class; write one of {known}"));
            }
            if !seen.insert((hook.class.as_str(), when)) {
                return wrong(
                    "class",
                    format!("`{class}` has another {when} hook; write one command for both"),
                );
            }
            match hook.command.first() {
                Some(path) if path.starts_with('/') => {}
                Some(path) => {
                    let path = text::escape(path);
                    return wrong(
                        "command",
                        format!("`{path}` is not an absolute path; write [\"/usr/…\", …]"),
                    );
                }
                None => return wrong("command", "it is empty; write [\"/usr/…\", …]".into()),
            }
            if hook.timeout.is_some_and(|seconds| !(1..=LONGEST).contains(&seconds)) {
                return wrong("timeout", format!("write a number of seconds from 1 to {LONGEST}"));
            }
        }
        Ok(hooks)
    }

    /// Returns what runs for a function of a class; `None` when nothing does.
    pub fn step(&self, when: When, class: Option<PciClass>) -> Option<Step> {
        let class = class?;
        let description = class.description();
        let hook = self.hook.iter().find(|hook| hook.when == when && hook.class == description);
        match hook {
            Some(hook) => Some(Step {
                name: format!(
                    "the {when} hook of class `{description}` ({})",
                    hook.command.first().map(|path| text::escape(path)).unwrap_or_default()
                ),
                limit: hook.timeout.map_or(when.usual_limit(), Duration::from_secs),
                work: Work::Command(hook.command.clone()),
            }),
            None if when == When::Scrub && class.is_nvme() => Some(Step {
                name: "the built-in scrub of NVMe controllers (nvme format)".into(),
                limit: when.usual_limit(),
                work: Work::FormatNvme,
            }),
            None => None,
        }
    }
}

impl Step {
    /// What runs, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time after which it is killed.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the administrator has written it.
    pub fn is_configured(&self) -> bool {
        matches!(self.work, Work::Command(_))
    }

    /// Whether it needs a function that is bound to its host driver.
    pub fn needs_driver(&self) -> bool {
        self.work == Work::FormatNvme
    }

    /// Returns why it cannot run for a function with this driver, and what to do; `None` when it can.
    pub(crate) fn unsuited(&self, address: PciAddress, driver: Option<&str>) -> Option<String> {
        let has =
            driver.map_or("no driver".to_owned(), |driver| format!("the driver {}", text::escape(driver)));
        (self.work == Work::FormatNvme && driver != Some("nvme")).then(|| {
            format!(
                "{address} has {has}, and formatting its namespaces needs the driver nvme; bind that (virsh \
                 nodedev-reattach {})",
                address.node_name()
            )
        })
    }

    /// Runs it. `controllers` are the NVMe controllers that the kernel made of the function (`nvme0`).
    ///
    /// # Errors
    /// Why it did not succeed, with the end of its output, for people.
    pub(crate) fn run(&self, address: PciAddress, controllers: &[String]) -> Result<(), String> {
        match &self.work {
            Work::Command(words) => {
                let program = private_program(words.first().map(Path::new).unwrap_or(Path::new("")))?;
                let address = address.to_string();
                let words: Vec<_> = words.iter().map(|word| word.replace(ADDRESS, &address)).collect();
                command::run(&program, &words, self.limit).map(drop)
            }
            Work::FormatNvme => nvme::format(controllers, self.limit, nvme::PROGRAM),
        }
    }
}

/// Returns the path of a program without symbolic links, when only root, or the user of this process, can change the program
/// or put another one in its place.
fn private_program(program: &Path) -> Result<PathBuf, String> {
    let at = |path: &Path, reason: String| format!("{}: {reason}", path.display());
    let real = fs::canonicalize(program).map_err(|error| at(program, error.to_string()))?;
    for path in real.ancestors().chain(program.ancestors()) {
        let metadata = fs::metadata(path).map_err(|error| at(path, error.to_string()))?;
        expect_private(&metadata).map_err(|reason| at(path, reason))?;
    }
    Ok(real)
}

/// Checks that only root, or the user of this process, can change a file, or replace the files in a directory. In a directory
/// with the sticky bit, such as `/tmp`, nobody can replace the files of others.
fn expect_private(metadata: &Metadata) -> Result<(), String> {
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!("it belongs to user {owner}; give it to root (chown root)"));
    }
    let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    if metadata.mode() & 0o022 != 0 && !is_sticky {
        return Err("others than its owner can write it; take that away (chmod go-w)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NVME: &str = "0000:08:00.0";

    fn class(code: u32) -> Option<PciClass> {
        Some(PciClass::new(code).unwrap())
    }

    #[test]
    fn hooks_are_found_by_class_and_moment() {
        let hooks = Hooks::parse(
            "[[hook]]\nclass = \"display controller\"\nwhen = \"drain\"\ncommand = [\"/bin/a\", \"{address}\"]\n\
             [[hook]]\nclass = \"display controller\"\nwhen = \"scrub\"\ncommand = [\"/bin/b\"]\ntimeout = 5\n",
        )
        .unwrap();
        let drain = hooks.step(When::Drain, class(0x03_0200)).unwrap();
        assert_eq!(
            (drain.name(), drain.limit().as_secs(), drain.is_configured()),
            ("the drain hook of class `display controller` (/bin/a)", 30, true)
        );
        assert_eq!(hooks.step(When::Scrub, class(0x03_0000)).unwrap().limit().as_secs(), 5);
        assert_eq!(hooks.step(When::Drain, class(0x01_0802)), None);
        assert_eq!(hooks.step(When::Scrub, class(0x01_0601)), None, "SATA has no scrub of its own");
        assert_eq!(hooks.step(When::Scrub, None), None);
        let built_in = hooks.step(When::Scrub, class(0x01_0802)).unwrap();
        assert!(!built_in.is_configured() && built_in.needs_driver());
        let unsuited = built_in.unsuited(NVME.parse().unwrap(), Some("vfio-pci")).unwrap();
        assert!(unsuited.contains("virsh nodedev-reattach pci_0000_08_00_0"), "{unsuited}");
        assert_eq!(built_in.unsuited(NVME.parse().unwrap(), Some("nvme")), None);
    }

    #[test]
    fn what_is_wrong_with_a_hook_is_named() {
        let hook = "[[hook]]\nclass = \"NVMe controller\"\nwhen = \"scrub\"\ncommand = [\"/bin/true\"]\n";
        for (text, says) in [
            (
                hook.replace("NVMe controller", "disk"),
                "`disk` is not a class; write one of InfiniBand controller",
            ),
            (hook.replace("\"scrub\"", "\"later\""), "line 3: unknown variant `later`"),
            (hook.replace("/bin/true", "true"), "`true` is not an absolute path"),
            (hook.replace("\"/bin/true\"", ""), "it is empty"),
            (format!("{hook}timeout = 0\n"), "from 1 to 86400"),
            (format!("{hook}{hook}"), "has another scrub hook"),
            (format!("{hook}shell = true\n"), "unknown field `shell`"),
            (hook.replace("[[hook]]", "[[hooks]]"), "unknown field `hooks`"),
        ] {
            let error = Hooks::parse(&text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_file_or_program_that_others_can_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hooks.toml");
        assert_eq!(Hooks::read(&file), Ok(Hooks::default()));
        let program = dir.path().join("scrub");
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        fs::write(&program, "#!/bin/sh\necho \"scrubs $1\"; exit 3\n").unwrap();
        fs::write(
            &file,
            format!(
                "[[hook]]\nclass = \"NVMe controller\"\nwhen = \"scrub\"\ncommand = [\"{}\", \"{{address}}\"]\n",
                program.display()
            ),
        )
        .unwrap();
        mode(&file, 0o666);
        let error = Hooks::read(&file).unwrap_err();
        assert!(error.contains("chmod go-w"), "{error}");
        mode(&file, 0o644);
        let step = Hooks::read(&file).unwrap().step(When::Scrub, class(0x01_0802)).unwrap();
        mode(&program, 0o777);
        let error = step.run(NVME.parse().unwrap(), &[]).unwrap_err();
        assert!(error.contains("chmod go-w"), "{error}");
        mode(&program, 0o755);
        // Whoever can write the directory can put another program there.
        for open in [0o777, 0o770] {
            mode(dir.path(), open);
            let error = step.run(NVME.parse().unwrap(), &[]).unwrap_err();
            let says = format!("{}: others than its owner can write it", dir.path().display());
            assert!(error.contains(&says), "{error}");
        }
        mode(dir.path(), 0o755);
        let error = step.run(NVME.parse().unwrap(), &[]).unwrap_err();
        assert_eq!(error, "it ended with exit status: 3; the end of its output: scrubs 0000:08:00.0");
    }
}
