//! The control socket: it changes a simulated host in the ways in which users and guests change a real one.
//!
//! A request is one line, and the answer is one line: `ok` or `error: …`.
//! ```text
//! start|shutdown|destroy|crash|reboot|pause|resume|undefine GUEST
//! save|managedsave|restore GUEST   a start after a managed save restores too
//! migrate GUEST                to another host, with its definition
//! rename GUEST NAME | define FILE
//! plug GUEST DEVICE live|config|both [ALIAS]    as `virsh attach-device` does, managed by libvirt
//! unplug GUEST DEVICE live|config               as `virsh detach-device` does
//! guest GUEST KEY=VALUE…       sets keys of [guest.…] in host.toml, with `-` or `_`: guest g1 unplug=ignore
//!                              unplug=slow 500 is short for unplug=normal unplug_ms=500
//! agent GUEST connected|gone
//! device add NAME|FILE         adds a device that was removed, or one from a file; the file of a disk replaces the disks
//!                              of its function, until the host is opened again
//! device remove NAME           first asks a guest that has the device to release it
//! device driver NAME [DRIVER]  binds another driver, or none, to a device that no guest has
//! vfs PF NUMBER               sets the number of VFs of a PF; at most as many as there are documents of its VFs
//! restart                      restarts the host: its guests stop, and its VFs and mediated devices are gone
//! disconnect | reconnect       breaks and restores the connection to libvirtd
//! fault OPERATION ACTION [KEY=VALUE…] [text=…]    as [[fault]] in host.toml; `fault clear` ends hangs
//! fault any kill nth=7 at=after                   kills this process when its seventh call has been done
//! latency OPERATION MS
//! statistics                   answers `ok` and JSON: the calls of this process so far, and the processor time of the
//!                              simulation
//! ```

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::Instant;
use uuid::Uuid;

use super::config::{Fault, Guest, Operation, take_fault};
use super::host::Host;
use super::inner::{Inner, until_closed};
use super::open::{node_name, read_device};
use super::refusal::Refusal;
use crate::hypervisor::{DetachScope, Event, Lifecycle, NodeChange, Scope};
use crate::pci::PciAddress;
use crate::xml::nodedev::{self, NodeDevice};

const SOCKET: &str = "control";

/// Sends one line to the process that has a simulated host open, and returns its answer: `ok` or `error: …`. If several
/// processes have it open, the line goes to the one that opened it first.
///
/// # Errors
/// An I/O error when no process has `dir` open, or when it does not answer.
pub fn control(dir: &Path, line: &str) -> io::Result<String> {
    send(UnixStream::connect(dir.join(SOCKET))?, line)
}

/// As [`control`], for the process with this id, which must not be the one that opened the host first. Each process has
/// its own latencies and faults.
///
/// # Errors
/// An I/O error when that process does not have `dir` open, or when it does not answer.
pub fn control_of(pid: u32, dir: &Path, line: &str) -> io::Result<String> {
    send(UnixStream::connect(dir.join(format!("{SOCKET}.{pid}")))?, line)
}

fn send(mut stream: UnixStream, line: &str) -> io::Result<String> {
    stream.write_all(format!("{}\n", line.trim_end()).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.strip_suffix('\n') {
        Some(answer) => Ok(answer.to_owned()),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the simulated host was closed before it answered",
        )),
    }
}

