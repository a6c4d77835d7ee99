//! The caller of a request: the user, the roles, and how the user was identified.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::refusal::Refusal;
use super::role::{Role, SERVICE};

/// The other end of a connection, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The process at the other end of a unix socket, by SO_PEERCRED of unix(7).
    Unix {
        /// The effective user id when the process connected.
        uid: u32,
        /// The effective group id when the process connected.
        gid: u32,
        /// The process id; `None` when it is in a process namespace that this process cannot see.
        pid: Option<i32>,
    },
    /// The address of a TCP client.
    Tcp(SocketAddr),
}

/// The other end of connections, as limits count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A local user, by number.
    User(u32),
    /// An address; of IPv6, the network of a site (/64).
    Address(IpAddr),
}

impl Peer {
    /// Returns whose connections and failures count together.
    pub fn origin(self) -> Origin {
        match self {
            Self::Unix { uid, .. } => Origin::User(uid),
            Self::Tcp(address) => Origin::Address(match address.ip() {
                IpAddr::V6(ip) if !ip.is_loopback() => {
                    IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into())
                }
                ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
            }),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "the user with uid {uid}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for Peer {
    /// Writes where a request comes from: `unix socket, uid 1000`, or `TCP 192.0.2.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, .. } => write!(f, "unix socket, uid {uid}"),
            Self::Tcp(address) => write!(f, "TCP {}", address.ip()),
        }
    }
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Keystone's id of the user, the number of a local user, or the name of a token.
    pub id: String,
    /// The name; the same as `id` when the user has no other name.
    pub name: String,
}

/// The scope of a caller's roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One project.
    Project,
    /// The whole system. Local users and tokens without a project have this scope too.
    System,
    /// A domain of Keystone. Roles in a domain have no meaning here.
    Domain,
    /// Nothing.
    Unscoped,
}

/// How a caller was identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// By the kernel, at a unix socket.
    Socket {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
        /// The process id, where it is known.
        pid: Option<i32>,
    },
    /// By a token of hotslot's own, with this name.
    Token(String),
    /// By a token of Keystone's.
    Keystone,
    /// By the headers of a proxy.
    Headers,
    /// Not at all: `[api] insecure_tcp` makes every client of the port the administrator.
    Insecure(Option<SocketAddr>),
}

impl Via {
    /// Whether the scope of the caller is that of a Keystone token.
    fn is_keystone(&self) -> bool {
        match self {
            Self::Keystone | Self::Headers => true,
            Self::Socket { .. } | Self::Token(_) | Self::Insecure(_) => false,
        }
    }
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user; `None` when the caller was not identified.
    pub user: Option<User>,
    /// The names of all roles, in lower case.
    pub roles: BTreeSet<String>,
    /// The id of the project, where the scope is a project.
    pub project: Option<String>,
    /// The scope of the roles.
    pub scope: Scope,
    /// Whether the caller is a service such as Nova, on its own behalf or on the user's: the user has the role
    /// `service`, or the request has a confirmed service token with that role.
    pub service: bool,
    /// How the caller was identified.
    pub via: Via,
}

impl Caller {
    /// A caller with one role, on this machine or by a token. Without a project the role applies to the whole system.
    pub fn with_role(user: User, role: &str, project: Option<String>, via: Via) -> Self {
        let roles = BTreeSet::from([role.to_ascii_lowercase()]);
        Self::with_roles(Some(user), roles, project, via)
    }

    /// A caller with these roles, on this machine or by a token. Without a project the roles apply to the whole system.
    pub fn with_roles(
        user: Option<User>,
        roles: BTreeSet<String>,
        project: Option<String>,
        via: Via,
    ) -> Self {
        let scope = if project.is_some() { Scope::Project } else { Scope::System };
        Self { user, service: roles.contains(SERVICE), roles, project, scope, via }
    }

    /// The administrator who every client of an insecure port is.
    pub fn insecure(address: Option<SocketAddr>) -> Self {
        let roles = BTreeSet::from([Role::Admin.as_str().to_owned()]);
        Self::with_roles(None, roles, None, Via::Insecure(address))
    }

    /// Returns the highest of Keystone's default roles that the caller has.
    pub fn role(&self) -> Option<Role> {
        Role::ALL.into_iter().rfind(|role| self.roles.contains(role.as_str()))
    }

    /// Whether the caller has a role, or a default role that implies it. `name` is in lower case.
    pub fn has_role(&self, name: &str) -> bool {
        self.roles.contains(name) || Role::of_name(name).is_some_and(|least| self.role() >= Some(least))
    }

    /// Whether the caller is an administrator.
    pub fn is_admin(&self) -> bool {
        self.role() == Some(Role::Admin)
    }

    /// Whether the caller is a service or an administrator.
    pub fn is_service_or_admin(&self) -> bool {
        self.service || self.is_admin()
    }

