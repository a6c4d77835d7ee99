//! Turns libvirt's callbacks into owned events, and adds the one call that hotslot needs and `virt` lacks. This is the
//! only file with unsafe code.
//!
//! A callback runs on the event loop's thread, inside libvirt: it decodes the event, sends it and returns. It must not
//! make a libvirt call that goes over the connection, because the event loop's thread is the one that reads the answer.

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

/// The channels to which the callbacks of one connection send.
#[derive(Debug)]
pub(super) struct EventSink {
    pub(super) events: broadcast::Sender<Event>,
    /// Receives the reason when the connection breaks. The first reason is kept.
    pub(super) closed: mpsc::Sender<String>,
}

/// An open connection with its event subscriptions. Dropping it ends the subscriptions and the connection on its
/// own thread, because deregistering calls the daemon and may take as long as any call.
#[derive(Debug)]
pub(super) struct Subscription {
    connect: Connect,
    domain_events: Vec<c_int>,
    node_events: Vec<c_int>,
}

/// Subscribes to a connection's close and to the events that become an [`Event`].
///
/// Event types that the hypervisor does not support are left out (those of node devices, where the daemon has no driver
/// for them). Any other failure is an error.
pub(super) fn subscribe(connect: Connect, sink: &Arc<EventSink>) -> Result<Subscription, Error> {
    let mut subscription = Subscription { connect, domain_events: Vec::new(), node_events: Vec::new() };
    subscription.register_close(sink)?;

    // SAFETY (of the transmutes): libvirt takes every callback as the generic type and calls it with the arguments of
    // its event id; in C its macros VIR_DOMAIN_EVENT_CALLBACK and VIR_NODE_DEVICE_EVENT_CALLBACK make the same cast.
    // Each function here has the signature of the event id with which it is registered.
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    type Detailed = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
    type Alias = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
    type NodeGeneric = unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, *mut c_void);
    type NodeDetailed =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, c_int, c_int, *mut c_void);
    let lifecycle: sys::virConnectDomainEventCallback = Some(on_lifecycle);
    // SAFETY: as above. The C type of this callback returns an int, which libvirt ignores.
    let lifecycle = unsafe { transmute::<sys::virConnectDomainEventCallback, Option<Generic>>(lifecycle) };
    subscription.register_domain_event(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, sink)?;
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
        subscription.register_domain_event(id, Some(callback), sink)?;
    }
    // SAFETY: as above.
    let node_lifecycle = unsafe { transmute::<NodeDetailed, NodeGeneric>(on_node_lifecycle) };
    subscription.register_node_event(sys::VIR_NODE_DEVICE_EVENT_ID_LIFECYCLE, node_lifecycle, sink)?;
    subscription.register_node_event(sys::VIR_NODE_DEVICE_EVENT_ID_UPDATE, on_node_update, sink)?;
    Ok(subscription)
}

