//! The page: which routes of it there are is in the crate `hotslot-web`. Here is decided who looks at it, as for every
//! other route: a session stands for the token that was shown at sign-in. The page calls the routes of the API in this
//! process, on behalf of that caller.

use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, FromRef as _, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use hotslot_model::identity::{Caller, Peer, Target};
use hotslot_service::config::{Config, IdentityFrom};
use hotslot_store::actor;
use hotslot_web::{
    Api, Context, Cookie, Credential, Problem, Sessions, SignIn, SignedIn, Ways, Who, problem_page,
};

use super::audit::{DoneByRoutes, Identified};
use super::error::Fault;
use super::identity::OnBehalf;
use super::state::{App, IdentityParts};
use super::{RequestId, limits, origin, policy};

const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// What the layers of the page need.
#[derive(Clone)]
struct Pages {
    app: App,
    api: Arc<Router>,
    sessions: Arc<Sessions>,
}

/// The browser of a request.
#[derive(Clone)]
struct Browser {
    cookie: Cookie,
    signed_in: bool,
}

/// Returns the routes of the page, which call the routes of the API.
pub(super) fn pages(app: &App, api: Router) -> Router {
    let pages = Pages { app: app.clone(), api: Arc::new(api), sessions: Arc::new(Sessions::new()) };
    hotslot_web::routes()
        .layer(middleware::from_fn_with_state(pages.clone(), with_context))
        .layer(middleware::from_fn_with_state(app.clone(), limits::enforce_form))
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(middleware::from_fn_with_state(app.clone(), policy::admit))
        .layer(middleware::from_fn_with_state(pages.clone(), with_session))
        .layer(middleware::from_fn_with_state(app.clone(), origin::refuse_other_origins))
        .layer(middleware::from_fn(as_page))
}

