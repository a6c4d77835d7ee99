//! Complete unplug operations: limits, guests that lose the request, and commands in the guest.

use hotslot_driver::guest;
use hotslot_driver::hotplug::{self, DetachLimits, Unplugged};
use hotslot_driver::xml::hostdev::Templates;
use tokio::time::Instant;

use super::*;

const LIMITS: DetachLimits = DetachLimits { attempts: 2, timeout: Duration::from_secs(4), total: None };

fn vf() -> HostdevSpec {
    spec(VF0, 1)
}

/// Unplugs the VF; returns the outcome and the duration in seconds.
async fn unplug(host: &Host, limits: DetachLimits) -> (Unplugged, f64) {
    let (sim, templates) = (host.sim.as_ref(), Templates::load(None).unwrap());
    let begun = Instant::now();
    let unplugged = hotplug::unplug(sim, &templates, Q35, &vf(), true, limits).await.unwrap();
    (unplugged, begun.elapsed().as_secs_f64())
}

async fn with_vf(config: &str) -> Host {
    let host = Host::with(config);
    let (sim, templates) = (host.sim.as_ref(), Templates::load(None).unwrap());
    hotplug::plug(sim, &templates, Q35, &vf(), Scope::LiveAndConfig, LIMITS).await.unwrap();
    host
}

