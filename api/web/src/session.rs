//! Who is signed in at which browser. A session keeps the token that was shown at sign-in; each page shows it to the
//! routes again, so that a session ends with its token.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The name of the cookie.
const COOKIE: &str = "hotslot_page";

/// The maximum number of sessions. A sign-in beyond it ends the session that was not used for the longest time.
const MOST: usize = 1024;

/// The time after which a session ends that nobody uses.
const IDLE: Duration = Duration::from_secs(8 * 3600);

/// The time after which a session ends in any case.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The number of hexadecimal digits of a cookie.
const DIGITS: usize = 64;

struct Session {
    token: HeaderValue,
    begun: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.used) > IDLE || now.duration_since(self.begun) > LONGEST
    }
}

/// The sessions of this process. They are in memory only.
pub struct Sessions {
    /// By the SHA-256 of the cookie.
    sessions: Mutex<HashMap<[u8; 32], Session>>,
    /// The key of the tokens against forged forms.
    key: [u8; 32],
}

/// What a browser has of its session: the value of the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie(String);

impl Cookie {
    /// Makes a new, random cookie of 244 random bits.
    pub fn random() -> Self {
        Self(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
    }

    /// Returns the text, for a random value that is no cookie.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    /// Reads the cookie of a request; `None` when it has none, or one that hotslot did not make.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == COOKIE)?;
        let is_ours = value.len() == DIGITS && value.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_ours.then(|| Self(value.to_owned()))
    }

    /// Returns the header that gives the cookie to the browser. It has no `Path`, so that the browser sends it for the
    /// folder of the pages, also behind a proxy that adds a prefix.
    pub fn header(&self, secure: bool) -> (HeaderName, HeaderValue) {
        let secure = if secure { "; Secure" } else { "" };
        let text = format!("{COOKIE}={}; HttpOnly; SameSite=Strict{secure}", self.0);
        // Hexadecimal digits are valid in a header.
        (header::SET_COOKIE, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")))
    }

    fn key(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

impl Sessions {
    /// Makes an empty set of sessions.
    pub fn new() -> Self {
        Self { sessions: Mutex::default(), key: Cookie::random().key() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the token with which the owner of a cookie signed in.
    pub fn token(&self, cookie: &Cookie) -> Option<HeaderValue> {
        let (mut sessions, now) = (self.lock(), Instant::now());
        let session = sessions.get_mut(&cookie.key()).filter(|session| !session.is_over(now))?;
        session.used = now;
        Some(session.token.clone())
    }

    /// Begins a session of the owner of a cookie.
    pub fn begin(&self, cookie: &Cookie, mut token: HeaderValue) {
        token.set_sensitive(true);
        let (mut sessions, now) = (self.lock(), Instant::now());
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.len() >= MOST {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.used).map(|(key, _)| *key);
            oldest.and_then(|key| sessions.remove(&key));
        }
        sessions.insert(cookie.key(), Session { token, begun: now, used: now });
    }

    /// Ends the session of the owner of a cookie.
    pub fn end(&self, cookie: &Cookie) {
        self.lock().remove(&cookie.key());
    }

    /// Returns the token that each form of the owner of a cookie has. A page of another site cannot know it.
    pub fn form_token(&self, cookie: &Cookie) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(cookie.0.as_bytes());
        hash.update(self.key);
        hex(&hash.finalize())
    }

    /// Whether a form has the token of the owner of a cookie.
    pub fn is_own_form(&self, cookie: &Cookie, shown: &str) -> bool {
        // The comparison of hashes tells nothing about the token by the time that it takes.
        Sha256::digest(shown.as_bytes()) == Sha256::digest(self.form_token(cookie).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie_of(text: &str) -> Option<Cookie> {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, text.parse().unwrap());
        Cookie::of(&headers)
    }

    #[test]
    fn only_a_cookie_of_hotslot_is_read() {
        let made = Cookie::random();
        assert_eq!(cookie_of(&format!("a=b; hotslot_page={}", made.0)), Some(made.clone()));
        for text in ["", "hotslot_page=", "hotslot_page=zz", &format!("hotslot_page={}0", made.0)] {
            assert_eq!(cookie_of(text), None, "{text}");
        }
        let (_, header) = made.header(true);
        assert!(header.to_str().unwrap().ends_with("; HttpOnly; SameSite=Strict; Secure"));
    }

    #[test]
    fn the_number_of_sessions_is_limited_and_the_oldest_ends_first() {
        let sessions = Sessions::new();
        let cookies: Vec<_> = (0..=MOST).map(|_| Cookie::random()).collect();
        for cookie in &cookies {
            sessions.begin(cookie, HeaderValue::from_static("token"));
        }
        assert_eq!(sessions.lock().len(), MOST);
        assert_eq!(sessions.token(&cookies[0]), None);
        assert!(sessions.token(&cookies[MOST]).is_some());
        sessions.end(&cookies[MOST]);
        assert_eq!(sessions.token(&cookies[MOST]), None);
    }

    #[test]
    fn a_form_belongs_to_one_cookie() {
        let (sessions, mine, other) = (Sessions::new(), Cookie::random(), Cookie::random());
        let token = sessions.form_token(&mine);
        assert!(sessions.is_own_form(&mine, &token));
        assert!(!sessions.is_own_form(&other, &token));
        assert!(!sessions.is_own_form(&mine, ""));
    }
}
