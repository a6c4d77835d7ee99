//! What a rule requires of a caller: a boolean expression in the language of oslo.policy.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::caller::{Caller, Scope};
use super::role::SERVICE;

/// The maximum length of an expression, in bytes.
const LENGTH: usize = 4096;

/// The maximum nesting of parentheses and `not`.
const NESTING: usize = 32;

/// oslo.policy's check of the target's project.
const OWN_PROJECT: &str = "project_id:%(project_id)s";

/// The thing that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// It has not been read yet, so that its project is not known.
    Unknown,
    /// It belongs to this project; `None` for something that belongs to no project.
    Of(Option<&'a str>),
}

/// A boolean expression over a caller and the project of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `@`, or an empty text: met by everybody.
    Always,
    /// `!`: met by nobody.
    Never,
    /// `role:NAME`: the caller has the role, or a default role that implies it. The name is in lower case.
    Role(String),
    /// `is_admin:True`: the caller has the role admin.
    Admin,
    /// `system_scope:all`: the caller's roles apply to the whole system.
    SystemScope,
    /// `project_id:%(project_id)s`: the target belongs to the caller's project.
    OwnProject,
    /// `service`: the caller is a service, or sends a service token. oslo.policy has no such check.
    Service,
    /// `rule:NAME`: what another rule requires.
    Rule(String),
    /// `not …`
    Not(Box<Self>),
    /// `… and …`
    And(Vec<Self>),
    /// `… or …`
    Or(Vec<Self>),
}

impl Requirement {
    /// Whether the requirement is met. `None` when that depends on the project of a target that is not known yet.
    /// `rules` has the rules that `rule:NAME` names; an unknown name is met by nobody.
    pub fn is_met(
        &self,
        caller: &Caller,
        target: Target<'_>,
        rules: &BTreeMap<String, Self>,
    ) -> Option<bool> {
        let met = |one: &Self| one.is_met(caller, target, rules);
        match self {
            Self::Always => Some(true),
            Self::Never => Some(false),
            Self::Role(name) => Some(caller.has_role(name)),
            Self::Admin => Some(caller.is_admin()),
            Self::SystemScope => Some(caller.scope == Scope::System),
            Self::OwnProject => match (&caller.project, target) {
                (None, _) => Some(false),
                (Some(_), Target::Unknown) => None,
                (Some(own), Target::Of(project)) => Some(Some(own.as_str()) == project),
            },
            Self::Service => Some(caller.service),
            Self::Rule(name) => rules.get(name).map_or(Some(false), met),
            Self::Not(one) => met(one).map(|met| !met),
            Self::And(all) => decided(all.iter().map(met), false),
            Self::Or(any) => decided(any.iter().map(met), true),
        }
    }

    /// Returns the names of the rules that the expression names.
    pub fn rules(&self) -> Vec<&str> {
        self.leaves()
            .into_iter()
            .filter_map(|leaf| if let Self::Rule(name) = leaf { Some(&**name) } else { None })
            .collect()
    }

    /// Returns the names of the roles that the expression names.
    pub fn roles(&self) -> Vec<&str> {
        self.leaves()
            .into_iter()
            .filter_map(|leaf| match leaf {
                Self::Role(name) => Some(&**name),
                Self::Service => Some(SERVICE),
                Self::Always
                | Self::Never
                | Self::Admin
                | Self::SystemScope
                | Self::OwnProject
                | Self::Rule(_)
                | Self::Not(_)
                | Self::And(_)
                | Self::Or(_) => None,
            })
            .collect()
    }

    fn leaves(&self) -> Vec<&Self> {
        match self {
            Self::Not(one) => one.leaves(),
            Self::And(all) | Self::Or(all) => all.iter().flat_map(Self::leaves).collect(),
            Self::Always
            | Self::Never
            | Self::Role(_)
            | Self::Admin
            | Self::SystemScope
            | Self::OwnProject
            | Self::Service
            | Self::Rule(_) => vec![self],
        }
    }

