//! On whose behalf something happens: a request and its caller, or a task of hotslot itself.

use std::collections::BTreeSet;

use hotslot_driver::text::escape;

use super::caller::{Caller, Peer, User, Via};

/// On whose behalf something happens, as events and the log record it. All texts are escaped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    /// A description for people: `request req-… of user alice (uid 1000)`, or the name of a task, such as `discovery`.
    pub who: String,
    /// The user; `None` when the caller was not identified, and for tasks of hotslot.
    pub user: Option<User>,
    /// The id of the project in which the roles apply.
    pub project: Option<String>,
    /// The names of all roles.
    pub roles: BTreeSet<String>,
    /// How the caller was identified, and where the request came from: `Keystone, TCP 192.0.2.1`, or `unix socket, uid
    /// 1000`. `None` for tasks of hotslot.
    pub via: Option<String>,
    /// The global request id that the caller sent: the id under which other services log the same request.
    pub global_request: Option<String>,
    /// The trace of the request: the header `traceparent` of W3C Trace Context.
    pub traceparent: Option<String>,
}

impl Actor {
    /// A request whose caller has not been identified yet.
    pub fn of_request(id: &str, global_request: Option<String>, peer: Option<Peer>) -> Self {
        let via = peer.map_or_else(|| "unknown connection".to_owned(), |peer| peer.to_string());
        Self { who: format!("request {id}"), via: Some(via), global_request, ..Self::default() }
    }

    /// The same request, now that its caller is known.
    #[must_use]
    pub fn by(&self, caller: &Caller) -> Self {
        let shown = |text: &str| escape(text).into_owned();
        let from = self.via.clone().unwrap_or_default();
        let via = match &caller.via {
            Via::Socket { .. } => from,
            Via::Token(_) => format!("token, {from}"),
            Via::Keystone => format!("Keystone, {from}"),
            Via::Headers => format!("proxy, {from}"),
            Via::Insecure(_) => format!("insecure_tcp, {from}"),
        };
        let user = caller.user.as_ref().map(|user| User { id: shown(&user.id), name: shown(&user.name) });
        let who = match &user {
            Some(_) => format!("{} of {}", self.who, shown(&caller.describe())),
            None => self.who.clone(),
        };
        Self {
            who,
            user,
            project: caller.project.as_deref().map(shown),
            roles: caller.roles.iter().map(|role| shown(role)).collect(),
            via: Some(via),
            global_request: self.global_request.clone(),
            traceparent: self.traceparent.clone(),
        }
    }
}

impl From<&str> for Actor {
    /// A task of hotslot itself.
    fn from(task: &str) -> Self {
        Self { who: task.to_owned(), ..Self::default() }
    }
}

/// Returns a global request id if it has the form that OpenStack gives it: `req-` and a UUID in lower case, with
/// hyphens. Source: `ID_FORMAT` of oslo.middleware, which ignores other texts too.
pub fn global_request_id(text: &str) -> Option<&str> {
    let uuid = text.strip_prefix("req-")?;
    let is_digit = |letter: char| letter.is_ascii_digit() || ('a'..='f').contains(&letter);
    let lengths = uuid.split('-').map(|part| part.chars().all(is_digit).then_some(part.len()));
    lengths.eq([8, 4, 4, 4, 12].map(Some)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_names_the_caller_and_the_connection() {
        let peer = Peer::Tcp("192.0.2.1:7".parse().unwrap());
        let request = Actor::of_request("req-1", None, Some(peer));
        assert_eq!((&*request.who, request.via.as_deref()), ("request req-1", Some("TCP 192.0.2.1")));
        let user = User { id: "u1".into(), name: "eve\u{202e}\n".into() };
        let roles = BTreeSet::from(["member".to_owned(), "x\u{1b}".to_owned()]);
        let caller = Caller::with_roles(Some(user), roles, Some("p\u{9b}".into()), Via::Keystone);
        let actor = request.by(&caller);
        assert_eq!(actor.who, "request req-1 of user eve\\u{202e}\\n (u1) of project p\\u{9b}");
        assert_eq!(actor.via.as_deref(), Some("Keystone, TCP 192.0.2.1"));
        assert_eq!(actor.project.as_deref(), Some("p\\u{9b}"));
        assert!(actor.roles.contains("x\\u{1b}"));
        assert_eq!(request.by(&Caller::insecure(None)).who, "request req-1");
    }

    #[test]
    fn global_request_ids_are_as_oslo_accepts_them() {
        let good = "req-0a1b2c3d-0000-4000-8000-00000000beef";
        assert_eq!(global_request_id(good), Some(good));
        for bad in [
            "",
            "req-",
            "0a1b2c3d-0000-4000-8000-00000000beef",
            "req-0A1B2C3D-0000-4000-8000-00000000beef",
            "req-0a1b2c3d00004000800000000000beef",
            "req-0a1b2c3d-0000-4000-8000-00000000beef-",
            "req-0a1b2c3d-0000-4000-8000-00000000bee\n",
            "req-0a1b2c3d-0000-4000-8000-00000000beeg",
        ] {
            assert_eq!(global_request_id(bad), None, "{bad}");
        }
    }
}
