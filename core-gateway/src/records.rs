//! Reads records from gossip and keeps the snapshot in step. Runs on the control runtime.

use crate::gateway::Shared;
use crate::summaries::Touched;
use crate::views::ViewWriter;
use atoll_gossip::Subscription;
use atoll_model::Kind;
use std::sync::Arc;

/// What the gateway reads.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::CLUSTER, Kind::INSTANCE, Kind::PLACEMENT, Kind::NODE, Kind::SUMMARY];

/// Applies records until there are no more.
pub(crate) async fn follow(mut records: Subscription, shared: Arc<Shared>, touched: Touched) {
    let mut writer = ViewWriter::new(shared.views.clone(), shared.name.clone(), shared.region.clone());
    while let Some(entries) = records.next().await {
        touched.add(writer.apply(&entries));
        shared.apply_errors.store(Arc::new(writer.errors()));
    }
}
