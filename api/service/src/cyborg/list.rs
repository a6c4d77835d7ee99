//! Lists of accelerator requests. The database filters and pages them, so that the requests of one project do not slow
//! the lists of another.

use std::collections::HashMap;

use hotslot_model::assignment::Holder;
use hotslot_model::cyborg::ArqView;
use hotslot_model::id::ArqId;
use hotslot_store::ArqFilter;

use super::arq::is_left;
use super::cyborg::Cyborg;
use crate::error::Error;

/// The largest number of requests that are read at once.
const CHUNK: usize = 1000;

impl Cyborg {
    /// Returns the accelerator requests that pass, at most `most`, in the order of their creation. They begin after
    /// `marker`, where one is given. `passes` may ask for what the database does not know.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the filter excludes the marker; errors of the database.
    pub async fn arqs(
        &self,
        filter: ArqFilter<'_>,
        marker: Option<ArqId>,
        most: usize,
        passes: impl Fn(&ArqView) -> bool,
    ) -> Result<Vec<ArqView>, Error> {
        let unknown = |id| Error::Invalid(format!("invalid marker {id}: no item of the list has this id"));
        let mut after = match marker {
            Some(id) => self.store.place_of_arq(filter, id).await?.ok_or_else(|| unknown(id))?,
            None => 0,
        };
        let (mut views, chunk) = (Vec::new(), most.clamp(1, CHUNK));
        while views.len() < most {
            let found = self.recorded(filter, after, chunk).await?;
            let is_last = found.len() < chunk;
            for (place, view) in found {
                after = place;
                views.extend(self.shown(view).await?.filter(&passes));
            }
            if is_last {
                break;
            }
        }
        views.truncate(most);
        Ok(views)
    }

    /// Returns at most `most` accelerator requests after a place, as they are on record, each with its place.
    pub(super) async fn recorded(
        &self,
        filter: ArqFilter<'_>,
        after: i64,
        most: usize,
    ) -> Result<Vec<(i64, ArqView)>, Error> {
        let rows = self.store.arqs(filter, after, most).await?;
        let Some((last, _)) = rows.last() else { return Ok(Vec::new()) };
        let held = match filter.server {
            Some(server) => self.store.assignments_of(server).await?,
            None => self.store.held_by_arqs(filter.project, after, *last).await?,
        };
        let mut held: HashMap<_, _> = held.into_iter().filter_map(|row| Some((row.holder()?, row))).collect();
        let mut views = Vec::new();
        for (place, row) in rows {
            let by = held.remove(&Holder::AcceleratorRequest(row.id));
            views.push((place, self.with_device(row, by).await?));
        }
        Ok(views)
    }

    /// Records for each request that was left in the middle what has become of it.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn settle_arqs(&self) -> Result<(), Error> {
        let (filter, mut after) = (ArqFilter { begun: true, ..ArqFilter::default() }, 0);
        loop {
            let found = self.recorded(filter, after, CHUNK).await?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            after = *last;
            for (_, view) in found.iter().filter(|(_, view)| is_left(view)) {
                // One request that cannot be settled does not keep the others from being settled.
                if let Err(error) = self.settle_arq(view.row.id).await {
                    tracing::error!(
                        %error, "accelerator request {} cannot be settled; it is tried again", view.row.id
                    );
                }
            }
        }
    }
}
