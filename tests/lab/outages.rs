//! libvirtd is restarted, killed and stopped, and hotslot is killed. Afterwards the records and libvirt agree.

use std::time::{Duration, Instant};

use hotslot_tests::lab::{CONFIG, Lab, id};
use hotslot_tests::{Answer, attachments, path};
use serde_json::Value;
use tokio::task::JoinHandle;

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn libvirtd_is_restarted_and_killed_while_a_device_is_attached() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    for outage in ["systemctl restart libvirtd", "systemctl kill -s KILL libvirtd"] {
        lab.sh(outage);
        // systemd starts libvirtd again, and hotslot reconnects.
        lab.until("the host is away or back", async || lab.get("/readyz").await.status > 0).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.until_sh(
            "libvirtd is back",
            "systemctl is-active libvirtd || systemctl start libvirtd",
            "active",
        )
        .await;
        lab.ready().await;
        let row = &lab.attachments(id("q35")).await[0];
        assert_eq!((&row["status"], &row["inner_address"]), (&"attached".into(), &vf["inner_address"]));
    }
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn without_libvirtd_requests_are_503_and_nothing_is_lost() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd 2>/dev/null");
    lab.until("the outage is noticed", async || lab.get("/readyz").await.status == 503).await;
    let away = lab.attach(id("q35"), "vf:1").await.expect(503);
    assert!(away.retry_after.is_some());
    lab.detach(&vf).await.expect(503);
    assert_eq!(lab.get(&path(&vf)).await.expect(200).body["pciAttachment"]["status"], "attached");
    lab.sh("systemctl start libvirtd");
    lab.ready().await;
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
}

fn attaching(lab: &Lab) -> JoinHandle<Answer> {
    let api = lab.api.clone();
    tokio::spawn(async move { api.attach(id("q35"), "vf:1").await })
}

fn detaching(lab: &Lab, attachment: &Value) -> JoinHandle<Answer> {
    let (api, path) = (lab.api.clone(), path(attachment));
    tokio::spawn(async move { api.delete(&path).await })
}

/// Waits for agreement, and returns the attachment of q35. It must exist after a 200, and must not after any other
/// response.
async fn after_attach(lab: &Lab, answer: &Answer) -> Option<Value> {
    let took = lab.agreed("q35").await;
    let rows = lab.attachments(id("q35")).await;
    println!("the attach was answered {} {}; agreement after {took:?}", answer.status, answer.message());
    assert!([200, 503].contains(&answer.status), "{:#}", answer.body);
    assert_eq!(rows.len(), usize::from(answer.status == 200), "{rows:#?}");
    rows.into_iter().next()
}

