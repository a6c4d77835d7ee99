//! The guest's own view of its PCI buses, asked of its agent or of QEMU; and commands that its agent runs.
//!
//! The bus numbers are in the bridges: each bridge on the way from the root bus to the device is asked for
//! the bus behind it, and the function found there must have the ids of the device that was plugged. Slot
//! and function are libvirt's; only the bus is the firmware's (or the guest kernel's) to choose.

use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::hypervisor::{Error, ErrorKind, Hypervisor};
use crate::pci::{PciAddress, PciId};
use crate::topology::Route;

const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is asked whether a command has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How many characters of what a command wrote to stderr are told.
const SAID: usize = 200;

/// Asks the guest's agent where the device is: reads the `secondary_bus_number` of each bridge on the `route` and the
/// function's `uevent` in the guest's sysfs (Linux 4.19 or later). `place` is where libvirt has the device; its bus does
/// not matter. None when the guest does not show a device with these ids there (yet).
///
/// # Errors
/// [`ErrorKind::AgentAway`] without an agent, [`ErrorKind::Unsupported`] when it may not read files.
pub async fn ask_agent(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    route: &Route,
    place: PciAddress,
    ids: Option<(PciId, PciId)>,
) -> Result<Option<PciAddress>, Error> {
    let mut bus = route.root;
    for bridge in &route.bridges {
        let file = format!("/sys/bus/pci/devices/{}/secondary_bus_number", bridge.on_bus(bus));
        let Some(text) = read_file(hypervisor, domain, &file).await? else { return Ok(None) };
        let Ok(secondary) = text.trim().parse() else { return Ok(None) };
        bus = secondary;
    }
    let address = place.on_bus(bus);
    let file = format!("/sys/bus/pci/devices/{address}/uevent");
    let Some(uevent) = read_file(hypervisor, domain, &file).await? else { return Ok(None) };
    let wanted = ids.map(|ids| format!("PCI_ID={}:{}", ids.0, ids.1));
    let is_it = |line: &str| match &wanted {
        Some(wanted) => line.eq_ignore_ascii_case(wanted),
        None => line.starts_with("PCI_ID="),
    };
    Ok(uevent.lines().any(is_it).then_some(address))
}

/// Runs a command in the guest by its agent, and waits until it has ended well. `limit` is how long it may take.
///
/// # Errors
/// [`ErrorKind::AgentAway`] without an agent, [`ErrorKind::TimedOut`] when the command goes on after `limit`,
/// [`ErrorKind::Refused`] with its exit code and what it wrote to stderr when it failed.
pub async fn run(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    command: &[String],
    limit: Duration,
) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    let (path, arguments) = command.split_first().map_or(("", &[][..]), |(path, rest)| (path.as_str(), rest));
    let failed = |kind, message: &str| Error::new(kind, format!("run {path} in the guest"), message);
    let begin = json!({ "path": path, "arg": arguments, "capture-output": true });
    let begun = ask(hypervisor, domain, "guest-exec", begin).await?;
    let pid = begun.get("pid").ok_or_else(|| failed(ErrorKind::Document, "the agent told no process id"))?;
    tracing::debug!(domain = %domain, ?command, %pid, "runs in the guest");
    loop {
        let now = ask(hypervisor, domain, "guest-exec-status", json!({ "pid": pid })).await?;
        if now.get("exited").and_then(Value::as_bool) == Some(true) {
            if now.get("exitcode").and_then(Value::as_i64) == Some(0) {
                return Ok(());
            }
            let ending = match (now.get("exitcode"), now.get("signal")) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, Some(signal)) => format!("it was ended by signal {signal}"),
                (None, None) => "it failed".into(),
            };
            let said = now.get("err-data").and_then(Value::as_str).unwrap_or_default();
            let said = base64::engine::general_purpose::STANDARD.decode(said).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let said: String = said.trim().chars().take(SAID).collect();
            let ending = if said.is_empty() { ending } else { format!("{ending}: {said}") };
            return Err(failed(ErrorKind::Refused, &ending));
        }
        if Instant::now() >= deadline {
            return Err(failed(ErrorKind::TimedOut, &format!("it has not ended after {limit:?}")));
        }
        tokio::time::sleep(LOOK_AGAIN.min(deadline - Instant::now())).await;
    }
}

/// Asks the guest's agent, and takes the `return` out of its answer.
async fn ask(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    execute: &str,
    arguments: Value,
) -> Result<Value, Error> {
    let command = json!({ "execute": execute, "arguments": arguments }).to_string();
    let answer = hypervisor.agent(domain, &command, AGENT_TIMEOUT).await?;
    let document = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Document, format!("read the guest agent's answer to {execute}"), error)
    };
    let mut answer: Value = serde_json::from_str(&answer).map_err(|error| document(&error))?;
    answer.get_mut("return").map(Value::take).ok_or_else(|| document(&"it has no `return`"))
}

