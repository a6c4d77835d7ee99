//! Tasks that continue when the future that waits for them is dropped.

use tokio::task::JoinHandle;

use crate::error::Error;

/// Waits for a task. The task continues when the returned future is dropped.
///
/// # Errors
/// The error of the task; [`Error::Internal`] when it panicked or was cancelled.
pub async fn join<T>(task: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    task.await.map_err(|error| Error::Internal(format!("the work ended without a result: {error}")))?
}
