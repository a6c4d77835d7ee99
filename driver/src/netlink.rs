//! Reads and changes the settings of VFs of this machine, by route netlink. They are attributes of the PF's network
//! interface (`ip link set PF vf N trust on`).

use std::io;
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfLinkState,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::hypervisor::{Error, ErrorKind};
use crate::local::{self, VfPort};
use crate::pci::PciAddress;
use crate::vf::{VfLink, VfSettings};

/// How long the driver of a PF may take. Some pass a change on to the firmware of the card.
const LIMIT: Duration = Duration::from_secs(10);

/// The kernel's words for the link of a VF.
const LINKS: [(VfLinkState, VfLink); 3] = [
    (VfLinkState::Auto, VfLink::Auto),
    (VfLinkState::Enable, VfLink::Enable),
    (VfLinkState::Disable, VfLink::Disable),
];

/// The capability to change network interfaces, as a bit of `CapEff` in `/proc/PID/status`.
const CAP_NET_ADMIN: u64 = 1 << 12;

/// What to do when the service has not the right to change network interfaces.
pub(crate) const NOT_PERMITTED: &str = "hotslot has not the right to change the settings of VFs (CAP_NET_ADMIN and netlink \
     sockets); docs/devices.md, \"Settings of VFs\", has the lines for its unit; or attach without trusted, spoof_check, \
     link_state, min_tx_rate and max_tx_rate";

/// The error for the settings of a VF of another machine, for which libvirt has no call.
pub(crate) fn on_another_machine(vf: PciAddress) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("read the settings of VF {vf}"),
        "the host is another machine, and libvirt has no call for trusted, spoof_check, link_state, min_tx_rate and \
         max_tx_rate; run hotslot on that host, or attach without them",
    )
}

/// Reads the settings of a VF.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when this process may not change them; [`ErrorKind::NoDevice`] when there is no such VF;
/// the kernel's error.
pub(crate) async fn read(vf: PciAddress) -> Result<VfSettings, Error> {
    let operation = format!("read the settings of VF {vf}");
    if !is_permitted(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Err(Error::new(ErrorKind::Unsupported, operation, NOT_PERMITTED));
    }
    let operation = operation.as_str();
    let found = work(operation, vf, |port| {
        let mut link = LinkMessage::default();
        link.header.index = port.interface;
        // Without the statistics the answer for 256 VFs fits into one message.
        link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
        let answer = exchange(RouteNetlinkMessage::GetLink(link), 0)?;
        Ok(answer.and_then(|link| settings(&link, port.number)))
    });
    found.await?.ok_or_else(|| Error::new(ErrorKind::NoDevice, operation, "the kernel does not list this VF"))
}

/// Changes settings of a VF. `now` are those that it has.
///
/// # Errors
/// [`ErrorKind::NotAssignable`] for a setting that the driver of the PF does not have, or a value that it does not accept;
/// another error of the kernel.
pub(crate) async fn set(vf: PciAddress, wanted: VfSettings, now: VfSettings) -> Result<(), Error> {
    let operation = format!("change the settings of VF {vf}");
    let changing = work(&operation, vf, move |port| {
        exchange(RouteNetlinkMessage::NewLink(change(&port, &wanted, &now)), NLM_F_ACK).map(drop)
    });
    changing.await
}

/// Asks the kernel on a thread of its own, because the kernel and the driver of the PF work while a request is sent.
async fn work<T: Send + 'static>(
    operation: &str,
    vf: PciAddress,
    ask: impl FnOnce(VfPort) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let failed = |kind, message: String| Error::new(kind, operation, message);
    let asking = tokio::task::spawn_blocking(move || local::vf_port(Path::new("/"), vf).map(ask));
    match tokio::time::timeout(LIMIT, asking).await {
        Ok(Ok(Ok(answer))) => answer.map_err(|error| {
            let (kind, message) = told(&error);
            failed(kind, message)
        }),
        Ok(Ok(Err(reason))) => Err(failed(ErrorKind::NoDevice, reason)),
        Ok(Err(error)) => Err(failed(ErrorKind::Refused, error.to_string())),
        Err(_) => {
            Err(failed(ErrorKind::TimedOut, format!("the driver of the PF did not answer within {LIMIT:?}")))
        }
    }
}

/// Sends one request to the kernel. Returns the link in its answer, if it is one.
fn exchange(request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<LinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    if let NetlinkPayload::Error(answer) = answer.payload {
        return if answer.code.is_none() { Ok(None) } else { Err(answer.to_io()) };
    }
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload else {
        return Err(io::Error::other(format!("the kernel answered {:?}", answer.payload)));
    };
    Ok(Some(link))
}

