//! Local users, whom the kernel identifies at the unix socket.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hotslot_model::identity::{Caller, Role, User as Who, Via};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use super::unidentified::Unidentified;
use crate::config::Local;

/// How long the name and the groups of a user are kept. The user database may be a slow directory service.
const KEPT: Duration = Duration::from_secs(5);

/// The maximum number of users that are kept.
const MOST: usize = 1024;

/// The entry of a user in the user database.
#[derive(Debug, Clone, Default)]
struct Account {
    /// The name; `None` for a user that the database does not have.
    name: Option<String>,
    /// The groups, with their names where they have one.
    groups: Vec<(u32, Option<String>)>,
}

impl Account {
    /// Reads the user database.
    fn read(uid: u32, gid: u32) -> Self {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let mut groups = vec![Gid::from_raw(gid)];
        if let Some(user) = &user
            && let Ok(name) = CString::new(user.name.as_str())
        {
            groups.extend(getgrouplist(&name, user.gid).unwrap_or_default());
        }
        groups.sort_by_key(|gid| gid.as_raw());
        groups.dedup();
        let name = |gid: Gid| Group::from_gid(gid).ok().flatten().map(|group| group.name);
        let groups = groups.into_iter().map(|gid| (gid.as_raw(), name(gid))).collect();
        Self { name: user.map(|user| user.name), groups }
    }

    /// Whether an entry applies to the user.
    fn matches(&self, entry: &Local, uid: u32) -> bool {
        match (&entry.user, &entry.group) {
            (Some(user), _) => user.is(uid, self.name.as_deref()),
            (None, Some(group)) => self.groups.iter().any(|(gid, name)| group.is(*gid, name.as_deref())),
            (None, None) => false,
        }
    }
}

/// The rights of local users.
pub(super) struct Locals {
    entries: Vec<Local>,
    own: u32,
    accounts: Mutex<HashMap<(u32, u32), (Instant, Account)>>,
}

impl Locals {
    pub(super) fn new(entries: Vec<Local>) -> Self {
        Self { entries, own: geteuid().as_raw(), accounts: Mutex::default() }
    }

    /// Whether everybody who may connect is an administrator.
    pub(super) fn admit_all(&self) -> bool {
        self.entries.is_empty()
    }

    async fn account(&self, uid: u32, gid: u32) -> Account {
        let lock = || self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, account)) = lock().get(&(uid, gid))
            && read.elapsed() < KEPT
        {
            return account.clone();
        }
        let read = tokio::task::spawn_blocking(move || Account::read(uid, gid)).await;
        // Without an answer of the database the user has no name and no groups, and so no right but by number.
        let account = read.unwrap_or_default();
        let mut accounts = lock();
        accounts.retain(|_, (read, _)| read.elapsed() < KEPT);
        if accounts.len() < MOST {
            accounts.insert((uid, gid), (Instant::now(), account.clone()));
        }
        account
    }

    /// Returns the caller with a user and a group. Root and the service's own user are administrators. Without any
    /// entries everybody is who may connect: then the mode and the group of the socket are the right.
    pub(super) async fn caller(&self, uid: u32, gid: u32, pid: Option<i32>) -> Result<Caller, Unidentified> {
        let account = self.account(uid, gid).await;
        let via = Via::Socket { uid, gid, pid };
        let id = uid.to_string();
        let user = Who { name: account.name.clone().unwrap_or_else(|| id.clone()), id };
        if uid == 0 || uid == self.own || self.entries.is_empty() {
            return Ok(Caller::with_role(user, Role::Admin.as_str(), None, via));
        }
        match self.entries.iter().find(|entry| account.matches(entry, uid)) {
            Some(entry) => Ok(Caller::with_role(user, &entry.role, entry.project.clone(), via)),
            None => Err(Unidentified::Refused(format!(
                "no [[identity.local]] of the configuration applies to user {} (uid {uid}); to admit the user, add an \
                 entry such as: user = {:?}, role = \"reader\"",
                user.name, user.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    async fn caller(entries: &str, uid: u32, gid: u32) -> Result<(Option<Role>, Option<String>), String> {
        let locals = Locals::new(Config::parse(entries).unwrap().identity.local);
        let caller = locals.caller(uid, gid, None).await.map_err(|error| error.to_string())?;
        Ok((caller.role(), caller.project))
    }

    #[tokio::test]
    async fn the_first_entry_that_applies_gives_the_role() {
        const ENTRIES: &str = "[[identity.local]]\nuser = 'nobody'\nrole = 'reader'\nproject = 'p'\n\
                               [[identity.local]]\ngroup = 4294967\nrole = 'member'\n\
                               [[identity.local]]\nuser = 65534\nrole = 'admin'\n";
        for uid in [0, geteuid().as_raw()] {
            assert_eq!(caller(ENTRIES, uid, 0).await, Ok((Some(Role::Admin), None)));
        }
        assert_eq!(caller(ENTRIES, 65534, 0).await, Ok((Some(Role::Reader), Some("p".into()))));
        assert_eq!(caller(ENTRIES, 4_000_000, 4_294_967).await, Ok((Some(Role::Member), None)));
        let refused = caller(ENTRIES, 4_000_000, 4_000_000).await.unwrap_err();
        assert!(refused.contains("uid 4000000") && refused.contains("[[identity.local]]"), "{refused}");
        assert_eq!(caller("", 4_000_000, 4_000_000).await, Ok((Some(Role::Admin), None)));
    }

    #[tokio::test]
    async fn groups_of_the_user_database_count() {
        // Debian's user `man` has no other groups than its own.
        let Ok(Some(user)) = User::from_name("man") else { return };
        let of_group = "[[identity.local]]\ngroup = 'man'\nrole = 'reader'\n";
        let uid = user.uid.as_raw();
        assert_eq!(caller(of_group, uid, 4_000_000).await, Ok((Some(Role::Reader), None)));
        let of_other = "[[identity.local]]\ngroup = 'nogroup'\nrole = 'reader'\n";
        assert!(caller(of_other, uid, user.gid.as_raw()).await.is_err());
    }
}
