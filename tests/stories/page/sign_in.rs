//! Signing in at the page: with a name and password of a real Keystone, and what a sign-in leaves in the audit.

use futures_util::future::join_all;
use hotslot_tests::Hotslot;
use hotslot_tests::keystone::{Keystone, PASSWORD, User};
use reqwest::Method;
use serde_json::Value;

use super::person::{Person, form_token, html, place};
use crate::door::with_tokens;
use crate::keystone::Door;

/// Returns the refused sign-ins that are on record, as an administrator reads them.
async fn refused_sign_ins(service: &Hotslot, admin: &str) -> Vec<Value> {
    let headers = [("x-auth-token".to_owned(), admin.to_owned())];
    let path = "/events?kind=request.refused&limit=1000";
    let found = service.send_with(Method::GET, path, headers, None).await.expect(200).body;
    let events = found["events"].as_array().unwrap().iter();
    events.filter(|event| event["to"]["path"] == "/ui/sign-in").cloned().collect()
}

/// Waits until a refused sign-in is on record, and returns it.
async fn until_recorded(service: &Hotslot, admin: &str) -> Value {
    service
        .until("the refusal is an event", async || !refused_sign_ins(service, admin).await.is_empty())
        .await;
    refused_sign_ins(service, admin).await.remove(0)
}

