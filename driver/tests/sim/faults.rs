//! Scripted latencies and faults.

use hotslot_driver::hypervisor::DetachScope;
use tokio::time::{Instant, sleep};

use super::*;

#[tokio::test(start_paused = true)]
async fn calls_have_their_latency_and_a_domain_is_changed_by_one_call_at_a_time() {
    let host = Host::with("[latency]\nattach = 500\ndevices = 20");
    let began = Instant::now();
    host.sim.devices().await.unwrap();
    assert_eq!(began.elapsed().as_millis(), 20);
    let began = Instant::now();
    let (one, two, other) = tokio::join!(
        host.attach(Q35, VF0, "ua-0", Scope::Live),
        host.attach(Q35, VF1, "ua-1", Scope::Live),
        host.attach(I440FX, NVME, "ua-2", Scope::Live),
    );
    for done in [one, two, other] {
        done.unwrap();
    }
    assert_eq!(began.elapsed().as_millis(), 1000);
    host.control("latency attach 5");
    let began = Instant::now();
    host.attach(Q35, E1000E, "ua-3", Scope::Live).await.unwrap();
    assert_eq!(began.elapsed().as_millis(), 5);
}

#[tokio::test]
async fn the_nth_call_fails_as_scripted() {
    let host = Host::with(
        "[[fault]]\noperation = 'attach'\naction = 'fail'\nnth = 2\ntimes = 2\nkind = 'no-free-port'\n\
         text = 'internal error: No more available PCI slots'\n\
         [[fault]]\noperation = 'domain'\naction = 'fail'\ndomain = 'full'\n",
    );
    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    for _ in 0..2 {
        let (kind, text) = refused(host.attach(Q35, VF1, "ua-1", Scope::Live).await);
        assert_eq!(
            (kind, text.as_str()),
            (ErrorKind::NoFreePort, "internal error: No more available PCI slots")
        );
    }
    host.attach(Q35, VF1, "ua-1", Scope::Live).await.unwrap();
    assert_eq!(host.sim.domain(Q35).await.unwrap().info.name, "q35");
    let error = host.sim.domain(FULL).await.unwrap_err();
    assert_eq!((error.kind, error.operation.as_str()), (ErrorKind::Refused, "read domain full"));
    host.sim.domain(FULL).await.unwrap();
}

#[tokio::test]
async fn a_fault_of_any_operation_counts_all_calls() {
    let host = Host::small();
    host.control("fault any fail nth=3");
    host.sim.devices().await.unwrap();
    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    assert_eq!(refused(host.sim.domain(Q35).await).0, ErrorKind::Refused);
    host.sim.domain(Q35).await.unwrap();
    let unknown = host.sim.control("fault nothing fail").unwrap_err();
    assert!(unknown.contains("`nothing`") && unknown.contains("`attach`"), "{unknown}");
    assert!(host.sim.control("latency any 5").unwrap_err().contains("`any`"));
}

#[tokio::test]
async fn a_failure_between_the_documents_leaves_the_live_one_changed() {
    let host = Host::small();
    host.control("fault attach fail at=between text=cannot write the definition");
    let (kind, text) = refused(host.attach(Q35, VF0, "ua-0", Scope::LiveAndConfig).await);
    assert_eq!((kind, text.as_str()), (ErrorKind::Refused, "cannot write the definition"));
    assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), 1);
    assert_eq!(host.definition(Q35).await.unwrap().hostdevs, []);
}

#[tokio::test(start_paused = true)]
async fn the_connection_may_break_before_and_after_the_change() {
    let mut host = Host::small();
    for (at, left) in [("before", 0), ("after", 1)] {
        host.control(&format!("fault attach away at={at} ms=1000"));
        assert_eq!(refused(host.attach(Q35, VF0, "ua-0", Scope::Live).await).0, ErrorKind::Away);
        assert!(host.sim.connection().is_err());
        assert_eq!(refused(host.sim.domains().await).0, ErrorKind::Away);
        sleep(Duration::from_secs(2)).await;
        assert!(host.sim.connection().is_ok());
        assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), left, "{at}");
        let received = host.received();
        assert!(received.iter().any(|event| matches!(event, Event::Disconnected { .. })), "{received:?}");
        assert!(received.contains(&Event::Connected), "{received:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn removals_during_an_outage_are_reported_when_libvirtd_is_back() {
    let mut host = Host::with("[guest.q35]\nunplug_ms = 1000");
    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    host.sim.detach(Q35, "ua-0", DetachScope::Live).await.unwrap();
    host.received();
    host.control("disconnect");
    sleep(Duration::from_secs(10)).await;
    host.control("reconnect");
    let received = host.received();
    assert!(matches!(received[0], Event::Disconnected { .. }));
    assert_eq!(received[1..], [Event::Connected, removed(Q35, "ua-0")]);
}

