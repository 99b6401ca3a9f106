//! Which collections there must be, against which there are: a pure plan, made again and again, because much of what
//! happens to a table has no event in the stream.

use crate::model::{CollectionDef, CollectionId};

/// A configured collection, as the catalog has it now.
pub struct Wanted {
    /// What callers say.
    pub name: String,
    /// What it would be, or why it cannot be.
    pub def: Result<CollectionDef, String>,
    /// What has no event in the stream when it changes.
    pub fingerprint: String,
    /// Its table was not published until now: changes may have been missed.
    pub unpublished: bool,
    /// Somebody asked for a new copy.
    pub rebuild: bool,
}

/// A collection that answers.
pub struct Answering {
    /// What it is.
    pub def: CollectionDef,
    /// It stopped following.
    pub paused: bool,
    /// As it was compared with the source last.
    pub fingerprint: String,
}

/// A collection on its way in.
pub struct Arriving {
    /// What it will be.
    pub def: CollectionDef,
    /// Its copy must begin anew.
    pub failed: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Copy the configured collection of this number; what answers under its name goes on until then.
    Copy {
        /// Place in what is wanted.
        wanted: usize,
        /// For the log.
        reason: String,
    },
    /// Forget this one.
    Remove(CollectionId),
    /// Stop following: it would be wrong from here on.
    Pause(CollectionId, String),
    /// Compare its rows with the table's, and read again those that differ.
    Compare(CollectionId, String),
}

/// The publication's part of a fingerprint.
fn published(fingerprint: &str) -> &str {
    fingerprint.split('/').next().unwrap_or_default()
}