/// A requested detach completes in the end, whatever the response was.
async fn after_detach(lab: &Lab, vf: &Value, answer: &Answer) {
    let took = lab.agreed("q35").await;
    println!("the detach was answered {} {}; agreement after {took:?}", answer.status, answer.message());
    assert!([200, 409, 503].contains(&answer.status), "{:#}", answer.body);
    lab.get(&path(vf)).await.expect(404);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes about two minutes: make long-lab-test"]
async fn libvirtd_is_stopped_for_longer_than_the_call_time_limit() {
    let limits = "[libvirt]\ncall_timeout = 8\nattach_timeout = 8\n";
    let lab = Lab::with(&format!("{limits}{CONFIG}")).await;
    let stopped = async |state: &str, request: JoinHandle<Answer>, seconds: u64| {
        let watch = lab.watch();
        let begun = Instant::now();
        let answer = request.await.unwrap();
        lab.hit().await;
        println!("{state}: answered after {:?}", begun.elapsed());
        if answer.status != 200 {
            // The outcome is unknown at this time, and the response says so.
            let row = lab.get("/v2/t/os-pci_attachments").await.expect(200).body["pciAttachment"][0].clone();
            assert_eq!(row["status"], "detaching", "{row:#}");
            println!("{state}: {}", row["status_reason"]);
        }
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(begun.elapsed())).await;
        lab.sh("kill -CONT $(pidof libvirtd)");
        let longest = watch.longest().await;
        println!("{state}: the slowest answer meanwhile took {longest:?}");
        assert!(longest < Duration::from_secs(5), "a hung libvirtd holds the API up");
        answer
    };
    // The calls time out, and the connection stays open.
    lab.once("attaching", "kill -STOP $(pidof libvirtd)").await;
    let answer = stopped("attaching", attaching(&lab), 13).await;
    let vf = match after_attach(&lab, &answer).await {
        Some(vf) => vf,
        None => lab.attach_one("q35", "vf").await,
    };
    // The connection is closed as well.
    lab.once("detaching", "kill -STOP $(pidof libvirtd)").await;
    let answer = stopped("detaching", detaching(&lab, &vf), 26).await;
    after_detach(&lab, &vf, &answer).await;
    lab.expect_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make long-lab-test"]
async fn libvirtd_is_killed_and_restarted_during_attach_and_detach() {
    let lab = Lab::fresh().await;
    let watch = lab.watch();
    for outage in ["kill -KILL $(pidof libvirtd)", "systemctl restart libvirtd"] {
        println!("{outage}");
        lab.once("attaching", outage).await;
        let answer = attaching(&lab).await.unwrap();
        lab.hit().await;
        let vf = match after_attach(&lab, &answer).await {
            Some(vf) => vf,
            None => lab.attach_one("q35", "vf").await,
        };
        lab.once("detaching", outage).await;
        let answer = detaching(&lab, &vf).await.unwrap();
        lab.hit().await;
        after_detach(&lab, &vf, &answer).await;
    }
    println!("the slowest answer meanwhile took {:?}", watch.longest().await);
    lab.expect_nothing_left().await;
}

/// A script that locks the database from the commit of the intent until the file `/run/release` exists.
const HOLD: &str = r#"
import os, sqlite3, time
db = sqlite3.connect("/var/lib/hotslot/hotslot.db", isolation_level=None, timeout=10)
def intended():
    return db.execute("SELECT count(*) FROM attachments WHERE state = 'attaching'").fetchone()[0] == 1
open("/run/watching", "w").close()
while not intended():
    time.sleep(0.02)
db.execute("BEGIN IMMEDIATE")
if intended():
    open("/run/held", "w").close()
    while not os.path.exists("/run/release"):
        time.sleep(0.05)
"#;

#[tokio::test]
async fn hotslot_is_killed_between_plug_and_record() {
    let lab = Lab::fresh().await;
    lab.sh(&format!("rm -f /run/watching /run/held /run/release; cat >/tmp/hold.py <<'END'\n{HOLD}\nEND"));
    lab.sh("setsid timeout 300 python3 /tmp/hold.py >/tmp/hold.log 2>&1 </dev/null & true");
    lab.until_sh("the watcher is running", "ls /run/watching 2>/dev/null || true", "/run/watching").await;
    let api = lab.api.clone();
    let post = tokio::spawn(async move {
        // There is no response, because the service is killed first.
        let url = format!("{}{}", api.url(), attachments(id("q35")));
        let body = r#"{"pciAttachment": {"pci_passthrough:alias": "vf:1"}}"#;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client.post(url).header("content-type", "application/json").body(body).send().await.is_err()
    });
    let in_domain = "[ -e /run/held ] && virsh dumpxml q35 | grep -c \"alias name='ua-\" || true";
    lab.until_sh("the guest has the device, and nothing is recorded", in_domain, "1").await;
    lab.stop();
    lab.sh("touch /run/release");
    assert!(post.await.unwrap());

    lab.serve().await;
    let row = lab.attachments(id("q35")).await[0].clone();
    assert_eq!(row["status"], "attached");
    let wanted = format!("{} 8086:10ca igbvf", row["inner_address"].as_str().unwrap());
    lab.until("the guest has it there", async || lab.lspci("q35").contains(&wanted)).await;
    lab.detach(&row).await.expect(200);
    assert_eq!(lab.driver(&row["address"]), "igbvf");
    lab.expect_nothing_left().await;
}

/// libvirtd waits in the call, with the lock of the guest, until the driver has let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_driver_that_hangs_in_its_removal_is_shown_as_stuck_and_the_service_goes_on() {
    let lab = Lab::with(&format!("[libvirt]\nattach_timeout = 8\n{CONFIG}")).await;
    lab.sh("lab-modules load mdev; guest boot i440fx");
    let hold = |on: u8| lab.sh(&format!("echo {on} >/sys/module/lab_mdev/parameters/hold_removal"));
    hold(1);
    let watch = lab.watch();
    let answer = lab.attach(id("i440fx"), "edu:1").await;
    assert!([409, 503, 504].contains(&answer.status), "{} {}", answer.status, answer.body);
    println!("{} {}", answer.status, answer.message());
    let stuck = async || {
        lab.get("/v2.1/os-hypervisors/1").await.expect(200).body["hypervisor"]["stuck_calls"].clone()
    };
    assert_eq!(stuck().await.as_array().map(Vec::len), Some(1), "{}", stuck().await);
    let row = lab.get("/v2/t/os-pci_attachments").await.expect(200).body["pciAttachment"][0].clone();
    assert_eq!(row["status"], "detaching", "{row:#}");
    let held = row["address"].as_str().expect("an address").to_owned();
    assert_eq!(lab.device(&held).await["status"], "allocated", "nobody else gets it");
    assert!(watch.longest().await < Duration::from_secs(5), "a driver that hangs holds the API up");
    hold(0);
    lab.until("the call has returned", async || stuck().await.as_array().is_none_or(Vec::is_empty)).await;
    lab.until("nothing is left of the attach", async || lab.attachments(id("i440fx")).await.is_empty()).await;
    lab.until("the driver has the card again", async || {
        lab.driver(&Value::from(held.as_str())) == "lab_mdev"
    })
    .await;
    lab.sh("guest off i440fx; lab-modules unload");
    lab.expect_nothing_left().await;
}