/// Creates the socket and returns its path. It replaces a socket that a killed process left behind. When another
/// process already listens, this process's id is added to the name.
pub(super) fn listen(dir: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let mut path = dir.join(SOCKET);
    if UnixStream::connect(&path).is_ok() {
        path.set_extension(std::process::id().to_string());
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(&path).map(|listener| (listener, path))
}

/// Serves all connections.
pub(super) async fn serve(listener: UnixListener, inner: Arc<Inner>) {
    while let Ok((stream, _)) = listener.accept().await {
        let answering = answer(stream, inner.clone());
        tokio::spawn(until_closed(inner.clone(), answering));
    }
}

async fn answer(stream: tokio::net::UnixStream, inner: Arc<Inner>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match inner.with(|host, now| host.answer(&line, now)) {
            Err(locked) => format!("error: {locked}\n"),
            Ok(Ok(answer)) => answer + "\n",
            Ok(Err(reason)) => format!("error: {}\n", reason.replace('\n', " ")),
        };
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

impl Host {
    /// Executes one line and returns the answer.
    fn answer(&mut self, line: &str, now: Instant) -> Result<String, String> {
        if line.trim() == "statistics" {
            let statistics = serde_json::to_string(&self.statistics).map_err(|error| error.to_string())?;
            return Ok(format!("ok {statistics}"));
        }
        self.command(line, now).map(|()| "ok".to_owned())
    }

    /// Executes one line.
    pub(super) fn command(&mut self, line: &str, now: Instant) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of_guest = |host: &Self, name: &str| host.guest_named(name);
        let done = match words[..] {
            ["start", name] => self.start(of_guest(self, name)?, now),
            ["shutdown", name] => {
                self.stop(of_guest(self, name)?, &[Lifecycle::Shutdown, Lifecycle::Stopped], now)
            }
            ["destroy" | "crash", name] => self.stop(of_guest(self, name)?, &[Lifecycle::Stopped], now),
            ["reboot", name] => self.reboot(of_guest(self, name)?, now),
            ["pause", name] => self.pause(of_guest(self, name)?),
            ["resume", name] => self.resume(of_guest(self, name)?, now),
            ["save", name] => self.save_run(of_guest(self, name)?, false, now),
            ["managedsave", name] => self.save_run(of_guest(self, name)?, true, now),
            ["restore", name] => self.restore(of_guest(self, name)?),
            ["migrate", name] => self.migrate_away(of_guest(self, name)?, now),
            ["rename", name, to] => self.rename(of_guest(self, name)?, to),
            ["define", file] => self.define(&read_document(file)?),
            ["undefine", name] => self.undefine(of_guest(self, name)?),
            ["agent", name, "connected"] => self.set_agent(of_guest(self, name)?, true),
            ["agent", name, "gone"] => self.set_agent(of_guest(self, name)?, false),
            ["plug", name, device, scope] => {
                self.plug(of_guest(self, name)?, address(device)?, scope_named(scope)?, None)
            }
            ["plug", name, device, scope, alias] => {
                self.plug(of_guest(self, name)?, address(device)?, scope_named(scope)?, Some(alias))
            }
            ["unplug", name, device, "live"] => {
                self.unplug(of_guest(self, name)?, address(device)?, DetachScope::Live, now)
            }
            ["unplug", name, device, "config"] => {
                self.unplug(of_guest(self, name)?, address(device)?, DetachScope::Config, now)
            }
            ["guest", name, ..] => return self.set_guest(of_guest(self, name)?, &words[2..]),
            ["device", "add", name] => return self.add_device(name),
            ["device", "remove", name] => self.remove_device(address(name)?, now),
            ["device", "driver", name] => self.bind(address(name)?, None),
            ["device", "driver", name, driver] => self.bind(address(name)?, Some(driver.to_owned())),
            ["vfs", name, number] => {
                let number = number.parse().map_err(|_| format!("invalid number of VFs `{number}`"))?;
                self.echo_vf_count(address(name)?, number)
            }
            ["restart"] => self.restart(now),
            ["disconnect"] => {
                self.disconnect("a command on the control socket broke the connection", None);
                return Ok(());
            }
            ["reconnect"] => {
                self.reconnect();
                return Ok(());
            }
            ["fault", "clear"] => {
                self.clear_faults();
                return Ok(());
            }
            ["fault", operation, action, ..] => return self.add_fault(operation, action, &words[3..]),
            ["latency", operation, ms] => return self.set_latency(operation, ms),
            _ => {
                return Err(format!(
                    "`{line}` is no command, or its arguments are wrong; `hotslot sim --help` lists the commands"
                ));
            }
        };
        done.map_err(|refused: Refusal| refused.message)
    }

    /// Ends all faults, also the calls that hang.
    fn clear_faults(&mut self) {
        self.faults.clear();
        self.unhang.send_modify(|generation| *generation += 1);
    }

    fn add_fault(&mut self, operation: &str, action: &str, keys: &[&str]) -> Result<(), String> {
        let fault = format!("operation={operation} action={action}");
        let table = table(fault.split(' ').chain(keys.iter().copied()))?;
        self.faults.push(Fault::deserialize(table).map_err(|error| error.message().to_owned())?);
        Ok(())
    }

    fn set_latency(&mut self, operation: &str, ms: &str) -> Result<(), String> {
        let name = toml::Value::String(operation.to_owned());
        let operation = Operation::deserialize(name).map_err(|error| error.message().to_owned())?;
        let ms =
            ms.parse().map_err(|_| format!("invalid latency `{ms}`: expected a number of milliseconds"))?;
        self.config.latency.insert(operation, ms);
        Ok(())
    }

    /// Returns the latency of a call and the fault that applies to it.
    pub(super) fn begin(
        &mut self,
        operation: Operation,
        domain: Option<Uuid>,
    ) -> Result<(Duration, Option<Fault>), Refusal> {
        self.check_link()?;
        *self.statistics.calls.entry(operation).or_default() += 1;
        let name = domain.and_then(|domain| self.domains.get(&domain)).map(|domain| domain.name.as_str());
        let fault = take_fault(&mut self.faults, operation, name);
        let ms = self.config.latency.get(&operation).copied().unwrap_or_default();
        Ok((Duration::from_millis(ms), fault))
    }

    fn guest_named(&self, name: &str) -> Result<Uuid, String> {
        let named = |uuid: &Uuid| uuid.to_string() == name;
        let domain = self.domains.values().find(|domain| domain.name == name || named(&domain.uuid));
        domain.map(|domain| domain.uuid).ok_or_else(|| format!("there is no domain {name}"))
    }

    /// Changes the behaviour of a guest.
    fn set_guest(&mut self, uuid: Uuid, words: &[&str]) -> Result<(), String> {
        let words: Vec<String> = match words {
            ["unplug=slow", ms] => vec!["unplug=normal".into(), format!("unplug_ms={ms}")],
            words => words.iter().map(|word| (*word).to_owned()).collect(),
        };
        let domain = self.domain_mut(uuid).map_err(|refused| refused.message)?;
        let mut settings = toml::Table::try_from(&domain.guest).map_err(|error| error.to_string())?;
        settings.extend(table(words.iter().map(String::as_str))?);
        domain.guest = Guest::deserialize(settings).map_err(|error| error.message().to_owned())?;
        domain.guest_changed = true;
        self.save(uuid);
        Ok(())
    }

    fn add_device(&mut self, name: &str) -> Result<(), String> {
        if let Ok(address) = address(name) {
            return self.appear(None, address).map_err(|refused| refused.message);
        }
        let path = Path::new(name);
        let xml = read_document(name)?;
        if let Ok(disk @ NodeDevice::Block { function: Some(function), .. }) = nodedev::parse(&xml) {
            return self.replace_disk(function, node_name(path, &xml), disk);
        }
        let read = read_device(&self.dir, path, &xml, &self.config).map_err(|error| error.to_string())?;
        let mut device = read.ok_or_else(|| format!("{name}: the document describes no PCI function"))?;
        let address = device.info.address;
        if self.devices.get(address).is_some() {
            return Err(format!("the host already has {address}"));
        }
        device.xml = Some(xml);
        self.appear(Some(device), address).map_err(|refused| refused.message)
    }

    /// Puts a disk in the place of the disks of a function, until the host is opened again.
    fn replace_disk(&mut self, function: PciAddress, name: String, disk: NodeDevice) -> Result<(), String> {
        let device =
            self.devices.get_mut(function).ok_or_else(|| super::refusal::no_node_device(function).message)?;
        let pulled = device.pull_disks();
        device.add_child(name.clone(), disk);
        device.refresh();
        for name in pulled {
            self.emit(Event::NodeDevice { name, change: NodeChange::Deleted });
        }
        self.emit(Event::NodeDevice { name, change: NodeChange::Created });
        Ok(())
    }

    fn bind(&mut self, address: PciAddress, driver: Option<String>) -> Result<(), Refusal> {
        let device = self.devices.get_mut(address).ok_or_else(|| super::refusal::no_node_device(address))?;
        device.set_free_driver(driver.map(Into::into));
        self.save_device(address);
        self.refresh(address);
        Ok(())
    }
}

fn read_document(file: &str) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))
}

