//! What makes an answer out of an ask: limits, guests that lose it, and commands that are run before.

use hotslot_driver::domain::UserAlias;
use hotslot_driver::guest;
use hotslot_driver::hotplug::{self, DetachLimits, Unplugged};
use hotslot_driver::xml::hostdev::{HostdevSpec, Templates};
use tokio::time::Instant;

use super::*;

const LIMITS: DetachLimits = DetachLimits { attempts: 2, timeout: Duration::from_secs(4), total: None };

fn vf() -> HostdevSpec {
    HostdevSpec {
        source: address(VF0),
        alias: UserAlias(Uuid::from_u128(1)),
        managed: true,
        rom_bar: None,
        guest: None,
        interface: None,
    }
}

/// How an unplug ends, and after how many seconds.
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
async fn a_guest_that_lost_the_request_while_it_booted_is_asked_again() {
    let host = with_vf("[guest.q35]\nboot_ms = 10_000").await;
    host.control("reboot q35");
    let (unplugged, took) = unplug(&host, LIMITS).await;
    assert!(matches!(unplugged, Unplugged::Pending { .. }), "{unplugged:?}");
    assert_eq!(took, 8.0, "twice four seconds");
    let (unplugged, took) = unplug(&host, LIMITS).await;
    assert_eq!((unplugged, took), (Unplugged::Gone, 4.0), "the first ask was lost, the second not");
}

#[tokio::test(start_paused = true)]
async fn a_limit_for_all_takes_the_place_of_a_number_of_attempts() {
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
    assert_eq!((unplugged, seconds), (Unplugged::Gone, 12.0), "the fourth ask is heard");
}

#[tokio::test(start_paused = true)]
async fn a_command_in_the_guest_ends_well_or_says_how() {
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
            Some((kind, said)) => {
                let error = ended.unwrap_err();
                assert_eq!(error.kind, kind, "{error}");
                assert!(error.to_string().contains(said), "{error}");
            }
        }
    }
}
