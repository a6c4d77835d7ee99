//! How many requests a caller may send, and how often somebody may guess who to be.

use std::process::Command;

use futures_util::future::join_all;
use hotslot_tests::{Answer, Api, Hotslot, binary};
use reqwest::Method;

use crate::socket::at_socket;

const LIMIT: &str = "rate = 2\nburst = 10\n";

/// Splits the responses into those that were served, and those with 429.
fn served(answers: Vec<Answer>) -> (Vec<Answer>, Vec<Answer>) {
    answers.into_iter().partition(|answer| answer.status != 429)
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[tokio::test]
async fn a_caller_who_sends_too_many_requests_has_to_wait() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("[api]\nrate = 0\n", &format!("[api]\nidentity = \"headers\"\n{LIMIT}"));
    service.kill();
    service.start_again().await;
    let send = async |user: &str, project: &str| {
        let headers =
            [header("x-user-id", user), header("x-project-id", project), header("x-roles", "member")];
        service.send_with(Method::GET, "/accelerator/v2/accelerator_requests", headers, None).await
    };
    let (done, refused) = served(join_all((0..40).map(|_| send("u", "p"))).await);
    assert!(done.len() >= 10 && refused.len() >= 10, "{} {}", done.len(), refused.len());
    for done in done {
        done.expect(200);
    }
    for refused in refused {
        let seconds: u64 = refused.retry_after.as_ref().unwrap().parse().unwrap();
        assert!((1..=10).contains(&seconds), "{seconds}");
        let message = refused.fault_string();
        assert!(message.contains("2 a second are allowed after 10 at once"), "{message}");
    }
    // The others do not wait: neither another user, nor the same one in another project, nor probes.
    send("v", "p").await.expect(200);
    send("u", "q").await.expect(200);
    for (status, answer) in join_all((0..40).map(async |_| (200, service.get("/healthz").await))).await {
        answer.expect(status);
    }
    service.until("the caller is served again", async || send("u", "p").await.status == 200).await;
}

#[tokio::test]
async fn guesses_of_tokens_are_limited_by_address() {
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("tokens");
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    let identity = format!("[identity]\ntokens = \"{}\"\n[database]\n", file.display());
    service.reconfigure("insecure_tcp = true\n", "");
    service.reconfigure("rate = 0\n", LIMIT);
    service.reconfigure("[database]\n", &identity);
    service.kill();
    service.start_again().await;
    let create = ["token", "create", "ops", "--role", "admin", "--config", &config];
    let output = Command::new(binary()).args(create).output().unwrap();
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let send = async |token: String| {
        let api = Api::at(service.url().to_owned());
        api.send_with(Method::GET, "/v2.1/os-pci", [header("x-auth-token", &token)], None).await
    };
    send(token.clone()).await.expect(200);
    let mut guessed = Vec::new();
    for number in 0..40 {
        guessed.push(send(format!("hst_{number}")).await);
        // Whoever guesses does not lock out others at the same address.
        if number % 20 == 10 {
            send(token.clone()).await.expect(200);
        }
    }
    let (wrong, refused) = served(guessed);
    assert!(wrong.len() >= 10 && refused.len() >= 10, "{} {}", wrong.len(), refused.len());
    for wrong in wrong {
        wrong.expect(401);
    }
    assert!(refused.iter().all(|refused| refused.retry_after.is_some()));
}

#[tokio::test]
async fn root_is_not_limited_at_the_socket() {
    let (mut service, _socket, _dir) = at_socket("022", "").await;
    service.reconfigure("rate = 0\n", LIMIT);
    service.kill();
    service.start_again().await;
    for answer in join_all((0..40).map(|_| service.get("/v2.1/os-pci"))).await {
        answer.expect(200);
    }
}
