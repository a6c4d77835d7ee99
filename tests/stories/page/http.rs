//! The page without a browser: sessions, forms, rights, and texts of guests and callers.

use hotslot_driver::sim::generate;
use hotslot_tests::{Hotslot, Q35, host};
use reqwest::Method;

use super::person::{Person, form_token, html, place};
use crate::door::with_tokens;

#[tokio::test]
async fn a_session_stands_for_a_token_until_it_is_revoked_or_the_person_signs_out() {
    let (service, _, config, [admin, reader, _]) = with_tokens().await;
    let mut person = Person::at(&service);
    // Whoever is not signed in is sent to the form, which returns to the page.
    let sent = person.get("server?id=1").await.expect(303);
    assert_eq!(place(&sent), "sign-in?next=server%3Fid%3D1");
    let cookie = sent.headers["set-cookie"].to_str().unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains("Path"),
        "{cookie}"
    );
    let wrong = person.sign_in("hst_0").await.expect(401);
    assert!(html(&wrong).contains("role=\"alert\""), "{}", html(&wrong));
    let before = person.cookie.clone();
    let done = person.sign_in(&admin).await.expect(303);
    assert_eq!(place(&done), "servers");
    assert_ne!(person.cookie, before, "the sign-in makes another cookie");
    let page = person.get("hosts").await.expect(200);
    assert!(html(&page).contains("node1") && html(&page).contains("Sign out"));
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // Another browser has no part in it, and the token of the session is in no page.
    assert!(!html(&page).contains(&admin[..20]));
    Person::at(&service).get("hosts").await.expect(303);

    // A sign-out ends the session at the service too.
    let token = form_token(html(&page));
    person.send_as("sign-out", &[], &token).await.expect(303);
    assert_eq!(place(&person.get("hosts").await.expect(303)), "sign-in?next=hosts");

    // So does the end of the token.
    let mut other = Person::at(&service);
    other.sign_in(&reader).await.expect(303);
    other.get("hosts").await.expect(200);
    let mut revoke = std::process::Command::new(hotslot_tests::binary());
    assert!(revoke.args(["token", "revoke", "watch", "--config", &config]).status().unwrap().success());
    service
        .until("the session ends", async || {
            let headers = vec![("cookie".to_owned(), other.cookie.clone())];
            service.send_with(Method::GET, "/ui/hosts", headers, None).await.status == 303
        })
        .await;
    for secret in [&admin, &reader] {
        assert!(!service.log().contains(&secret[..]), "no token is in the log");
    }
}

