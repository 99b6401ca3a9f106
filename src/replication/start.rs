//! What to do at (re)connection: a pure function of what we have and what the source says.

use crate::model::{Lsn, quote_literal};

/// What we have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// `system_identifier` of the cluster it came from.
    pub system_id: String,
    /// Its timeline then.
    pub timeline: u32,
    /// Our change log is durable up to here.
    pub durable: Lsn,
}

/// Where our slot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its name.
    pub name: String,
    /// It can still be streamed from: neither lost nor invalidated, of the right kind, in the right database.
    pub usable: bool,
    /// Everything before was confirmed; never sent again.
    pub confirmed: Lsn,
}

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFacts {
    /// `system_identifier`.
    pub system_id: String,
    /// Current timeline.
    pub timeline: u32,
    /// Where our checkpoint's timeline ended, when the source is on a later one that descends from it.
    pub forked_at: Option<Lsn>,
    /// Where its WAL ends.
    pub current: Lsn,
    /// The slot with our name.
    pub slot: Option<SlotFacts>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Make a slot, copy, stream.
    Fresh,
    /// Stream from our checkpoint.
    Stream {
        /// Our durable position.
        from: Lsn,
    },
    /// Copy everything again beside what we have, on a new slot.
    Resync {
        /// The kind of reason.
        cause: Cause,
        /// Why what we have cannot be continued.
        reason: String,
    },
    /// Refuse; a person must look.
    Stop {
        /// Why.
        reason: String,
    },
}

/// Kinds of reasons to copy everything again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Our data is damaged.
    Damaged,
    /// Changes were written while the publication, or a table of it, was missing.
    Publication,
    /// The source is on a timeline that left ours behind our position.
    Timeline,
    /// The source was restored to an earlier point.
    Rewound,
    /// The slot is not there.
    SlotMissing,
    /// The slot is there and cannot be read.
    SlotLost,
    /// Somebody else read from the slot.
    SlotAhead,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 7] = [
        Cause::Damaged,
        Cause::Publication,
        Cause::Timeline,
        Cause::Rewound,
        Cause::SlotMissing,
        Cause::SlotLost,
        Cause::SlotAhead,
    ];

    /// One word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Cause::Damaged => "damaged",
            Cause::Publication => "publication",
            Cause::Timeline => "timeline",
            Cause::Rewound => "rewound",
            Cause::SlotMissing => "slot_missing",
            Cause::SlotLost => "slot_lost",
            Cause::SlotAhead => "slot_ahead",
        }
    }
}

/// Decides. The order of the questions matters: identity before positions, positions before the slot.
pub fn decide(ours: Option<&Checkpoint>, source: &SourceFacts) -> Decision {
    let resync = |cause: Cause, reason: String| Decision::Resync { cause, reason };
    let Some(ours) = ours else {
        return match &source.slot {
            None => Decision::Fresh,
            Some(slot) => Decision::Stop {
                reason: format!(
                    "a slot with our name exists, but we have no data that belongs to it: it may be another service's. \
                     Choose another source.slot, or drop it: {};",
                    drop_slot_sql(&slot.name)
                ),
            },
        };
    };
    if ours.system_id != source.system_id {
        let reason = format!(
            "another cluster answers: system identifier {} instead of {}. If this is meant, start with an empty data \
             directory",
            source.system_id, ours.system_id
        );
        return Decision::Stop { reason };
    }
    let d = ours.durable;
    if source.timeline != ours.timeline {
        match source.forked_at {
            Some(fork) if fork >= d => {}
            Some(fork) => {
                return resync(
                    Cause::Timeline,
                    format!("the source's timeline forked at {fork}, before our position {d}"),
                );
            }
            None => {
                let reason = format!("the source is on timeline {}, which does not descend from ours", source.timeline);
                return resync(Cause::Timeline, reason);
            }
        }
    }
    if source.current < d {
        let reason = format!("the source was rewound: its WAL ends at {}, before our position {d}", source.current);
        return resync(Cause::Rewound, reason);
    }
    match &source.slot {
        None => resync(Cause::SlotMissing, "the slot is missing".into()),
        Some(slot) if !slot.usable => resync(
            Cause::SlotLost,
            "the slot is lost, invalidated, or of another kind (plugin, database, two_phase)".into(),
        ),
        Some(slot) if slot.confirmed > d => {
            let reason =
                format!("the slot is at {}, ahead of our position {d}: changes between were lost", slot.confirmed);
            resync(Cause::SlotAhead, reason)
        }
        Some(_) => Decision::Stream { from: d },
    }
}

