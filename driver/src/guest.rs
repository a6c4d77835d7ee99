//! Reads the guest's own view of its PCI buses through the guest agent or QEMU's monitor, and runs commands through the
//! guest agent.
//!
//! The bridges contain the bus numbers: the secondary bus number of each bridge on the way from the root bus to the
//! device is read, and the function found on the last bus must have the ids of the plugged device. Slot and function
//! are the same as in libvirt; only the bus number is chosen by the firmware or the guest kernel.

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

/// The interval of the checks whether a command has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How many characters of a command's stderr an error message contains.
const STDERR_LIMIT: usize = 200;

/// Finds the guest address of a device through the guest agent: it reads the `secondary_bus_number` of each bridge on
/// the `route`, and the function's `uevent`, in the guest's sysfs (Linux 4.19 or later). `place` is the device's
/// address in libvirt's numbering; its bus does not matter. Returns `None` when the guest does not (yet) have a device
/// with these ids there.
///
/// # Errors
/// [`ErrorKind::AgentAway`] without a guest agent, and [`ErrorKind::Unsupported`] when the agent does not allow to read
/// files.
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

/// Runs a command in the guest through the guest agent, and waits at most `limit` until it has ended.
///
/// # Errors
/// [`ErrorKind::AgentAway`] without a guest agent, and [`ErrorKind::TimedOut`] when the command still runs after
/// `limit`. When the command failed it is [`ErrorKind::Refused`], with the exit code and the beginning of stderr in the
/// message.
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
    let begun = call(hypervisor, domain, "guest-exec", begin).await?;
    let pid = begun
        .get("pid")
        .ok_or_else(|| failed(ErrorKind::Document, "the guest agent returned no process id"))?;
    tracing::debug!(domain = %domain, ?command, %pid, "runs in the guest");
    loop {
        let now = call(hypervisor, domain, "guest-exec-status", json!({ "pid": pid })).await?;
        if now.get("exited").and_then(Value::as_bool) == Some(true) {
            if now.get("exitcode").and_then(Value::as_i64) == Some(0) {
                return Ok(());
            }
            let ending = match (now.get("exitcode"), now.get("signal")) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, Some(signal)) => format!("it was ended by signal {signal}"),
                (None, None) => "it failed".into(),
            };
            let stderr = now.get("err-data").and_then(Value::as_str).unwrap_or_default();
            let stderr = base64::engine::general_purpose::STANDARD.decode(stderr).unwrap_or_default();
            let stderr = String::from_utf8_lossy(&stderr);
            let stderr: String = stderr.trim().chars().take(STDERR_LIMIT).collect();
            let ending = if stderr.is_empty() { ending } else { format!("{ending}: {stderr}") };
            return Err(failed(ErrorKind::Refused, &ending));
        }
        if Instant::now() >= deadline {
            return Err(failed(ErrorKind::TimedOut, &format!("it has not ended after {limit:?}")));
        }
        tokio::time::sleep(POLL_INTERVAL.min(deadline - Instant::now())).await;
    }
}

/// Sends a command to the guest agent and returns the `return` of its answer.
async fn call(
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

/// Reads a file of the guest; `None` when the guest has no such file.
async fn read_file(hypervisor: &dyn Hypervisor, domain: Uuid, path: &str) -> Result<Option<String>, Error> {
    let call = async |execute, arguments| call(hypervisor, domain, execute, arguments).await;
    let handle = match call("guest-file-open", json!({ "path": path, "mode": "r" })).await {
        Ok(handle) => handle,
        // The agent refuses to open a file that does not exist.
        Err(error) if error.kind == ErrorKind::Refused => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = call("guest-file-read", json!({ "handle": handle, "count": 4096 })).await;
    let closed = call("guest-file-close", json!({ "handle": handle })).await;
    let read = read?;
    closed?;
    let text = read.get("buf-b64").and_then(Value::as_str).unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| {
        Error::new(ErrorKind::Document, "read the guest agent's answer to guest-file-read", error)
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Finds the guest address of the device with this alias through QEMU's monitor (`query-pci`). Returns `None` when QEMU
/// does not list the device, when the firmware has not numbered the buses yet, and when QEMU reports another device at
/// the same address, so that neither address can be relied on.
///
/// libvirt marks the domain as tainted by custom monitor commands. Callers therefore only use this when it is
/// configured.
///
/// # Errors
/// The error of the hypervisor, or [`ErrorKind::Document`] when the answer cannot be parsed.
pub async fn ask_monitor(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    alias: &str,
) -> Result<Option<PciAddress>, Error> {
    find(&hypervisor.monitor(domain, r#"{"execute":"query-pci"}"#).await?, alias)
}

/// Finds the device of this alias in QEMU's answer to `query-pci`.
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

/// The parts of QMP's `PciInfo` (QEMU, `qapi/pci.json`) that are read.
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
    /// Returns this device and the devices behind it, if it is a bridge that firmware has numbered.
    fn with_children(&self) -> Vec<&Self> {
        let bridge = self.pci_bridge.as_ref().filter(|bridge| bridge.bus.secondary != 0);
        let behind = bridge.into_iter().flat_map(|bridge| &bridge.devices).flat_map(Self::with_children);
        std::iter::once(self).chain(behind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's answers from the lab give the addresses that lspci showed in the guests.
    #[test]
    fn a_device_is_found_at_the_address_that_the_guest_shows() {
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
            (pxb, "ua-missing", None),
        ] {
            let found = find(answer, alias).unwrap().map(|address| address.to_string());
            assert_eq!(found.as_deref(), shown, "{alias}");
        }
    }

    #[test]
    fn an_ambiguous_or_unnumbered_device_has_no_address() {
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
        assert_eq!(find(&answer(&[bridge(0)]), "ua-x"), Ok(None), "firmware has not numbered the bus");
        assert_eq!(find(&answer(&[bridge(1), device(1)]), "ua-x"), Ok(None), "two devices with one id");
        // The bus numbers of pcie.0 reach those of an expander: QEMU lists a port of pcie.0 and the device behind the
        // expander at the same address.
        let other = device(1).replace("ua-x", "pci.9");
        assert_eq!(find(&answer(&[bridge(1), other]), "ua-x"), Ok(None), "two devices at one address");
        assert_eq!(find("{}", "ua-x").unwrap_err().kind, ErrorKind::Document);
    }
}