/// Replaces the cookie of a session by the token that it stands for.
async fn with_session(State(pages): State<Pages>, mut request: Request, next: Next) -> Response {
    let known = Cookie::of(request.headers());
    let token = known.as_ref().and_then(|cookie| pages.sessions.token(cookie));
    let (is_new, signed_in) = (known.is_none(), token.is_some());
    if let Some(token) = token {
        request.headers_mut().remove(header::AUTHORIZATION);
        request.headers_mut().insert(TOKEN, token);
    }
    let cookie = known.unwrap_or_else(Cookie::random);
    request.extensions_mut().insert(Browser { cookie: cookie.clone(), signed_in });
    let is_secure = is_secure(&pages.app.0.config.get(), request.headers());
    // The folder without the slash is in another folder, and the cookie would be for that one.
    let is_page = request.uri().path().starts_with("/ui/");
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED && signed_in {
        pages.sessions.end(&cookie);
    }
    if is_new && is_page && !response.headers().contains_key(header::SET_COOKIE) {
        let (name, value) = cookie.header(is_secure);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether the browser reaches the page over TLS: that of the service, or that of a proxy, as the origin of a form says.
fn is_secure(config: &Config, headers: &HeaderMap) -> bool {
    let https = |origin: &HeaderValue| origin.as_bytes().starts_with(b"https:");
    config.api.tls.is_some() || headers.get(header::ORIGIN).is_some_and(https)
}

/// Gives the handlers of the page what they need.
async fn with_context(State(pages): State<Pages>, mut request: Request, next: Next) -> Response {
    let Some(Browser { cookie, signed_in }) = request.extensions().get::<Browser>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let (config, policy) = (pages.app.0.config.get(), pages.app.0.policy.get());
    let caller = request.extensions().get::<Caller>().cloned();
    let behind_proxy = config.api.identity == IdentityFrom::Headers;
    let callers = &pages.app.0.callers;
    let ways = Ways {
        token: callers.take_tokens() && !behind_proxy,
        password: callers.keystone().is_some() && !behind_proxy,
    };
    let who = caller.as_ref().map(|caller| who(caller, signed_in));
    let asking = caller.clone();
    let may = move |rule: &str| {
        let asked = asking.as_ref().map(|caller| policy.require(caller, rule, Target::Unknown).is_ok());
        asked.unwrap_or_default()
    };
    let context = Context {
        api: api(&pages, &request, caller),
        who,
        may: Arc::new(may),
        sign_in: sign_in(&pages.app, &request),
        sessions: Arc::clone(&pages.sessions),
        cookie,
        secure: is_secure(&config, request.headers()),
        ways,
    };
    request.extensions_mut().insert(context);
    next.run(request).await
}

/// Returns the routes of the API as the caller of a page uses them.
fn api(pages: &Pages, request: &Request, caller: Option<Caller>) -> Api {
    let (mut headers, mut extensions) = (HeaderMap::new(), Extensions::new());
    if let Some(host) = request.headers().get(header::HOST) {
        headers.insert(header::HOST, host.clone());
    }
    if let Some(peer) = request.extensions().get::<Peer>() {
        extensions.insert(*peer);
    }
    if let Some(id) = request.extensions().get::<RequestId>() {
        extensions.insert(id.clone());
    }
    if let Some(caller) = caller {
        extensions.insert(OnBehalf(caller));
    }
    Api::new(Arc::clone(&pages.api), headers, extensions)
}

fn who(caller: &Caller, signed_in: bool) -> Who {
    let name = caller.user.as_ref().map_or_else(|| "no identity".to_owned(), |user| user.name.clone());
    Who { name, project: caller.project.clone(), roles: caller.roles.iter().cloned().collect(), signed_in }
}

/// Returns what checks a credential at sign-in. It counts as a request of its owner, or as a failure of this connection.
fn sign_in(app: &App, request: &Request) -> SignIn {
    let app = app.clone();
    let peer = request.extensions().get::<Peer>().copied();
    Arc::new(move |credential| {
        let identity = IdentityParts::from_ref(&app);
        Box::pin(async move {
            signed_in(&identity, peer, credential)
                .await
                .map_err(|fault| Problem::new(fault.status.as_u16(), fault.message))
        })
    })
}

async fn signed_in(
    identity: &IdentityParts,
    peer: Option<Peer>,
    credential: Credential,
) -> Result<SignedIn, Fault> {
    let token = match credential {
        Credential::Token(token) => token,
        Credential::Login(login) => policy::token_for(identity, peer, &login).await?,
    };
    let mut shown = Request::new(());
    *shown.uri_mut() = axum::http::Uri::from_static("/ui/account");
    shown.headers_mut().insert(TOKEN, token.clone());
    if let Some(peer) = peer {
        shown.extensions_mut().insert(peer);
    }
    let (parts, ()): (Parts, ()) = shown.into_parts();
    let too_many = || Fault::new(StatusCode::TOO_MANY_REQUESTS, "too many requests; wait a minute");
    let caller = match policy::identified(identity, &parts).await {
        Ok(caller) => caller?,
        Err(response) => return Err(response.extensions().get::<Fault>().cloned().unwrap_or_else(too_many)),
    };
    let mut for_audit = Extensions::new();
    for_audit.insert(Identified { actor: Arc::new(actor::current().by(&caller)), rule: None });
    Ok(SignedIn { token, for_audit })
}

/// Makes a page of every error: of one that a layer found, and of one that a handler returned. Whoever is not signed in
/// is sent to the form for it.
async fn as_page(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = next.run(request).await;
    if !uri.path().starts_with("/ui/sign-") {
        response.extensions_mut().insert(DoneByRoutes);
    }
    let status = response.status();
    let is_html = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if !(status.is_client_error() || status.is_server_error())
        || (is_html && !response.body().is_end_stream())
    {
        return with_fault(response);
    }
    let extensions = response.extensions();
    let fault = extensions.get::<Fault>().map(|fault| Problem::new(status.as_u16(), fault.message.clone()));
    let problem = fault.or_else(|| extensions.get::<Problem>().cloned());
    let problem = problem
        .unwrap_or_else(|| Problem::new(status.as_u16(), "the address or form of this page is not valid"));
    let mut page =
        if status == StatusCode::UNAUTHORIZED && method == Method::GET && !uri.path().ends_with("/live") {
            to_sign_in(&uri)
        } else {
            problem_page(&problem, false)
        };
    let (parts, _) = response.into_parts();
    for name in [header::SET_COOKIE, header::RETRY_AFTER] {
        if let Some(value) = parts.headers.get(&name) {
            page.headers_mut().insert(name, value.clone());
        }
    }
    *page.extensions_mut() = parts.extensions;
    page.extensions_mut().insert(problem);
    with_fault(page)
}

/// Adds what the audit reads.
fn with_fault(mut response: Response) -> Response {
    if let (Some(problem), None) =
        (response.extensions().get::<Problem>().cloned(), response.extensions().get::<Fault>())
    {
        let fault = Fault::new(response.status(), problem.message);
        response.extensions_mut().insert(fault);
    }
    response
}

fn to_sign_in(uri: &axum::http::Uri) -> Response {
    let page = uri.path_and_query().map_or("", |text| text.as_str().trim_start_matches("/ui/"));
    let next: String = page
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let place = HeaderValue::from_str(&format!("sign-in?next={next}"));
    let place = place.unwrap_or(HeaderValue::from_static("sign-in"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}
