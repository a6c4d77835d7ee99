//! The table `pci_config`: the rules that were added through the API.

use hotslot_model::event;
use hotslot_model::rules::{Rule, Source};

use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::processes::Notification;
use crate::sql::{Row, query};

fn rule(row: &Row) -> Result<Rule, Error> {
    let id: String = row.try_get("id")?;
    let columns = RowReader { table: "pci_config", id, row };
    Ok(Rule {
        id: columns.parse("id")?,
        kind: columns.parse("kind")?,
        text: columns.get("body")?,
        source: Source::Api {
            created_at: columns.get("created_at")?,
            updated_at: columns.get("updated_at")?,
        },
    })
}

impl Store {
    /// Returns all rules that were added through the API, those of each kind in the order in which they were added.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        query("SELECT * FROM pci_config ORDER BY kind, position").all(&self.read, rule).await
    }

    /// Writes a rule. A new rule comes after the others of its kind; an existing rule keeps its position.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn put_rule(&self, rule: &Rule) -> Result<(), Error> {
        let Source::Api { created_at, updated_at } = rule.source else {
            return Err(Error::Internal(format!("{} is not a rule of the database", rule.name())));
        };
        let mut draft = self.draft().await?;
        let was = query("SELECT body FROM pci_config WHERE id = $1")
            .bind(rule.id.hyphenated().to_string())
            .fetch_optional(&mut draft.tx)
            .await?;
        let was: Option<String> = was.map(|row| row.try_get("body")).transpose()?;
        query(
            "INSERT INTO pci_config (id, kind, position, body, created_at, updated_at)
             SELECT $1, $2, COALESCE(MAX(position), 0) + 1, $3, $4, $5 FROM pci_config WHERE kind = $2
             ON CONFLICT (id) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at",
        )
        .bind(rule.id.hyphenated().to_string())
        .bind(rule.kind.as_str())
        .bind(rule.text.as_str())
        .bind(created_at)
        .bind(updated_at)
        .execute(&mut draft.tx)
        .await?;
        draft.tx.tell(Notification::Rules).await?;
        draft.emit(event::of_rule(rule, was.as_deref(), Some(&rule.text)));
        draft.commit().await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        query("DELETE FROM pci_config WHERE id = $1")
            .bind(rule.id.hyphenated().to_string())
            .execute(&mut draft.tx)
            .await?;
        draft.tx.tell(Notification::Rules).await?;
        draft.emit(event::of_rule(rule, Some(&rule.text), None));
        draft.commit().await
    }
}