/// Translates an error of the kernel.
fn told(error: &io::Error) -> (ErrorKind, String) {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT) => {
            (ErrorKind::Unsupported, format!("{error}: {NOT_PERMITTED}"))
        }
        Some(libc::EOPNOTSUPP) => (
            ErrorKind::NotAssignable,
            format!("{error}: the driver of the PF has no such setting; attach without it"),
        ),
        Some(libc::EINVAL | libc::ERANGE) => (
            ErrorKind::NotAssignable,
            format!(
                "{error}: the driver of the PF does not accept the value of a setting; attach with another"
            ),
        ),
        Some(_) | None => (ErrorKind::Refused, error.to_string()),
    }
}

/// Whether a process may change network interfaces, by its `/proc/PID/status`.
fn is_permitted(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_NET_ADMIN != 0)
}

/// Finds the settings of VF `number` in a description of its PF's interface.
fn settings(link: &LinkMessage, number: u32) -> Option<VfSettings> {
    let vfs = link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::VfInfoList(vfs) = attribute { Some(vfs) } else { None }
    })?;
    let is_it =
        |vf: &&LinkVfInfo| vf.0.iter().any(|info| matches!(info, VfInfo::Mac(mac) if mac.vf_id == number));
    let mut found = VfSettings::default();
    for info in &vfs.iter().find(is_it)?.0 {
        if let VfInfo::Trust(trust) = info {
            found.trust = Some(trust.enabled);
        } else if let VfInfo::SpoofCheck(check) = info {
            found.spoof_check = Some(check.enabled);
        } else if let VfInfo::LinkState(link) = info {
            found.link_state = LINKS.iter().find(|(kernel, _)| *kernel == link.state).map(|(_, link)| *link);
        } else if let VfInfo::Rate(rate) = info {
            found.min_tx_rate = Some(rate.min_tx_rate);
            found.max_tx_rate = Some(rate.max_tx_rate);
        }
    }
    Some(found)
}

