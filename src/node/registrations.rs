//! Collections registered by SQL beside the configured ones: which of them are taken, a pure decision.

use crate::model::registration::{Outcome, Registration};
use crate::model::{CollectionSpec, Encoding, TierPolicy};
use crate::source::catalog::check_spec;
use serde::Deserialize;

/// What is taken of what is registered, and what became of each row that is for this service.
#[derive(Debug, PartialEq, Default)]
pub struct Merged {
    /// Beside the configured ones.
    pub taken: Vec<CollectionSpec>,
    /// Of each row.
    pub outcomes: Vec<Outcome>,
}

/// What operators may set, who may not say what is indexed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuning {
    tiers: Option<TierPolicy>,
    encoding: Option<Encoding>,
}

/// A row as the collection it describes.
fn spec(row: &Registration) -> Result<CollectionSpec, String> {
    let mut spec: CollectionSpec = serde_json::from_str(&row.spec).map_err(|error| error.to_string())?;
    let tuning: Tuning = serde_json::from_str(&row.tuning).map_err(|error| format!("tuning: {error}"))?;
    spec.name = Some(row.name.clone());
    spec.tiers = tuning.tiers.or(spec.tiers);
    for vector in &mut spec.vectors {
        vector.encoding = tuning.encoding.unwrap_or(vector.encoding);
    }
    check_spec(&spec)?;
    Ok(spec)
}

/// Decides. The configuration file wins, then rows for this service (`slot`) over those for all, then the earlier row. A row
/// that cannot be taken leaves what was taken under its name `before`. `unfit` knows what is wrong with a change of a
/// collection that answers.
pub fn merge(
    configured: &[CollectionSpec],
    rows: &[Registration],
    before: &[CollectionSpec],
    slot: &str,
    unfit: &dyn Fn(&CollectionSpec) -> Option<String>,
) -> Merged {
    let mut merged = Merged::default();
    let ours = || rows.iter().filter(|row| row.service.is_empty() || row.service == slot);
    for row in ours() {
        let other = ours().any(|other| other.name == row.name && !other.service.is_empty() && row.service.is_empty());
        let free = |spec: &CollectionSpec, merged: &Merged| {
            let same = |other: &&CollectionSpec| other.schema_and_table() == spec.schema_and_table();
            match (configured.iter().find(same), merged.taken.iter().find(same)) {
                (Some(other), _) => Err(format!("the configuration file has its table, as {}", other.name())),
                (_, Some(other)) => Err(format!("its table is in collection {} already", other.name())),
                (None, None) => Ok(()),
            }
        };
        let decided = match () {
            () if configured.iter().any(|other| other.name() == row.name) => {
                Err("the configuration file has a collection of this name, which holds".to_owned())
            }
            () if !row.readable => Err("the owner of ruvector.registrations may not read its table".to_owned()),
            () if other => Err("there is a row for this service alone, which holds".to_owned()),
            () => spec(row).and_then(|spec| match unfit(&spec) {
                Some(reason) => Err(reason),
                None => free(&spec, &merged).map(|()| spec),
            }),
        };
        let refused = decided.as_ref().err().cloned();
        let kept = || before.iter().find(|spec| spec.name() == row.name && free(spec, &merged).is_ok());
        let configured = configured.iter().any(|other| other.name() == row.name);
        let taken = match decided {
            Ok(spec) => Some(spec),
            Err(_) if configured || other || !row.readable => None,
            Err(_) => kept().cloned(),
        };
        let suffix = if refused.is_some() && taken.is_some() { "; it goes on as it was" } else { "" };
        merged.taken.extend(taken);
        merged.outcomes.push(Outcome {
            service: row.service.clone(),
            name: row.name.clone(),
            seen: row.seen.clone(),
            refused: refused.map(|reason| format!("{reason}{suffix}")),
        });
    }
    merged
}

/// The collections that a service on this slot takes of what is registered.
pub fn registered(configured: &[CollectionSpec], rows: &[Registration], slot: &str) -> Vec<CollectionSpec> {
    merge(configured, rows, &[], slot, &|_| None).taken
}

