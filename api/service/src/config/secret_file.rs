//! The path of a file that has a secret and nothing else.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::value::Secret;

/// The maximum size of the file, in bytes.
const MOST: u64 = 4096;

/// The path of a file that has a secret: an absolute path, or the name of a credential that systemd passes to the
/// service (`LoadCredential=`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile(String);

impl FromStr for SecretFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let absolute = text.starts_with('/');
        let name = !text.is_empty() && !text.contains('/') && text != "." && text != "..";
        if absolute || name {
            return Ok(Self(text.to_owned()));
        }
        Err("write an absolute path, or the name of a credential of systemd (LoadCredential=NAME:/path)"
            .into())
    }
}

impl<'de> Deserialize<'de> for SecretFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SecretFile {
    /// Returns the absolute path.
    ///
    /// # Errors
    /// systemd has passed no credentials.
    pub fn path(&self) -> Result<PathBuf, String> {
        if self.0.starts_with('/') {
            return Ok(PathBuf::from(&self.0));
        }
        let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
            return Err(format!(
                "`{self}` is the name of a credential, and systemd has passed none; write LoadCredential={self}:/path \
                 into the unit, or an absolute path here"
            ));
        };
        Ok(PathBuf::from(directory).join(&self.0))
    }

    /// Reads the secret, without the newline at its end.
    ///
    /// # Errors
    /// The file cannot be read, or it has no secret. The text does not quote the file.
    pub fn read(&self) -> Result<Secret, String> {
        let path = self.path()?;
        let unreadable = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let mut text = String::new();
        File::open(&path)
            .map_err(unreadable)?
            .take(MOST + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let secret = text.trim_end_matches(['\r', '\n']);
        match secret.len() {
            0 => Err(format!("{} is empty; write the secret into it", path.display())),
            length if length as u64 > MOST => Err(format!("{} has more than {MOST} bytes", path.display())),
            _ if secret.contains(['\r', '\n']) => {
                Err(format!("{} has several lines; write only the secret into it", path.display()))
            }
            _ => Ok(Secret(secret.to_owned())),
        }
    }

    /// Whether users other than the owner and the members of the file's group may read the file.
    pub fn is_open_to_all(&self) -> bool {
        self.path().is_ok_and(|path| path.metadata().is_ok_and(|file| file.mode() & 0o004 != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_and_errors_do_not_quote_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let file: SecretFile = path.to_str().unwrap().parse().unwrap();
        assert!(file.read().unwrap_err().contains("cannot read"));
        std::fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(file.read().unwrap().0, "s3cret");
        for (text, reason) in
            [("\n", "is empty"), ("s3cret\nmore\n", "several lines"), (&"s3cret".repeat(1000), "more than")]
        {
            std::fs::write(&path, text).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.contains(reason) && !error.contains("s3cret"), "{error}");
        }
        std::fs::write(&path, b"s3cret\xff").unwrap();
        assert!(!file.read().unwrap_err().contains("s3cret"));
    }

    #[test]
    fn a_relative_path_is_not_accepted() {
        for text in ["", ".", "..", "a/b", "./a"] {
            assert!(text.parse::<SecretFile>().is_err(), "{text}");
        }
        assert!("keystone-password".parse::<SecretFile>().is_ok());
    }
}
