//! From the addresses and routes that the host has, and the interfaces stacked on others, down to the NICs.
//!
//! Not known here: interfaces in other network namespaces than init's, IPv4 addresses that bring no route
//! into the main table (a `/32`, or one on an interface that is down), and IPv4 routes in other tables (an
//! interface in a VRF is told by its master).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::finding::{Findings, Guard, GuardKind};
use super::root::{Root, functions};

/// Where the kernel lists network interfaces by name.
const NET: &str = "sys/class/net";

// Linux, include/uapi/linux/route.h.
const RTF_GATEWAY: u32 = 0x0002;

/// What each interface carries: the first of its addresses, else of its routes.
type Carried = BTreeMap<String, (GuardKind, String)>;

/// Which functions the host's network is on.
pub(super) fn find(root: &Root) -> Findings {
    let first = look(root);
    // An interface that comes or goes between two files is no riddle the next time.
    if first.untold.is_some() { look(root) } else { first }
}

fn look(root: &Root) -> Findings {
    let mut findings = Findings::default();
    let mut carried = Carried::new();
    for (file, read) in [("if_inet6", inet6 as Reader), ("route", route), ("ipv6_route", route6)] {
        match root.read_first([&format!("proc/1/net/{file}"), &format!("proc/net/{file}")]) {
            Ok(text) => {
                for line in text.lines().filter(|line| !line.trim().is_empty()) {
                    match read(&line.split_whitespace().collect::<Vec<_>>()) {
                        Some(Some((interface, kind, what))) => {
                            let held = carried.entry(interface).or_insert_with(|| (kind, what.clone()));
                            if kind < held.0 {
                                *held = (kind, what);
                            }
                        }
                        Some(None) => {}
                        None => findings.cannot_tell(format!("a line of {file} cannot be read")),
                    }
                }
            }
            // A kernel without IPv6 has no such files.
            Err(error) if file != "route" && error.kind() == ErrorKind::NotFound => {}
            Err(error) => findings.cannot_tell(format!("the host's {file} cannot be read: {error}")),
        }
    }
    let interfaces = root.list(NET);
    for (interface, (_, what)) in &carried {
        if interface != "lo" && interface != "*" && !interfaces.contains(interface) {
            findings.cannot_tell(format!("{what}, which sysfs does not show"));
        }
    }
    for interface in &interfaces {
        let link = Path::new(NET).join(interface);
        let paths = [root.resolve(&link), root.resolve(link.join("device"))];
        let nics: BTreeSet<_> = paths.iter().flatten().flat_map(|path| functions(path)).collect();
        findings.carriers.extend(&nics);
        let Some((kind, reason)) = reason(root, &carried, interface, &mut BTreeSet::new()) else { continue };
        if paths[0].is_none() || nics.is_empty() && link_is_broken(root, &link) {
            findings.cannot_tell(format!("{reason}, and sysfs does not show where {interface} is"));
        }
        for device in nics {
            findings.guard(Guard { device, kind, reason: reason.clone() });
        }
    }
    findings
}

fn link_is_broken(root: &Root, link: &Path) -> bool {
    root.at(link.join("device")).is_symlink() && root.resolve(link.join("device")).is_none()
}

/// Why the host needs an interface: for itself, or for one that is stacked on it.
///
/// Whatever is stacked on it counts, also when it carries nothing of the host's own: a bridge, a macvtap or a
/// VRF serves guests. Only a VLAN says nothing by itself.
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

/// Reads the words of one line: what it says that an interface carries, or that it says nothing that counts;
/// none when it is no such line.
type Reader = fn(&[&str]) -> Option<Option<(String, GuardKind, String)>>;

fn address(interface: &str, what: impl Display) -> Option<(String, GuardKind, String)> {
    Some((interface.to_owned(), GuardKind::NetworkAddress, format!("{interface} has {what}")))
}

/// `/proc/net/if_inet6`: address, index, prefix length, scope, flags, name. Every interface that is up has an
/// address that is link-local.
fn inet6(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    let &[ip, _, prefix, _, _, interface] = words else { return None };
    let (ip, prefix) = (ipv6(ip)?, u8::from_str_radix(prefix, 16).ok()?);
    Some(if ip.is_unicast_link_local() { None } else { address(interface, format_args!("{ip}/{prefix}")) })
}

/// `/proc/net/route`: the main table. A route without a gateway is what an address brings.
fn route(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    if words.first() == Some(&"Iface") {
        return Some(None);
    }
    let &[interface, to, _, flags, _, _, _, mask, ..] = words else { return None };
    // Written as the processor reads the four bytes.
    let number = |word| u32::from_str_radix(word, 16).ok();
    let (to, prefix) = (Ipv4Addr::from(number(to)?.to_ne_bytes()), number(mask)?.count_ones());
    Some(if number(flags)? & RTF_GATEWAY == 0 {
        address(interface, format_args!("the network {to}/{prefix}"))
    } else {
        routed(interface, format_args!("{to}/{prefix}"))
    })
}

/// `/proc/net/ipv6_route`: every table. Link-local and multicast networks are on every interface that is up.
fn route6(words: &[&str]) -> Option<Option<(String, GuardKind, String)>> {
    let &[to, prefix, _, _, _, _, _, _, _, interface] = words else { return None };
    let (to, prefix) = (ipv6(to)?, u8::from_str_radix(prefix, 16).ok()?);
    let everywhere = to.is_unicast_link_local() || to.is_multicast();
    Some(if everywhere { None } else { routed(interface, format_args!("{to}/{prefix}")) })
}

fn routed(interface: &str, to: impl Display) -> Option<(String, GuardKind, String)> {
    Some((interface.to_owned(), GuardKind::NetworkRoute, format!("the route to {to} goes by {interface}")))
}

fn ipv6(digits: &str) -> Option<Ipv6Addr> {
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(Ipv6Addr::from(number))
}
