//! Follows the host's addresses, routes and stacked network interfaces down to the NICs.
//!
//! Some uses are not detected: interfaces in network namespaces other than init's, IPv4 addresses without a route in
//! the main table (a `/32`, or one on an interface that is down), and IPv4 routes in other tables. An interface in a
//! VRF is detected by its master.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::finding::{Findings, Guard, GuardKind};
use super::root::{Root, functions};

/// Where the kernel lists network interfaces by name.
const NET: &str = "sys/class/net";

// Linux, include/uapi/linux/route.h.
const RTF_GATEWAY: u32 = 0x0002;

/// The use of each interface by the host: its first address, or else its first route.
type Carried = BTreeMap<String, (GuardKind, String)>;

/// Finds the functions that the host's network uses.
pub(super) fn find(root: &Root) -> Findings {
    let first = read_once(root);
    // Read again when something is unknown: an interface may have appeared or vanished between the reads of two files.
    if first.unknown.is_some() { read_once(root) } else { first }
}

fn read_once(root: &Root) -> Findings {
    let mut findings = Findings::default();
    let mut carried = Carried::new();
    for (file, read) in [("if_inet6", inet6 as Reader), ("route", route), ("ipv6_route", route6)] {
        let text = root.of_init(&format!("net/{file}")).or_else(|hidden| {
            // A kernel without IPv6 has no such files.
            if file == "route" || !hidden.absent {
                findings.mark_unknown(format!("the host's {file} cannot be read: {hidden}"));
            }
            // The service's own network may be another one, but it gives better reasons.
            root.read(format!("proc/net/{file}"))
        });
        let Ok(text) = text else { continue };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match read(&line.split_whitespace().collect::<Vec<_>>()) {
                Some(Some((interface, kind, what))) => {
                    let held = carried.entry(interface).or_insert_with(|| (kind, what.clone()));
                    if kind < held.0 {
                        *held = (kind, what);
                    }
                }
                Some(None) => {}
                None => findings.mark_unknown(format!("a line of {file} cannot be read")),
            }
        }
    }
    let interfaces = root.list(NET);
    for (interface, (_, what)) in &carried {
        if interface != "lo" && interface != "*" && !interfaces.contains(interface) {
            findings.mark_unknown(format!("{what}, which sysfs does not show"));
        }
    }
    for interface in &interfaces {
        let link = Path::new(NET).join(interface);
        let paths = [root.resolve(&link), root.resolve(link.join("device"))];
        let nics: BTreeSet<_> = paths.iter().flatten().flat_map(|path| functions(path)).collect();
        findings.carriers.extend(&nics);
        let Some((kind, reason)) = reason(root, &carried, interface, &mut BTreeSet::new()) else { continue };
        if paths[0].is_none() || nics.is_empty() && link_is_broken(root, &link) {
            findings.mark_unknown(format!("{reason}, and sysfs does not show where {interface} is"));
        }
        for device in nics {
            findings.guard(Guard { device, kind, reason: reason.clone() });
        }
    }
    if let Some(refused) = root.take_refused() {
        findings.mark_unknown(refused);
    }
    findings
}

fn link_is_broken(root: &Root, link: &Path) -> bool {
    root.at(link.join("device")).is_symlink() && root.resolve(link.join("device")).is_none()
}

/// Returns the reason why the host needs an interface: its own use, or an interface that is stacked on it.
///
/// A stacked interface counts even when the host does not use it, because a bridge, a macvtap or a VRF serves guests.
/// Only a VLAN does not count unless it is in use.
fn reason(
    root: &Root,
    carried: &Carried,
    interface: &str,
    seen: &mut BTreeSet<String>,
) -> Option<(GuardKind, String)> {
    if let Some(carries) = carried.get(interface) {
        return Some(carries.clone());
    }
    if !seen.insert(interface.to_owned()) {
        return None;
    }
    let link = Path::new(NET).join(interface);
    let master = std::fs::read_link(root.at(link.join("master"))).ok();
    let master = master.and_then(|master| Some(master.file_name()?.to_string_lossy().into_owned()));
    let stacked =
        root.list(&link).into_iter().filter_map(|name| name.strip_prefix("upper_").map(str::to_owned));
    let uppers: BTreeSet<String> = master.into_iter().chain(stacked).collect();
    let mut alone = None;
    for upper in uppers {
        let kind = root.read(Path::new(NET).join(&upper).join("uevent")).unwrap_or_default();
        let kind = kind.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).unwrap_or("interface");
        let below = format!("{interface} is below the {kind} {upper}");
        if let Some((_, why)) = reason(root, carried, &upper, seen) {
            return Some((GuardKind::NetworkMaster, format!("{below}: {why}")));
        }
        if kind != "vlan" {
            alone.get_or_insert((GuardKind::NetworkMaster, below));
        }
    }
    alone
}

/// Reads the words of one line. It returns the use of an interface, `Some(None)` when the line describes none that
/// counts, and `None` when the line cannot be parsed.
type Reader = fn(&[&str]) -> Option<Option<(String, GuardKind, String)>>;

fn address(interface: &str, what: impl Display) -> Option<(String, GuardKind, String)> {
    Some((interface.to_owned(), GuardKind::NetworkAddress, format!("{interface} has {what}")))
}

/// `/proc/net/if_inet6`: address, index, prefix length, scope, flags, name. Link-local addresses do not count, because
/// every interface that is up has one.
fn inet6(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    let &[ip, _, prefix, _, _, interface] = words else { return None };
    let (ip, prefix) = (ipv6(ip)?, u8::from_str_radix(prefix, 16).ok()?);
    Some(if ip.is_unicast_link_local() { None } else { address(interface, format_args!("{ip}/{prefix}")) })
}

/// `/proc/net/route`: the main table. A route without a gateway is one that an address added.
fn route(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    if words.first() == Some(&"Iface") {
        return Some(None);
    }
    let &[interface, to, _, flags, _, _, _, mask, ..] = words else { return None };
    // The kernel prints the four bytes as a number in the processor's byte order.
    let number = |word| u32::from_str_radix(word, 16).ok();
    let (to, prefix) = (Ipv4Addr::from(number(to)?.to_ne_bytes()), number(mask)?.count_ones());
    Some(if number(flags)? & RTF_GATEWAY == 0 {
        address(interface, format_args!("the network {to}/{prefix}"))
    } else {
        routed(interface, format_args!("{to}/{prefix}"))
    })
}

/// `/proc/net/ipv6_route`: all tables. Link-local and multicast routes do not count, because every interface that is up
/// has them.
fn route6(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    let &[to, prefix, _, _, _, _, _, _, _, interface] = words else { return None };
    let (to, prefix) = (ipv6(to)?, u8::from_str_radix(prefix, 16).ok()?);
    let everywhere = to.is_unicast_link_local() || to.is_multicast();
    Some(if everywhere { None } else { routed(interface, format_args!("{to}/{prefix}")) })
}

fn routed(interface: &str, to: impl Display) -> Option<(String, GuardKind, String)> {
    Some((interface.to_owned(), GuardKind::NetworkRoute, format!("the route to {to} uses {interface}")))
}

fn ipv6(digits: &str) -> Option<Ipv6Addr> {
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(Ipv6Addr::from(number))
}