/// Makes the message that changes settings of a VF.
fn change(port: &VfPort, wanted: &VfSettings, now: &VfSettings) -> LinkMessage {
    let number = port.number;
    let mut infos = Vec::new();
    infos.extend(wanted.trust.map(|trust| VfInfo::Trust(VfInfoTrust::new(number, trust))));
    infos.extend(wanted.spoof_check.map(|check| VfInfo::SpoofCheck(VfInfoSpoofCheck::new(number, check))));
    let state = LINKS.iter().find(|(_, link)| Some(*link) == wanted.link_state).map(|(kernel, _)| *kernel);
    infos.extend(state.map(|state| VfInfo::LinkState(VfInfoLinkState::new(number, state))));
    // The kernel takes both rates at once.
    if wanted.min_tx_rate.or(wanted.max_tx_rate).is_some() {
        let both = wanted.or(now);
        let (min, max) = (both.min_tx_rate.unwrap_or_default(), both.max_tx_rate.unwrap_or_default());
        infos.push(VfInfo::Rate(VfInfoRate::new(number, min, max)));
    }
    let vfs = LinkAttribute::VfInfoList(vec![LinkVfInfo(infos)]);
    let mut link = LinkMessage::default();
    link.header.index = port.interface;
    link.attributes.push(vfs);
    link
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable as _, Parseable as _};

    use super::*;

    const PORT: VfPort = VfPort { interface: 7, number: 2 };

    /// The bytes after the header of 16 bytes: the nested attributes as `ip link set dev eth0 vf 2 …` sends them.
    fn bytes(wanted: VfSettings, now: VfSettings) -> Vec<u8> {
        let message = change(&PORT, &wanted, &now);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        assert_eq!(bytes[4..8], 7_u32.to_ne_bytes(), "the index of the interface");
        bytes.split_off(16)
    }

    /// An attribute: its length and type, and words of 32 bits.
    fn attribute(kind: u16, words: &[u32]) -> Vec<u8> {
        let length = u16::try_from(4 + 4 * words.len()).unwrap();
        let head = length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes());
        head.chain(words.iter().flat_map(|word| word.to_ne_bytes())).collect()
    }

    #[test]
    fn changes_are_written_as_the_kernel_reads_them() {
        // Linux, include/uapi/linux/if_link.h: IFLA_VFINFO_LIST is 22, IFLA_VF_INFO 1, IFLA_VF_SPOOFCHK 4,
        // IFLA_VF_LINK_STATE 5, IFLA_VF_RATE 6 and IFLA_VF_TRUST 9.
        let now = VfSettings { min_tx_rate: Some(10), max_tx_rate: Some(20), ..VfSettings::default() };
        for (wanted, expected) in [
            (VfSettings { trust: Some(true), ..VfSettings::default() }, attribute(9, &[2, 1])),
            (VfSettings { spoof_check: Some(false), ..VfSettings::default() }, attribute(4, &[2, 0])),
            (
                VfSettings { link_state: Some(VfLink::Disable), ..VfSettings::default() },
                attribute(5, &[2, 2]),
            ),
            (VfSettings { max_tx_rate: Some(500), ..VfSettings::default() }, attribute(6, &[2, 10, 500])),
        ] {
            let found = bytes(wanted, now);
            let (list, info) =
                (8 + u16::try_from(expected.len()).unwrap(), 4 + u16::try_from(expected.len()).unwrap());
            let nested = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            assert_eq!(found.len(), usize::from(list), "{wanted:?}");
            assert_eq!(found[..2], nested(list, 22)[..2], "{wanted:?}");
            // The kernel ignores the flag for nested attributes in the type (NLA_F_NESTED).
            assert_eq!(u16::from_ne_bytes([found[2], found[3]]) & 0x3fff, 22, "{wanted:?}");
            assert_eq!(found[4..6], nested(info, 1)[..2], "{wanted:?}");
            assert_eq!(u16::from_ne_bytes([found[6], found[7]]) & 0x3fff, 1, "{wanted:?}");
            assert_eq!(found[8..], expected, "{wanted:?}");
        }
    }

    #[test]
    fn the_settings_of_one_vf_are_read() {
        let nested = |kind: u16, parts: &[Vec<u8>]| {
            let body = parts.concat();
            let length = u16::try_from(4 + body.len()).unwrap();
            [length.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), body].concat()
        };
        let vf = |number: u32, trust: u32, link: u32| {
            let mac = attribute(1, &[&[number][..], &[0; 8]].concat());
            let rest = [
                attribute(4, &[number, 1]),
                attribute(5, &[number, link]),
                attribute(6, &[number, 0, 100]),
                attribute(9, &[number, trust]),
            ];
            nested(1, &[&[mac][..], &rest].concat())
        };
        let list = nested(22, &[vf(0, 0, 0), vf(2, 1, 1)]);
        let message = LinkMessage::parse(&[vec![0; 16], list].concat()).unwrap();
        let expected = VfSettings {
            trust: Some(true),
            spoof_check: Some(true),
            link_state: Some(VfLink::Enable),
            min_tx_rate: Some(0),
            max_tx_rate: Some(100),
        };
        assert_eq!(settings(&message, 2), Some(expected));
        assert_eq!(settings(&message, 0).unwrap().trust, Some(false));
        assert_eq!(settings(&message, 1), None);
    }

    /// The loopback interface, which every machine has as number 1, has no VFs.
    #[test]
    fn this_kernel_reads_the_messages() {
        let mut link = LinkMessage::default();
        link.header.index = 1;
        link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
        let found = exchange(RouteNetlinkMessage::GetLink(link), 0).unwrap().unwrap();
        assert_eq!((found.header.index, settings(&found, 0)), (1, None));

        let wanted = VfSettings { trust: Some(true), ..VfSettings::default() };
        let port = VfPort { interface: 1, number: 0 };
        let message = change(&port, &wanted, &VfSettings::default());
        let refused = exchange(RouteNetlinkMessage::NewLink(message), NLM_F_ACK).unwrap_err();
        let permitted = is_permitted(&std::fs::read_to_string("/proc/self/status").unwrap());
        let (kind, message) = told(&refused);
        if permitted {
            assert!(kind == ErrorKind::NotAssignable && message.contains("has no such setting"), "{message}");
        } else {
            assert!(kind == ErrorKind::Unsupported && message.contains("CAP_NET_ADMIN"), "{message}");
        }
    }

    #[test]
    fn the_capability_decides() {
        assert!(is_permitted("CapInh:\t0\nCapEff:\t0000000000001000\n"));
        assert!(
            !is_permitted("CapEff:\t0000000000000fff\n") && !is_permitted("CapEff:\tx") && !is_permitted("")
        );
    }

    /// This machine has no VFs, or hotslot has not the right to change them: each refusal says which.
    #[tokio::test]
    async fn a_vf_that_is_not_there_is_told() {
        let refused = read("ffff:ff:1f.7".parse().unwrap()).await.unwrap_err();
        let permitted = is_permitted(&std::fs::read_to_string("/proc/self/status").unwrap());
        let says = if permitted { "is no VF, or sysfs does not show it" } else { "CAP_NET_ADMIN" };
        assert!(refused.message.contains(says), "{refused}");
    }
}