/// Reads a file of the guest; none when the guest has no such file.
async fn read_file(hypervisor: &dyn Hypervisor, domain: Uuid, path: &str) -> Result<Option<String>, Error> {
    let ask = async |execute, arguments| ask(hypervisor, domain, execute, arguments).await;
    let handle = match ask("guest-file-open", json!({ "path": path, "mode": "r" })).await {
        Ok(handle) => handle,
        // The agent's own refusal: no such file.
        Err(error) if error.kind == ErrorKind::Refused => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = ask("guest-file-read", json!({ "handle": handle, "count": 4096 })).await;
    let closed = ask("guest-file-close", json!({ "handle": handle })).await;
    let read = read?;
    closed?;
    let text = read.get("buf-b64").and_then(Value::as_str).unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| {
        Error::new(ErrorKind::Document, "read the guest agent's answer to guest-file-read", error)
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Asks QEMU where the device with this alias is (`query-pci`). None when QEMU does not list it, when its firmware has
/// not numbered the buses yet, and when QEMU tells the same address of two devices: then neither is known.
///
/// libvirt marks the domain as tainted by custom monitor commands, so this is asked only when configured.
///
/// # Errors
/// What the hypervisor answers, and [`ErrorKind::Document`] for an answer that cannot be read.
pub async fn ask_monitor(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    alias: &str,
) -> Result<Option<PciAddress>, Error> {
    find(&hypervisor.monitor(domain, r#"{"execute":"query-pci"}"#).await?, alias)
}

/// Where the device of this alias is in QEMU's answer to `query-pci`.
fn find(answer: &str, alias: &str) -> Result<Option<PciAddress>, Error> {
    let document = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Document, "read QEMU's answer to query-pci", error)
    };
    let answer: QueryPci = serde_json::from_str(answer).map_err(|error| document(&error))?;
    let devices: Vec<_> =
        answer.buses.iter().flat_map(|bus| &bus.devices).flat_map(|device| device.with_children()).collect();
    let mut found = devices.iter().filter(|device| device.qdev_id == alias);
    let (Some(device), None) = (found.next(), found.next()) else { return Ok(None) };
    let place = |device: &QueryDevice| (device.bus, device.slot, device.function);
    if devices.iter().filter(|other| place(other) == place(device)).count() > 1 {
        return Ok(None);
    }
    let address = PciAddress::new(0, device.bus, device.slot, device.function);
    address.map(Some).map_err(|error| document(&error))
}

/// QMP's `PciInfo` (QEMU, `qapi/pci.json`), as far as it is read.
#[derive(Deserialize)]
struct QueryPci {
    #[serde(rename = "return")]
    buses: Vec<QueryBus>,
}

#[derive(Deserialize)]
struct QueryBus {
    #[serde(default)]
    devices: Vec<QueryDevice>,
}

#[derive(Deserialize)]
struct QueryDevice {
    bus: u32,
    slot: u32,
    function: u32,
    #[serde(default)]
    qdev_id: String,
    pci_bridge: Option<QueryBridge>,
}

#[derive(Deserialize)]
struct QueryBridge {
    bus: QueryBridgeBus,
    #[serde(default)]
    devices: Vec<QueryDevice>,
}

#[derive(Deserialize)]
struct QueryBridgeBus {
    secondary: u32,
}

impl QueryDevice {
    /// This device, and those behind it when it is a bridge that firmware has given a number.
    fn with_children(&self) -> Vec<&Self> {
        let bridge = self.pci_bridge.as_ref().filter(|bridge| bridge.bus.secondary != 0);
        let behind = bridge.into_iter().flat_map(|bridge| &bridge.devices).flat_map(Self::with_children);
        std::iter::once(self).chain(behind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's answers in the lab, and where the guest's own lspci showed the devices.
    #[test]
    fn a_device_is_found_where_the_guest_shows_it() {
        let (switch, pxb) = (
            include_str!("../tests/data/query-pci/switch.json"),
            include_str!("../tests/data/query-pci/pxb.json"),
        );
        for (answer, alias, shown) in [
            (switch, "ua-e1000e", Some("0000:01:00.0")),
            (switch, "ua-edu", Some("0000:03:01.0")),
            (switch, "ua-igb-vf0", Some("0000:07:00.0")),
            (switch, "ua-igb-vf1", Some("0000:06:00.0")),
            (pxb, "ua-igb-vf0", Some("0000:81:00.0")),
            (pxb, "ua-igb-vf1", Some("0000:82:00.0")),
            (pxb, "ua-nobody", None),
        ] {
            let found = find(answer, alias).unwrap().map(|address| address.to_string());
            assert_eq!(found.as_deref(), shown, "{alias}");
        }
    }

    #[test]
    fn what_is_named_twice_or_not_numbered_is_not_trusted() {
        let device = |bus: u32| format!(r#"{{"bus":{bus},"slot":0,"function":0,"qdev_id":"ua-x"}}"#);
        let bridge = |secondary: u32| {
            let behind = device(secondary);
            format!(
                r#"{{"bus":0,"slot":1,"function":0,"qdev_id":"pci.1",
                     "pci_bridge":{{"bus":{{"secondary":{secondary}}},"devices":[{behind}]}}}}"#
            )
        };
        let answer = |devices: &[String]| format!(r#"{{"return":[{{"devices":[{}]}}]}}"#, devices.join(","));
        assert_eq!(find(&answer(&[bridge(1)]), "ua-x").unwrap().unwrap().to_string(), "0000:01:00.0");
        assert_eq!(find(&answer(&[bridge(0)]), "ua-x"), Ok(None), "firmware has not run");
        assert_eq!(find(&answer(&[bridge(1), device(1)]), "ua-x"), Ok(None), "named twice");
        // An expander whose bus pcie.0 reaches: QEMU lists a port of pcie.0 and the device behind the expander alike.
        let other = device(1).replace("ua-x", "pci.9");
        assert_eq!(find(&answer(&[bridge(1), other]), "ua-x"), Ok(None), "two devices at one address");
        assert_eq!(find("{}", "ua-x").unwrap_err().kind, ErrorKind::Document);
    }
}
