//! What each page needs: who looks at it, what that caller may do, and the routes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::rejection::FormRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use crate::api::Api;
use crate::problem::Problem;
use crate::session::{Cookie, Place, Sessions};

/// Answers whether the caller may use the routes of a rule, for some project at least.
pub type May = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// With what somebody signs in.
pub enum Credential {
    /// A token.
    Token(HeaderValue),
    /// The body of a request to Keystone for a token.
    Login(Value),
}

/// Somebody who has signed in.
pub struct SignedIn {
    /// What tells the caller apart from all others.
    pub caller: String,
    /// The token that each page shows from now on.
    pub token: HeaderValue,
    /// What the audit reads in the response.
    pub for_audit: Extensions,
}

/// Finds out whether a credential identifies a caller. The error says why it does not.
pub type SignIn =
    Arc<dyn Fn(Credential) -> Pin<Box<dyn Future<Output = Result<SignedIn, Problem>> + Send>> + Send + Sync>;

/// Who looks at a page.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// The name of the user, or how the caller was identified.
    pub name: String,
    /// The project in which the caller acts.
    pub project: Option<String>,
    /// The roles, in the order of their names.
    pub roles: Vec<String>,
    /// Whether the caller signed in at the page, so that signing out has an effect.
    pub signed_in: bool,
    /// Whether the caller is an administrator.
    pub is_admin: bool,
    /// Whether the caller is a service or an administrator.
    pub is_service_or_admin: bool,
}

/// What a page is made with. The service puts it into each request of a page.
#[derive(Clone)]
pub struct Context {
    /// The routes, for this caller.
    pub api: Api,
    /// Who looks at the page; `None` on pages that need no identity.
    pub who: Option<Who>,
    /// What the caller may do.
    pub may: May,
    /// Checks the credential that is shown at sign-in.
    pub sign_in: SignIn,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    /// The cookie of the browser.
    pub cookie: Cookie,
    /// Where the browser is.
    pub place: Place,
    /// Whether the cookie stands for a session.
    pub signed_in: bool,
    /// Who is known without the cookie; empty when nobody is.
    pub person: String,
    /// Whether the browser may send the cookie over TLS only.
    pub secure: bool,
    /// How callers may sign in.
    pub ways: Ways,
}

/// How callers may sign in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ways {
    /// With a token.
    pub token: bool,
    /// Whether all hosts are simulated, so that a link may sign a person in without asking.
    pub simulated: bool,
    /// With a name and password of Keystone.
    pub password: bool,
}

impl Context {
    /// Whether the caller may use the routes of a rule.
    pub(crate) fn may(&self, rule: &str) -> bool {
        (self.may)(rule)
    }

    /// Whether the caller may do what is for administrators, whatever the rules say.
    pub(crate) fn is_admin(&self) -> bool {
        self.who.as_ref().is_some_and(|who| who.is_admin)
    }

    /// Whether the caller may do what is for services and administrators, whatever the rules say.
    pub(crate) fn is_service_or_admin(&self) -> bool {
        self.who.as_ref().is_some_and(|who| who.is_service_or_admin)
    }

    /// Returns the token that each form has.
    pub(crate) fn form_token(&self) -> String {
        self.sessions.form_token(&self.cookie, &self.person)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Context {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let context = parts.extensions.get::<Self>().cloned();
        context.ok_or_else(|| Problem::new(500, "the page has no context"))
    }
}

/// The fields of a form that hotslot sent to this browser.
pub(crate) struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Returns the value of a field without spaces around it; an empty text when there is no such field.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.written(name).trim()
    }

    /// Returns the value of a field as it was written, which matters for a password.
    pub(crate) fn written(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a checkbox is set.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        !self.get(name).is_empty()
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let context = request.extensions().get::<Context>().cloned();
        let context = context.ok_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
        let form = axum::Form::<BTreeMap<String, String>>::from_request(request, state).await;
        let unreadable = |rejection: FormRejection| {
            Problem::new(
                rejection.status().as_u16(),
                "the form cannot be read; open the page again and repeat it",
            )
        };
        let fields = Self(form.map_err(|rejection| unreadable(rejection).into_response())?.0);
        if context.sessions.is_own_form(&context.cookie, &context.person, fields.get("form_token")) {
            return Ok(fields);
        }
        let text =
            "this form is from an earlier session or from another page; open the page again and repeat it";
        Err(Problem::new(403, text).into_response())
    }
}
