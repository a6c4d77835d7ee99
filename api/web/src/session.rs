//! Who is signed in at which browser. A session keeps the token that was shown at sign-in; each page shows it to the
//! routes again, so that a session ends with its token.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The beginning of the name of the cookie. The port follows, because browsers send cookies to all ports of a host.
const COOKIE: &str = "hotslot_page";

/// The maximum number of sessions of one caller. A sign-in beyond it ends the one of the same caller that was not used for
/// the longest time.
const MOST_OF_ONE: usize = 16;

/// The maximum number of sessions of all callers. A sign-in beyond it ends one of the caller who has most of them.
const MOST: usize = 4096;

/// The time after which a session ends that nobody uses.
const IDLE: Duration = Duration::from_secs(8 * 3600);

/// The time after which a session ends in any case.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The number of hexadecimal digits of a cookie.
const DIGITS: usize = 64;

/// Where the browser of a request is, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On another machine.
    Elsewhere,
    /// On this machine, as a program of this user.
    User(u32),
    /// On this machine, and the kernel does not tell whose program it is. Such a browser has no session.
    Unknown,
}

struct Session {
    token: HeaderValue,
    /// Who signed in, as [`Sessions::begin`] got it.
    caller: String,
    /// Where that was. A request of another user on this machine has no part in the session.
    place: Place,
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

/// What a browser has of its session: the name and the value of the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    name: String,
    value: String,
}

/// Returns 244 random bits as hexadecimal digits.
pub(crate) fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Returns the name of the cookie for the host and port that the browser knows.
fn name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match host.rsplit_once(':').map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) => format!("{COOKIE}_{port}"),
        Some(Err(_)) | None => COOKIE.to_owned(),
    }
}

impl Cookie {
    /// Makes a new, random cookie for the browser of a request.
    pub fn random(headers: &HeaderMap) -> Self {
        Self { name: name(headers), value: random() }
    }

    /// Makes another random cookie for the same browser.
    pub(crate) fn another(&self) -> Self {
        Self { name: self.name.clone(), value: random() }
    }

    /// Reads the cookies of a request, without those that hotslot did not make. There are several when a program at another
    /// port of the host has made the browser keep one too.
    pub fn all(headers: &HeaderMap) -> Vec<Self> {
        let name = name(headers);
        let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let is_ours =
            |value: &str| value.len() == DIGITS && value.bytes().all(|digit| digit.is_ascii_hexdigit());
        pairs
            .filter(|(key, value)| *key == name && is_ours(value))
            .map(|(_, value)| Self { name: name.clone(), value: value.to_owned() })
            .collect()
    }

