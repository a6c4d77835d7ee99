//! Tasks that go on when the one that waits for them goes away.

use tokio::task::JoinHandle;

use crate::error::Error;

/// What a task answers that goes on when the one that waits for it goes away.
///
/// # Errors
/// Its own; [`Error::Internal`] when it ended without an answer.
pub async fn join<T>(task: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    task.await.map_err(|error| Error::Internal(format!("the work ended without an answer: {error}")))?
}
