//! hotslot's own tokens: a file with the name, the hash, the rights and the expiry of each.
//!
//! A token is `hst_` and 64 hexadecimal digits of 256 random bits. The file has only its SHA-256; because a token is
//! random, a slow hash would protect nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hotslot_driver::text::visible;
use hotslot_model::identity::{Caller, User, Via};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::unidentified::Unidentified;
use crate::config::{is_plain_name, known_role};
use crate::hex::hex;
use crate::stamp::Stamp;

/// The beginning of every token, by which programs that search for leaked secrets find it.
const PREFIX: &str = "hst_";

/// Whether a token has the form of hotslot's own tokens.
pub(super) fn is_own(token: &str) -> bool {
    token.starts_with(PREFIX)
}

/// How often the file is checked for changes.
pub(super) const CHECK: Duration = Duration::from_secs(1);

/// How long a command waits for another one that changes the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// The maximum size of the file, in bytes.
const SIZE: u64 = 4 << 20;

/// A token, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name: 1 to 64 letters, digits, `-`, `_` or `.`; unique among the tokens.
    pub name: String,
    /// The SHA-256 of the token, as 64 lower-case hexadecimal digits.
    pub hash: String,
    /// The roles.
    pub roles: BTreeSet<String>,
    /// The id of the project; `None` for the whole system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// When the token expires; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When the token was made.
    pub created: Timestamp,
}

impl Token {
    /// Whether the token has expired.
    pub fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Timestamp::now())
    }

    fn check(&self) -> Result<(), String> {
        if !is_plain_name(&self.name) {
            return Err("the name of a token must be 1 to 64 letters, digits, `-`, `_` or `.`".to_owned());
        }
        let of_token = |reason: String| format!("token {}: {reason}", self.name);
        if self.hash.len() != 64 || !self.hash.chars().all(|digit| "0123456789abcdef".contains(digit)) {
            return Err(of_token("the hash must be 64 lower-case hexadecimal digits".to_owned()));
        }
        if self.roles.is_empty() {
            return Err(of_token("it has no role".to_owned()));
        }
        if self.project.as_ref().is_some_and(|project| project.trim().is_empty()) {
            return Err(of_token("the project is empty; omit it for the whole system".to_owned()));
        }
        if let Some(project) = &self.project {
            visible(project).map_err(|reason| of_token(format!("the project {reason}")))?;
        }
        self.roles.iter().try_for_each(|role| known_role(role).map_err(of_token))
    }
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    token: Vec<Token>,
}

/// The tokens cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// An error of the operating system.
    #[error("{path}: {cause}")]
    Io {
        /// The path of the file.
        path: String,
        /// The error.
        cause: io::Error,
    },
    /// There is no token of this name.
    #[error("there is no token {0}; `hotslot token list` lists them")]
    Unknown(String),
    /// There is a token of this name already.
    #[error("there is a token {0} already; revoke it first, or take another name")]
    Taken(String),
    /// The file or the request is wrong. The text says how; it has no hash and no token.
    #[error("{0}")]
    Wrong(String),
    /// Others than root and the service may have read or changed the file, so that it admits nobody.
    #[error("{0}")]
    Exposed(String),
}

/// Reads and checks a file of tokens. A missing file has none.
pub(crate) fn load(path: &Path) -> Result<Vec<Token>, TokensError> {
    let failed = |cause| TokensError::Io { path: path.display().to_string(), cause };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let found = file.metadata().map_err(failed)?;
    let wrong = |reason: &str| TokensError::Wrong(format!("{}: {reason}", path.display()));
    let exposed = |reason: &str| TokensError::Exposed(format!("{}: {reason}", path.display()));
    if found.mode() & 0o077 != 0 {
        return Err(exposed("other users may read or change the file; run `chmod 0600` on it"));
    }
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(exposed("the file belongs neither to root nor to the user of the service"));
    }
    let mut text = String::new();
    file.take(SIZE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > SIZE {
        return Err(wrong("the file has more than 4 MiB"));
    }
    // The message of the parser would quote the line, which has a hash.
    let contents: Contents = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        wrong(&format!("line {line} is not as `hotslot token create` writes it"))
    })?;
    let mut names = BTreeSet::new();
    for token in &contents.token {
        token.check().map_err(|reason| wrong(&reason))?;
        if !names.insert(&token.name) {
            return Err(wrong(&format!("two tokens are called {}", token.name)));
        }
    }
    Ok(contents.token)
}