    /// Whether the roles are those of a token of Keystone's that is scoped to the whole system.
    pub fn has_system_token(&self) -> bool {
        self.scope == Scope::System && self.via.is_keystone()
    }

    /// Requires a default role, or one that implies it.
    ///
    /// # Errors
    /// [`Refusal`] when the caller has only lower roles, or none.
    pub fn needs(&self, least: Role) -> Result<(), Refusal> {
        if self.role() >= Some(least) {
            return Ok(());
        }
        let has = self.role().map_or("none", Role::as_str);
        Err(Refusal::lacking(&format!(
            "this requires the role {} in a project, and yours is {has}",
            least.as_str()
        )))
    }

    /// Whether the caller may see what belongs to a project, or to none. An administrator sees everything, every other
    /// caller what belongs to the caller's own project.
    pub fn sees(&self, project: Option<&str>) -> bool {
        self.is_admin() || (self.project.is_some() && self.project.as_deref() == project)
    }

    /// Whether the caller may see addresses and names of hosts, and names of other projects. Services such as Nova need
    /// them to place devices.
    pub fn sees_host_details(&self) -> bool {
        self.is_service_or_admin() || (self.scope == Scope::System && self.has_role(Role::Reader.as_str()))
    }

    /// Returns a text that is the same for two requests exactly when they have the same user with the same rights. It is
    /// empty when the caller was not identified.
    pub fn key(&self) -> String {
        let Some(user) = &self.user else { return String::new() };
        let kind = match &self.via {
            Via::Socket { .. } => "local",
            Via::Token(_) => "token",
            Via::Keystone | Via::Headers => "keystone",
            Via::Insecure(_) => "insecure",
        };
        let scope = format!("{:?}", self.scope);
        serde_json::json!([kind, user.id, self.project, scope, self.roles, self.service]).to_string()
    }

    /// Describes the user for logs and events, such as `user alice (uid 1000)`. The text may have characters that must
    /// be escaped before it is shown.
    pub fn describe(&self) -> String {
        let who = match (&self.via, &self.user) {
            (Via::Socket { uid, .. }, Some(user)) if user.name != user.id => {
                format!("user {} (uid {uid})", user.name)
            }
            (Via::Socket { uid, .. }, _) => format!("user with uid {uid}"),
            (Via::Token(name), _) => format!("token {name}"),
            (Via::Keystone | Via::Headers, Some(user)) if user.name != user.id => {
                format!("user {} ({})", user.name, user.id)
            }
            (Via::Keystone | Via::Headers, Some(user)) => format!("user {}", user.id),
            (Via::Insecure(Some(address)), _) => format!("an unidentified client at {address}"),
            (Via::Keystone | Via::Headers | Via::Insecure(None), _) => "an unidentified client".to_owned(),
        };
        match &self.project {
            Some(project) => format!("{who} of project {project}"),
            None => who,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(roles: &[&str], project: Option<&str>) -> Caller {
        let roles = roles.iter().map(|&role| role.to_owned()).collect();
        let user = User { id: "1000".into(), name: "alice".into() };
        let via = Via::Socket { uid: 1000, gid: 1000, pid: Some(7) };
        Caller::with_roles(Some(user), roles, project.map(str::to_owned), via)
    }

    #[test]
    fn a_caller_without_a_project_sees_nothing_but_as_administrator() {
        for project in [None, Some(""), Some("p")] {
            assert!(!caller(&["member"], None).sees(project));
            assert!(!caller(&["service"], None).sees(project));
            assert!(caller(&["admin"], None).sees(project));
        }
        assert!(caller(&["reader"], Some("p")).sees(Some("p")));
        assert!(!caller(&["manager"], Some("p")).sees(Some("q")));
        assert!(!caller(&["manager"], Some("p")).sees(None));
    }

    #[test]
    fn a_default_role_implies_the_lower_ones_and_no_other() {
        let manager = caller(&["manager", "operator"], Some("p"));
        assert!(manager.has_role("reader") && manager.has_role("member") && manager.has_role("operator"));
        assert!(!manager.has_role("admin") && !manager.has_role("service") && !manager.has_role(""));
        assert!(!caller(&["operator"], None).has_role("reader"));
    }

    #[test]
    fn a_caller_is_described_for_the_log() {
        assert_eq!(caller(&["reader"], None).describe(), "user alice (uid 1000)");
        assert_eq!(caller(&["reader"], Some("p")).describe(), "user alice (uid 1000) of project p");
        let user = User { id: "ci".into(), name: "ci".into() };
        let token = Caller::with_role(user, "Admin", None, Via::Token("ci".into()));
        assert_eq!((token.describe(), token.is_admin()), ("token ci".to_owned(), true));
        assert_ne!(token.key(), Caller { roles: BTreeSet::new(), ..token.clone() }.key());
        assert_eq!(Caller::insecure(None).key(), "");
    }
}
