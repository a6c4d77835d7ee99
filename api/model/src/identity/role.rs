//! Keystone's default roles.

use serde::Deserialize;

/// Keystone's default roles, lowest first. Each role implies the roles before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Reader,
    /// Reads and changes what belongs to a project.
    Member,
    /// Manages a project.
    Manager,
    /// Administers everything.
    Admin,
}

/// The role of a service such as Nova.
pub const SERVICE: &str = "service";

impl Role {
    /// All roles, lowest first.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Member, Self::Manager, Self::Admin];

    /// Returns the name of the role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Member => "member",
            Self::Manager => "manager",
            Self::Admin => "admin",
        }
    }

    /// Returns the role with this name, in lower case.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}