/// The tokens in memory, with the version of the file from which they were read.
struct Read {
    checked: Instant,
    stamp: Option<Stamp>,
    tokens: Result<Vec<Token>, String>,
    /// Why the present file is not used; the tokens are then those of the last one that could be.
    outdated: Option<String>,
}

impl Read {
    /// Reads the file. When it has mistakes or cannot be read, the tokens that were read before stay valid: who repairs
    /// it must be able to connect. One that others could change admits nobody.
    fn new(path: &Path, before: Option<Self>) -> Self {
        let (checked, stamp) = (Instant::now(), Stamp::of(path).ok());
        let error = match load(path) {
            Ok(tokens) => return Self { checked, stamp, tokens: Ok(tokens), outdated: None },
            Err(error) => error,
        };
        let reason = error.to_string();
        let known = before.as_ref().is_some_and(|before| {
            before.outdated.as_ref() == Some(&reason) || before.tokens.as_ref().err() == Some(&reason)
        });
        let kept = before.and_then(|before| before.tokens.ok());
        match kept.filter(|_| !matches!(error, TokensError::Exposed(_))) {
            Some(tokens) => {
                if !known {
                    tracing::error!("the tokens that were read before stay valid, because {reason}");
                }
                Self { checked, stamp, tokens: Ok(tokens), outdated: Some(reason) }
            }
            None => {
                if !known {
                    tracing::error!("no token is accepted: {reason}");
                }
                Self { checked, stamp, tokens: Err(reason), outdated: None }
            }
        }
    }
}

/// The tokens of a running service.
pub(super) struct Tokens {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

impl Tokens {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    /// Checks that the file can be used.
    ///
    /// # Errors
    /// Returns what is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        self.with(CHECK, |tokens| tokens.map(drop).map_err(ToOwned::to_owned))
    }

    /// Returns why the present file is not used, when the tokens are those of an earlier one.
    pub(super) fn outdated(&self) -> Option<String> {
        self.with(CHECK, |_| ());
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.as_ref().and_then(|read| read.outdated.clone())
    }

    /// Returns the caller of a token. A token that was just made is known at once.
    pub(super) fn caller(&self, token: &str) -> Result<Caller, Unidentified> {
        let find = |age| self.with(age, |tokens| caller(tokens.map_err(|_| unusable())?, token));
        match find(CHECK) {
            Err(Unidentified::Unknown(_)) => find(Duration::ZERO),
            found => found,
        }
    }

    /// Uses the tokens, or the reason for which there are none. The file is read again when it has changed, which is
    /// checked when the last check is older than `age`.
    fn with<T>(&self, age: Duration, act: impl FnOnce(Result<&[Token], &str>) -> T) -> T {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = || Stamp::of(&self.path).ok();
        let now = match read.take() {
            Some(before) if before.checked.elapsed() < age => before,
            Some(before) if before.tokens.is_ok() && before.outdated.is_none() && before.stamp == stamp() => {
                Read { checked: Instant::now(), ..before }
            }
            before => Read::new(&self.path, before),
        };
        let now = read.insert(now);
        act(now.tokens.as_deref().map_err(String::as_str))
    }
}

/// Returns the caller of a token.
fn caller(tokens: &[Token], token: &str) -> Result<Caller, Unidentified> {
    let hash = hex(Sha256::digest(token.as_bytes()));
    // All hashes are compared, so that the time does not tell which one is like this.
    let mut found = None;
    for known in tokens {
        let same: Choice = known.hash.as_bytes().ct_eq(hash.as_bytes());
        if bool::from(same) {
            found = Some(known);
        }
    }
    let unknown = |reason: &str| Unidentified::Unknown(reason.to_owned());
    let found = found.ok_or_else(|| unknown("the token is not valid, or has been revoked; ask an administrator for another one (`hotslot token create`)"))?;
    if found.has_expired() {
        return Err(unknown(
            "the token has expired; ask an administrator for a new one (`hotslot token create`)",
        ));
    }
    let user = User { id: found.name.clone(), name: found.name.clone() };
    let via = Via::Token(found.name.clone());
    Ok(Caller::with_roles(Some(user), found.roles.clone(), found.project.clone(), via))
}