fn scope_named(word: &str) -> Result<Scope, String> {
    match word {
        "live" => Ok(Scope::Live),
        "config" => Ok(Scope::Config),
        "both" => Ok(Scope::LiveAndConfig),
        other => Err(format!("invalid scope `{other}`: expected live, config or both")),
    }
}

/// Parses a function's node device name or address.
fn address(name: &str) -> Result<PciAddress, String> {
    PciAddress::from_node_name(name).or_else(|_| name.parse()).map_err(|error| error.to_string())
}

/// Parses `key=value` words into a table. The value of `text=` is the rest of the line.
fn table<'a>(words: impl Iterator<Item = &'a str>) -> Result<toml::Table, String> {
    let mut table = toml::Table::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let (key, value) =
            word.split_once('=').ok_or_else(|| format!("invalid argument `{word}`: expected KEY=VALUE"))?;
        let value = match (key, value.parse::<i64>()) {
            ("text", _) => {
                let rest: Vec<&str> = std::iter::once(value).chain(words.by_ref()).collect();
                toml::Value::String(rest.join(" "))
            }
            (_, Ok(number)) => toml::Value::Integer(number),
            (_, Err(_)) => match value.parse::<bool>() {
                Ok(truth) => toml::Value::Boolean(truth),
                Err(_) => toml::Value::String(value.to_owned()),
            },
        };
        table.insert(key.replace('-', "_"), value);
    }
    Ok(table)
}
