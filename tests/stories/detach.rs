//! Detach distinguishes gone, refused and pending. A pending detach completes whenever the guest releases the device.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use hotslot_tests::{Hotslot, Q35, SWITCH, host, path, postgres};
use serde_json::{Value, json};

const PENDING: &str = "detaching";

const NO_ANSWERS: &str = "agent_answers = {}";

/// Serves `small` with a configuration and with answers of the guest's agent.
async fn with(config: &str, answers: &str) -> Hotslot {
    let pci = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}']\n\
               alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";
    let scripted = |dir: &Path| {
        let file = dir.join("host.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(NO_ANSWERS));
        std::fs::write(file, text.replace(NO_ANSWERS, &format!("agent_answers = {{{answers}}}"))).unwrap();
    };
    Hotslot::bare(&host("small"), &format!("{config}\n{pci}"), scripted).await
}

async fn attach(service: &Hotslot) -> Value {
    service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone()
}

async fn shown(service: &Hotslot, vf: &Value) -> Value {
    service.get(&path(vf)).await.expect(200).body["pciAttachment"].clone()
}

/// Returns the number of domain documents that contain a device of hotslot. The files of the simulated host also name
/// pending unplug requests, so only alias elements are counted.
fn documents_with_it(service: &Hotslot) -> usize {
    service.documents().matches("<alias name='ua-").count()
}

async fn is_gone(service: &Hotslot, vf: &Value) -> bool {
    service.get(&path(vf)).await.status == 404
}

/// Returns a service and a device whose unplug request the guest never answers.
async fn pending() -> (Hotslot, Value) {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("guest q35 unplug=ignore");
    service.delete(&format!("{}?timeout=100ms", path(&vf))).await.expect(409);
    assert_eq!(shown(&service, &vf).await["status"], PENDING);
    (service, vf)
}

#[tokio::test]
async fn the_requests_to_a_guest_are_shown_while_their_answers_are_awaited() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("attempts = 2\ntimeout = 0.4", "attempts = 3\ntimeout = 2");
    service.kill();
    service.start_again().await;
    let vf = attach(&service).await;
    assert!(shown(&service, &vf).await.get("progress").is_none());
    service.sim("guest q35 unplug=ignore");
    let watch = async {
        service
            .until("the second request", async || shown(&service, &vf).await["progress"]["attempt"] == 2)
            .await;
        let progress = shown(&service, &vf).await["progress"].clone();
        assert_eq!((&progress["attempts"], &progress["seconds"]), (&json!(3), &json!(2.0)));
    };
    let vf_path = path(&vf);
    let (detached, ()) = tokio::join!(service.delete(&vf_path), watch);
    detached.expect(409);
    assert!(shown(&service, &vf).await.get("progress").is_none());
}

