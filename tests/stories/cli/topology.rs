//! `hotslot topology`: the PCI trees of hosts and guests.

use hotslot_driver::sim::generate::Size;
use hotslot_tests::{Hotslot, Q35};

use super::{hotslot, id, in_terminal};

#[tokio::test]
async fn topology_shows_the_owners_of_devices() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let id = id(&hotslot("-o json attach q35 vf").expect(0));

    let host = hotslot("topology node1").expect(0);
    let family: Vec<_> = host.out.lines().filter(|line| line.contains("0000:04:")).collect();
    let [pf, vf, other] = family[..] else { panic!("{host:?}") };
    assert!(pf.starts_with("│   └── 0000:04:00.0  8086:10c9  "), "{pf}");
    assert!(pf.contains("  PF with 2 of 7 VFs  driver igb  group "), "{pf}");
    assert!(
        vf.starts_with("│       ├── 0000:04:10.0  8086:10ca  ") && vf.ends_with("  allocated to q35"),
        "{vf}"
    );
    assert!(other.starts_with("│       └── 0000:04:10.2  ") && other.ends_with("  available"), "{other}");

    let guest = hotslot("topology q35").expect(0);
    let lines: Vec<_> = guest.out.lines().collect();
    assert_eq!(lines[0], "q35  ACTIVE  on node1  pc-q35-10.0");
    assert_eq!(lines[1], "└── pcie-root  pcie.0  bus 00");
    let place = lines.iter().position(|line| line.contains("host 0000:04:10.0")).expect("the VF");
    assert_eq!(lines[place - 1], "    ├── 0000:00:01.1  pcie-root-port  pci.2  bus 02");
    assert!(
        lines[place].starts_with("    │   └── 0000:02:00.0  host 0000:04:10.0  8086:10ca  "),
        "{guest:?}"
    );
    assert!(lines[place].ends_with(&format!("  attachment {id}")), "{guest:?}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("  free")).count(), 6, "{guest:?}");
    let full = hotslot("topology --server full").expect(0);
    assert!(!full.out.contains("free"), "{full:?}");
    assert!(hotslot("topology i440fx").expect(0).out.contains(" slots free"));
    assert!(
        hotslot("topology switch")
            .expect(0)
            .out
            .lines()
            .next()
            .expect("a title")
            .ends_with("as it will start")
    );

    let json = hotslot(&format!("topology {Q35} -o json")).expect(0).json();
    assert_eq!(json["free_ports"]["express"][0]["inner_address"], "0000:03:00.0");
    let vf = json["devices"].as_array().expect("a list").iter().find(|it| !it["host_device"].is_null());
    assert_eq!(vf.expect("the VF")["host_device"]["attachment_id"], id.as_str());
    service.sim("disconnect");
    service.until("the host is away", async || hotslot("host list").out.contains("unreachable")).await;
    hotslot("topology node1").expect(5);
}

#[tokio::test]
async fn a_tree_fits_a_terminal_of_80_columns() {
    let service = Hotslot::on("small").await;
    hotslot(service.url(), "attach q35 vf").expect(0);
    for name in ["node1", "q35"] {
        let shown = in_terminal(service.url(), &format!("topology {name}"), "xterm");
        assert!(shown.contains("0000:04:10.0"), "{shown}");
        assert_eq!(shown.lines().find(|line| line.chars().count() > 80), None, "{shown}");
        // No fact is lost.
        let words = |text: &str| {
            text.split_whitespace()
                .filter(|word| word.chars().any(char::is_alphanumeric))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&shown), words(&hotslot(service.url(), &format!("topology {name}")).expect(0).out));
    }
}

#[tokio::test]
async fn the_beginning_of_the_id_of_a_host_is_enough() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| hotslot(service.url(), arguments);
    let shown = hotslot("host show node1 -o json").expect(0).json();
    let start = &shown["id"].as_str().expect("an id")[..8];
    for (line, says) in [
        ("host show", "node1"),
        ("device list --host", "0000:04:10.0"),
        ("pci list --host", "0000:04:10.0"),
        ("pci stats --host", "node1"),
        ("server list --host", "q35"),
        ("explain vf --host", "0000:04:10.0"),
        ("events --last 1 --host", "node1"),
        ("topology", "0000:04:10.0"),
        ("topology --host", "0000:04:10.0"),
        ("host freeze --reason moved", "frozen"),
        ("host thaw", "open"),
    ] {
        let printed = hotslot(&format!("{line} {start}")).expect(0);
        assert!(printed.out.contains(says), "{line}: {printed:?}");
    }
    hotslot(&format!("drift --host {start}")).expect(0);
    let other = if start.starts_with('0') { "1" } else { "0" };
    let wrong = hotslot(&format!("host show {other}{start}")).expect(3);
    assert!(wrong.err.contains("not found; `hotslot host list` lists all"), "{wrong:?}");
}

#[tokio::test]
async fn topology_prefers_a_host_to_a_guest_of_the_same_name() {
    let dir = tempfile::tempdir().expect("a directory");
    Size { pfs: 1, vfs: 1, guests: 1, ports: 1 }.write(dir.path()).expect("a simulated host");
    let guest = dir.path().join("domains/g0.xml");
    let document = std::fs::read_to_string(&guest).expect("the guest's document");
    std::fs::write(&guest, document.replace("<name>g0</name>", "<name>node1</name>")).expect("write it");
    let service = Hotslot::with(dir.path(), "").await;

    let host = hotslot(service.url(), "topology node1").expect(0);
    assert_eq!(host.out.lines().next(), Some("node1"));
    assert!(host.err.contains("`hotslot topology --server node1`"), "{host:?}");
    let output = hotslot(service.url(), "topology --host node1").expect(0);
    assert_eq!((output.out, output.err.as_str()), (host.out, ""));
    let server = hotslot(service.url(), "topology --server node1").expect(0);
    assert!(server.out.starts_with("node1  ACTIVE  on node1  "), "{server:?}");
    assert!(server.out.contains("  free\n"), "{server:?}");
}