/// What to do so that there is what must be.
pub fn plan(wanted: &[Wanted], answering: &[Answering], arriving: &[Arriving]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (number, want) in wanted.iter().enumerate() {
        let now = answering.iter().find(|have| have.def.name == want.name);
        let soon = arriving.iter().find(|have| have.def.name == want.name);
        let mut copy = |reason: &str| steps.push(Step::Copy { wanted: number, reason: reason.to_owned() });
        match (&want.def, now, soon) {
            (Err(reason), now, soon) => {
                steps.extend(soon.map(|soon| Step::Remove(soon.def.id)));
                let follows = now.filter(|now| !now.paused);
                steps.extend(follows.map(|now| Step::Pause(now.def.id, reason.clone())));
            }
            (Ok(def), _, Some(soon)) => {
                // A rebuild that is asked for meanwhile is this one.
                if soon.failed || !soon.def.serves(def) {
                    steps.push(Step::Remove(soon.def.id));
                    let reason = "its table changed while it was copied".to_owned();
                    steps.push(Step::Copy { wanted: number, reason });
                }
            }
            (Ok(_), None, None) => copy("it is new"),
            (Ok(_), Some(_), None) if want.rebuild => copy("a rebuild was asked for"),
            (Ok(_), Some(now), None) if now.paused => copy("it was paused, and its table can be followed again"),
            (Ok(def), Some(now), None) if now.def.oid != def.oid => copy("its table was made anew"),
            (Ok(def), Some(now), None) if !now.def.serves(def) => copy("it is defined differently now"),
            // Open transactions may have written while it was not published: only a copy waits for them.
            (Ok(_), Some(now), None)
                if want.unpublished || published(&now.fingerprint) != published(&want.fingerprint) =>
            {
                copy("its publication changed");
            }
            (Ok(_), Some(now), None) if now.fingerprint != want.fingerprint => {
                steps.push(Step::Compare(now.def.id, want.fingerprint.clone()));
            }
            (Ok(_), Some(_), None) => {}
        }
    }
    let configured = |def: &CollectionDef| wanted.iter().any(|want| want.name == def.name);
    let all = answering.iter().map(|have| &have.def).chain(arriving.iter().map(|have| &have.def));
    steps.extend(all.filter(|def| !configured(def)).map(|def| Step::Remove(def.id)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ColumnType, KeyColumn, Metric, VectorColumn};

    fn def(id: u32, oid: u32, m: usize) -> CollectionDef {
        CollectionDef {
            id: CollectionId(id),
            name: "docs".into(),
            schema: "public".into(),
            table: "docs".into(),
            oid,
            partitioned: false,
            key: vec![KeyColumn { name: "id".into(), kind: ColumnType::Int8 }],
            vectors: vec![VectorColumn {
                name: "e".into(),
                kind: ColumnType::Vector,
                metric: Metric::L2,
                dimensions: None,
                m,
                ef_construction: 100,
                encoding: Default::default(),
                index: Default::default(),
                lists: None,
            }],
            filters: Vec::new(),
        }
    }

    #[test]
    fn the_plan_by_what_is_wanted_and_what_there_is() {
        let wanted = |def: Result<CollectionDef, String>| Wanted {
            name: "docs".into(),
            def,
            fingerprint: "p/t".into(),
            unpublished: false,
            rebuild: false,
        };
        let fits = || wanted(Ok(def(0, 10, 16)));
        let answers = |def, paused| Answering { def, paused, fingerprint: "p/t".into() };
        let copy = |reason: &str| Step::Copy { wanted: 0, reason: reason.into() };
        let restarted = copy("its table changed while it was copied");
        let (gone, one, two) = (|| wanted(Err("gone".into())), CollectionId(1), CollectionId(2));
        let live = || vec![answers(def(1, 10, 16), false)];
        let arrives = |def, failed| vec![Arriving { def, failed }];
        type Case = (&'static str, Option<Wanted>, Vec<Answering>, Vec<Arriving>, Vec<Step>);
        let cases: Vec<Case> = vec![
            ("nothing to do", Some(fits()), live(), vec![], vec![]),
            ("new", Some(fits()), vec![], vec![], vec![copy("it is new")]),
            ("on its way", Some(fits()), vec![], arrives(def(2, 10, 16), false), vec![]),
            ("on its way beside", Some(fits()), live(), arrives(def(2, 10, 16), false), vec![]),
            (
                "a copy that failed",
                Some(fits()),
                vec![],
                arrives(def(2, 10, 16), true),
                vec![Step::Remove(two), restarted.clone()],
            ),
            (
                "made anew while copied",
                Some(fits()),
                live(),
                arrives(def(2, 9, 16), false),
                vec![Step::Remove(two), restarted],
            ),
            (
                "other parameters",
                Some(fits()),
                vec![answers(def(1, 10, 8), false)],
                vec![],
                vec![copy("it is defined differently now")],
            ),
            (
                "made anew",
                Some(fits()),
                vec![answers(def(1, 9, 16), false)],
                vec![],
                vec![copy("its table was made anew")],
            ),
            (
                "paused, and healed",
                Some(fits()),
                vec![answers(def(1, 10, 16), true)],
                vec![],
                vec![copy("it was paused, and its table can be followed again")],
            ),
            ("gone", Some(gone()), live(), vec![], vec![Step::Pause(one, "gone".into())]),
            ("gone and paused", Some(gone()), vec![answers(def(1, 10, 16), true)], vec![], vec![]),
            (
                "gone while copied",
                Some(gone()),
                live(),
                arrives(def(2, 10, 16), false),
                vec![Step::Remove(two), Step::Pause(one, "gone".into())],
            ),
            (
                "not published until now",
                Some(Wanted { unpublished: true, ..fits() }),
                live(),
                vec![],
                vec![copy("its publication changed")],
            ),
            (
                "published anew",
                Some(Wanted { fingerprint: "q/t".into(), ..fits() }),
                live(),
                vec![],
                vec![copy("its publication changed")],
            ),
            (
                "a partition more",
                Some(Wanted { fingerprint: "p/u".into(), ..fits() }),
                live(),
                vec![],
                vec![Step::Compare(one, "p/u".into())],
            ),
            (
                "a rebuild",
                Some(Wanted { rebuild: true, ..fits() }),
                live(),
                vec![],
                vec![copy("a rebuild was asked for")],
            ),
            (
                "no longer configured",
                None,
                live(),
                arrives(def(2, 10, 16), false),
                vec![Step::Remove(one), Step::Remove(two)],
            ),
        ];
        for (what, want, answering, arriving, expected) in cases {
            let wanted: Vec<_> = want.into_iter().collect();
            assert_eq!(plan(&wanted, &answering, &arriving), expected, "{what}");
        }
    }
}
