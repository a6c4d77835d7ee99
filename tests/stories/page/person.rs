//! A browser without scripts, as a story uses it.

use hotslot_tests::{Answer, Hotslot};
use reqwest::Method;

/// A browser without scripts: it keeps the cookie, and sends forms as a browser does.
pub(super) struct Person<'a> {
    service: &'a Hotslot,
    pub(super) cookie: String,
}

impl<'a> Person<'a> {
    pub(super) fn at(service: &'a Hotslot) -> Self {
        Self { service, cookie: String::new() }
    }

    /// The same person in another window, who has the cookie.
    pub(super) fn with(service: &'a Hotslot, cookie: &str) -> Self {
        Self { service, cookie: cookie.to_owned() }
    }

    pub(super) fn headers(&self) -> Vec<(String, String)> {
        let origin = self.service.url().to_owned();
        let mut headers =
            vec![("origin".to_owned(), origin), ("sec-fetch-site".to_owned(), "same-origin".to_owned())];
        if !self.cookie.is_empty() {
            headers.push(("cookie".to_owned(), self.cookie.clone()));
        }
        headers
    }

    fn keep(&mut self, answer: &Answer) {
        if let Some(cookie) = answer.headers.get("set-cookie") {
            self.cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        }
    }

    pub(super) async fn get(&mut self, page: &str) -> Answer {
        let answer = self.service.send_with(Method::GET, &format!("/ui/{page}"), self.headers(), None).await;
        self.keep(&answer);
        answer
    }

    /// Sends a form with the token of a page that has one.
    pub(super) async fn send(&mut self, from: &str, page: &str, fields: &[(&str, &str)]) -> Answer {
        let shown = self.get(from).await;
        let token = form_token(html(&shown));
        self.send_as(page, fields, &token).await
    }

    pub(super) async fn send_as(&mut self, page: &str, fields: &[(&str, &str)], token: &str) -> Answer {
        let mut all = vec![("form_token", token)];
        all.extend(fields);
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let body =
            all.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&");
        let mut headers = self.headers();
        headers.push(("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
        let answer = self.service.send_with(Method::POST, &format!("/ui/{page}"), headers, Some(body)).await;
        self.keep(&answer);
        answer
    }

    pub(super) async fn sign_in(&mut self, token: &str) -> Answer {
        self.send("sign-in", "sign-in", &[("token", token), ("next", "servers")]).await
    }
}

pub(super) fn html(answer: &Answer) -> &str {
    answer.body.as_str().unwrap_or_default()
}

pub(super) fn form_token(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"form_token\" value=\"").expect("a form");
    rest.split('"').next().unwrap().to_owned()
}

pub(super) fn place(answer: &Answer) -> &str {
    answer.headers["location"].to_str().unwrap()
}
