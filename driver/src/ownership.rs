//! The project that owns a guest, as the metadata of its domain says.
//!
//! Two programs write it: OpenStack Nova (`<nova:instance><nova:owner><nova:project uuid='…'>`), and hotslot for domains
//! that Nova did not create (`<hotslot:owner project='…'>`, libvirt's `virDomainSetMetadata`). Guests cannot write
//! metadata. What is missing, ambiguous or invalid gives no owner, so that only administrators may use the guest.

use std::fmt;

/// The namespace of hotslot's own element in `<metadata>`.
pub const NAMESPACE: &str = "urn:hotslot:domain:1.0";
/// The prefix with which libvirt writes hotslot's own element.
pub const PREFIX: &str = "hotslot";

/// The maximum length of a project's id, in bytes. Keystone's ids have at most 64.
const LENGTH: usize = 255;

/// What one program's metadata says about the owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Claim {
    /// The program has written nothing.
    #[default]
    Absent,
    /// It names this project.
    Project(String),
    /// It names no project, several projects, or an invalid one. The text says which.
    Invalid(&'static str),
}

impl Claim {
    /// Returns the claim that these ids of projects make together; `None` stands for a missing id. Without any id, the
    /// claim is invalid, because its program has written something.
    pub fn of<'a>(ids: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut ids = ids.into_iter();
        match (ids.next(), ids.next()) {
            (Some(Some(id)), None) => match check(id) {
                Ok(()) => Self::Project(id.to_owned()),
                Err(_) => Self::Invalid("names a project whose id is not valid"),
            },
            (None | Some(None), None) => Self::Invalid("names no project"),
            (_, Some(_)) => Self::Invalid("names several projects"),
        }
    }
}

/// Checks the id of a project.
///
/// # Errors
/// What is wrong with it.
pub fn check(project: &str) -> Result<(), &'static str> {
    if project.is_empty() {
        return Err("it is empty");
    }
    if project.len() > LENGTH {
        return Err("it has more than 255 characters");
    }
    if !project.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has blanks, controls or letters that are not ASCII");
    }
    Ok(())
}

/// Whose a guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// What Nova's metadata says.
    pub nova: Claim,
    /// What hotslot's metadata says.
    pub hotslot: Claim,
}

impl Ownership {
    /// Returns the project that owns the guest. `None` when no project does, or it is unclear which one.
    pub fn project(&self) -> Option<&str> {
        match (&self.nova, &self.hotslot) {
            (Claim::Project(project), Claim::Absent) | (Claim::Absent, Claim::Project(project)) => {
                Some(project)
            }
            _ => None,
        }
    }

    /// Returns what is wrong with the metadata; `None` when it names one project or nothing.
    pub fn problem(&self) -> Option<String> {
        match (&self.nova, &self.hotslot) {
            (Claim::Invalid(reason), _) => Some(format!("Nova's metadata {reason}")),
            (_, Claim::Invalid(reason)) => Some(format!("hotslot's metadata {reason}")),
            (Claim::Project(_), Claim::Project(_)) => {
                Some("both Nova's and hotslot's metadata name a project".to_owned())
            }
            (Claim::Absent | Claim::Project(_), Claim::Absent) | (Claim::Absent, Claim::Project(_)) => None,
        }
    }

    /// Returns the ownership of a guest that runs with one document and has another as its definition. They must agree,
    /// because either may be out of date: a saved guest comes back with the metadata that it was saved with.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let both = |one: &Claim, other: &Claim| match (one, other) {
            (one, other) if one == other => one.clone(),
            _ => Claim::Invalid("differs between the running guest and its definition"),
        };
        Self { nova: both(&self.nova, &other.nova), hotslot: both(&self.hotslot, &other.hotslot) }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.project(), self.problem()) {
            (Some(project), _) => write!(f, "project {project}"),
            (None, Some(problem)) => write!(f, "no project, because {problem}"),
            (None, None) => f.write_str("no project"),
        }
    }
}