/// Requests the detach of the device with this alias. `virt` only has the call by XML, which waits 5 s.
///
/// See <https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainDetachDeviceAlias>
pub(super) fn detach_device_alias(domain: &Domain, alias: &str, flags: u32) -> Result<(), Error> {
    let alias = CString::new(alias)?;
    // SAFETY: `domain` is a valid handle during the call, and `alias` is a C string that outlives it.
    match unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

impl Subscription {
    pub(super) fn connect(&self) -> &Connect {
        &self.connect
    }

    fn register_close(&self, sink: &Arc<EventSink>) -> Result<(), Error> {
        let opaque = into_opaque(sink);
        // SAFETY: the connection is open; `opaque` is what `on_close` and `free` expect. A driver without a network
        // connection (the test driver) returns 0 and drops both pointers: then these few bytes are never freed.
        let answer = unsafe {
            sys::virConnectRegisterCloseCallback(self.connect.as_ptr(), Some(on_close), opaque, Some(free))
        };
        registered(answer, opaque).map(|_| ())
    }

    fn register_domain_event(
        &mut self,
        id: u32,
        callback: sys::virConnectDomainEventGenericCallback,
        sink: &Arc<EventSink>,
    ) -> Result<(), Error> {
        let opaque = into_opaque(sink);
        // SAFETY: the connection is open; a null domain means all domains; `callback` has the signature of `id`;
        // `opaque` is what the callback and `free` expect.
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

    fn register_node_event(
        &mut self,
        id: u32,
        callback: unsafe extern "C" fn(sys::virConnectPtr, sys::virNodeDevicePtr, *mut c_void),
        sink: &Arc<EventSink>,
    ) -> Result<(), Error> {
        let opaque = into_opaque(sink);
        // SAFETY: as in `register_domain_event`.
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

impl Drop for Subscription {
    fn drop(&mut self) {
        let connect = self.connect.clone();
        let (domain_events, node_events) = (self.domain_events.split_off(0), self.node_events.split_off(0));
        let end = move || {
            // On a dead connection these calls fail, but libvirt has removed the callbacks of this process before.
            for id in domain_events {
                // SAFETY: the connection is held; `id` was returned by the registration and is deregistered once.
                unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), id) };
            }
            for id in node_events {
                // SAFETY: as above.
                unsafe { sys::virConnectNodeDeviceEventDeregisterAny(connect.as_ptr(), id) };
            }
            // SAFETY: the connection is held; libvirt refuses a callback that is not registered and does not free it
            // again.
            unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
            drop(connect);
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-close".into()).spawn(end) {
            warn!("a connection to libvirt stays open: cannot start the thread that closes it: {error}");
        }
    }
}

/// Adds a reference to the sink, as the pointer that libvirt keeps until it calls [`free`].
fn into_opaque(sink: &Arc<EventSink>) -> *mut c_void {
    Arc::into_raw(Arc::clone(sink)).cast_mut().cast()
}

/// Turns the return value of a registration into a result. libvirt does not call the free callback when the
/// registration failed.
fn registered(answer: c_int, opaque: *mut c_void) -> Result<c_int, Error> {
    if answer >= 0 {
        return Ok(answer);
    }
    let error = Error::last_error();
    // SAFETY: libvirt did not take the reference, so it has to be dropped here.
    unsafe { free(opaque) };
    Err(error)
}

/// Returns `None` when the hypervisor does not support the event type.
fn supported(registered: Result<c_int, Error>) -> Result<Option<c_int>, Error> {
    match registered {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.code().is(ErrorNumber::NoSupport) => {
            debug!("the hypervisor does not support an event type: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// # Safety
/// `opaque` is from [`into_opaque`] and is not used again.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `into_opaque` made it of an `Arc<EventSink>`.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<EventSink>()) });
}

/// Runs the body of a callback with its sink. A panic must not unwind into C.
///
/// # Safety
/// `opaque` is from [`into_opaque`] and not yet freed: libvirt frees it after the last callback.
unsafe fn with_sink(opaque: *mut c_void, body: impl FnOnce(&EventSink)) {
    // SAFETY: see above; the reference ends with this call.
    let sink = unsafe { &*opaque.cast_const().cast::<EventSink>() };
    if catch_unwind(AssertUnwindSafe(|| body(sink))).is_err() {
        warn!("a libvirt event was lost: its decoder panicked");
    }
}

/// Runs the body of a domain event's callback: `event` returns the event for the domain's UUID.
///
/// # Safety
/// As for [`with_sink`]; `domain` is a reference that libvirt owns during the callback.
unsafe fn send_domain_event(
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
    event: impl FnOnce(uuid::Uuid) -> Option<Event>,
) {
    // SAFETY: the caller guarantees it; the handle is never dropped, so that libvirt keeps its reference.
    unsafe {
        with_sink(opaque, |sink| {
            let domain = ManuallyDrop::new(Domain::from_ptr(domain));
            if let Some(event) = domain.uuid().ok().and_then(event) {
                _ = sink.events.send(event); // an error means that there are no receivers
            }
        });
    }
}

/// Sends the event of a node device, with its name.
///
/// # Safety
/// As for [`send_domain_event`].
unsafe fn send_node_event(node: sys::virNodeDevicePtr, opaque: *mut c_void, change: NodeChange) {
    // SAFETY: as in `send_domain_event`.
    unsafe {
        with_sink(opaque, |sink| {
            let node = ManuallyDrop::new(NodeDevice::from_ptr(node));
            if let Ok(name) = node.name() {
                _ = sink.events.send(Event::NodeDevice { name, change });
            }
        });
    }
}

/// # Safety
/// `text` is null or a C string.
unsafe fn owned(text: *const c_char) -> Option<String> {
    // SAFETY: the caller guarantees it.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

// The callbacks. libvirt calls each with the arguments of its signature. libvirt owns the handles and strings, which
// are valid during the call, and `opaque` is valid until libvirt calls `free`.

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    let reason = match u32::try_from(reason) {
        Ok(sys::VIR_CONNECT_CLOSE_REASON_EOF) => "the daemon closed the connection",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE) => "the daemon does not answer keepalive",
        Ok(sys::VIR_CONNECT_CLOSE_REASON_CLIENT) => "hotslot closed the connection",
        _ => "the connection broke",
    };
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { with_sink(opaque, |sink| _ = sink.closed.try_send(reason.to_owned())) };
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
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { send_domain_event(domain, opaque, |domain| Some(Event::Lifecycle { domain, change: change? })) };
    0
}

unsafe extern "C" fn on_reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    let event = |domain| Some(Event::Lifecycle { domain, change: Lifecycle::Rebooted });
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { send_domain_event(domain, opaque, event) };
}

unsafe extern "C" fn on_device<const ID: u32>(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    let event = |domain| {
        // SAFETY: libvirt guarantees it for a callback, see above.
        let alias = unsafe { owned(alias) }?;
        match ID {
            ADDED => Some(Event::DeviceAdded { domain, alias }),
            REMOVED => Some(Event::DeviceRemoved { domain, alias }),
            _ => Some(Event::DeviceRemovalFailed { domain, alias }),
        }
    };
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { send_domain_event(domain, opaque, event) };
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
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe {
        send_domain_event(domain, opaque, |domain| Some(Event::Agent { domain, connected: connected? }))
    };
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
        _ => NodeChange::Updated, // defined or undefined, which only happens to mediated devices
    };
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { send_node_event(node, opaque, change) };
}

unsafe extern "C" fn on_node_update(_: sys::virConnectPtr, node: sys::virNodeDevicePtr, opaque: *mut c_void) {
    // SAFETY: libvirt guarantees it for a callback, see above.
    unsafe { send_node_event(node, opaque, NodeChange::Updated) };
}
