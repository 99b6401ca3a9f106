//! Counters begin at 0 with the service: what first appears at 1 has not grown in the eyes of who watches it.

use crate::replication::ReplicationError;
use crate::replication::guard::BUDGETS;
use crate::replication::start::Cause;
use crate::telemetry::names::{self, Kind};

/// Counters whose labels are names of collections, routes and codes begin with what they are of.
const BY_NAME: [&str; 4] = [names::SEARCHES, names::GRAPH_WRITES, names::HTTP_REQUESTS, names::SQL_STATEMENTS];

/// Makes every counter that is known before it counts.
pub fn begin() {
    let labelled: [(&str, &str, Vec<&str>); 5] = [
        (names::RESYNCS, "reason", Cause::ALL.map(Cause::label).into()),
        (names::RECONNECTS, "reason", ReplicationError::LABELS.into()),
        (names::SLOTS_GIVEN_UP, "budget", BUDGETS.into()),
        (names::CONFIG_RELOADS, "result", names::RELOAD_RESULTS.into()),
        (names::CHANGES_RECEIVED, "op", vec!["insert", "update", "delete", "truncate"]),
    ];
    for (name, label, values) in &labelled {
        values.iter().for_each(|value| metrics::counter!(*name, *label => *value).increment(0));
    }
    for (name, kind, _) in names::ALL {
        let has_labels = BY_NAME.contains(name) || labelled.iter().any(|(labelled, ..)| labelled == name);
        if *kind == Kind::Counter && !has_labels {
            metrics::counter!(*name).increment(0);
        }
    }
}
