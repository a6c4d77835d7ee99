//! libvirt's callbacks → owned events, and the one call hotslot needs that `virt` does not have.
//! This is the only file with unsafe code.
//!
//! A callback runs on the event loop's thread, inside libvirt: it decodes, sends and returns. It makes no call
//! to libvirt that goes over the connection, for the answer could only be read by the thread it is on.

#![allow(unsafe_code, reason = "virt 0.5 has no safe call for these; see each SAFETY note")]
#![deny(clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{ManuallyDrop, transmute};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc};
use tracing::{debug, warn};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::nodedev::NodeDevice;
use virt::sys;

use crate::hypervisor::{Event, Lifecycle, NodeChange};

const ADDED: u32 = sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED;
const REMOVED: u32 = sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED;
const REMOVAL_FAILED: u32 = sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED;

/// Where the callbacks of one connection put what they hear.
#[derive(Debug)]
pub(super) struct Ears {
    pub(super) events: broadcast::Sender<Event>,
    /// Why the connection is no good any more; the first reason counts.
    pub(super) closed: mpsc::Sender<String>,
}

/// An open connection that is listened to. Dropping it ends both, on a thread of its own: the daemon is told,
/// which may take as long as any call.
#[derive(Debug)]
pub(super) struct Listening {
    connect: Connect,
    domain_events: Vec<c_int>,
    node_events: Vec<c_int>,
}

/// Listens to a connection: its close, and every event of the port.
///
/// Events that the hypervisor does not have (those of node devices, where the daemon has no driver for them)
/// are left out; anything else is an error.
pub(super) fn listen(connect: Connect, ears: &Arc<Ears>) -> Result<Listening, Error> {
    let mut listening = Listening { connect, domain_events: Vec::new(), node_events: Vec::new() };
    listening.hear_close(ears)?;

    // SAFETY (of the transmutes): libvirt takes every callback as the generic one and calls it back with the
    // arguments of its event id, as its macros VIR_DOMAIN_EVENT_CALLBACK and VIR_NODE_DEVICE_EVENT_CALLBACK do
    // in C. Each function here has the signature of the id beside it.
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    type Detailed = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
    type Alias = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
    type NodeGeneric = unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, *mut c_void);
    type NodeDetailed =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, c_int, c_int, *mut c_void);
    let lifecycle: sys::virConnectDomainEventCallback = Some(on_lifecycle);
    // SAFETY: as above; this one's C type returns an int that libvirt ignores.
    let lifecycle = unsafe { transmute::<sys::virConnectDomainEventCallback, Option<Generic>>(lifecycle) };
    listening.hear_domains(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, ears)?;
    // SAFETY: as above.
    let (added, removed, removal_failed, agent) = unsafe {
        (
            transmute::<Alias, Generic>(on_device::<ADDED>),
            transmute::<Alias, Generic>(on_device::<REMOVED>),
            transmute::<Alias, Generic>(on_device::<REMOVAL_FAILED>),
            transmute::<Detailed, Generic>(on_agent),
        )
    };
    for (id, callback) in [
        (sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot as Generic),
        (ADDED, added),
        (REMOVED, removed),
        (REMOVAL_FAILED, removal_failed),
        (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
    ] {
        listening.hear_domains(id, Some(callback), ears)?;
    }
    // SAFETY: as above.
    let node_lifecycle = unsafe { transmute::<NodeDetailed, NodeGeneric>(on_node_lifecycle) };
    listening.hear_nodes(sys::VIR_NODE_DEVICE_EVENT_ID_LIFECYCLE, node_lifecycle, ears)?;
    listening.hear_nodes(sys::VIR_NODE_DEVICE_EVENT_ID_UPDATE, on_node_update, ears)?;
    Ok(listening)
}