#[tokio::test(start_paused = true)]
async fn a_call_may_hang_until_the_fault_is_cleared() {
    let host = Host::small();
    host.control("fault attach hang");
    let late = host.attach(Q35, VF0, "ua-0", Scope::Live).await;
    assert_eq!(refused(late), (ErrorKind::TimedOut, "no answer within 120s".to_owned()));
    let overdue = host.sim.overdue();
    assert_eq!(overdue.len(), 1);
    assert_eq!(overdue[0].operation, "attach to domain q35");
    // As in libvirt the domain stays locked for other calls.
    let (kind, text) = refused(host.sim.detach(Q35, "ua-0", DetachScope::Live).await);
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(text.contains("cannot acquire state change lock"), "{text}");
    host.control("fault clear");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(host.sim.overdue(), []);
    assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), 1);
    // A hanging call does not keep a closed host's directory open.
    host.control("fault attach hang at=after");
    let hung = host.attach(Q35, VF1, "ua-1", Scope::Live);
    assert!(tokio::time::timeout(Duration::from_secs(1), hung).await.is_err());
    let host = host.reopened();
    assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_overdue_call_names_its_function_and_sends_an_event_when_it_returns() {
    let mut host = Host::small();
    let vf = address(VF0);
    for operation in ["node-detach", "node-reset", "node-reattach"] {
        host.control(&format!("fault {operation} hang"));
        let late = match operation {
            "node-detach" => host.sim.node_detach(vf).await,
            "node-reset" => host.sim.node_reset(vf).await,
            _ => host.sim.node_reattach(vf).await,
        };
        assert_eq!(refused(late).0, ErrorKind::TimedOut, "{operation}");
        let overdue = host.sim.overdue();
        assert_eq!(
            overdue.iter().map(|call| (call.address, call.domain)).collect::<Vec<_>>(),
            [(Some(vf), None)]
        );
        host.received();
        host.control("fault clear");
        sleep(Duration::from_millis(1)).await;
        assert_eq!(host.sim.overdue(), [], "{operation}");
        let received = host.received();
        assert!(received.contains(&Event::NodeCallReturned { address: vf }), "{operation}: {received:?}");
    }
}

#[tokio::test]
async fn an_event_may_be_lost() {
    let mut host = Host::small();
    host.control("fault attach lose-event");
    host.control("fault detach lose-event");
    host.attach(I440FX, EDU, "ua-0", Scope::Live).await.unwrap();
    assert_eq!(host.received(), []);
    host.sim.detach(I440FX, "ua-0", DetachScope::Live).await.unwrap();
    assert_eq!(host.received(), []);
    assert_eq!(host.live(I440FX).await.unwrap().hostdevs, []);
    host.attach(I440FX, EDU, "ua-0", Scope::Live).await.unwrap();
    assert_eq!(host.received().len(), 1);
}

#[tokio::test]
async fn a_guest_may_crash_during_a_call() {
    let host = Host::small();
    host.control("fault attach crash");
    assert_eq!(refused(host.attach(Q35, VF0, "ua-0", Scope::LiveAndConfig).await).0, ErrorKind::NotRunning);
    host.control("start q35");
    host.control("fault attach crash at=after");
    host.attach(Q35, VF0, "ua-0", Scope::LiveAndConfig).await.unwrap();
    let view = host.sim.domain(Q35).await.unwrap();
    assert_eq!((view.live, view.persistent.unwrap().hostdevs.len()), (None, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_of_many_concurrent_attaches_of_a_device_succeeds() {
    let host = Host::small();
    for round in 0..20 {
        let mut racing = tokio::task::JoinSet::new();
        for (number, guest) in [Q35, I440FX, Q35, I440FX, Q35, I440FX].into_iter().enumerate() {
            let (sim, xml) = (host.sim.clone(), hostdev(VF0, &format!("ua-{number}")));
            racing.spawn(async move { sim.attach(guest, &xml, Scope::Live).await.map(|()| (guest, number)) });
        }
        let results = racing.join_all().await;
        let won: Vec<_> = results.iter().flatten().collect();
        let [(guest, number)] = won[..] else { panic!("round {round}: {won:?}") };
        assert!(
            results
                .iter()
                .all(|result| result.as_ref().map_or_else(|e| e.kind == ErrorKind::InUse, |_| true))
        );
        host.sim.detach(*guest, &format!("ua-{number}"), DetachScope::Live).await.unwrap();
    }
}
