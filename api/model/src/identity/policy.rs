//! Which caller may do what: the rules with their defaults.
//!
//! The rules have the names of Nova's and Cyborg's where those have one, so that a policy file for oslo.policy can
//! override them by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::caller::{Caller, Scope};
use super::refusal::Refusal;
use super::requirement::{Requirement, Target};

/// Which scopes of Keystone's tokens a rule accepts: oslo.policy's `scope_types`. The scopes of local users and of
/// hotslot's own tokens are not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scopes {
    /// Only a project.
    Project,
    /// A project or the whole system.
    Any,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The name, by which a policy file overrides the requirement.
    pub name: &'static str,
    /// The default requirement.
    pub default: &'static str,
    /// The accepted scopes.
    pub scopes: Scopes,
    /// The action that the rule permits, in words.
    pub description: &'static str,
}

const fn base(name: &'static str, default: &'static str, description: &'static str) -> Rule {
    Rule { name, default, scopes: Scopes::Any, description }
}

/// Makes a rule for an action of operators.
const fn change(name: &'static str, description: &'static str) -> Rule {
    base(name, "rule:admin_api", description)
}

/// Makes a rule for something that operators, and readers of the system, may read.
const fn read(name: &'static str, description: &'static str) -> Rule {
    base(name, "rule:system_reader_or_admin", description)
}

const fn in_project(name: &'static str, default: &'static str, description: &'static str) -> Rule {
    Rule { name, default, scopes: Scopes::Project, description }
}

/// Reading servers and attachments.
const SERVER_READ: &str = "rule:service_or_admin or rule:project_reader";
/// Changing the attachments of servers.
const SERVER_CHANGE: &str = "rule:service_or_admin or rule:project_member";
/// Reading flavors.
const FLAVOR_READ: &str = "rule:service_or_admin or rule:system_reader_or_admin";
/// Reading the quota of a project.
const QUOTA_READ: &str = "rule:system_reader_or_admin or rule:project_reader or rule:project_service";
/// Reading accelerators and accelerator requests.
const OWN_READ: &str = "rule:admin_api or rule:project_reader or rule:project_service";
/// Creating and deleting accelerator requests.
const OWN_CHANGE: &str = "rule:admin_api or rule:project_member or rule:project_service";

