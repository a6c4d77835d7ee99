//! The service: serves requests and works in the background. It keeps its records in the store and changes the hosts
//! through the driver.
//!
//! ```text
//! start, service  opens the database and the hosts; the service as one value, made of its parts
//! hosts, host     the configured hosts, and on which of them a server is
//! inventory       Catalog: discovery of devices; the rules in force and their changes; availability
//! assignment      Assignments: devices in servers and in the use of their hosts: attach, detach, reconciliation
//! accelerator     Accelerators: attached to servers or bound for the host itself
//! cyborg          Cyborg's cards and accelerator requests
//! quota           Quotas: how much of each resource a project may use
//! rate            Rates: how often each caller may send a request
//! records         the records, to be read
//! locks           the work in progress, within this process and between processes
//! peers           the other processes that use the same database
//! fence           stops host changes of a process whose work was taken over; shares overdue calls between processes
//! idempotency     requests that are repeated with an Idempotency-Key
//! events, feed    an event as JSON; events for the clients that follow them
//! tls             certificates and keys; why a TLS connection failed
//! audit           refused requests
//! webhook         posts events to URLs: signatures, repetitions, dead letters
//! retention       removes old events and ended rows
//! keystone        Keystone: whether a token is valid, and whose it is
//! lifecycle       the end of the service
//! metrics         what is counted while the service works; measured: the calls to hypervisors
//! under_way       the attaches and detaches that are under way
//! trace           what a request spends its time on; trace_export: sends that to a collector of OpenTelemetry
//! monitor         Monitor: the metrics as Prometheus reads them
//! config, flavor  hotslot.toml; problems: what is wrong with its rules
//! settings        Settings: the configuration and the policy in force (current), read again while the service runs
//! log             the levels of the log
//! task            tasks that continue when the future that waits for them is dropped
//! ```

pub mod accelerator;
pub mod assignment;
pub mod audit;
pub mod config;
pub mod current;
pub mod cyborg;
pub mod error;
pub mod events;
pub mod feed;
mod fence;
pub mod flavor;
mod hex;
pub mod host;
mod host_mode;
pub mod hosts;
pub mod idempotency;
pub mod identity;
pub mod inventory;
pub mod keystone;
pub mod lifecycle;
pub mod locks;
pub mod log;
mod measured;
pub mod metrics;
pub mod monitor;
mod peers;
mod problems;
pub mod quota;
pub mod rate;
pub mod records;
mod retention;
pub mod service;
pub mod settings;
pub mod stamp;
pub mod start;
pub mod task;
pub mod tls;
pub mod trace;
pub mod trace_export;
pub mod under_way;
pub mod webhook;