/// Asks for the device with this alias to be detached; `virt` has only the call by XML, which waits 5 s.
///
/// See <https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainDetachDeviceAlias>
pub(super) fn detach_device_alias(domain: &Domain, alias: &str, flags: u32) -> Result<(), Error> {
    let alias = CString::new(alias)?;
    // SAFETY: `domain` is a live handle for the time of the call, `alias` a C string that outlives it.
    match unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

impl Listening {
    pub(super) fn connect(&self) -> &Connect {
        &self.connect
    }

    fn hear_close(&self, ears: &Arc<Ears>) -> Result<(), Error> {
        let opaque = lend(ears);
        // SAFETY: the connection is open; `opaque` is what `on_close` and `free` expect. A driver without a
        // wire (the test driver) answers 0 and forgets both: `ears` is then kept for good, a few bytes.
        let answer = unsafe {
            sys::virConnectRegisterCloseCallback(self.connect.as_ptr(), Some(on_close), opaque, Some(free))
        };
        registered(answer, opaque).map(|_| ())
    }

    fn hear_domains(
        &mut self,
        id: u32,
        callback: sys::virConnectDomainEventGenericCallback,
        ears: &Arc<Ears>,
    ) -> Result<(), Error> {
        let opaque = lend(ears);
        // SAFETY: the connection is open; no domain means all of them; `callback` has the signature of `id`;
        // `opaque` is what it and `free` expect.
        let answer = unsafe {
            let connect = self.connect.as_ptr();
            sys::virConnectDomainEventRegisterAny(
                connect,
                null_mut(),
                id as c_int,
                callback,
                opaque,
                Some(free),
            )
        };
        self.domain_events.extend(supported(registered(answer, opaque))?);
        Ok(())
    }

    fn hear_nodes(
        &mut self,
        id: u32,
        callback: unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, *mut c_void),
        ears: &Arc<Ears>,
    ) -> Result<(), Error> {
        let opaque = lend(ears);
        // SAFETY: as in `hear_domains`.
        let answer = unsafe {
            let connect = self.connect.as_ptr();
            sys::virConnectNodeDeviceEventRegisterAny(
                connect,
                null_mut(),
                id as c_int,
                Some(callback),
                opaque,
                Some(free),
            )
        };
        self.node_events.extend(supported(registered(answer, opaque))?);
        Ok(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let connect = self.connect.clone();
        let (domain_events, node_events) = (self.domain_events.split_off(0), self.node_events.split_off(0));
        let end = move || {
            // On a dead connection these fail, after libvirt has forgotten the callbacks on this side.
            for id in domain_events {
                // SAFETY: the connection is held; `id` is one that registering gave, given back once.
                unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), id) };
            }
            for id in node_events {
                // SAFETY: as above.
                unsafe { sys::virConnectNodeDeviceEventDeregisterAny(connect.as_ptr(), id) };
            }
            // SAFETY: the connection is held; unknown or used-up callbacks are refused, not freed again.
            unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
            drop(connect);
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-close".into()).spawn(end) {
            warn!("a connection to libvirt stays open: no thread to close it on: {error}");
        }
    }
}

/// One more reference to the ears, as the pointer that libvirt keeps until it calls [`free`].
fn lend(ears: &Arc<Ears>) -> *mut c_void {
    Arc::into_raw(Arc::clone(ears)).cast_mut().cast()
}

/// What registering answered. libvirt does not call the free callback when it failed.
fn registered(answer: c_int, opaque: *mut c_void) -> Result<c_int, Error> {
    if answer >= 0 {
        return Ok(answer);
    }
    let error = Error::last_error();
    // SAFETY: libvirt did not take the reference, so it is still ours to give back.
    unsafe { free(opaque) };
    Err(error)
}

