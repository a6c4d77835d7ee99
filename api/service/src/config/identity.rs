//! `[identity]`: who may connect, and with which role.

use std::fmt;
use std::path::PathBuf;

use hotslot_model::identity::{Role, SERVICE};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::Keystone;

/// `[identity]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// The file of hotslot's own tokens. Without it, there are no such tokens.
    pub tokens: Option<PathBuf>,
    /// The file with rules that replace the default rules of who may do what. Without it, the defaults.
    pub policy: Option<PathBuf>,
    /// The Keystone that validates tokens. Without it, its tokens are not accepted.
    pub keystone: Option<Keystone>,
    /// The rights of local users at the unix socket. The first entry that matches counts.
    pub local: Vec<Local>,
}

/// `[[identity.local]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// The user to whom the entry applies.
    pub user: Option<Account>,
    /// The group to whose members the entry applies, where `user` is not given.
    pub group: Option<Account>,
    /// `reader`, `member`, `manager`, `admin` or `service`.
    pub role: String,
    /// The id of the project in which the user has the role. Without it, the whole system.
    pub project: Option<String>,
}

/// A user or group of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By name.
    Name(String),
    /// By number.
    Id(u32),
}

impl Account {
    /// Whether this is the account with a number and, where it is known, a name.
    pub fn is(&self, id: u32, name: Option<&str>) -> bool {
        match self {
            Self::Name(own) => Some(own.as_str()) == name,
            Self::Id(own) => *own == id,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    /// A name, or a number with or without quotes.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a name or a number, such as \"alice\" or 1000")]
        enum Written {
            Id(u32),
            Name(String),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Id(id) => Self::Id(id),
            Written::Name(name) => name.parse().map_or(Self::Name(name), Self::Id),
        })
    }
}

/// The roles that an entry or a token may give.
pub fn known_role(role: &str) -> Result<(), String> {
    if role == SERVICE || Role::of_name(role).is_some() {
        return Ok(());
    }
    let shown: String = role.chars().take(40).collect();
    Err(format!("`{shown}` is not a role; write reader, member, manager, admin or service"))
}