    /// Describes the requirement for the message of a refusal, with the rules that it names written out.
    pub fn in_words(&self, rules: &BTreeMap<String, Self>) -> String {
        match self {
            Self::Always => "nothing".to_owned(),
            Self::Never => "what nobody has".to_owned(),
            Self::Role(name) => format!("the role {name}"),
            Self::Admin => "the role admin".to_owned(),
            Self::SystemScope => "a role in the whole system".to_owned(),
            Self::OwnProject => "the project that owns it".to_owned(),
            Self::Service => "a service token".to_owned(),
            Self::Rule(name) => {
                rules.get(name).map_or_else(|| "what nobody has".to_owned(), |rule| rule.in_words(rules))
            }
            Self::Not(one) => {
                let one = one.written_out(rules);
                let words = one.in_words(rules);
                if matches!(one, Self::And(_) | Self::Or(_)) {
                    format!("not ({words})")
                } else {
                    format!("not {words}")
                }
            }
            Self::And(all) => all_in_words(all, rules),
            Self::Or(_) => {
                let mut parts = Vec::new();
                self.add_alternatives(rules, &mut parts);
                match &parts[..] {
                    // A comma tells where the first of them ends.
                    [one, other] if !one.contains(" in ") && !other.contains(" in ") => {
                        format!("{one} or {other}")
                    }
                    [first @ .., last] if !first.is_empty() => format!("{}, or {last}", first.join(", ")),
                    _ => parts.concat(),
                }
            }
        }
    }

    /// Returns the requirement of the rule that this names, or this itself.
    fn written_out<'a>(&'a self, rules: &'a BTreeMap<String, Self>) -> &'a Self {
        let named = if let Self::Rule(name) = self { rules.get(name) } else { None };
        named.map_or(self, |rule| rule.written_out(rules))
    }

    /// Adds the alternatives of an `or` in words, with those of the rules that it names, each once.
    fn add_alternatives(&self, rules: &BTreeMap<String, Self>, parts: &mut Vec<String>) {
        let one = self.written_out(rules);
        if let Self::Or(any) = one {
            any.iter().for_each(|one| one.add_alternatives(rules, parts));
            return;
        }
        let words = one.in_words(rules);
        if !parts.contains(&words) {
            parts.push(words);
        }
    }
}

/// Describes the parts of an `and`. Those that say where a role is required follow the others.
fn all_in_words(all: &[Requirement], rules: &BTreeMap<String, Requirement>) -> String {
    let (mut what, mut wherein) = (Vec::new(), Vec::new());
    for one in all {
        let one = one.written_out(rules);
        if *one == Requirement::SystemScope {
            wherein.push("in the whole system");
        } else if *one == Requirement::OwnProject {
            wherein.push("in the project that owns it");
        } else {
            let words = one.in_words(rules);
            what.push(if matches!(one, Requirement::Or(_)) { format!("({words})") } else { words });
        }
    }
    if what.is_empty() {
        what.push("a role".to_owned());
    }
    [what.join(" and "), wherein.join(" and ")].join(" ").trim_end().to_owned()
}

/// Combines the parts of an `or` (`decisive` is true) or an `and` (`decisive` is false).
fn decided(parts: impl Iterator<Item = Option<bool>>, decisive: bool) -> Option<bool> {
    let mut known = true;
    for part in parts {
        match part {
            Some(part) if part == decisive => return Some(decisive),
            Some(_) => {}
            None => known = false,
        }
    }
    known.then_some(!decisive)
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("@"),
            Self::Never => f.write_str("!"),
            Self::Role(name) => write!(f, "role:{name}"),
            Self::Admin => f.write_str("is_admin:True"),
            Self::SystemScope => f.write_str("system_scope:all"),
            Self::OwnProject => f.write_str(OWN_PROJECT),
            Self::Service => f.write_str("service"),
            Self::Rule(name) => write!(f, "rule:{name}"),
            Self::Not(one) => write!(f, "not {one}"),
            Self::And(all) => join(f, all, " and "),
            Self::Or(any) => join(f, any, " or "),
        }
    }
}

