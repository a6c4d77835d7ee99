//! Records changes of the file of the tokens, which commands of this machine make, as events.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use hotslot_driver::text::escape;
use hotslot_model::event::{self, EventFilter, EventKind};
use hotslot_model::identity::{Actor, User};
use hotslot_store::Store;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::tokens::{CHECK, Token, load};
use crate::error::Error;
use crate::hex::hex;
use crate::stamp::Stamp;

/// How many tokens an event shows.
const SHOWN: usize = 100;

/// Looks at the file for as long as the service runs, and records its changes. A change while no service runs is
/// recorded at the next start.
pub(crate) async fn record_changes(path: &Path, store: &Store) {
    let (mut seen, mut before) = (None, None);
    loop {
        let stamp = Some(Stamp::of(path).ok());
        if stamp != seen
            // What is wrong with the file is logged when a token is used.
            && let Ok(tokens) = load(path)
        {
            match record(path, store, before.as_deref(), &tokens).await {
                Ok(()) => (seen, before) = (stamp, Some(tokens)),
                Err(error) => {
                    tracing::warn!(%error, "a change of the tokens cannot be recorded; it is tried again")
                }
            }
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// Records the tokens, unless they are as they were recorded last.
async fn record(path: &Path, store: &Store, before: Option<&[Token]>, tokens: &[Token]) -> Result<(), Error> {
    let text = serde_json::to_vec(tokens).map_err(|error| Error::Internal(error.to_string()))?;
    let digest = hex(Sha256::digest(text));
    let last = last_digest(store).await?;
    if last.as_deref() == Some(&digest) || (last.is_none() && tokens.is_empty()) {
        return Ok(());
    }
    let (was, is) = (by_name(before.unwrap_or_default()), by_name(tokens));
    let (gone, new) = (differing(&was, &is), differing(&is, &was));
    let from = before.map(|_| json!({ "tokens": gone }));
    let actor = owner(path);
    let owner = actor.user.as_ref().map(|user| &user.name);
    let to = json!({
        "file": path.display().to_string(), "owner": owner, "count": tokens.len(), "sha256": digest, "tokens": new,
    });
    let names = |map: &Value| map.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    let (gone, new) = (names(&gone), names(&new));
    tracing::info!(
        target: "hotslot::audit", user = owner,
        "the file of the tokens changed; {}", described(&gone, &new)
    );
    let what = event::of_kind(EventKind::TokensChanged, from, Some(to));
    Ok(store.record(vec![(Arc::new(actor), what)]).await?)
}

/// Describes a change: `gone` has the names of the tokens that were removed or changed, `new` those that were added or
/// changed.
fn described(gone: &BTreeSet<String>, new: &BTreeSet<String>) -> String {
    let parts = [
        ("added", new.difference(gone).collect::<Vec<_>>()),
        ("changed", new.intersection(gone).collect()),
        ("removed", gone.difference(new).collect()),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let names: Vec<_> = names.into_iter().map(String::as_str).collect();
            format!("{what}: {}", names.join(", "))
        })
        .collect();
    if parts.is_empty() { "no name or right of a token changed".to_owned() } else { parts.join("; ") }
}

/// The digest in the last event about tokens.
async fn last_digest(store: &Store) -> Result<Option<String>, Error> {
    let kind = EventKind::TokensChanged.as_str().to_owned();
    let filter = EventFilter { kind: Some(kind), ..EventFilter::default() };
    let before = store.before_newest(&filter, 1).await?;
    let events = store.events(before, &filter, 1).await?;
    let digest =
        events.first().and_then(|event| event.what.to.as_ref()?["sha256"].as_str().map(str::to_owned));
    Ok(digest)
}

fn by_name(tokens: &[Token]) -> BTreeMap<&str, &Token> {
    tokens.iter().map(|token| (token.name.as_str(), token)).collect()
}

/// Returns the rights of the tokens that are not, or not so, among `other`.
fn differing(tokens: &BTreeMap<&str, &Token>, other: &BTreeMap<&str, &Token>) -> Value {
    let differ = tokens.iter().filter(|(name, token)| other.get(*name) != Some(*token)).take(SHOWN);
    let shown = differ.map(|(name, token)| {
        let rights = json!({ "roles": token.roles, "project": token.project, "expires": token.expires });
        ((*name).to_owned(), rights)
    });
    Value::Object(shown.collect())
}

/// Returns the owner of the file as the actor: the commands that change it run as this user, or as root.
fn owner(path: &Path) -> Actor {
    let id = fs::metadata(path).map_or_else(|_| "?".to_owned(), |found| found.uid().to_string());
    let user =
        id.parse().ok().and_then(|uid| nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok()?);
    let name = user.map_or_else(|| id.clone(), |user| user.name);
    let file = escape(&path.display().to_string()).into_owned();
    Actor {
        who: format!("the file of the tokens, which belongs to user {name}"),
        user: Some(User { id, name }),
        via: Some(format!("file {file}")),
        ..Actor::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_the_tokens_that_were_added_changed_and_removed() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
        for (gone, new, says) in [
            ("", "a b", "added: a, b"),
            ("a b", "b c", "added: c; changed: b; removed: a"),
            ("a", "", "removed: a"),
            ("", "", "no name or right of a token changed"),
        ] {
            assert_eq!(described(&names(gone), &names(new)), says);
        }
    }
}
