//! The attaches and detaches that are under way in this process, for those who wait for one.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use hotslot_model::id::AttachmentId;
use hotslot_model::time::Millis;
use hotslot_store::now;
use opentelemetry::Context;
use opentelemetry::trace::FutureExt as _;

/// The operations that work on an assignment now.
static ALL: LazyLock<Mutex<HashMap<AttachmentId, Arc<UnderWay>>>> = LazyLock::new(Mutex::default);

/// An attach or a detach that is under way.
#[derive(Debug)]
pub struct UnderWay {
    /// `attach` or `detach`.
    pub name: &'static str,
    /// When it began.
    pub began: Millis,
    stage: Mutex<Stage>,
    /// The number of the latest request to the guest to release a device, from 1; 0 when there was none.
    pub(crate) attempt: AtomicU32,
}

/// What an operation is doing.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// The name of the step; `None` before the first one.
    pub step: Option<&'static str>,
    /// When the step began.
    pub began: Millis,
    /// When the step or the operation ends at the latest; `None` when that is not known.
    pub ends_by: Option<Millis>,
}

impl UnderWay {
    pub(crate) fn new(name: &'static str) -> Self {
        let began = now();
        let stage = Mutex::new(Stage { step: None, began, ends_by: None });
        Self { name, began, stage, attempt: AtomicU32::new(0) }
    }

    /// Runs the work of the operation.
    pub(crate) fn of<T>(self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work.with_context(Context::current_with_value(Arc::new(self)))
    }

    /// What it is doing.
    pub fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the latest request to the guest to release a device, from 1; `None` when there was none.
    pub fn attempt(&self) -> Option<u32> {
        Some(self.attempt.load(Ordering::Relaxed)).filter(|attempt| *attempt > 0)
    }
}

/// The operation of the current task.
pub(crate) fn current() -> Option<Arc<UnderWay>> {
    Context::current().get::<Arc<UnderWay>>().cloned()
}

/// Notes that the operation of the current task begins a step.
pub(crate) fn begin_step(name: &'static str) {
    if let Some(current) = current() {
        let mut stage = current.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage = Stage { step: Some(name), began: now(), ends_by: stage.ends_by };
    }
}

/// Notes how long the operation of the current task may still take; `None` when that is not known.
pub(crate) fn expect_end(after: Option<Duration>) {
    if let Some(current) = current() {
        let after = after.map(|after| Millis::try_from(after.as_millis()).unwrap_or(Millis::MAX));
        let ends_by = after.map(|after| now().saturating_add(after));
        current.stage.lock().unwrap_or_else(PoisonError::into_inner).ends_by = ends_by;
    }
}

/// Returns the operation of this process that works on an assignment.
pub fn of(id: AttachmentId) -> Option<Arc<UnderWay>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
}

/// Shows the operation of the current task as the one that works on these assignments, until the value is dropped.
pub(crate) fn shown_for(ids: impl IntoIterator<Item = AttachmentId>) -> Shown {
    let Some(current) = current() else { return Shown(Vec::new()) };
    let ids: Vec<_> = ids.into_iter().collect();
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.extend(ids.iter().map(|id| (*id, Arc::clone(&current))));
    Shown(ids)
}

/// Assignments whose operation is shown.
#[must_use]
pub(crate) struct Shown(Vec<AttachmentId>);

impl Drop for Shown {
    fn drop(&mut self) {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.iter().for_each(|id| drop(all.remove(id)));
    }
}