    /// Returns the header that gives the cookie to the browser. It has no `Path`, so that the browser sends it for the
    /// folder of the pages, also behind a proxy that adds a prefix.
    pub fn header(&self, secure: bool) -> (HeaderName, HeaderValue) {
        let secure = if secure { "; Secure" } else { "" };
        let text = format!("{}={}; HttpOnly; SameSite=Strict{secure}", self.name, self.value);
        // Hexadecimal digits are valid in a header.
        (header::SET_COOKIE, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")))
    }

    fn key(&self) -> [u8; 32] {
        Sha256::digest(self.value.as_bytes()).into()
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
        Self { sessions: Mutex::default(), key: Sha256::digest(random()).into() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the token with which the owner of a cookie signed in, when a request with it comes from where that was.
    /// `is_use` says whether the request is something that the person does, so that the session is not idle.
    pub fn token(&self, cookie: &Cookie, place: Place, is_use: bool) -> Option<HeaderValue> {
        let (mut sessions, now) = (self.lock(), Instant::now());
        let session = sessions.get_mut(&cookie.key()).filter(|session| !session.is_over(now))?;
        if session.place != place || place == Place::Unknown {
            return None;
        }
        if is_use {
            session.used = now;
        }
        Some(session.token.clone())
    }

    /// Begins a session of the owner of a cookie, for the caller whom the token identifies.
    pub fn begin(&self, cookie: &Cookie, place: Place, caller: String, mut token: HeaderValue) {
        token.set_sensitive(true);
        let (mut sessions, now) = (self.lock(), Instant::now());
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.values().filter(|session| session.caller == caller).count() >= MOST_OF_ONE {
            end_oldest(&mut sessions, &caller);
        } else if sessions.len() >= MOST {
            let mut counts = HashMap::<&str, usize>::new();
            for session in sessions.values() {
                *counts.entry(&session.caller).or_default() += 1;
            }
            let most =
                counts.into_iter().max_by_key(|(_, count)| *count).map(|(caller, _)| caller.to_owned());
            end_oldest(&mut sessions, &most.unwrap_or_default());
        }
        sessions.insert(cookie.key(), Session { token, caller, place, begun: now, used: now });
    }

    /// Ends the session of the owner of a cookie.
    pub fn end(&self, cookie: &Cookie) {
        self.lock().remove(&cookie.key());
    }

    /// Returns the token that each form of the owner of a cookie has. A page of another site cannot know it. `person` is
    /// whoever is known without the cookie, so that a form of one person is not one of another with the same cookie.
    pub fn form_token(&self, cookie: &Cookie, person: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(cookie.key());
        hash.update(person);
        hash.update(self.key);
        hex(&hash.finalize())
    }

    /// Whether a form has the token of the owner of a cookie.
    pub fn is_own_form(&self, cookie: &Cookie, person: &str, shown: &str) -> bool {
        // The comparison of hashes tells nothing about the token by the time that it takes.
        Sha256::digest(shown.as_bytes()) == Sha256::digest(self.form_token(cookie, person).as_bytes())
    }
}

/// Ends the session of a caller that was not used for the longest time.
fn end_oldest(sessions: &mut HashMap<[u8; 32], Session>, caller: &str) {
    let own = sessions.iter().filter(|(_, session)| session.caller == caller);
    let oldest = own.min_by_key(|(_, session)| session.used).map(|(key, _)| *key);
    oldest.and_then(|key| sessions.remove(&key));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, cookies: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::COOKIE, cookies.parse().unwrap());
        headers
    }

    #[test]
    fn only_cookies_of_hotslot_for_the_same_port_are_read() {
        let made = Cookie::random(&headers("127.0.0.1:9774", "a=b"));
        let value = &made.value;
        let all = |host, cookies: &str| Cookie::all(&headers(host, cookies));
        assert_eq!(
            all("[::1]:9774", &format!("a=b; hotslot_page_9774={value}")),
            std::slice::from_ref(&made)
        );
        let planted = "0".repeat(DIGITS);
        let both = all("localhost:9774", &format!("hotslot_page_9774={planted}; hotslot_page_9774={value}"));
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], made);
        for (host, name) in
            [("hotslot.example", "hotslot_page"), ("[::1]", "hotslot_page"), ("", "hotslot_page")]
        {
            assert_eq!(all(host, &format!("{name}={value}")).len(), 1, "{host}");
        }
        for (host, text) in [
            ("localhost:9774", "a=b".to_owned()),
            ("localhost:9774", "hotslot_page_9774=".to_owned()),
            ("localhost:9774", "hotslot_page_9774=zz".to_owned()),
            ("localhost:9774", format!("hotslot_page_9774={value}0")),
            ("localhost:9775", format!("hotslot_page_9774={value}")),
            ("localhost:9774", format!("hotslot_page={value}")),
        ] {
            assert_eq!(all(host, &text), [], "{host} {text}");
        }
        let (_, header) = made.header(true);
        assert!(header.to_str().unwrap().ends_with("; HttpOnly; SameSite=Strict; Secure"));
    }

    fn signed_in(sessions: &Sessions, place: Place, caller: &str) -> Cookie {
        let cookie = Cookie::random(&HeaderMap::new());
        sessions.begin(&cookie, place, caller.to_owned(), HeaderValue::from_static("token"));
        cookie
    }

    #[test]
    fn a_caller_who_signs_in_often_ends_only_their_own_sessions() {
        let sessions = Sessions::new();
        let is_in = |cookie: &Cookie| sessions.token(cookie, Place::Elsewhere, true).is_some();
        let other = signed_in(&sessions, Place::Elsewhere, "other");
        let own: Vec<_> = (0..=MOST_OF_ONE).map(|_| signed_in(&sessions, Place::Elsewhere, "own")).collect();
        assert!(is_in(&other) && !is_in(&own[0]) && own[1..].iter().all(is_in));
        for number in 0..MOST {
            signed_in(&sessions, Place::Elsewhere, &format!("caller {number}"));
        }
        assert_eq!(sessions.lock().len(), MOST);
        assert!(is_in(&other), "those of the caller with most sessions end first");
        sessions.end(&other);
        assert!(!is_in(&other));
    }

    #[test]
    fn another_user_of_the_machine_has_no_part_in_a_session() {
        let sessions = Sessions::new();
        let all = [Place::Elsewhere, Place::User(0), Place::User(1000), Place::Unknown];
        for place in all {
            let cookie = signed_in(&sessions, place, "caller");
            for other in all {
                let expected = place == other && place != Place::Unknown;
                assert_eq!(sessions.token(&cookie, other, true).is_some(), expected, "{place:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_form_belongs_to_one_cookie_and_one_person() {
        let sessions = Sessions::new();
        let [mine, other] = [(); 2].map(|()| Cookie::random(&HeaderMap::new()));
        let token = sessions.form_token(&mine, "me");
        assert!(sessions.is_own_form(&mine, "me", &token));
        assert!(!sessions.is_own_form(&other, "me", &token));
        assert!(!sessions.is_own_form(&mine, "you", &token));
        assert!(!sessions.is_own_form(&mine, "me", ""));
    }
}