fn join(f: &mut fmt::Formatter<'_>, all: &[Requirement], word: &str) -> fmt::Result {
    f.write_str("(")?;
    for (at, one) in all.iter().enumerate() {
        if at > 0 {
            f.write_str(word)?;
        }
        write!(f, "{one}")?;
    }
    f.write_str(")")
}

/// A part of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    And,
    Or,
    Not,
    Check(&'a str),
}

/// Splits an expression as oslo.policy does: at white space, with parentheses at the ends of words.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for word in text.split_whitespace() {
        let inner = word.trim_start_matches('(');
        found.extend(std::iter::repeat_n(Token::Open, word.len() - inner.len()));
        let check = inner.trim_end_matches(')');
        match check.to_ascii_lowercase().as_str() {
            "" => {}
            "and" => found.push(Token::And),
            "or" => found.push(Token::Or),
            "not" => found.push(Token::Not),
            _ => found.push(Token::Check(check)),
        }
        found.extend(std::iter::repeat_n(Token::Close, inner.len() - check.len()));
    }
    found
}

struct Parser<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token<'a>>>,
    depth: usize,
}

impl Parser<'_> {
    /// `and` binds more tightly than `or`, as in oslo.policy.
    fn or(&mut self) -> Result<Requirement, String> {
        let mut any = vec![self.and()?];
        while self.tokens.next_if_eq(&Token::Or).is_some() {
            any.push(self.and()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Requirement::Or(any) })
    }

    fn and(&mut self) -> Result<Requirement, String> {
        let mut all = vec![self.not()?];
        while self.tokens.next_if_eq(&Token::And).is_some() {
            all.push(self.not()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Requirement::And(all) })
    }

    fn not(&mut self) -> Result<Requirement, String> {
        self.depth += 1;
        if self.depth > NESTING {
            return Err(format!("it is nested more than {NESTING} levels deep"));
        }
        let one = match self.tokens.next() {
            Some(Token::Not) => Requirement::Not(Box::new(self.not()?)),
            Some(Token::Open) => {
                let inner = self.or()?;
                if self.tokens.next() != Some(Token::Close) {
                    return Err("a parenthesis is not closed".to_owned());
                }
                inner
            }
            Some(Token::Check(text)) => check(text)?,
            Some(Token::Close) => return Err("a parenthesis is closed where a check is expected".to_owned()),
            Some(Token::And | Token::Or) => {
                return Err("`and` and `or` need a check on both sides".to_owned());
            }
            None => return Err("it ends where a check is expected".to_owned()),
        };
        self.depth -= 1;
        Ok(one)
    }
}

fn check(text: &str) -> Result<Requirement, String> {
    let shown: String = text.chars().take(80).collect();
    let unknown = || {
        format!(
            "`{shown}` is not a check that hotslot knows; write role:NAME, rule:NAME, is_admin:True, system_scope:all, \
             {OWN_PROJECT}, service, @ or !"
        )
    };
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 255
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.:".contains(letter))
    };
    match text {
        "@" => return Ok(Requirement::Always),
        "!" => return Ok(Requirement::Never),
        SERVICE => return Ok(Requirement::Service),
        "is_admin" | "is_admin:True" | "is_admin:1" => return Ok(Requirement::Admin),
        "system_scope:all" => return Ok(Requirement::SystemScope),
        OWN_PROJECT => return Ok(Requirement::OwnProject),
        _ => {}
    }
    match text.split_once(':') {
        Some(("role", name)) if is_name(name) => Ok(Requirement::Role(name.to_ascii_lowercase())),
        Some(("rule", name)) if is_name(name) => Ok(Requirement::Rule(name.to_owned())),
        Some(_) | None => Err(unknown()),
    }
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > LENGTH {
            return Err(format!("it has {} bytes; write at most {LENGTH}", text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::Always);
        }
        let mut parser = Parser { tokens: tokens(text).into_iter().peekable(), depth: 0 };
        let read = parser.or()?;
        match parser.tokens.next() {
            None => Ok(read),
            Some(Token::Close) => Err("a parenthesis is closed that was not opened".to_owned()),
            Some(_) => Err("two checks follow each other without `and` or `or`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
