//! The tables `webhooks` and `dead_letters`: the last event delivered to each webhook, and the events that could not be
//! delivered.

use hotslot_model::event::{self, EventKind};
use hotslot_model::id::EventId;
use hotslot_model::time::Millis;
use serde_json::json;

use crate::clock::now;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::processes::Notification;
use crate::sql::{Row, query};

/// A row of `dead_letters`: an event that could not be delivered to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event.
    pub event: EventId,
    /// The number of attempts.
    pub attempts: i64,
    /// The reason of the last failure.
    pub reason: String,
    /// When the delivery was given up.
    pub died_at: Millis,
    /// Whether another delivery was requested.
    pub due: bool,
}

fn letter(row: &Row) -> Result<DeadLetter, Error> {
    let event: i64 = row.try_get("event_id")?;
    let columns = RowReader { table: "dead_letters", id: event.to_string(), row };
    Ok(DeadLetter {
        event: EventId(event),
        attempts: columns.get("attempts")?,
        reason: columns.get("reason")?,
        died_at: columns.get("died_at")?,
        due: columns.get::<i64>("due")? != 0,
    })
}

impl Store {
    /// Returns the last event that was delivered to a webhook. For a new webhook this is the last event so far.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn last_delivered(&self, webhook: &str) -> Result<EventId, Error> {
        let delivered = || query("SELECT told FROM webhooks WHERE name = $1").bind(webhook);
        let row = match delivered().fetch_optional(&self.read).await? {
            Some(row) => row,
            None => {
                let mut draft = self.draft().await?;
                query(
                    "INSERT INTO webhooks (name, told, created_at) SELECT $1, last, $2 FROM event_ids WHERE true
                     ON CONFLICT (name) DO NOTHING",
                )
                .bind(webhook)
                .bind(now())
                .execute(&mut draft.tx)
                .await?;
                let row = delivered().fetch_one(&mut draft.tx).await?;
                draft.commit().await?;
                row
            }
        };
        Ok(EventId(row.try_get("told")?))
    }

    /// Records the last event that was delivered to a webhook. `dead` is an event up to there that could not be
    /// delivered.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn set_delivered(
        &self,
        webhook: &str,
        upto: EventId,
        dead: Option<&DeadLetter>,
    ) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        query("UPDATE webhooks SET told = $2, updated_at = $3 WHERE name = $1 AND told < $2")
            .bind(webhook)
            .bind(upto.0)
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
        if let Some(letter) = dead {
            query(
                "INSERT INTO dead_letters (webhook, event_id, attempts, reason, died_at)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (webhook, event_id) DO UPDATE
                     SET attempts = dead_letters.attempts + excluded.attempts, reason = excluded.reason",
            )
            .bind(webhook)
            .bind(letter.event.0)
            .bind(letter.attempts)
            .bind(&letter.reason)
            .bind(letter.died_at)
            .execute(&mut draft.tx)
            .await?;
        }
        draft.commit().await
    }

    /// Returns the dead letters of a webhook in the order of the events, at most `limit`, and their total number.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn dead_letters(&self, webhook: &str, limit: u32) -> Result<(Vec<DeadLetter>, i64), Error> {
        let rows = query("SELECT * FROM dead_letters WHERE webhook = $1 ORDER BY event_id LIMIT $2")
            .bind(webhook)
            .bind(i64::from(limit))
            .fetch_all(&self.read)
            .await?;
        let count = query("SELECT COUNT(*) AS count FROM dead_letters WHERE webhook = $1").bind(webhook);
        let count = count.fetch_one(&self.read).await?.try_get("count")?;
        Ok((rows.iter().map(letter).collect::<Result<_, _>>()?, count))
    }

    /// Requests another delivery of all dead letters of a webhook. Returns their number.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn redeliver(&self, webhook: &str) -> Result<u64, Error> {
        let mut draft = self.draft().await?;
        let done = query("UPDATE dead_letters SET due = 1 WHERE webhook = $1")
            .bind(webhook)
            .execute(&mut draft.tx)
            .await?;
        draft.tx.tell(Notification::Letters).await?;
        if done > 0 {
            let shown = json!({ "webhook": webhook, "dead_letters": done });
            draft.emit([event::of_kind(EventKind::WebhookRedelivered, None, Some(shown))]);
        }
        draft.commit().await?;
        Ok(done)
    }

    /// Returns the first dead letter of a webhook that is due for another delivery.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn due_letter(&self, webhook: &str) -> Result<Option<DeadLetter>, Error> {
        let row =
            query("SELECT * FROM dead_letters WHERE webhook = $1 AND due = 1 ORDER BY event_id LIMIT 1")
                .bind(webhook)
                .fetch_optional(&self.read)
                .await?;
        row.as_ref().map(letter).transpose()
    }

    /// Records the outcome of another delivery of a dead letter: success, or the reason of the failure.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn tried_again(
        &self,
        webhook: &str,
        event: EventId,
        outcome: Result<(), &str>,
    ) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let statement = match outcome {
            Ok(()) => query("DELETE FROM dead_letters WHERE webhook = $1 AND event_id = $2"),
            Err(_) => query(
                "UPDATE dead_letters SET due = 0, attempts = attempts + 1, reason = $3
                 WHERE webhook = $1 AND event_id = $2",
            ),
        };
        let statement = statement.bind(webhook).bind(event.0);
        let statement = match outcome {
            Ok(()) => statement,
            Err(reason) => statement.bind(reason),
        };
        statement.execute(&mut draft.tx).await?;
        draft.commit().await
    }
}