#[tokio::test]
async fn a_pending_detach_survives_a_restart_of_the_service() {
    let (mut service, vf) = pending().await;
    service.kill();
    service.start_again().await;
    assert_eq!(shown(&service, &vf).await["status"], PENDING);
    assert_eq!(service.device("0000:04:10.0").await["status"], "allocated");
    service.sim("reboot q35");
    service.until("it is gone", async || is_gone(&service, &vf).await).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn an_unplug_that_completes_after_a_restart_is_noticed() {
    let (mut service, vf) = pending().await;
    service.sim("guest q35 unplug=slow 300");
    service.kill();
    // The unplug request survives the restart, and the guest answers it now.
    service.start_again().await;
    service.until("it is gone", async || is_gone(&service, &vf).await).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_pending_detach_survives_a_restart_of_libvirtd() {
    let (service, vf) = pending().await;
    service.sim("disconnect");
    service.until("the outage is noticed", async || service.get("/readyz").await.status == 503).await;
    // The service is down when the guest answers.
    service.sim("reboot q35");
    assert_eq!(shown(&service, &vf).await["status"], PENDING);
    service.sim("reconnect");
    service.until("it is gone", async || is_gone(&service, &vf).await).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_pending_detach_completes_when_the_guest_is_powered_off() {
    for end in ["destroy q35", "crash q35", "shutdown q35"] {
        let (service, vf) = pending().await;
        service.sim(end);
        service.until("it is gone", async || is_gone(&service, &vf).await).await;
        service.sim("start q35");
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_removal_without_an_event_is_seen_in_the_domain_xml() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("fault detach lose-event nth=2");
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_refusal_during_the_libvirt_call_counts_like_a_refusal_event() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("fault detach fail nth=2 kind=unplug-refused text=rejected-by-the-guest");
    let refused = service.delete(&path(&vf)).await.expect(409);
    assert!(refused.message().contains("stays attached: the guest refused"), "{}", refused.message());
    assert_eq!(service.plugged().len(), 2);
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_lost_unplug_request_is_repeated_within_the_time_limit() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("guest q35 boot-ms=4000");
    service.sim("reboot q35");
    let lost = service.delete(&format!("{}?timeout=200ms", path(&vf))).await.expect(409);
    assert!(lost.message().contains("still be booting"), "{}", lost.message());
    // The repetition happens within the time limit of the detach.
    let asked = Instant::now();
    service.delete(&format!("{}?timeout=30s", path(&vf))).await.expect(200);
    assert!(asked.elapsed() < Duration::from_secs(15));
    service.expect_clean().await;
}

#[tokio::test]
async fn a_lost_unplug_request_is_repeated_when_the_guest_has_booted() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("guest q35 boot-ms=3000");
    service.sim("reboot q35");
    service.delete(&format!("{}?timeout=100ms", path(&vf))).await.expect(409);
    // No client waits any more. The agent's connection shows that the guest has booted.
    service.until("it is gone", async || is_gone(&service, &vf).await).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_detach_waits_no_longer_than_its_timeout() {
    let service = Hotslot::on("small").await;
    service.reconfigure("timeout = 0.4", "timeout = 20");
    let mut service = service;
    service.kill();
    service.start_again().await;
    let vf = attach(&service).await;
    service.sim("guest q35 unplug=slow 8000");
    let timed = async |timeout: &str| {
        let asked = Instant::now();
        service.delete(&format!("{}?timeout={timeout}", path(&vf))).await.expect(409);
        asked.elapsed()
    };
    // The second detach does not wait for the first one either.
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        timed("300ms").await
    };
    let (first, second) = tokio::join!(timed("1200ms"), later);
    assert!((1200..7000).contains(&first.as_millis()), "{first:?}");
    assert!((300..6000).contains(&second.as_millis()), "{second:?}");
    service.until("it is gone", async || is_gone(&service, &vf).await).await;
    for bad in ["0", "0s", "-1s", "1.5s", "30x", "s", "", "25h", "99999999999999999999"] {
        let refused = service.delete(&format!("{}?timeout={bad}", path(&vf))).await.expect(400);
        assert!(refused.message().contains("write 30s"), "{}", refused.message());
    }
    service.delete(&format!("{}?forced=true", path(&vf))).await.expect(400);
    service.delete(&format!("{}?force=yes", path(&vf))).await.expect(400);
}

#[tokio::test]
async fn a_forced_detach_reports_its_effect_and_never_claims_removal() {
    for guest in ["unplug=refuse", "unplug=ignore"] {
        let mut service = Hotslot::on("small").await;
        let vf = attach(&service).await;
        service.sim(&format!("guest q35 {guest}"));
        let forced = format!("{}?force=true", path(&vf));
        let answer = service.delete(&forced).await.expect(409);
        for text in
            ["stays detaching", "from the domain's definition", "the guest keeps the device", "powered off"]
        {
            assert!(answer.message().contains(text), "{guest}: {}", answer.message());
        }
        assert_eq!(documents_with_it(&service), 1, "live, and not in the definition");
        assert_eq!(service.device("0000:04:10.0").await["status"], "allocated");
        // Further requests do not put the device back into the definition.
        service.delete(&path(&vf)).await.expect(409);
        service.kill();
        service.start_again().await;
        service
            .until("the unplug request was repeated", async || {
                shown(&service, &vf).await["status_reason"].as_str().unwrap().contains("forced")
            })
            .await;
        let now = shown(&service, &vf).await;
        assert_eq!((&now["status"], &now["forced"]), (&PENDING.into(), &true.into()));
        assert_eq!(documents_with_it(&service), 1);
        service.sim("destroy q35");
        service.until("it is gone", async || is_gone(&service, &vf).await).await;
        service.delete(&forced).await.expect(200);
        service.sim("start q35");
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn force_takes_over_a_running_detach() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("guest q35 unplug=refuse unplug-ms=300");
    let (vf_path, forced) = (path(&vf), format!("{}?force=true", path(&vf)));
    let (asked, forced) = tokio::join!(service.delete(&vf_path), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        service.delete(&forced).await
    });
    assert_eq!((asked.status, forced.status), (409, 409));
    assert!(forced.message().contains("forced:"), "{}", forced.message());
    assert_eq!(shown(&service, &vf).await["status"], PENDING);
}

#[tokio::test]
async fn a_forced_detach_that_times_out_while_waiting_forces_nothing() {
    let service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    service.sim("guest q35 unplug=ignore");
    let (asked, forced) =
        (format!("{}?timeout=6s", path(&vf)), format!("{}?force=true&timeout=100ms", path(&vf)));
    let (asked, forced) = tokio::join!(service.delete(&asked), async {
        let detaching = async || shown(&service, &vf).await["status"] == "detaching";
        service.until("the first one is at work", detaching).await;
        service.delete(&forced).await
    });
    assert_eq!((asked.status, forced.status), (409, 409));
    for text in ["is detaching", "not forced", "detach again with force"] {
        assert!(forced.message().contains(text), "{}", forced.message());
    }
    assert_eq!(shown(&service, &vf).await["forced"], false);
}

#[tokio::test]
async fn hot_unplug_refuse_allows_a_detach_when_off_or_by_force() {
    let refuse = "[[detach.class]]\nclass = 'network controller'\nhot_unplug = 'refuse'";
    let service = with(refuse, "").await;
    let vf = attach(&service).await;
    for version in ["/v2/t/", "/v2.1/", "/v3/"] {
        let refused = service.delete(&path(&vf).replace("/v2/t/", version)).await.expect(409);
        for text in ["hot_unplug = refuse in [[detach.class]] network controller", "shut server", "force"] {
            assert!(refused.message().contains(text), "{}", refused.message());
        }
    }
    assert_eq!(shown(&service, &vf).await["status"], "attached");
    assert_eq!(service.plugged().len(), 2, "nothing was changed");
    service.sim("shutdown q35");
    service.until("the guest is off", async || service.plugged().len() == 1).await;
    service.delete(&path(&vf)).await.expect(200);
    service.sim("start q35");
    let vf = attach(&service).await;
    service.delete(&format!("{}?force=true", path(&vf))).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_tag_overrides_the_class_policy() {
    let pci = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\", \"hot_unplug\": \"yes\"}']\n\
               alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";
    let class = "[[detach.class]]\nclass = 'network controller'\nhot_unplug = 'refuse'\n";
    let service = Hotslot::bare(&host("small"), &format!("{class}{pci}"), |_| ()).await;
    let vf = attach(&service).await;
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

const QUIESCE: &str =
    "[[detach.class]]\nclass = 'network controller'\nquiesce = ['/sbin/quiesce', '{address}']\n";

/// Returns agent answers for a command that exits with this code.
fn agent(exit: u32) -> String {
    format!(
        r#"guest-exec = '{{"return":{{"pid":7}}}}', guest-exec-status = '{{"return":{{"exited":true,"exitcode":{exit}}}}}'"#
    )
}

#[tokio::test]
async fn a_guest_is_quiesced_before_the_unplug_request() {
    let demanded = format!("{QUIESCE}hot_unplug = 'quiesce'");
    let service = with(&demanded, &agent(0)).await;
    service.sim("agent q35 connected");
    let vf = attach(&service).await;
    service.delete(&path(&vf)).await.expect(200);
    let command = format!(r#"["/sbin/quiesce", {}]"#, vf["inner_address"]);
    assert!(service.log().contains(&command), "{command}");
    service.expect_clean().await;
}

/// While a call of another process for the server has not returned, the guest is not quiesced.
#[tokio::test]
async fn a_guest_is_not_quiesced_under_an_overdue_call_of_another_process() {
    let config = format!("[libvirt]\nattach_timeout = 0.5\n[reconcile]\ninterval = 3600\n{QUIESCE}");
    let one = with(&config, &agent(0)).await.moved_to(&postgres::database().await).await;
    let other = one.beside().await;
    one.sim("agent q35 connected");
    let vf = attach(&one).await;
    one.sim("fault attach hang");
    one.attach(Q35, "vf:1").await.expect(503);
    let waits = other.delete(&path(&vf)).await.expect(409);
    assert!(waits.message().contains("has not returned"), "{}", waits.message());
    assert!(!other.log().contains("/sbin/quiesce"), "the guest was quiesced");
    one.sim("fault clear");
    one.until("both are detached", async || other.attachments(Q35).await.is_empty()).await;
    one.expect_clean().await;
}

#[tokio::test]
async fn a_failed_required_quiesce_prevents_the_unplug_request() {
    let demanded = format!("{QUIESCE}hot_unplug = 'quiesce'");
    for (guest, expected) in [(agent(3), "exit code 3"), (String::new(), "not connected")] {
        let service = with(&demanded, &guest).await;
        service.sim("agent q35 connected");
        let vf = attach(&service).await;
        let refused = service.delete(&path(&vf)).await.expect(409);
        for text in [
            expected,
            "is attached: the guest was not requested to release the device: not quiesced",
            "force",
        ] {
            assert!(refused.message().contains(text), "{}", refused.message());
        }
        let now = shown(&service, &vf).await;
        assert_eq!(now["status"], "attached");
        assert!(now["status_reason"].as_str().unwrap().contains("not quiesced"), "{now}");
        assert_eq!(service.plugged().len(), 2, "nothing was changed");
        service.delete(&format!("{}?force=true", path(&vf))).await.expect(200);
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_failed_optional_quiesce_is_reported() {
    let service = with(QUIESCE, &agent(3)).await;
    service.sim("agent q35 connected");
    let vf = attach(&service).await;
    service.sim("guest q35 unplug=refuse");
    let refused = service.delete(&path(&vf)).await.expect(409);
    assert!(refused.message().contains("refused"), "{}", refused.message());
    assert!(refused.message().contains("not quiesced: run /sbin/quiesce"), "{}", refused.message());
    service.sim("guest q35 unplug=normal");
    service.delete(&path(&vf)).await.expect(200);
    assert!(service.log().contains("not quiesced"));
    service.expect_clean().await;
}

/// Returns the number of unplug requests to guests.
fn asks(service: &Hotslot) -> usize {
    service.log().matches("requested the unplug").count()
}

#[tokio::test]
async fn a_failed_attach_stays_detaching_while_the_guest_keeps_the_device() {
    // Either the second device of the request is refused, or the call times out and plugs the device later.
    for (config, fault, aliases, status, asked) in [
        ("", "fault attach fail nth=2 text=no", "vf:2", 502, 2),
        ("[libvirt]\nattach_timeout = 0.5", "fault attach hang ms=900", "vf:1", 503, 1),
    ] {
        let mut service = Hotslot::with(&host("small"), config).await;
        service.sim("guest q35 unplug=refuse");
        service.sim(fault);
        service.attach(Q35, aliases).await.expect(status);
        let stays = async || {
            let rows = service.attachments(Q35).await;
            assert_eq!(rows.len(), 1, "{fault}: {rows:#?}");
            assert_eq!(rows[0]["status"], PENDING, "{fault}: {:#}", rows[0]);
            rows[0].clone()
        };
        // The service repeats the unplug request without a client, whatever the guest answered.
        service.until("the unplug request is repeated", async || asks(&service) == asked).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let row = stays().await;
        assert_eq!(row["forced"], false, "no client requested force");
        let reason = row["status_reason"].as_str().unwrap();
        assert!(reason.contains("refused") && reason.contains("attach"), "{fault}: {reason}");
        assert_eq!(documents_with_it(&service), 1, "{fault}: it is in the running guest alone");
        // It also stays detaching after a DELETE, and when libvirt refuses the unplug request.
        service.delete(&path(&row)).await.expect(409);
        stays().await;
        service.sim("fault detach fail text=no-such-luck");
        service.delete(&path(&row)).await.expect(502);
        stays().await;
        service.kill();
        service.take_log();
        service.start_again().await;
        service.until("the unplug request is repeated", async || asks(&service) > 0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(service.attachments(Q35).await[0]["status"], PENDING, "{fault}: after a restart");
        assert_eq!(documents_with_it(&service), 1, "{fault}: after a restart");
        service.sim("destroy q35");
        service.until("it is gone", async || is_gone(&service, &row).await).await;
        service.sim("start q35");
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_device_already_gone_from_the_definition_is_not_removed_again() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(SWITCH, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault detach fail nth=2 text=the-second-is-refused");
    service.delete(&path(&vf)).await.expect(200);
    service.sim("fault clear");
    service.expect_clean().await;
}

#[tokio::test]
async fn quickly_refused_unplug_requests_are_repeated_until_the_timeout() {
    for kind in ["device-missing", "unplug-pending"] {
        let service = Hotslot::on("small").await;
        let vf = attach(&service).await;
        // The first call removes the device from the definition.
        service.sim(&format!("fault detach fail nth=2 times=100 kind={kind} text=busy"));
        let asked = Instant::now();
        service.delete(&format!("{}?timeout=2s", path(&vf))).await.expect(409);
        assert!((1900..30_000).contains(&asked.elapsed().as_millis()), "{kind}: {:?}", asked.elapsed());
        let count = asks(&service);
        assert!((2..=8).contains(&count), "{kind}: asked {count} times");
        service.sim("fault clear");
        // When the reason for the refusal has passed, the detach succeeds before its timeout.
        service.sim(&format!("fault detach fail times=2 kind={kind} text=busy"));
        let asked = Instant::now();
        service.delete(&format!("{}?timeout=10s", path(&vf))).await.expect(200);
        assert!((700..9500).contains(&asked.elapsed().as_millis()), "{kind}: {:?}", asked.elapsed());
        service.expect_clean().await;
        // Without a timeout, the configured number of attempts applies, with one request per attempt.
        let vf = attach(&service).await;
        service.sim(&format!("fault detach fail nth=2 times=100 kind={kind} text=busy"));
        let (before, asked) = (asks(&service), Instant::now());
        service.delete(&path(&vf)).await.expect(409);
        assert!(asked.elapsed() >= Duration::from_millis(750), "{kind}: {:?}", asked.elapsed());
        assert_eq!(asks(&service) - before, 2, "{kind}");
    }
}

#[tokio::test]
async fn a_hanging_agent_delays_neither_attach_nor_detach() {
    let service = with("[libvirt]\nattach_timeout = 0.5\ncall_timeout = 0.5", &agent(0)).await;
    service.sim("agent q35 connected");
    service.sim("fault agent hang times=100");
    let vf = attach(&service).await;
    let hangs = async || service.log().contains("applies to Agent");
    service.until("the agent is asked where the device is", hangs).await;
    // The call times out.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let other = attach(&service).await;
    for one in [vf, other] {
        service.delete(&path(&one)).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_verified_address_is_replaced_only_after_a_new_start() {
    let mut service = Hotslot::on("small").await;
    let vf = attach(&service).await;
    assert_eq!(vf["inner_address"], "0000:02:00.0");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let inner = async |service: &Hotslot| {
        let now = shown(service, &vf).await;
        (now["inner_address"].clone(), now["inner_address_source"].clone())
    };
    // The guest reported another address than the computed one.
    let elsewhere = (json!("0000:07:00.0"), json!("verified"));
    service
        .in_the_database(
            "UPDATE attachments SET inner_address = '0000:07:00.0', inner_source = 'verified' WHERE ended_at IS NULL",
        )
        .await;
    service.sim("pause q35");
    service.sim("resume q35");
    attach(&service).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(inner(&service).await, elsewhere);
    service.kill();
    service.start_again().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(inner(&service).await, elsewhere);
    // Firmware numbers the buses again.
    let computed = (json!("0000:02:00.0"), json!("computed"));
    service.sim("reboot q35");
    service.until("the address is computed again", async || inner(&service).await == computed).await;
}

/// A guest chooses the answers of its agent. They must not forge log lines or control the terminal that shows a log, an
/// event or an error.
#[tokio::test]
async fn text_of_a_guest_cannot_forge_log_lines_events_or_errors() {
    const FORGED: &str =
        "no\n2026-01-01T00:00:00Z  INFO hotslot: attachment given to mallory\u{1b}[2J\u{9b}2J\u{202e}";
    let forged = base64::engine::general_purpose::STANDARD.encode(FORGED);
    let agent = format!(
        r#"guest-exec = '{{"return":{{"pid":7}}}}', guest-exec-status = '{{"return":{{"exited":true,"exitcode":1,"err-data":"{forged}"}}}}'"#
    );
    let service = with(&format!("{QUIESCE}hot_unplug = 'quiesce'"), &agent).await;
    service.sim("agent q35 connected");
    let vf = attach(&service).await;
    let refused = service.delete(&path(&vf)).await.expect(409);
    let events = service.get("/events?last=5").await.expect(200).body.to_string();
    for (place, text) in [("error", refused.message()), ("event", &events), ("log", &service.log())] {
        assert!(text.contains("mallory"), "{place}: {text}");
        let unsafe_letters = ['\u{1b}', '\u{9b}', '\u{202e}'];
        assert!(!text.contains(unsafe_letters), "{place}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "{place}: {text}");
    }
    // Text of a caller must not either: log lines contain the path of the request.
    service.get("/v2.1/os-pci/%0A2026-01-01T00:00:00Z%1B[2J").await.expect(404);
    assert!(!service.log().lines().any(|line| line.starts_with("2026-01-01")), "{}", service.log());
}
