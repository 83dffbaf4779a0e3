//! Reads records from gossip and keeps the snapshot in step. Runs on the control runtime.

use crate::gateway::Shared;
use crate::summaries::Touched;
use crate::views::ViewWriter;
use atoll_gossip::{Entry, Subscription};
use atoll_model::Kind;
use futures_util::FutureExt;
use std::sync::Arc;

/// What the gateway reads.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::CLUSTER, Kind::INSTANCE, Kind::PLACEMENT, Kind::NODE, Kind::SUMMARY];

/// Applies records.
pub(crate) struct Follower {
    records: Subscription,
    writer: ViewWriter,
    shared: Arc<Shared>,
    touched: Touched,
}

impl Follower {
    pub(crate) fn new(records: Subscription, shared: Arc<Shared>, touched: Touched) -> Self {
        let writer = ViewWriter::new(shared.views.clone(), shared.name.clone(), shared.region.clone());
        Self { records, writer, shared, touched }
    }

    /// Applies what is known already, from disk most often. Before that no request is to be answered.
    pub(crate) fn catch_up(&mut self) {
        if let Some(Some(entries)) = self.records.next().now_or_never() {
            self.apply(&entries);
        }
    }

    /// Until there are no more.
    pub(crate) async fn run(mut self) {
        while let Some(entries) = self.records.next().await {
            self.apply(&entries);
        }
    }

    fn apply(&mut self, entries: &[Arc<Entry>]) {
        self.touched.add(self.writer.apply(entries));
        self.shared.apply_errors.store(Arc::new(self.writer.errors()));
    }
}
