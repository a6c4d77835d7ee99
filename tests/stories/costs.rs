//! What one attach and one detach cost: transactions, calls to the host, and documents that are read. The numbers are
//! exact, so that they cannot grow unseen.

use std::collections::BTreeMap;
use std::time::Duration;

use hotslot_driver::sim::control;
use hotslot_tests::{Hotslot, Q35, host, path};
use serde_json::Value;

use crate::steps::wal;

/// The number of pairs that are counted.
const ROUNDS: usize = 5;
/// The time without a call or a transaction after which the work in the background has ended.
const QUIET: Duration = Duration::from_millis(400);

/// The costs by name: `transactions`, and each call to the host.
type Costs = BTreeMap<String, u64>;

fn costs(service: &Hotslot) -> Costs {
    let answer = control(&service.host_dir(), "statistics").expect("the host's control socket");
    let statistics: Value = serde_json::from_str(answer.trim_start_matches("ok ")).expect("JSON");
    let calls = statistics["calls"].as_object().expect("an object");
    let calls = calls.iter().map(|(call, count)| (call.clone(), count.as_u64().expect("a number")));
    calls.chain([("transactions".to_owned(), wal::transactions(&service.database()))]).collect()
}

fn since(before: &Costs, now: &Costs) -> Costs {
    let spent = now.iter().map(|(what, count)| (what.clone(), count - before.get(what).unwrap_or(&0)));
    spent.filter(|(_, count)| *count > 0).collect()
}

async fn quiet(service: &Hotslot) -> Costs {
    let mut before = costs(service);
    loop {
        tokio::time::sleep(QUIET).await;
        let now = costs(service);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Keeps the smaller costs: on a busy machine, work in the background may fall into the time of a request.
fn keep_least(least: &mut Option<Costs>, costs: Costs) {
    *least = Some(match least.take() {
        None => costs,
        Some(mut least) => {
            least.retain(|what, count| {
                *count = (*count).min(costs.get(what).copied().unwrap_or_default());
                *count > 0
            });
            least
        }
    });
}

fn of(costs: &[(&str, u64)]) -> Option<Costs> {
    Some(costs.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect())
}

#[tokio::test]
async fn an_attach_and_a_detach_cost_no_more_than_they_need() {
    let service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"\n").await;
    let (mut attach, mut detach, mut pair) = (None, None, None);
    for _ in 0..ROUNDS {
        let start = quiet(&service).await;
        let answer = service.attach(Q35, "vf:1").await.expect(200);
        keep_least(&mut attach, since(&start, &costs(&service)));
        let attached = quiet(&service).await;
        service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
        keep_least(&mut detach, since(&attached, &costs(&service)));
        keep_least(&mut pair, since(&start, &quiet(&service).await));
    }
    // Reserved and settled. The document is read before and after the attach, and the function once.
    assert_eq!(attach, of(&[("attach", 1), ("device", 1), ("domain", 2), ("transactions", 2)]));
    // Begun and settled. The document is read before and after; the definition and the guest have a call each.
    assert_eq!(detach, of(&[("detach", 2), ("domain", 2), ("transactions", 2)]));
    // After each, the server is compared with the records. After the detach, the function is read again for the record, with
    // its PF, and to note that its host driver is bound again.
    let all = [("attach", 1), ("detach", 2), ("device", 4), ("domain", 6), ("transactions", 5)];
    assert_eq!(pair, of(&all));
}