/// Takes "there are no such events" as none.
fn supported(registered: Result<c_int, Error>) -> Result<Option<c_int>, Error> {
    match registered {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.code().is(ErrorNumber::NoSupport) => {
            debug!("events that are not to be had: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// # Safety
/// `opaque` is from [`lend`] and is not used again.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `lend` made it of an `Arc<Ears>`.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Ears>()) });
}

/// Runs one callback's body. A panic must not unwind into C.
///
/// # Safety
/// `opaque` is from [`lend`] and not yet freed: libvirt frees it after the last callback.
unsafe fn hear(opaque: *mut c_void, body: impl FnOnce(&Ears)) {
    // SAFETY: see above; the reference ends with this call.
    let ears = unsafe { &*opaque.cast_const().cast::<Ears>() };
    if catch_unwind(AssertUnwindSafe(|| body(ears))).is_err() {
        warn!("a libvirt event was lost: its decoder panicked");
    }
}

/// Runs the body of a domain event's callback: one that makes an event of the domain's UUID.
///
/// # Safety
/// As [`hear`]; `domain` is libvirt's own reference for the time of the callback.
unsafe fn hear_domain(
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
    event: impl FnOnce(uuid::Uuid) -> Option<Event>,
) {
    // SAFETY: as promised by the caller; the handle is never dropped, so the reference stays libvirt's.
    unsafe {
        hear(opaque, |ears| {
            let domain = ManuallyDrop::new(Domain::from_ptr(domain));
            if let Some(event) = domain.uuid().ok().and_then(event) {
                _ = ears.events.send(event); // no receiver: nobody listens
            }
        });
    }
}

/// As [`hear_domain`], for a node device and its name.
///
/// # Safety
/// As [`hear_domain`].
unsafe fn hear_node(node: sys::virNodeDevicePtr, opaque: *mut c_void, change: NodeChange) {
    // SAFETY: as in `hear_domain`.
    unsafe {
        hear(opaque, |ears| {
            let node = ManuallyDrop::new(NodeDevice::from_ptr(node));
            if let Ok(name) = node.name() {
                _ = ears.events.send(Event::NodeDevice { name, change });
            }
        });
    }
}

/// # Safety
/// `text` is null or a C string.
unsafe fn owned(text: *const c_char) -> Option<String> {
    // SAFETY: as promised by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

// The callbacks. libvirt calls each with what its signature says, its handles and texts are its own for the
// time of the call, and `opaque` is lent to it until it calls `free`.

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    let reason = match u32::try_from(reason) {
        Ok(sys::VIR_CONNECT_CLOSE_REASON_EOF) => "the daemon closed the connection",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE) => "the daemon does not answer keepalive",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_CLIENT) => "closed from this side",
        _ => "the connection broke",
    };
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear(opaque, |ears| _ = ears.closed.try_send(reason.to_owned())) };
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let change = match u32::try_from(event) {
        Ok(sys::VIR_DOMAIN_EVENT_DEFINED) => Some(Lifecycle::Defined),
        Ok(sys::VIR_DOMAIN_EVENT_UNDEFINED) => Some(Lifecycle::Undefined),
        Ok(sys::VIR_DOMAIN_EVENT_STARTED) => Some(Lifecycle::Started),
        Ok(sys::VIR_DOMAIN_EVENT_SUSPENDED) => Some(Lifecycle::Suspended),
        Ok(sys::VIR_DOMAIN_EVENT_RESUMED) => Some(Lifecycle::Resumed),
        Ok(sys::VIR_DOMAIN_EVENT_STOPPED) => Some(Lifecycle::Stopped),
        Ok(sys::VIR_DOMAIN_EVENT_SHUTDOWN) => Some(Lifecycle::Shutdown),
        Ok(sys::VIR_DOMAIN_EVENT_PMSUSPENDED) => Some(Lifecycle::PmSuspended),
        Ok(sys::VIR_DOMAIN_EVENT_CRASHED) => Some(Lifecycle::Crashed),
        _ => None,
    };
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_domain(domain, opaque, |domain| Some(Event::Lifecycle { domain, change: change? })) };
    0
}

unsafe extern "C" fn on_reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    let event = |domain| Some(Event::Lifecycle { domain, change: Lifecycle::Rebooted });
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_domain(domain, opaque, event) };
}

unsafe extern "C" fn on_device<const ID: u32>(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    let event = |domain| {
        // SAFETY: what libvirt gives to a callback, see above.
        let alias = unsafe { owned(alias) }?;
        match ID {
            ADDED => Some(Event::DeviceAdded { domain, alias }),
            REMOVED => Some(Event::DeviceRemoved { domain, alias }),
            _ => Some(Event::DeviceRemovalFailed { domain, alias }),
        }
    };
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_domain(domain, opaque, event) };
}

unsafe extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    let connected = match u32::try_from(state) {
        Ok(sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED) => Some(true),
        Ok(sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED) => Some(false),
        _ => None,
    };
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_domain(domain, opaque, |domain| Some(Event::Agent { domain, connected: connected? })) };
}

unsafe extern "C" fn on_node_lifecycle(
    _: sys::virConnectPtr,
    node: sys::virNodeDevicePtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) {
    let change = match u32::try_from(event) {
        Ok(sys::VIR_NODE_DEVICE_EVENT_CREATED) => NodeChange::Created,
        Ok(sys::VIR_NODE_DEVICE_EVENT_DELETED) => NodeChange::Deleted,
        _ => NodeChange::Updated, // defined, undefined: mediated devices only
    };
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_node(node, opaque, change) };
}

unsafe extern "C" fn on_node_update(_: sys::virConnectPtr, node: sys::virNodeDevicePtr, opaque: *mut c_void) {
    // SAFETY: what libvirt gives to a callback, see above.
    unsafe { hear_node(node, opaque, NodeChange::Updated) };
}