#[tokio::test(start_paused = true)]
async fn the_request_that_a_booting_guest_lost_is_repeated() {
    let host = with_vf("[guest.q35]\nboot_ms = 10_000").await;
    host.control("reboot q35");
    let (unplugged, took) = unplug(&host, LIMITS).await;
    assert!(matches!(unplugged, Unplugged::Pending { .. }), "{unplugged:?}");
    assert_eq!(took, 8.0, "twice four seconds");
    let (unplugged, took) = unplug(&host, LIMITS).await;
    assert_eq!(
        (unplugged, took),
        (Unplugged::Gone, 4.0),
        "the guest lost the first request and got the second one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_total_time_replaces_the_number_of_attempts() {
    let host = with_vf("[guest.q35]\nboot_ms = 10_000").await;
    for (total, took) in [(Duration::from_secs(3), 3.0), (Duration::from_secs(9), 9.0)] {
        host.control("reboot q35");
        let (unplugged, seconds) = unplug(&host, DetachLimits { total: Some(total), ..LIMITS }).await;
        assert!(matches!(unplugged, Unplugged::Pending { .. }), "{unplugged:?}");
        assert_eq!(seconds, took);
    }
    host.control("reboot q35");
    let total = Some(Duration::from_secs(60));
    let (unplugged, seconds) = unplug(&host, DetachLimits { total, ..LIMITS }).await;
    assert_eq!((unplugged, seconds), (Unplugged::Gone, 12.0), "the guest gets the fourth request");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_refused_at_once_are_spread_over_the_time() {
    const EIGHT: DetachLimits = DetachLimits { attempts: 8, timeout: Duration::from_secs(20), total: None };
    for kind in ["device-missing", "unplug-pending"] {
        for (total, faults, ends) in [
            // Between two requests there is an equal share of the total time, but at most the time of one attempt.
            (Some(2), 3, (true, 0.75)),
            (Some(2), 100, (false, 2.0)),
            (Some(400), 2, (true, 40.0)),
            (None, 2, (true, 40.0)),
            (None, 100, (false, 160.0)),
        ] {
            let host = with_vf("").await;
            // The first call removes the device from the definition.
            host.control(&format!("fault detach fail nth=2 times={faults} kind={kind} text=busy"));
            let total = total.map(Duration::from_secs);
            let (unplugged, took) = unplug(&host, DetachLimits { total, ..EIGHT }).await;
            let gone = unplugged == Unplugged::Gone;
            assert_eq!((gone, took), ends, "{kind}, {faults} faults, {total:?}: {unplugged:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_gone_from_the_definition_is_not_detached_again() {
    let host = Host::small();
    let (sim, templates) = (host.sim.as_ref(), Templates::load(None).unwrap());
    hotplug::plug(sim, &templates, SWITCH, &vf(), Scope::Config, LIMITS).await.unwrap();
    host.control("fault detach fail nth=2 text=second-request");
    let unplugged = hotplug::unplug(sim, &templates, SWITCH, &vf(), true, LIMITS).await;
    assert_eq!(unplugged, Ok(Unplugged::Gone));
}

#[tokio::test(start_paused = true)]
async fn a_failed_plug_reports_whether_the_guest_may_have_had_the_device() {
    for (fault, scope, untouched) in [
        ("fail text=refused", Scope::LiveAndConfig, true),
        ("fail text=refused", Scope::Config, true),
        ("fail kind=no-free-port text=full", Scope::Live, true),
        ("fail at=between text=cannot-write", Scope::LiveAndConfig, false),
        ("fail at=after text=refused-after-all", Scope::Live, false),
        ("crash at=before", Scope::Live, true),
        ("crash at=after", Scope::Live, false),
        ("crash at=after", Scope::LiveAndConfig, false),
        ("hang at=before", Scope::Live, false),
    ] {
        let host = Host::small();
        host.control(&format!("fault attach {fault}"));
        let (sim, templates) = (host.sim.as_ref(), Templates::load(None).unwrap());
        let failed = hotplug::try_plug(sim, &templates, Q35, &vf(), scope, LIMITS).await.unwrap_err();
        assert_eq!(failed.untouched, untouched, "{fault}, {scope:?}: {}", failed.error);
    }
}

#[tokio::test(start_paused = true)]
async fn an_overdue_agent_command_does_not_count_as_a_change_of_its_domain() {
    let host = Host::with("[guest.q35.agent_answers]\nguest-ping = '{\"return\":{}}'\n");
    host.control("agent q35 connected");
    host.control("fault agent hang");
    let ping = host.sim.agent(Q35, r#"{"execute":"guest-ping"}"#, Duration::from_secs(600)).await;
    assert_eq!(refused(ping).0, ErrorKind::TimedOut);
    let overdue = host.sim.overdue();
    assert_eq!(overdue.len(), 1);
    assert_eq!(overdue[0].domain, None);
}

#[tokio::test(start_paused = true)]
async fn a_command_in_the_guest_succeeds_or_reports_its_failure() {
    const BEGUN: &str = r#"{"return":{"pid":7}}"#;
    let cases = [
        (None, None, Some((ErrorKind::AgentAway, "not connected"))),
        (Some(BEGUN), Some(r#"{"return":{"exited":true,"exitcode":0}}"#), None),
        (
            Some(BEGUN),
            Some(r#"{"return":{"exited":true,"exitcode":3,"err-data":"ZXRoMCBpcyBidXN5Cg=="}}"#),
            Some((ErrorKind::Refused, "it ended with exit code 3: eth0 is busy")),
        ),
        (
            Some(BEGUN),
            Some(r#"{"return":{"exited":true,"signal":9}}"#),
            Some((ErrorKind::Refused, "it was ended by signal 9")),
        ),
        (
            Some(BEGUN),
            Some(r#"{"return":{"exited":false}}"#),
            Some((ErrorKind::TimedOut, "it has not ended after 5s")),
        ),
        (Some(r#"{"return":{}}"#), None, Some((ErrorKind::Document, "no process id"))),
        (Some("{}"), None, Some((ErrorKind::Document, "no `return`"))),
        (Some(BEGUN), Some("["), Some((ErrorKind::Document, "guest-exec-status"))),
    ];
    for (begun, status, expected) in cases {
        let mut config = "[guest.q35.agent_answers]\n".to_owned();
        for (command, answer) in [("guest-exec", begun), ("guest-exec-status", status)] {
            if let Some(answer) = answer {
                config += &format!("{command} = '{answer}'\n");
            }
        }
        let host = Host::with(&config);
        host.control("agent q35 connected");
        let command = ["/sbin/quiesce".to_owned(), "0000:02:00.0".to_owned()];
        let ended = guest::run(host.sim.as_ref(), Q35, &command, Duration::from_secs(5)).await;
        match expected {
            None => assert_eq!(ended, Ok(())),
            Some((kind, part)) => {
                let error = ended.unwrap_err();
                assert_eq!(error.kind, kind, "{error}");
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }
}
