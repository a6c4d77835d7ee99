//! The policy file: rules in the form of oslo.policy, YAML or JSON, which replace the default rules of who may do what.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hotslot_model::identity::policy::Problem;
use serde_saphyr::Spanned;

use super::ConfigError;

/// The maximum size of the file, in bytes.
const SIZE: u64 = 1 << 20;

/// The rules of a policy file.
#[derive(Debug, Default)]
pub struct PolicyFile {
    path: String,
    /// The rules, by name.
    pub rules: Vec<FileRule>,
}

/// A rule of a policy file.
#[derive(Debug, PartialEq, Eq)]
pub struct FileRule {
    /// The name.
    pub name: String,
    /// What the rule requires, as the file has it.
    pub requirement: String,
    /// The line of the requirement, from 1.
    pub line: usize,
}

impl PolicyFile {
    /// Reads a file. The rules in it are not checked.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or every user may write it, or is not a YAML map of names to texts.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let unread = |source| ConfigError::Read { path: name.clone(), source };
        let refuse = |line, reason| ConfigError::Syntax { path: name.clone(), line, reason };
        let found = fs::metadata(path).map_err(unread)?;
        let is_trusted = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
        if found.mode() & 0o022 != 0 || !is_trusted {
            let reason = "others may change who may do what; the file must belong to root or to the user of the service: \
                          run chmod go-w and chown root on the file";
            return Err(refuse(None, reason.to_owned()));
        }
        if found.len() > SIZE {
            let reason = "it has more than 1 MiB; a policy file has one line for each rule";
            return Err(refuse(None, reason.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(unread)?;
        let rules = Self::rules(&text).map_err(|(line, reason)| refuse(line, reason))?;
        Ok(Self { path: name, rules })
    }

    fn rules(text: &str) -> Result<Vec<FileRule>, (Option<usize>, String)> {
        let number = |line: u64| usize::try_from(line).ok();
        // A file with nothing but comments has no rules.
        let rules: Option<BTreeMap<String, Spanned<Option<String>>>> =
            serde_saphyr::from_str(text).map_err(|error| {
                let line = error.location().and_then(|location| number(location.line()));
                let reason = error.without_snippet().to_string().replace('\n', " ");
                (line, format!("{reason}; write each rule as NAME: \"REQUIREMENT\""))
            })?;
        let rule = |(name, requirement): (String, Spanned<Option<String>>)| {
            let line = number(requirement.referenced.line()).unwrap_or_default();
            match requirement.value {
                Some(requirement) => Ok(FileRule { name, requirement, line }),
                None => Err((
                    Some(line),
                    format!("{name} has no requirement; write \"@\" for everybody, or \"!\" for nobody"),
                )),
            }
        };
        rules.unwrap_or_default().into_iter().map(rule).collect()
    }

    /// Returns what is wrong with a rule as an error with the line of the file.
    pub(super) fn error(&self, problem: &Problem) -> ConfigError {
        let line = self.rules.iter().find(|rule| rule.name == problem.rule).map(|rule| rule.line);
        ConfigError::Syntax { path: self.path.clone(), line, reason: problem.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The name, the requirement and the line of each rule.
    type Rules = Vec<(String, String, usize)>;

    fn read(text: &str) -> Result<Rules, (Option<usize>, String)> {
        let rules = PolicyFile::rules(text)?;
        Ok(rules.into_iter().map(|rule| (rule.name, rule.requirement, rule.line)).collect())
    }

    #[test]
    fn rules_are_read_from_yaml_and_json_with_their_lines() {
        let rule = |name: &str, requirement: &str, line| (name.to_owned(), requirement.to_owned(), line);
        let yaml = "# rules\n\"a:b\": \"role:x or\n  role:y\"\nc: role:z\nd: \"\"\n";
        let expected = [rule("a:b", "role:x or role:y", 2), rule("c", "role:z", 4), rule("d", "", 5)];
        assert_eq!(read(yaml).unwrap(), expected);
        let json = "{\n  \"a:b\": \"@\",\n  \"c\": \"!\"\n}\n";
        assert_eq!(read(json).unwrap(), [rule("a:b", "@", 2), rule("c", "!", 3)]);
        for nothing in ["", "# only comments\n", "---\n", "{}"] {
            assert_eq!(read(nothing).unwrap(), [], "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_map_of_texts_is_refused_with_its_line() {
        for (text, line) in [
            ("a: role:x\na: role:y\n", Some(2)),
            ("a: role:x\nb:\n", Some(2)),
            ("a: role:x\nb: [[\"role:y\"]]\n", Some(2)),
            ("a: role:x\nb: {c: d}\n", Some(2)),
            ("- a\n", Some(1)),
            ("a", Some(1)),
            ("a: \"role:x\n", None),
            ("a: @\n", Some(1)),
        ] {
            let (found, reason) = read(text).unwrap_err();
            assert!(line.is_none() || found == line, "{text:?}: {found:?}: {reason}");
            assert!(!reason.contains('\n') && reason.contains("write"), "{text:?}: {reason}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in "[\\-a-c:\\[\\]{}\"'&*!@|> \n]{0,80}|.{0,80}") {
            let _ = read(&text);
        }
    }
}
