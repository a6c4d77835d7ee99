//! The end of a transaction: the commit, and the memory that follows it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::error::Error;
use crate::executor::Executor;
use crate::failure::again;
use crate::pool::Store;
use crate::writer::{Member, Transaction, Writer, Written};

/// The time limit for reading the database after a failed commit. Other writers wait meanwhile.
const IN_DOUBT: Duration = Duration::from_secs(1);

impl Store {
    /// Commits a transaction, together with those that wait for their turn now. Then applies its change to the rows in
    /// memory, and notifies the followers of events.
    ///
    /// # Errors
    /// Returns the error of the database. When the commit itself fails, its outcome is unknown ([`Store::was_in_doubt`]).
    pub(crate) async fn commit(&self, mut tx: Transaction, change: Written) -> Result<(), Error> {
        tx.flush().await?;
        // With others before it, it may have found rows that they have changed and not committed yet.
        if tx.is_empty() && tx.is_first() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        tx.join(Member { change, answer });
        drop(self.end_soon());
        answered.await.map_err(|_| Error::Internal("a commit ended without an answer".to_owned()))?
    }

    /// Commits the transactions that wait for it, after those that wait for their turn now. The commit runs in a task of its
    /// own, so that it is completed even if the caller is cancelled. Otherwise the database could have changes that the
    /// memory lacks.
    pub(crate) fn end_soon(&self) -> impl Future<Output = ()> {
        let store = self.clone();
        let ended = tokio::spawn(async move { store.end(&mut *store.turn.lock().await).await });
        async move {
            if let Err(error) = ended.await {
                tracing::error!(%error, "a commit ended without an answer");
            }
        }
    }

    /// Returns the turn to write, after the commit of the transactions that wait for it. Use it for work that may take long:
    /// an open transaction excludes other processes.
    pub(crate) async fn own_turn(&self) -> OwnedMutexGuard<Writer> {
        let mut turn = Arc::clone(&self.turn).lock_owned().await;
        self.end(&mut turn).await;
        turn
    }

    async fn end(&self, turn: &mut Writer) {
        match turn.commit().await {
            Ok(members) => {
                let mut answers = Vec::new();
                for Member { change, answer } in members {
                    if !change.rows.is_empty() {
                        self.rows_mut().put(change.rows, change.seq);
                    }
                    answers.push((change.last, answer));
                }
                // Notify only now, so that followers of events find the devices in the new state.
                if let Some(last) = answers.iter().filter_map(|(last, _)| *last).max() {
                    self.heard_of(last);
                }
                for (_, answer) in answers {
                    // The caller may have gone.
                    let _ = answer.send(Ok(()));
                }
            }
            Err((error, members)) => {
                // The commit may have taken effect. If the database does not answer in time, the next change reads it.
                self.in_doubt.store(true, Ordering::Relaxed);
                let read = tokio::time::timeout(IN_DOUBT, self.catch_up(Executor::Pool(&self.read))).await;
                turn.is_behind = !matches!(read, Ok(Ok(())));
                for member in members {
                    let _ = member.answer.send(Err(again(&error).into()));
                }
            }
        }
    }
}