/// All rules. Those without a `:` in their names are parts of other rules.
pub const RULES: &[Rule] = &[
    base("admin_api", "role:admin", "administrators"),
    base("service_or_admin", "service or role:admin", "services such as Nova, and administrators"),
    base("system_reader_or_admin", "role:admin or (role:reader and system_scope:all)", "operators who read"),
    base(
        "project_reader",
        "role:reader and project_id:%(project_id)s",
        "readers of the project that owns it",
    ),
    base(
        "project_member",
        "role:member and project_id:%(project_id)s",
        "members of the project that owns it",
    ),
    base("project_service", "service and project_id:%(project_id)s", "services with a token of the project"),
    // Nova's
    base("os_compute_api:servers:index", SERVER_READ, "list servers"),
    base("os_compute_api:servers:detail", SERVER_READ, "list servers with details"),
    base("os_compute_api:servers:show", SERVER_READ, "show a server"),
    read("os_compute_api:os-pci:index", "list device records"),
    read("os_compute_api:os-pci:detail", "list device records with details"),
    read("os_compute_api:os-pci:show", "show a device record"),
    read("os_compute_api:os-hypervisors:list", "list hosts"),
    read("os_compute_api:os-hypervisors:list-detail", "list hosts with details"),
    read("os_compute_api:os-hypervisors:show", "show a host"),
    read("os_compute_api:os-hypervisors:search", "search hosts by name"),
    read("os_compute_api:os-hypervisors:uptime", "show how long a host has been up"),
    read("os_compute_api:os-aggregates:index", "list host aggregates"),
    base("os_compute_api:os-flavor-extra-specs:index", FLAVOR_READ, "list the extra specs of a flavor"),
    base("os_compute_api:os-flavor-extra-specs:show", FLAVOR_READ, "show an extra spec of a flavor"),
    base("os_compute_api:os-quota-sets:show", QUOTA_READ, "show the limits of a project"),
    base("os_compute_api:os-quota-sets:detail", QUOTA_READ, "show the limits of a project and what it uses"),
    base(
        "os_compute_api:os-quota-sets:defaults",
        "role:reader or service or role:admin",
        "show the limits of projects for which none were set",
    ),
    change("os_compute_api:os-quota-sets:update", "set the limits of a project"),
    change("os_compute_api:os-quota-sets:delete", "remove the limits that were set for a project"),
    // Of resources that Nova's API has without a rule, or does not have
    base("hotslot:flavor:list", FLAVOR_READ, "list flavors"),
    base("hotslot:flavor:show", FLAVOR_READ, "show a flavor"),
    base("hotslot:server:topology", SERVER_READ, "show the PCI topology of a server"),
    read("hotslot:server:show_owner", "show which project owns a server, and who says so"),
    change("hotslot:server:set_owner", "set which project owns a server"),
    change("hotslot:server:add_ports", "add PCI ports to the definition of a server"),
    base("hotslot:attachment:list", SERVER_READ, "list the attachments of a server"),
    base(
        "hotslot:attachment:list_all",
        SERVER_READ,
        "list the attachments of all servers that the caller sees",
    ),
    base("hotslot:attachment:show", SERVER_READ, "show an attachment"),
    base("hotslot:attachment:create", SERVER_CHANGE, "attach devices to a server"),
    change("hotslot:attachment:create_by_address", "attach devices that are named by their host addresses"),
    change("hotslot:attachment:trace", "have the time of each step in the answer of an attach or detach"),
    base("hotslot:attachment:delete", SERVER_CHANGE, "detach a device from a server"),
    change("hotslot:device:clean", "mark a device as cleaned, or have it scrubbed"),
    read("hotslot:host:devices", "list the functions of a host, and explain why one is assignable"),
    change("hotslot:host:set_mode", "freeze, drain or thaw a host"),
    read("hotslot:host:profile", "list what the profile of a host says, and what the host has"),
    read("hotslot:host:candidates", "explain which devices a request would get"),
    read("hotslot:rule:list", "list the rules of [pci]"),
    read("hotslot:rule:show", "show a rule of [pci]"),
    change("hotslot:rule:create", "add a rule of [pci]"),
    change("hotslot:rule:update", "replace a rule of [pci]"),
    change("hotslot:rule:delete", "remove a rule of [pci]"),
    read("hotslot:drift:list", "list where records and hosts disagree"),
    change("hotslot:drift:repair", "repair where records and hosts disagree"),
    read("hotslot:event:list", "list and follow events"),
    read("hotslot:service:show", "show the versions of the service"),
    change("hotslot:service:reload", "have the service read its configuration again"),
    read("hotslot:log_level:show", "show the levels of the log"),
    change("hotslot:log_level:update", "set the levels of the log"),
    read("hotslot:metrics:show", "read the metrics of the service"),
    read("hotslot:webhook:list", "list webhooks"),
    change("hotslot:webhook:redeliver", "send a webhook its dead letters again"),
    // Cyborg's first API
    in_project("hotslot:accelerator:list", OWN_READ, "list accelerators"),
    in_project("hotslot:accelerator:show", OWN_READ, "show an accelerator"),
    in_project("hotslot:accelerator:create", "rule:admin_api", "create an accelerator"),
    in_project(
        "hotslot:accelerator:update",
        "rule:admin_api",
        "set the spec of an accelerator, or attach it",
    ),
    in_project("hotslot:accelerator:delete", "rule:admin_api", "detach an accelerator, or remove it"),
    // Cyborg's second API
    in_project(
        "cyborg:device_profile:get_all",
        "role:reader or service or role:admin",
        "list device profiles",
    ),
    in_project(
        "cyborg:device_profile:get_one",
        "role:reader or service or role:admin",
        "show a device profile",
    ),
    in_project("cyborg:device_profile:create", "rule:admin_api", "create a device profile"),
    in_project("cyborg:device_profile:delete", "rule:admin_api", "delete device profiles"),
    in_project("cyborg:arq:get_all", OWN_READ, "list accelerator requests"),
    in_project("cyborg:arq:get_one", OWN_READ, "show an accelerator request"),
    in_project("cyborg:arq:create", OWN_CHANGE, "create accelerator requests"),
    in_project("cyborg:arq:delete", OWN_CHANGE, "delete accelerator requests"),
    in_project("cyborg:arq:update", "rule:service_or_admin", "bind and unbind accelerator requests"),
    in_project("cyborg:device:get_all", "role:manager", "list accelerator cards"),
    in_project("cyborg:device:get_one", "role:manager", "show an accelerator card"),
    in_project("cyborg:device:disable", "rule:admin_api", "disable an accelerator card"),
    in_project("cyborg:device:enable", "rule:admin_api", "enable an accelerator card"),
    in_project("cyborg:deployable:get_all", "role:manager", "list deployables"),
    in_project("cyborg:deployable:get_one", "role:manager", "show a deployable"),
    in_project("cyborg:deployable:program", "rule:admin_api", "program a deployable"),
    in_project("cyborg:attribute:get_all", "role:manager", "list attributes"),
    in_project("cyborg:attribute:get_one", "role:manager", "show an attribute"),
    in_project("cyborg:attribute:create", "rule:admin_api", "create an attribute"),
    in_project("cyborg:attribute:delete", "rule:admin_api", "delete an attribute"),
];