/// Returns the name of the project of a user.
async fn project_of(keystone: &Keystone, user: &User) -> String {
    let admin = keystone.admin().await;
    let found = keystone.ask(Method::GET, &format!("/projects/{}", user.project), &admin, None).await;
    found["project"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_person_signs_in_with_a_name_and_password_of_keystone() {
    let keystone = Keystone::shared().await;
    let door = Door::to(keystone, "").await;
    let (user, admin) = (keystone.user("admin").await, keystone.admin().await);
    let project = project_of(keystone, &user).await;
    let mut person = Person::at(&door.service);
    let form = person.get("sign-in").await.expect(200);
    assert!(html(&form).contains("name=\"password\"") && html(&form).contains("name=\"token\""));
    let fields = |user, password, project, domain| {
        [("user", user), ("password", password), ("project", project), ("domain", domain), ("next", "hosts")]
    };
    let (name, long) = (user.name.as_str(), "x".repeat(300));
    for wrong in [
        fields(name, "wr0ng-s3cret", &project, "Default"),
        fields("nobody", PASSWORD, &project, "Default"),
        fields(name, PASSWORD, "no-such-project", "Default"),
        fields(name, PASSWORD, &project, "no-such-domain"),
        fields(name, "", &project, "Default"),
        fields(&long, PASSWORD, &project, "Default"),
    ] {
        let refused = person.send("sign-in", "sign-in", &wrong).await.expect(401);
        let page = html(&refused);
        assert!(page.contains("role=\"alert\"") && page.contains("Keystone does not accept"), "{page}");
        assert!(page.contains(&format!("value=\"{}\"", wrong[0].1)), "the name is kept: {page}");
        assert!(!page.contains(PASSWORD) && !page.contains("wr0ng-s3cret"), "{page}");
    }
    person.get("hosts").await.expect(303);
    let event = until_recorded(&door.service, &admin).await;
    assert_eq!((&event["to"]["status"], &event["to"]["method"]), (&401.into(), &"POST".into()), "{event:#}");
    assert!(event["reason"].as_str().unwrap().contains("Keystone does not accept"), "{event:#}");

    let done =
        person.send("sign-in", "sign-in", &fields(name, PASSWORD, &project, "Default")).await.expect(303);
    assert_eq!(place(&done), "hosts");
    let page = person.get("hosts").await.expect(200);
    assert!(html(&page).contains("node1") && html(&page).contains(name), "{}", html(&page));
    // The sign-in is in the log, with the user, and without what was typed.
    let log = door.service.log();
    let line =
        log.lines().find(|line| line.contains("answered POST /ui/sign-in")).expect("a line of the log");
    assert!(line.contains(name), "{line}");
    door.log_has_none_of(&[PASSWORD, "wr0ng-s3cret"]);

    // Without a project, Keystone chooses the user's default one. This user has none, and so no rights.
    let mut other = Person::at(&door.service);
    let fields = [("user", name), ("password", PASSWORD), ("project", ""), ("next", "account")];
    other.send("sign-in", "sign-in", &fields).await.expect(303);
    other.get("hosts").await.expect(403);
    let account = other.get("account").await.expect(200);
    assert!(html(&account).contains("None of your roles gives a right"), "{}", html(&account));
}

#[tokio::test]
async fn a_person_without_keystone_is_told_why() {
    let mut keystone = Keystone::start().await;
    let door = Door::to(&keystone, "timeout = 8").await;
    keystone.command("stop");
    let mut person = Person::at(&door.service);
    let fields = [("user", "alice"), ("password", PASSWORD)];
    let refused = person.send("sign-in", "sign-in", &fields).await.expect(503);
    assert!(html(&refused).contains("Keystone cannot be asked who calls; repeat the request later"));
    door.log_has_none_of(&[PASSWORD]);
}

#[tokio::test]
async fn guesses_of_passwords_are_limited_like_those_of_tokens() {
    let keystone = Keystone::shared().await;
    let mut door = Door::to(keystone, "").await;
    door.service.reconfigure("rate = 0\n", "rate = 1\nburst = 5\n");
    door.service.kill();
    door.service.start_again().await;
    let mut person = Person::at(&door.service);
    let token = form_token(html(&person.get("sign-in").await.expect(200)));
    let person = &person;
    let guesses = join_all((0..40).map(async |number| {
        let mut one = Person::with(&door.service, &person.cookie);
        let (user, password) = ("admin", format!("guess-{number}"));
        one.send_as("sign-in", &[("user", user), ("password", &password)], &token).await
    }))
    .await;
    let (wrong, refused): (Vec<_>, Vec<_>) = guesses.into_iter().partition(|answer| answer.status == 401);
    assert!(wrong.len() >= 5 && refused.len() >= 10, "{} {}", wrong.len(), refused.len());
    for refused in refused {
        assert!(html(&refused.expect(429)).contains("role=\"alert\""));
    }
}

#[tokio::test]
async fn a_wrong_token_is_an_event_and_what_a_page_does_is_recorded_once() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in("hst_0").await.expect(401);
    let event = until_recorded(&service, &admin).await;
    assert_eq!((&event["to"]["status"], &event["to"]["count"]), (&401.into(), &1.into()), "{event:#}");
    assert!(event["via"].as_str().unwrap().contains("127.0.0.1"), "{event:#}");

    person.sign_in(&admin).await.expect(303);
    let headers = || [("x-auth-token".to_owned(), admin.clone())];
    let counted = async || {
        let text = service.send_with(Method::GET, "/metrics", headers(), None).await.expect(200).body;
        let text = text.as_str().unwrap().to_owned();
        let lines =
            text.lines().filter(|line| line.starts_with("hotslot_http_request_duration_seconds_count{"));
        let posts = lines.filter(|line| line.contains("method=\"POST\""));
        posts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    let (posts, start) = (counted().await, service.log_length());
    let fields = [("id", hotslot_tests::Q35), ("alias0", "vf"), ("count0", "1"), ("step", "attach")];
    let done = person.send(&format!("attach?id={}", hotslot_tests::Q35), "attach", &fields).await.expect(303);
    assert_eq!(counted().await, posts + 1.0, "the request of the browser counts, and no other");
    let log = service.log_from(start);
    let lines: Vec<_> = log.lines().filter(|line| line.contains("answered POST")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("/os-pci_attachments"), "{}", lines[0]);
    // The line, and the events, have the id that the browser got.
    let id = done.headers["x-openstack-request-id"].to_str().unwrap();
    assert!(lines[0].contains(id), "{id}: {}", lines[0]);
    let path = "/events?kind=attachment.state&last=1";
    let events = service.send_with(Method::GET, path, headers(), None).await.expect(200).body;
    assert!(events["events"][0]["who"].as_str().unwrap().contains(id), "{id}: {events:#}");
}