fn unusable() -> Unidentified {
    Unidentified::Away(
        "the file of the tokens cannot be used, so no token is accepted; the log of the service has the cause".to_owned(),
    )
}

/// A file of tokens that a command changes. Only one command changes it at a time.
pub struct TokenFile {
    path: PathBuf,
    /// The file whose owner a new file of tokens gets.
    like: Option<PathBuf>,
    /// The tokens.
    pub tokens: Vec<Token>,
    _turn: Flock<File>,
}

impl TokenFile {
    /// Locks and reads a file. A missing file has no tokens.
    ///
    /// # Errors
    /// [`TokensError`] when the file cannot be read, or its directory cannot be written.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let failed = |cause: io::Error| TokensError::Io { path: path.display().to_string(), cause };
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        // Whoever can open this file can lock it, so nobody else may.
        let mut options = File::options();
        let file =
            options.create(true).truncate(false).write(true).mode(0o600).open(&lock).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        let (start, mut file) = (Instant::now(), file);
        let turn = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(turn) => break turn,
                Err((held, Errno::EWOULDBLOCK)) if start.elapsed() < PATIENCE => file = held,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(TokensError::Wrong(format!(
                        "another program has held the lock {} for {} s; end it (`fuser {0}` shows it) and try again",
                        lock.display(),
                        PATIENCE.as_secs()
                    )));
                }
                Err((_, error)) => return Err(failed(error.into())),
            }
            std::thread::sleep(CHECK / 20);
        };
        Ok(Self { path: path.to_owned(), like: None, tokens: load(path)?, _turn: turn })
    }

    /// A file that does not exist yet gets the owner of `like`, such as the database of the service, when root makes it.
    #[must_use]
    pub fn owned_like(self, like: Option<PathBuf>) -> Self {
        Self { like, ..self }
    }

    /// Makes a token that is valid from now on, and returns its text, which is nowhere on record.
    ///
    /// # Errors
    /// [`TokensError`] when the name is taken or not valid, a role is unknown, or the file cannot be written.
    pub fn create(
        &mut self,
        name: &str,
        roles: BTreeSet<String>,
        project: Option<String>,
        expires: Option<Duration>,
    ) -> Result<String, TokensError> {
        if self.tokens.iter().any(|token| token.name == name) {
            return Err(TokensError::Taken(name.to_owned()));
        }
        let mut bits = [0; 32];
        let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bits));
        random.map_err(|cause| TokensError::Io { path: "/dev/urandom".into(), cause })?;
        let text = format!("{PREFIX}{}", hex(bits));
        let created = Timestamp::now();
        let expires = expires.map(|after| created.checked_add(after)).transpose();
        let expires =
            expires.map_err(|_| TokensError::Wrong("the token would expire too late".to_owned()))?;
        let hash = hex(Sha256::digest(text.as_bytes()));
        let token = Token { name: name.to_owned(), hash, roles, project, expires, created };
        token.check().map_err(TokensError::Wrong)?;
        self.tokens.push(token);
        self.write()?;
        Ok(text)
    }

    /// Removes a token. A running service refuses it after at most a second.
    ///
    /// # Errors
    /// [`TokensError`] when there is no such token, or the file cannot be written.
    pub fn revoke(&mut self, name: &str) -> Result<(), TokensError> {
        let before = self.tokens.len();
        self.tokens.retain(|token| token.name != name);
        if self.tokens.len() == before {
            return Err(TokensError::Unknown(name.to_owned()));
        }
        self.write()
    }

    /// Replaces the file at once. It keeps its owner, or gets that of [`Self::owned_like`].
    fn write(&self) -> Result<(), TokensError> {
        let failed = |cause: io::Error| TokensError::Io { path: self.path.display().to_string(), cause };
        let contents = Contents { token: self.tokens.clone() };
        let text = toml::to_string(&contents).map_err(|error| TokensError::Wrong(error.to_string()))?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let replace = || {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(&beside)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            let like = self.like.as_deref().filter(|_| geteuid().is_root());
            let old = fs::metadata(&self.path).ok().or_else(|| fs::metadata(like?).ok());
            if let Some(old) = old
                && (old.uid(), old.gid()) != (file.metadata()?.uid(), file.metadata()?.gid())
            {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)?;
            File::open(directory)?.sync_all()
        };
        replace().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_token_is_accepted_until_it_is_revoked_or_has_expired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let mut file = TokenFile::open(&path).unwrap();
        let text = file.create("ci", roles(&["member"]), Some("p".into()), None).unwrap();
        let short = file.create("short", roles(&["admin"]), None, Some(Duration::from_millis(1))).unwrap();
        assert!(text.starts_with("hst_") && text.len() == 68);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains(&text[4..]), "only the hash is on record");
        for (name, role) in [("ci", "reader"), ("a b", "reader"), ("", "reader"), ("x", "root")] {
            assert!(file.create(name, roles(&[role]), None, None).is_err(), "{name} {role}");
        }
        drop(file);
        let tokens = Tokens::new(path.clone());
        let caller = tokens.caller(&text).unwrap();
        assert_eq!(
            (caller.describe(), caller.has_role("reader"), caller.is_admin()),
            ("token ci of project p".to_owned(), true, false)
        );
        std::thread::sleep(Duration::from_millis(5));
        assert!(tokens.caller(&short).unwrap_err().to_string().contains("expired"));
        for bad in ["", "hst_", &text[..67], &text[4..], &text.to_ascii_uppercase()] {
            assert!(matches!(tokens.caller(bad), Err(Unidentified::Unknown(_))), "{bad}");
        }
        TokenFile::open(&path).unwrap().revoke("ci").unwrap();
        assert!(TokenFile::open(&path).unwrap().revoke("ci").is_err());
        std::thread::sleep(CHECK + Duration::from_millis(50));
        assert!(tokens.caller(&text).is_err(), "the file was read again");
    }

    #[test]
    fn a_new_file_belongs_to_the_user_of_the_service() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, database) = (dir.path().join("tokens"), dir.path().join("hotslot.db"));
        fs::write(&database, "").unwrap();
        std::os::unix::fs::chown(&database, Some(4711), Some(4712)).unwrap();
        let mut file = TokenFile::open(&path).unwrap().owned_like(Some(database));
        file.create("ci", roles(&["reader"]), None, None).unwrap();
        let owner = || fs::metadata(&path).map(|made| (made.uid(), made.gid(), made.mode() & 0o777)).unwrap();
        assert_eq!(owner(), (4711, 4712, 0o600));
        std::os::unix::fs::chown(&path, Some(4713), Some(4712)).unwrap();
        file.revoke("ci").unwrap();
        assert_eq!(owner(), (4713, 4712, 0o600), "an existing file keeps its owner");
    }

    #[test]
    fn a_file_that_cannot_be_trusted_admits_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let text = TokenFile::open(&path).unwrap().create("ci", roles(&["admin"]), None, None).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let refused = || {
            let refused = Tokens::new(path.clone()).caller(&text).unwrap_err();
            assert!(matches!(refused, Unidentified::Away(_)), "{refused}");
            load(&path).unwrap_err().to_string()
        };
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(refused().contains("chmod 0600"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let hash = good.split_once("hash = \"").unwrap().1[..64].to_owned();
        for bad in [
            format!("{good}{good}"),
            good.replace("admin", "root"),
            good.replace(&hash, &hash[1..]),
            good.replace("[[token]]", "[[tokens]]"),
            format!("{good}\nhash = {hash}"),
        ] {
            fs::write(&path, &bad).unwrap();
            let message = refused();
            assert!(!message.contains(&hash[1..]), "{message}");
        }
        fs::write(&path, &good).unwrap();
        let tokens = Tokens::new(path.clone());
        assert!(tokens.caller(&text).unwrap().is_admin());
        // A running service goes on with the tokens that it has read, unless the file is gone or was exposed.
        let now = |change: &dyn Fn()| {
            change();
            tokens.with(Duration::ZERO, |_| ());
            (tokens.caller(&text).is_ok(), tokens.outdated().is_some())
        };
        let mode = |bits| fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
        assert_eq!(now(&|| fs::write(&path, "garbage = [").unwrap()), (true, true));
        assert_eq!(now(&|| fs::write(&path, "token = 3").unwrap()), (true, true));
        assert_eq!(now(&|| fs::write(&path, &good).unwrap()), (true, false));
        assert_eq!(now(&|| mode(0o604)), (false, false));
        assert_eq!(now(&|| mode(0o600)), (true, false));
        assert_eq!(now(&|| fs::remove_file(&path).unwrap()), (false, false));
    }
}