/// What was taken `before` that the configuration file, as it is now, does not have.
pub fn beside(configured: &[CollectionSpec], before: &[CollectionSpec]) -> Vec<CollectionSpec> {
    let clashes = |spec: &CollectionSpec| {
        configured
            .iter()
            .any(|other| other.name() == spec.name() || other.schema_and_table() == spec.schema_and_table())
    };
    before.iter().filter(|spec| !clashes(spec)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(service: &str, name: &str, spec: &str) -> Registration {
        Registration {
            service: service.into(),
            name: name.into(),
            spec: spec.into(),
            tuning: "{}".into(),
            seen: "1".into(),
            readable: true,
        }
    }

    fn on(table: &str, column: &str) -> String {
        format!(r#"{{"table": "{table}", "vectors": [{{"column": "{column}"}}]}}"#)
    }

    #[test]
    fn what_is_taken_and_why_the_rest_is_not() {
        let configured = [spec(&row("", "docs", &on("public.docs", "e"))).expect("a spec")];
        let before = [spec(&row("", "pages", &on("pages", "old"))).expect("a spec")];
        let none = |_: &CollectionSpec| None;
        let pages = || row("", "pages", &on("pages", "e"));
        type Case = (&'static str, Vec<Registration>, Vec<(&'static str, &'static str)>, Vec<&'static str>);
        let cases: Vec<Case> = vec![
            ("taken", vec![pages()], vec![("pages", "e")], vec![""]),
            ("the file has the name", vec![row("", "docs", &on("x", "e"))], vec![], vec!["configuration file has a"]),
            ("the file has the table", vec![row("", "x", &on("docs", "e"))], vec![], vec!["its table, as docs"]),
            ("for another service", vec![row("other", "x", &on("x", "e"))], vec![], vec![]),
            ("for us", vec![row("ours", "x", &on("x", "e"))], vec![("x", "e")], vec![""]),
            (
                "for us and for all",
                vec![row("", "x", &on("x", "all")), row("ours", "x", &on("x", "ours"))],
                vec![("x", "ours")],
                vec!["for this service alone", ""],
            ),
            (
                "one table twice",
                vec![pages(), row("", "again", &on("public.pages", "e"))],
                vec![("pages", "e")],
                vec!["", "in collection pages already"],
            ),
            (
                "what is bad changes nothing",
                vec![row("", "pages", r#"{"table": "pages", "vector": []}"#), row("", "x", "7")],
                vec![("pages", "old")],
                vec!["unknown field `vector`", "invalid type"],
            ),
            ("no longer there", vec![], vec![], vec![]),
        ];
        for (what, rows, taken, outcomes) in cases {
            let merged = merge(&configured, &rows, &before, "ours", &none);
            let found: Vec<_> =
                merged.taken.iter().map(|spec| (spec.name(), spec.vectors[0].column.as_str())).collect();
            assert_eq!(found, taken, "{what}");
            assert_eq!(merged.outcomes.len(), outcomes.len(), "{what}");
            for (outcome, expected) in merged.outcomes.iter().zip(outcomes) {
                let refused = outcome.refused.clone().unwrap_or_default();
                assert!(refused.contains(expected) && refused.is_empty() == expected.is_empty(), "{what}: {refused}");
            }
        }
    }

    #[test]
    fn operators_tune_what_is_registered() {
        let tuning = r#"{"encoding": "f16", "tiers": {"warm_after_h": 1}}"#;
        let mut tuned = Registration { tuning: tuning.into(), ..row("", "x", &on("x", "e")) };
        let spec = spec(&tuned).expect("a spec");
        assert_eq!((spec.vectors[0].encoding, spec.tiers.map(|tiers| tiers.warm_after_h)), (Encoding::F16, Some(1.0)));
        tuned.tuning = r#"{"table": "y"}"#.into();
        assert!(super::spec(&tuned).is_err_and(|why| why.contains("unknown field `table`")));
    }

    #[test]
    fn what_does_not_fit_what_answers_leaves_it_as_it_was() {
        let before = [spec(&row("", "pages", &on("pages", "old"))).expect("a spec")];
        let unfit = |_: &CollectionSpec| Some("no such metric".to_owned());
        let merged = merge(&[], &[row("", "pages", &on("pages", "e"))], &before, "s", &unfit);
        assert_eq!(merged.taken, before);
        assert_eq!(merged.outcomes[0].refused.as_deref(), Some("no such metric; it goes on as it was"));
        assert_eq!(beside(&before, &before), []);
    }
}