#[tokio::test]
async fn a_form_of_another_page_or_session_changes_nothing() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in(&admin).await.expect(303);
    let fields = [("id", Q35), ("alias0", "vf"), ("count0", "1"), ("step", "attach")];
    for token in ["", "0", &"0".repeat(64)] {
        person.send_as("attach", &fields, token).await.expect(403);
    }
    let mut other = Person::at(&service);
    other.sign_in(&admin).await.expect(303);
    let foreign = form_token(html(&other.get("hosts").await.expect(200)));
    person.send_as("attach", &fields, &foreign).await.expect(403);
    // A page of another origin does not get that far.
    let mut headers = person.headers();
    headers[0].1 = "http://evil.example".to_owned();
    headers[1].1 = "cross-site".to_owned();
    headers.push(("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
    let own = form_token(html(&person.get("hosts").await.expect(200)));
    let body = format!("form_token={own}&id={Q35}&alias0=vf&step=attach");
    service.send_with(Method::POST, "/ui/attach", headers, Some(body)).await.expect(403);
    let headers = vec![("x-auth-token".to_owned(), admin.clone())];
    let left = service.send_with(Method::GET, "/v2.1/os-pci_attachments", headers, None).await.expect(200);
    assert!(left.body["pciAttachment"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn devices_are_attached_and_detached_without_scripts() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let attach = format!("attach?id={Q35}");
    let fields = [("id", Q35), ("alias0", "vf"), ("count0", "1"), ("step", "check")];
    let checked = person.send(&attach, "attach", &fields).await.expect(200);
    assert!(
        html(&checked).contains("These devices can be attached") && html(&checked).contains("0000:04:10.0")
    );
    assert!(service.attachments(Q35).await.is_empty(), "a check changes nothing");
    // The form with the key of the check attaches once, however often it is sent.
    let key =
        html(&checked).split_once("name=\"key\" value=\"").unwrap().1.split('"').next().unwrap().to_owned();
    let fields = [("id", Q35), ("alias0", "vf"), ("count0", "1"), ("step", "attach"), ("key", &key)];
    for _ in 0..2 {
        let done = person.send(&attach, "attach", &fields).await.expect(303);
        assert!(place(&done).starts_with("server?id="), "{}", place(&done));
        let shown = person.get(place(&done)).await.expect(200);
        assert!(html(&shown).contains("The devices are attached."));
    }
    // The address of a page says nothing that is not so.
    for (of, word) in [("", "attached"), ("0", "attached"), ("", "detaching")] {
        let shown = person.get(&format!("server?id={Q35}&of={of}&done={word}")).await.expect(200);
        assert!(!html(&shown).contains("The devices are attached."));
        assert!(!html(&shown).contains("has been asked"));
    }
    let attached = service.attachments(Q35).await;
    assert_eq!(attached.len(), 1);
    let events = service.get("/events?kind=attachment.state&last=1").await.expect(200).body;
    assert_eq!(events["events"][0]["to"], "attached", "the change has an event as by the API");

    let id = attached[0]["attachment_id"].as_str().unwrap();
    let detach = format!("detach?server={Q35}&attachment={id}");
    let form = person.get(&detach).await.expect(200);
    assert!(html(&form).contains("Detach by force"));
    let done = person.send(&detach, "detach", &[("server", Q35), ("attachment", id)]).await.expect(303);
    assert!(place(&done).ends_with("done=detaching"));
    service.until("it is gone", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_refusal_is_a_page_with_its_cure() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let attach = format!("attach?id={Q35}");
    for (fields, status, text) in [
        (&[("alias0", "nothing"), ("count0", "1")][..], 400, "nothing"),
        (&[("alias0", "vf"), ("count0", "99")], 400, "99"),
        (&[("alias0", "vf"), ("vlan", "5000")], 400, "4094"),
        (&[("alias0", "vf"), ("vlan", "x")], 400, "4094"),
        (&[("alias0", "vf"), ("mac_address", "no")], 400, "mac_address"),
    ] {
        let fields: Vec<_> =
            [("id", Q35), ("step", "attach")].into_iter().chain(fields.iter().copied()).collect();
        let refused = person.send(&attach, "attach", &fields).await.expect(status);
        let page = html(&refused);
        assert!(page.contains("role=\"alert\"") && page.contains(text), "{fields:?}: {page}");
    }
    for (page, status) in [
        ("server?id=00000000-0000-4000-8000-0000000000aa", 404),
        ("server?id=../../x", 404),
        ("server?id=", 404),
        ("server?id=detail", 404),
        ("attach?id=detail", 404),
        (&format!("detach?server={Q35}&attachment="), 404),
        ("host?host=detail", 404),
        ("host?host=", 404),
        ("host?host=node1&q=network&from=18446744073709551615", 200),
        ("server", 400),
        ("host?host=nowhere", 404),
        ("function?host=node1&address=0000:ff:00.0", 404),
        ("nowhere", 404),
        ("events?kind=no", 200),
    ] {
        let answer = person.get(page).await.expect(status);
        assert!(html(&answer).starts_with("<!DOCTYPE html>"), "{page}: {}", answer.body);
        assert!(html(&answer).contains("href=\"hosts\""), "a page of a problem has the navigation: {page}");
        assert!(!html(&answer).contains("GET "), "a page names no route: {}", html(&answer));
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn what_a_caller_may_not_do_is_not_shown_and_is_refused() {
    let (service, _, _, [admin, reader, member]) = with_tokens().await;
    let owner = r#"{"pci_owner": {"project_id": "p"}}"#.to_owned();
    let headers = [("x-auth-token".to_owned(), admin.clone())];
    service
        .send_with(Method::PUT, &format!("/v2.1/servers/{Q35}/pci_owner"), headers, Some(owner))
        .await
        .expect(200);
    let mut watch = Person::at(&service);
    watch.sign_in(&reader).await.expect(303);
    let page = watch.get("drift").await.expect(200);
    assert!(!html(&page).contains("action=\"drift\"") && html(&page).contains("Hosts"));
    // A reader of the whole system has no part in the servers of projects.
    watch.get(&format!("server?id={Q35}")).await.expect(403);
    watch.get(&format!("attach?id={Q35}")).await.expect(403);
    let refused = watch.get("rule?kind=alias").await.expect(403);
    assert!(html(&refused).contains("href=\"rules\""), "{}", html(&refused));
    let events = watch.get("events").await.expect(200);
    assert!(html(&events).contains(Q35) && !html(&events).contains("href=\"server?"), "{}", html(&events));
    let token = form_token(html(&page));
    watch.send_as("attach", &[("id", Q35), ("alias0", "vf"), ("step", "attach")], &token).await.expect(403);
    let refused = watch.send_as("drift", &[], &token).await.expect(403);
    assert!(!html(&refused).contains("GET "), "{}", html(&refused));
    // A form after the end of the session says to sign in again.
    watch.send_as("sign-out", &[], &token).await.expect(303);
    let ended = watch.send_as("drift", &[], &token).await.expect(401);
    let page = html(&ended);
    assert!(page.contains("sign in, and repeat it") && page.contains("href=\"sign-in\""), "{page}");
    assert!(!page.contains("Authorization"), "{page}");

    // A member of a project sees its servers, and nothing of the host.
    let mut app = Person::at(&service);
    app.sign_in(&member).await.expect(303);
    let page = app.get("servers").await.expect(200);
    assert!(html(&page).contains("q35") && !html(&page).contains("i440fx") && !html(&page).contains("node1"));
    assert!(!html(&page).contains(">Hosts<") && !html(&page).contains(">Events<"));
    let page = app.get(&format!("server?id={Q35}")).await.expect(200);
    assert!(html(&page).contains("Attach devices") && !html(&page).contains("node1"));
    app.get("hosts").await.expect(403);
    let fields = [("id", Q35), ("alias0", "vf"), ("count0", "1"), ("step", "attach")];
    let from = format!("attach?id={Q35}");
    app.send(&from, "attach", &fields).await.expect(303);
    let page = app.get(&format!("server?id={Q35}")).await.expect(200);
    assert!(html(&page).contains("attached") && !html(&page).contains("0000:04:10"), "{}", html(&page));
}

/// A host of 4,096 functions: 32 PFs with 127 VFs each.
#[tokio::test]
async fn the_pages_of_a_large_host_stay_small() {
    let dir = tempfile::tempdir().unwrap();
    generate::Size { pfs: 32, vfs: 127, guests: 16, ports: 8 }.write(dir.path()).unwrap();
    let config = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}']\n";
    let service = Hotslot::bare(dir.path(), config, |_| ()).await;
    let mut person = Person::at(&service);
    for (page, text) in [
        ("host?host=node1".to_owned(), "127 VFs, 127 free"),
        ("host?host=node1&q=10ca".to_owned(), "4064 of 4096 functions"),
        ("hosts".to_owned(), "node1"),
        ("servers".to_owned(), ">g15<"),
        (format!("server?id={}", generate::guest_uuid(0)), "PCI tree of the guest"),
        ("events".to_owned(), "device"),
    ] {
        let answer = person.get(&page).await.expect(200);
        assert!(html(&answer).contains(text), "{page}: {}", html(&answer));
        assert!(html(&answer).len() <= 1_000_000, "{page} has {} bytes", html(&answer).len());
    }
}

#[tokio::test]
async fn texts_of_guests_hosts_and_callers_are_escaped() {
    const EVIL: &str = "\"&gt;&lt;script&gt;alert(1)&lt;/script&gt;";
    let service = Hotslot::bare(&host("small"), "", |dir| {
        for (file, from) in [
            ("devices/pci_0000_05_00_0.xml", "82574L Gigabit Network Connection"),
            ("devices/pci_0000_04_10_0.xml", "82576 Virtual Function"),
        ] {
            let path = dir.join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{file}");
            std::fs::write(&path, text.replace(from, EVIL)).unwrap();
        }
    })
    .await;
    let mut person = Person::at(&service);
    for page in [
        "host?host=node1",
        "host?host=node1&q=%3Cscript%3Ealert(1)%3C/script%3E&status=%22%3E%3Cscript%3E",
        "function?host=node1&address=0000:05:00.0",
        "servers?q=%3Cscript%3Ealert(1)",
        "events?server=%22%3E%3Cscript%3Ealert(1)&user=%3Cscript%3E",
        "host?host=%3Cscript%3Ealert(1)%3C/script%3E",
        "sign-in?next=%22%3E%3Cscript%3Ealert(1)",
    ] {
        let answer = person.get(page).await;
        let text = html(&answer);
        assert!(text.starts_with("<!DOCTYPE html>"), "{page}: {}", answer.body);
        assert!(!text.contains("<script>alert"), "{page}: {text}");
        assert_eq!(text.matches("<script").count(), 1, "only the script of the page: {page}");
    }
}