/// The rules that members of the project that owns an accelerator are given by `[accelerators] change = "owner"`.
pub const CHANGE_BY_OWNER: [(&str, &str); 3] = [
    ("hotslot:accelerator:create", "rule:admin_api or rule:project_member"),
    ("hotslot:accelerator:update", "rule:admin_api or rule:project_member"),
    ("hotslot:accelerator:delete", "rule:admin_api or rule:project_member"),
];

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The name of the rule.
    pub rule: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.reason)
    }
}

/// The rules in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: BTreeMap<String, Requirement>,
    /// The roles that some rule names, besides Keystone's default roles.
    roles: BTreeSet<String>,
}

impl Policy {
    /// Returns the default rules with the requirements of `overrides` in place of theirs; the last one of a name
    /// counts. A name that is not a default rule may be used by `rule:NAME` in other overrides.
    ///
    /// # Errors
    /// What is wrong with an override, for each that is: it cannot be parsed, names an unknown rule, requires itself, or
    /// has a name that is neither a default rule's nor required by any rule.
    pub fn new<'a>(overrides: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<Problem>> {
        let defaults = RULES.iter().map(|rule| (rule.name, rule.default));
        let (mut rules, mut problems) = (BTreeMap::new(), Vec::new());
        let mut bad = |rule: &str, reason: String| problems.push(Problem { rule: rule.to_owned(), reason });
        for (name, text) in defaults.chain(overrides) {
            match text.parse::<Requirement>() {
                Ok(requirement) => drop(rules.insert(name.to_owned(), requirement)),
                Err(reason) => bad(name, reason),
            }
        }
        let required: BTreeSet<_> = rules.values().flat_map(Requirement::rules).collect();
        for (name, requirement) in &rules {
            if let Some(unknown) = requirement.rules().into_iter().find(|used| !rules.contains_key(*used)) {
                bad(name, format!("there is no rule `{unknown}`"));
            } else if reaches(&rules, requirement, name, rules.len()) {
                bad(name, "the rule requires itself; write out what it requires".to_owned());
            } else if !required.contains(name.as_str()) && !RULES.iter().any(|rule| rule.name == name) {
                bad(name, "there is no rule of this name, and no rule requires it".to_owned());
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let roles = rules.values().flat_map(Requirement::roles).map(str::to_owned).collect();
        Ok(Self { rules, roles })
    }

    /// The rules by name.
    pub fn rules(&self) -> &BTreeMap<String, Requirement> {
        &self.rules
    }

    /// Checks that a caller may do what a rule is about to something that belongs to `project`, or to no project. Use
    /// [`Target::Unknown`] before it has been read: then a caller is refused only when the caller may do it for no project.
    ///
    /// # Errors
    /// [`Refusal`], which says what is required and what the caller has. An unknown rule admits nobody.
    pub fn require(&self, caller: &Caller, rule: &str, target: Target<'_>) -> Result<(), Refusal> {
        let known = RULES.iter().find(|known| known.name == rule);
        let refuse = |reason: String| Err(Refusal::new(reason));
        match caller.scope {
            Scope::Domain | Scope::Unscoped => {
                return refuse(
                    "the token is scoped to a domain or to nothing; use a token that is scoped to a project"
                        .to_owned(),
                );
            }
            Scope::System
                if caller.has_system_token() && known.is_some_and(|rule| rule.scopes == Scopes::Project) =>
            {
                return refuse(
                    "the token is scoped to the system; use a token that is scoped to a project".to_owned(),
                );
            }
            Scope::System | Scope::Project => {}
        }
        let Some(requirement) = self.rules.get(rule).filter(|_| known.is_some()) else {
            return refuse(format!("there is no rule {rule}, so nobody may do this"));
        };
        let known = caller.role().is_some()
            || caller.service
            || caller.roles.iter().any(|role| self.roles.contains(role));
        if known && requirement.is_met(caller, target, &self.rules) != Some(false) {
            return Ok(());
        }
        let roles: Vec<_> = caller.roles.iter().map(String::as_str).filter(|role| !role.is_empty()).collect();
        let roles = if roles.is_empty() { "no role".to_owned() } else { roles.join(", ") };
        let wherein = match &caller.project {
            Some(project) => format!("in project {project}"),
            None if caller.scope == Scope::System => "in the whole system".to_owned(),
            None => "in no project".to_owned(),
        };
        Err(Refusal::lacking(&format!(
            "this requires {} ({rule}), and you have {roles} {wherein}",
            requirement.in_words(&self.rules)
        )))
    }

    /// Whether a caller may do what a rule is about to everything, whichever project it belongs to.
    pub fn allows_all(&self, caller: &Caller, rule: &str) -> bool {
        let met = |rule: &Requirement| rule.is_met(caller, Target::Unknown, &self.rules) == Some(true);
        self.require(caller, rule, Target::Unknown).is_ok() && self.rules.get(rule).is_some_and(met)
    }

    /// Whether a caller may do what a rule is about to something that belongs to `project`, or to no project.
    pub fn allows(&self, caller: &Caller, rule: &str, project: Option<&str>) -> bool {
        self.require(caller, rule, Target::Of(project)).is_ok()
    }
}

impl Default for Policy {
    /// The default rules.
    fn default() -> Self {
        // A test checks that the default rules have no errors; if they had, nobody would be admitted.
        Self::new([]).unwrap_or_else(|_| Self { rules: BTreeMap::new(), roles: BTreeSet::new() })
    }
}

/// Whether `requirement` leads to the rule `name` by at most `steps` rules.
fn reaches(
    rules: &BTreeMap<String, Requirement>,
    requirement: &Requirement,
    name: &str,
    steps: usize,
) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = requirement.rules();
    for _ in 0..=steps {
        if next.contains(&name) {
            return true;
        }
        let fresh: Vec<_> = next.into_iter().filter(|rule| seen.insert(*rule)).collect();
        next = fresh.iter().filter_map(|rule| rules.get(*rule)).flat_map(Requirement::rules).collect();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{User, Via};

    fn caller(role: &str, project: Option<&str>, via: Via) -> Caller {
        Caller::with_role(User { id: "u".into(), name: "u".into() }, role, project.map(str::to_owned), via)
    }

    #[test]
    fn the_default_rules_have_no_errors_and_no_name_twice() {
        assert_eq!(Policy::new([]).unwrap(), Policy::default());
        let names: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
        assert_eq!(Policy::default().rules().len(), RULES.len());
        Policy::new(CHANGE_BY_OWNER).unwrap();
    }

    #[test]
    fn wrong_overrides_are_named() {
        let wrong = Policy::new([
            ("hotslot:drift:list", "role:"),
            ("hotslot:event:list", "rule:nothing"),
            ("mine", "rule:yours"),
            ("yours", "not rule:mine"),
            ("cyborg:arq:create", "rule:mine"),
            ("hotslot:drift:lists", "role:admin"),
        ])
        .unwrap_err();
        assert_eq!(wrong.len(), 5, "{wrong:?}");
        let message = wrong.iter().map(|problem| format!("{problem}\n")).collect::<String>();
        for says in [
            "hotslot:drift:list: `role:`",
            "no rule `nothing`",
            "mine: the rule requires itself",
            "hotslot:drift:lists: there is no rule of this name",
        ] {
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn a_caller_without_a_known_role_may_do_nothing() {
        let open: Vec<_> = RULES.iter().map(|rule| (rule.name, "@")).collect();
        for (policy, role, admitted) in [
            (Policy::default(), "netops", false),
            (Policy::new(open.clone()).unwrap(), "netops", false),
            (Policy::new(open).unwrap(), "reader", true),
            (Policy::new([("hotslot:drift:list", "role:netops")]).unwrap(), "netops", true),
        ] {
            let caller = caller(role, Some("p"), Via::Keystone);
            assert_eq!(policy.allows(&caller, "hotslot:drift:list", None), admitted, "{role}");
        }
        let admin = caller("admin", Some("p"), Via::Keystone);
        assert!(!Policy::default().allows(&admin, "hotslot:no:such", None), "an unknown rule admits nobody");
    }

    #[test]
    fn only_whom_no_project_limits_may_do_something_to_all() {
        let policy = Policy::default();
        for (role, project, all) in [
            ("admin", Some("p"), true),
            ("admin", None, true),
            ("service", Some("p"), true),
            ("member", Some("p"), false),
            ("member", None, false),
            ("reader", Some("p"), false),
            ("netops", Some("p"), false),
        ] {
            let caller = caller(role, project, Via::Token("t".into()));
            assert_eq!(policy.allows_all(&caller, "hotslot:attachment:create"), all, "{role} in {project:?}");
            assert!(!policy.allows_all(&caller, "hotslot:no:such"));
        }
    }

    #[test]
    fn the_scope_of_a_token_of_keystone_is_checked() {
        let policy = Policy::default();
        let system = caller("admin", None, Via::Keystone);
        let local = caller("admin", None, Via::Socket { uid: 0, gid: 0, pid: None });
        assert!(policy.allows(&system, "hotslot:drift:list", None));
        assert!(!policy.allows(&system, "cyborg:arq:get_all", None));
        assert!(policy.allows(&local, "cyborg:arq:get_all", None));
        for scope in [Scope::Domain, Scope::Unscoped] {
            let caller = Caller { scope, ..system.clone() };
            for rule in RULES {
                assert!(!policy.allows(&caller, rule.name, None), "{}", rule.name);
            }
        }
    }

    #[test]
    fn a_refusal_says_what_is_required_and_what_the_caller_has() {
        let member = caller("member", Some("p"), Via::Keystone);
        let refused =
            |rule| Policy::default().require(&member, rule, Target::Of(None)).unwrap_err().to_string();
        assert_eq!(
            refused("cyborg:arq:update"),
            "this requires a service token or the role admin (cyborg:arq:update), and you have member in project p; ask an \
             administrator for it, or see with GET caller who you are"
        );
        assert_eq!(
            refused("hotslot:drift:list"),
            "this requires the role admin, or the role reader in the whole system (hotslot:drift:list), and you have member \
             in project p; ask an administrator for it, or see with GET caller who you are"
        );
        let reader = caller("reader", None, Via::Keystone);
        let refused =
            Policy::default().require(&reader, "hotslot:drift:repair", Target::Of(None)).unwrap_err();
        assert!(refused.to_string().contains("and you have reader in the whole system; ask"), "{refused}");
        let requirement = |rule: &str| Policy::default().rules[rule].in_words(&Policy::default().rules);
        for (rule, words) in [
            // Rules that name each other repeat nothing.
            (
                "hotslot:flavor:list",
                "a service token, the role admin, or the role reader in the whole system",
            ),
            (
                "hotslot:attachment:create",
                "a service token, the role admin, or the role member in the project that owns it",
            ),
            (
                "cyborg:arq:get_all",
                "the role admin, the role reader in the project that owns it, or a service token in the project that owns \
                 it",
            ),
        ] {
            assert_eq!(requirement(rule), words, "{rule}");
        }
    }
}
