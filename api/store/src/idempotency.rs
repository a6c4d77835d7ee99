//! The table `idempotency_keys`: the answers to POST requests that clients may repeat.

use hotslot_model::id::RequestId;
use hotslot_model::idempotency::{Answer, IdempotencyKey, StoredResponse};
use hotslot_model::quota::Resource;
use hotslot_model::time::Millis;

use crate::clock::now;
use crate::columns::RowReader;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::{Transaction, Written};

fn stored_response(key: &IdempotencyKey, row: &Row) -> Result<StoredResponse, Error> {
    let columns = RowReader { table: "idempotency_keys", id: key.key.clone(), row };
    let (status, body): (Option<i64>, Option<String>) = (columns.get("status")?, columns.get("body")?);
    let location = columns.get("location")?;
    let status = status.and_then(|status| u16::try_from(status).ok());
    Ok(StoredResponse {
        fingerprint: columns.parse("fingerprint")?,
        request: columns.parse_opt("request_id")?,
        answer: status.zip(body).map(|(status, body)| Answer { status, body, location }),
    })
}

/// Records the attach request that was made with a key, in the transaction that reserves its devices.
pub(super) async fn remember(
    draft: &mut DeviceTransaction<'_>,
    key: &IdempotencyKey,
    request: RequestId,
) -> Result<(), Error> {
    query(
        "INSERT INTO idempotency_keys (idempotency_key, route, fingerprint, request_id, created_at, project_id)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (idempotency_key, route) DO UPDATE SET fingerprint = excluded.fingerprint,
             request_id = excluded.request_id, status = NULL, body = NULL, created_at = excluded.created_at",
    )
    .bind(&key.key)
    .bind(&key.route)
    .bind(key.fingerprint.hyphenated().to_string())
    .bind(request.to_string())
    .bind(now())
    .bind(&key.project)
    .execute(&mut draft.tx)
    .await?;
    Ok(())
}

impl Store {
    /// Returns the record of a key that was used on this route at or after `since`.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn kept(&self, key: &IdempotencyKey, since: Millis) -> Result<Option<StoredResponse>, Error> {
        let row = query(
            "SELECT * FROM idempotency_keys WHERE idempotency_key = $1 AND route = $2 AND created_at >= $3",
        )
        .bind(&key.key)
        .bind(&key.route)
        .bind(since)
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(|row| stored_response(key, row)).transpose()
    }

    /// Checks that the project of a key may have one more key, unless the key is on record already.
    ///
    /// # Errors
    /// [`Error::OverQuota`], or the error of the database.
    pub(crate) async fn charge_key(&self, tx: &mut Transaction, key: &IdempotencyKey) -> Result<(), Error> {
        let known = query("SELECT route FROM idempotency_keys WHERE idempotency_key = $1 AND route = $2");
        if known.bind(&key.key).bind(&key.route).fetch_optional(&mut *tx).await?.is_some() {
            return Ok(());
        }
        self.charge(tx, key.project.as_deref(), &[(Resource::IdempotencyKeys, 1)].into()).await
    }

    /// Deletes the answers that are older than `since`.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn prune_keys(&self, since: Millis) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        query("DELETE FROM idempotency_keys WHERE created_at < $1").bind(since).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Records an answer. Deletes the answers that are older than `since`, and all but the latest `most`.
    ///
    /// # Errors
    /// Returns [`Error::OverQuota`] or the error of the database. Then nothing was changed.
    pub async fn keep(
        &self,
        key: &IdempotencyKey,
        answer: &Answer,
        since: Millis,
        most: i64,
    ) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        self.charge_key(&mut draft.tx, key).await?;
        query(
            "INSERT INTO idempotency_keys (idempotency_key, route, fingerprint, status, body, created_at, location,
                 project_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (idempotency_key, route) DO UPDATE SET fingerprint = excluded.fingerprint,
                 status = excluded.status, body = excluded.body, created_at = excluded.created_at,
                 location = excluded.location",
        )
        .bind(&key.key)
        .bind(&key.route)
        .bind(key.fingerprint.hyphenated().to_string())
        .bind(i64::from(answer.status))
        .bind(&answer.body)
        .bind(now())
        .bind(&answer.location)
        .bind(&key.project)
        .execute(&mut draft.tx)
        .await?;
        query(
            "DELETE FROM idempotency_keys WHERE created_at < $1 OR created_at <
                 (SELECT created_at FROM idempotency_keys ORDER BY created_at DESC LIMIT 1 OFFSET $2)",
        )
        .bind(since)
        .bind(most - 1)
        .execute(&mut draft.tx)
        .await?;
        draft.commit().await
    }
}