/// The SQL to drop a slot of ours, for people.
fn drop_slot_sql(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", quote_literal(name))
}

/// Where `timeline` ended, by the content of a later timeline's history file: lines of timeline, LSN and reason.
pub fn fork_point(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        (number == timeline).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: Lsn = Lsn(1000);

    fn ours() -> Checkpoint {
        Checkpoint { system_id: "7".into(), timeline: 1, durable: D }
    }

    fn slot(usable: bool, confirmed: Lsn) -> SlotFacts {
        SlotFacts { name: "ours".into(), usable, confirmed }
    }

    fn source() -> SourceFacts {
        let slot = Some(slot(true, D));
        SourceFacts { system_id: "7".into(), timeline: 1, forked_at: None, current: Lsn(2000), slot }
    }

    fn name(decision: Decision) -> &'static str {
        match decision {
            Decision::Fresh => "fresh",
            Decision::Stream { from } => {
                assert_eq!(from, D);
                "stream"
            }
            Decision::Resync { .. } => "resync",
            Decision::Stop { .. } => "stop",
        }
    }

    #[test]
    fn the_start_up_matrix() {
        type Case = (&'static str, bool, fn(&mut SourceFacts), &'static str);
        let cases: &[Case] = &[
            ("nothing of ours, no slot", false, |s| s.slot = None, "fresh"),
            ("nothing of ours, a slot", false, |_| (), "stop"),
            ("another cluster", true, |s| s.system_id = "8".into(), "stop"),
            ("another cluster without the slot", true, |s| (s.system_id, s.slot) = ("8".into(), None), "stop"),
            ("rewound below our position", true, |s| s.current = Lsn(999), "resync"),
            ("at our position", true, |s| s.current = D, "stream"),
            (
                "promoted, forked after our position",
                true,
                |s| (s.timeline, s.forked_at) = (2, Some(Lsn(1500))),
                "stream",
            ),
            ("promoted, forked at our position", true, |s| (s.timeline, s.forked_at) = (2, Some(D)), "stream"),
            (
                "promoted, forked before our position",
                true,
                |s| (s.timeline, s.forked_at) = (2, Some(Lsn(999))),
                "resync",
            ),
            ("a timeline of unknown origin", true, |s| s.timeline = 2, "resync"),
            (
                "promoted without the slot",
                true,
                |s| (s.timeline, s.forked_at, s.slot) = (2, Some(Lsn(1500)), None),
                "resync",
            ),
            ("slot missing", true, |s| s.slot = None, "resync"),
            ("slot lost", true, |s| s.slot = Some(slot(false, D)), "resync"),
            ("slot ahead of us", true, |s| s.slot = Some(slot(true, Lsn(1001))), "resync"),
            ("slot behind us", true, |s| s.slot = Some(slot(true, Lsn(1))), "stream"),
            ("slot where we are", true, |_| (), "stream"),
        ];
        for (what, have, change, expected) in cases {
            let mut facts = source();
            change(&mut facts);
            let ours = have.then(ours);
            assert_eq!(name(decide(ours.as_ref(), &facts)), *expected, "{what}");
        }
    }

    #[test]
    fn the_fork_is_where_our_timeline_ended() {
        let history = "1\t0/3000158\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01\n";
        assert_eq!(fork_point(history, 1), Some(Lsn(0x0300_0158)));
        assert_eq!(fork_point(history, 2), Some(Lsn(0x0500_0000)));
        assert_eq!(fork_point(history, 3), None);
    }
}
