//! The checks themselves: facts in, findings out. Pure, each with its case in the table test.

use crate::model::quote_ident;
use crate::source::SourceError;
use crate::source::preflight::facts::{ContentFacts, ServerFacts};
use crate::source::preflight::provider::{Change, Provider};
use crate::source::preflight::{Finding, Severity, estimated, finding};
use crate::source::slots::is_called;

const MB: f64 = 1024.0 * 1024.0;

/// The checks of the server.
pub fn server(facts: &ServerFacts) -> Vec<Finding> {
    vec![
        version(facts),
        wal_level(facts),
        slots_and_senders(facts),
        role(facts),
        encryption(facts),
        keep_size(facts),
        failover(facts),
        open_transactions(facts),
        heartbeat(facts),
        spill(facts),
        fdw(facts),
        pgvector(facts),
        clock(facts),
        other_slots(facts),
        own_slot(facts),
    ]
}

fn bad_if(bad: bool, severity: Severity) -> Severity {
    if bad { severity } else { Severity::Ok }
}

fn version(facts: &ServerFacts) -> Finding {
    let severity = match facts.version {
        ..140_000 => Severity::Error,
        140_000..150_000 => Severity::Warning,
        _ => bad_if(facts.in_recovery, Severity::Error),
    };
    let note = match facts.version {
        ..160_000 => "; before 16 a standby cannot have slots, before 17 none survives a failover by itself",
        160_000..170_000 => "; before 17 no slot survives a failover by itself",
        _ => "",
    };
    let observed = format!(
        "{}.{} on {}{}{note}",
        facts.version / 10_000,
        facts.version % 10_000,
        facts.provider.name(),
        if facts.in_recovery { ", a standby" } else { "" }
    );
    let fix = if facts.in_recovery {
        "connect to the primary: this version follows primaries only"
    } else {
        "version 14 is the least that sends rows in binary; before 15 a publication's column lists and row filters cannot be checked"
    };
    finding("D01", severity, "server version", observed, fix)
}

fn wal_level(facts: &ServerFacts) -> Finding {
    let fix = facts.provider.how(Change::WalLevel);
    finding("D02", bad_if(facts.wal_level != "logical", Severity::Error), "wal_level", facts.wal_level.clone(), &fix)
}

fn slots_and_senders(facts: &ServerFacts) -> Finding {
    // One for our slot, and one more for the temporary slot of each copy that is made while we follow.
    let ours = i32::from(facts.slot.is_none());
    let fewer = |least: i32| [facts.slots, facts.senders].iter().any(|(limit, taken)| limit - taken < least);
    let taken = |(limit, taken): (i32, i32)| format!("{taken} of {limit} in use");
    let mut observed = format!("slots {}, senders {}", taken(facts.slots), taken(facts.senders));
    let severity = match (fewer(ours), fewer(ours + 1)) {
        (true, _) => Severity::Error,
        (false, true) => Severity::Warning,
        (false, false) => Severity::Ok,
    };
    if severity == Severity::Warning {
        observed += "; none is left for the temporary slot of a copy, so that no collection can be added or rebuilt";
    }
    let more = |name| facts.provider.how(Change::Setting { name, value: "20", restart: true });
    let fix = format!("drop an unused slot, or: {} and {}", more("max_replication_slots"), more("max_wal_senders"));
    finding("D03", severity, "free slots and senders", observed, &fix)
}

fn role(facts: &ServerFacts) -> Finding {
    let fix = facts.provider.how(Change::Replication { role: &quote_ident(&facts.role) });
    finding("D04", bad_if(!facts.can_replicate, Severity::Error), "role may replicate", facts.role.clone(), &fix)
}

fn encryption(facts: &ServerFacts) -> Finding {
    let observed = match (facts.encrypted, facts.local) {
        (true, _) => "encrypted",
        (false, true) => "not encrypted, and does not leave the machine",
        (false, false) => "not encrypted",
    };
    let fix = "add sslmode=verify-full and sslrootcert=FILE (or system) to source.dsn";
    let severity = bad_if(!facts.encrypted && !facts.local, Severity::Warning);
    finding("D06", severity, "encryption of the connection", observed.into(), fix)
}

/// An outage of ours that a slot should live through.
const SHORT_HOURS: f64 = 4.0;

/// How long our slot lives when we are down.
fn keep_size(facts: &ServerFacts) -> Finding {
    let limit = facts.keep_size_mb as f64 * MB;
    let hours = facts.wal_rate.filter(|rate| *rate > 0.0).map(|rate| limit / rate / 3600.0);
    let idle = facts.idle_timeout_s.filter(|seconds| (1..(SHORT_HOURS * 3600.0) as i64).contains(seconds));
    let dies = match (hours, idle) {
        (_, Some(seconds)) => format!("; an idle slot is given up after {seconds} s"),
        (Some(hours), None) => format!("; at the average WAL rate our slot is lost after {hours:.1} h of our outage"),
        (None, None) => String::new(),
    };
    let fix = facts.provider.how(Change::Setting { name: "max_slot_wal_keep_size", value: "20GB", restart: false });
    if facts.keep_size_mb < 0 {
        let fix = format!(
            "while this service is down its slot keeps WAL without limit; choose what the disk can bear: {fix}"
        );
        return finding("D13", Severity::Warning, "max_slot_wal_keep_size", "no limit".into(), &fix);
    }
    let short = hours.is_some_and(|hours| hours < SHORT_HOURS) || idle.is_some();
    let observed = format!("{} MB{dies}", facts.keep_size_mb);
    let fix = match idle {
        Some(_) => {
            facts.provider.how(Change::Setting { name: "idle_replication_slot_timeout", value: "0", restart: false })
        }
        None => fix,
    };
    finding("D13", bad_if(short, Severity::Warning), "max_slot_wal_keep_size", observed, &fix)
}

fn failover(facts: &ServerFacts) -> Finding {
    let standbys = facts.failover.standbys;
    let flagged = facts.failover.slot_flag == Some(true);
    // The standbys' own settings cannot be seen from here; which slots they ask for can.
    let unprotected = standbys > 0 && (!flagged || facts.failover.synced == Some(false));
    let observed = match (standbys, facts.failover.slot_flag) {
        (0, _) => "no physical standby is streaming".to_owned(),
        (n, Some(true)) if unprotected => format!(
            "{n} standbys, and none asks for slots (sync_replication_slots): after a failover everything is copied again"
        ),
        (n, Some(true)) => format!("{n} standbys; our slot is kept in step on them"),
        (n, _) => format!("{n} standbys; our slot is on the primary only: after a failover everything is copied again"),
    };
    let fix = facts.provider.failover(facts.version);
    finding("D14", bad_if(unprotected, Severity::Warning), "slots and failover", observed, &fix)
}

fn open_transactions(facts: &ServerFacts) -> Finding {
    let (seconds, whose) = facts.oldest_transaction.clone().unwrap_or_default();
    let bad = seconds > 600 || facts.prepared > 0;
    let observed = match facts.prepared {
        0 => format!("oldest {seconds} s {whose}"),
        n => format!("oldest {seconds} s {whose}; {n} prepared transactions"),
    };
    let fix = "making a slot waits for every open transaction, and they hold WAL back: SELECT pid, xact_start, query FROM \
               pg_stat_activity ORDER BY xact_start; SELECT * FROM pg_prepared_xacts;";
    finding("D15", bad_if(bad, Severity::Warning), "open transactions", observed.trim_end().to_owned(), fix)
}

fn heartbeat(facts: &ServerFacts) -> Finding {
    let observed = if facts.can_heartbeat { "possible" } else { "our role may not call pg_logical_emit_message" };
    let more = if facts.version >= 170_000 { ", boolean" } else { "" };
    let role = quote_ident(&facts.role);
    let fix = format!("GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text{more}) TO {role};");
    finding(
        "D16",
        bad_if(!facts.can_heartbeat, Severity::Warning),
        "heartbeat of an idle database",
        observed.into(),
        &fix,
    )
}

fn spill(facts: &ServerFacts) -> Finding {
    let spilled = facts.spilled.unwrap_or(0) as f64 / MB;
    let observed = format!("logical_decoding_work_mem {} MB, {spilled:.0} MB spilled", facts.decoding_memory_kb / 1024);
    let fix = facts.provider.how(Change::Setting { name: "logical_decoding_work_mem", value: "256MB", restart: false });
    finding("D17", bad_if(spilled > 1024.0, Severity::Warning), "memory of decoding", observed, &fix)
}

fn fdw(facts: &ServerFacts) -> Finding {
    let observed = facts.fdw.as_ref().map_or("not available".into(), |version| format!("{version} can be installed"));
    finding("D19", bad_if(facts.fdw.is_none(), Severity::Warning), "postgres_fdw", observed, facts.provider.fdw())
}

/// Why SQL works and replication does not, and what to do. Ports and names say more of poolers than their answers.
pub fn why_no_replication(error: &SourceError, host: &str, port: u16, provider: Provider) -> String {
    match error.sqlstate() {
        Some("53300") => return "no sender is free: see D03".into(),
        Some("42501") => return "the role may not replicate: see D04".into(),
        Some("28000") => {
            return "pg_hba.conf lets this role in for SQL only: its lines for the database hold for logical replication \
                    too, those for `replication` do not"
                .into();
        }
        _ => {}
    }
    let named = host.contains("pooler") || host.contains("pgbouncer") || matches!(port, 6432 | 6543);
    let sure = if named { "this is a pooler" } else { "a pooler or proxy is probably in between" };
    format!("{sure}, and it cannot pass replication on: {}", provider.direct())
}

fn pgvector(facts: &ServerFacts) -> Finding {
    let observed =
        facts.pgvector.clone().unwrap_or("not installed; real[] and double precision[] work without it".into());
    let old = facts.pgvector.as_ref().is_some_and(|version| version.starts_with("0.") && minor(version) < 5);
    finding("D20", bad_if(old, Severity::Warning), "pgvector", observed, "ALTER EXTENSION vector UPDATE;")
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

fn clock(facts: &ServerFacts) -> Finding {
    let observed = format!("the source's clock is {:+.2} s from ours", facts.clock_skew_s);
    let bad = facts.clock_skew_s.abs() > 2.0;
    finding(
        "D21",
        bad_if(bad, Severity::Warning),
        "clocks",
        observed,
        "run NTP here and there; lag in seconds is wrong by so much",
    )
}

fn other_slots(facts: &ServerFacts) -> Finding {
    // A later copy's slot has our name and a number: idle, it was left by a data directory that is gone.
    let left = |name: &str| is_called(name, &facts.slot_base);
    let heavy: Vec<_> =
        facts.idle_slots.iter().filter(|(name, bytes)| *bytes as f64 > 1024.0 * MB || left(name)).collect();
    let observed = match facts.idle_slots.len() {
        0 => "no inactive slot but ours".to_owned(),
        n => format!(
            "{n} inactive slots of others hold up to {:.0} MB",
            facts.idle_slots.iter().map(|s| s.1).max().unwrap_or(0) as f64 / MB
        ),
    };
    let drops: Vec<_> = heavy.iter().map(|(name, _)| format!("SELECT pg_drop_replication_slot('{name}');")).collect();
    let fix = format!("if nobody needs them any more: {}", drops.join(" "));
    finding("D24", bad_if(!heavy.is_empty(), Severity::Warning), "other slots", observed, &fix)
}

fn own_slot(facts: &ServerFacts) -> Finding {
    let name = quote_ident(&facts.slot_name);
    let held = facts.retained.map(|bytes| format!(", holds {:.0} MB of WAL", bytes as f64 / MB)).unwrap_or_default();
    let (severity, observed) = match &facts.slot {
        None => (Severity::Ok, format!("{name} does not exist yet; the service makes it")),
        Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
            (Severity::Error, format!("{name} is not a pgoutput slot"))
        }
        Some(slot) if slot.two_phase => {
            (Severity::Warning, format!("{name} was made with two_phase; the service copies again on one of its own"))
        }
        Some(slot) if !slot.is_usable() => (Severity::Warning, format!("{name} is lost; the service copies again")),
        Some(slot) if slot.active => (Severity::Ok, format!("{name} is in use{held}")),
        Some(_) if facts.slot_unknown => (
            Severity::Error,
            format!(
                "{name} exists and is idle{held}; the data directory here does not know it: a service started here refuses, \
                 and the slot keeps WAL for as long as nobody drops it"
            ),
        ),
        Some(_) => (Severity::Ok, format!("{name} exists and is idle{held}")),
    };
    let note = facts.provider.slot_note();
    let observed = note.map_or(observed.clone(), |note| format!("{observed}. Note: {note}"));
    let fix = format!(
        "choose another source.slot, or, where no service needs it: SELECT pg_drop_replication_slot('{}');",
        facts.slot_name
    );
    finding("D25", severity, "our slot", observed, &fix)
}

/// The checks of one collection's content.
pub fn content(name: &str, facts: &ContentFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (column, missing, odd_length, not_finite) in &facts.columns {
        let bad = odd_length + not_finite;
        let observed = format!(
            "of {} rows {missing} NULL, {odd_length} of another length, {not_finite} with NULL, NaN or infinite elements",
            facts.sampled
        );
        let fix = "such rows become dead letters: they are counted and listed, and cannot be found";
        findings.push(finding(
            "D12",
            bad_if(bad > 0, Severity::Warning),
            &format!("vectors of {name}.{column}"),
            observed,
            fix,
        ));
    }
    let unlogged = facts.persistence != 'p';
    let observed = match (unlogged, facts.is_partition) {
        (true, _) => "unlogged or temporary: it has no WAL",
        (false, true) => "a partition; rows that move to another partition are deleted here",
        (false, false) => "an ordinary table",
    };
    let severity = if unlogged { Severity::Error } else { bad_if(facts.is_partition, Severity::Warning) };
    let fix = if unlogged {
        "ALTER TABLE ... SET LOGGED;"
    } else {
        "name the partitioned table itself as the collection's table"
    };
    findings.push(finding("D18", severity, &format!("kind of {name}"), observed.into(), fix));
    if let Some(page_us) = facts.page_us {
        let seconds = page_us as f64 * facts.pages as f64 / 1e6;
        let observed = format!(
            "{} pages, {}: about {seconds:.0} s to read on one connection",
            facts.pages,
            estimated(facts.estimated_rows)
        );
        let fix = "the slot holds WAL back for that long at first: see D13, and raise source.copy_connections";
        findings.push(finding(
            "D22",
            bad_if(seconds > 3600.0, Severity::Warning),
            &format!("copy of {name}"),
            observed,
            fix,
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lsn;
    use crate::source::catalog::Slot;
    use crate::source::preflight::facts::Failover;
    use crate::source::preflight::provider::Provider;

    fn good() -> ServerFacts {
        ServerFacts {
            provider: Provider::SelfHosted,
            version: 170_004,
            in_recovery: false,
            wal_level: "logical".into(),
            slots: (10, 0),
            senders: (10, 0),
            role: "me".into(),
            can_replicate: true,
            encrypted: true,
            local: false,
            keep_size_mb: 100_000,
            idle_timeout_s: None,
            wal_rate: Some(1000.0),
            slot: None,
            slot_name: "ruvector".into(),
            slot_base: "ruvector".into(),
            slot_unknown: false,
            retained: None,
            failover: Failover::default(),
            oldest_transaction: None,
            prepared: 0,
            can_heartbeat: true,
            spilled: None,
            decoding_memory_kb: 65_536,
            fdw: Some("1.1".into()),
            pgvector: None,
            clock_skew_s: 0.01,
            idle_slots: vec![("theirs".into(), 1000)],
        }
    }

    fn idle() -> Option<Slot> {
        Some(Slot {
            plugin: Some("pgoutput".into()),
            database: Some("d".into()),
            active: false,
            confirmed: Some(Lsn(5)),
            restart: Some(Lsn(5)),
            wal_status: Some("reserved".into()),
            two_phase: false,
        })
    }

    #[test]
    fn each_check_finds_its_fault_and_nothing_else() {
        type Case = (fn(&mut ServerFacts), &'static [(&'static str, Severity)]);
        use Severity::{Error, Warning};
        let cases: &[Case] = &[
            (|_| (), &[]),
            (|f| f.version = 130_000, &[("D01", Error)]),
            (|f| f.version = 140_000, &[("D01", Warning)]),
            (|f| f.in_recovery = true, &[("D01", Error)]),
            (|f| f.wal_level = "replica".into(), &[("D02", Error)]),
            (|f| f.slots = (4, 4), &[("D03", Error)]),
            (|f| f.senders = (4, 4), &[("D03", Error)]),
            // Ours, and none for a copy.
            (|f| f.slots = (4, 3), &[("D03", Warning)]),
            (|f| f.slots = (4, 2), &[]),
            (|f| (f.slots, f.slot) = ((1, 1), idle()), &[("D03", Warning)]),
            (|f| (f.slots, f.slot) = ((2, 1), idle()), &[]),
            (|f| f.slot = idle(), &[]),
            (|f| (f.slot, f.slot_unknown) = (idle(), true), &[("D25", Error)]),
            (|f| (f.slot, f.slot_unknown) = (idle().map(|slot| Slot { active: true, ..slot }), true), &[]),
            (|f| f.idle_timeout_s = Some(60), &[("D13", Warning)]),
            (|f| f.idle_timeout_s = Some(86_400), &[]),
            (|f| f.can_replicate = false, &[("D04", Error)]),
            (|f| f.encrypted = false, &[("D06", Warning)]),
            (|f| (f.encrypted, f.local) = (false, true), &[]),
            (|f| f.keep_size_mb = -1, &[("D13", Warning)]),
            (|f| (f.keep_size_mb, f.wal_rate) = (100, Some(1e6)), &[("D13", Warning)]),
            (|f| f.failover.standbys = 1, &[("D14", Warning)]),
            (|f| f.failover = Failover { standbys: 1, slot_flag: Some(true), synced: Some(true) }, &[]),
            (
                |f| f.failover = Failover { standbys: 1, slot_flag: Some(true), synced: Some(false) },
                &[("D14", Warning)],
            ),
            (|f| f.oldest_transaction = Some((3600, "app pid 7".into())), &[("D15", Warning)]),
            (|f| f.prepared = 1, &[("D15", Warning)]),
            (|f| f.can_heartbeat = false, &[("D16", Warning)]),
            (|f| f.spilled = Some(1 << 40), &[("D17", Warning)]),
            (|f| f.fdw = None, &[("D19", Warning)]),
            (|f| f.pgvector = Some("0.4.4".into()), &[("D20", Warning)]),
            (|f| f.pgvector = Some("0.8.1".into()), &[]),
            (|f| f.clock_skew_s = -5.0, &[("D21", Warning)]),
            (|f| f.idle_slots[0].1 = 1 << 40, &[("D24", Warning)]),
            (|f| f.idle_slots[0].0 = "ruvector_7".into(), &[("D24", Warning)]),
            (|f| f.idle_slots[0].0 = "ruvector_x".into(), &[]),
        ];
        for (number, (change, expected)) in cases.iter().enumerate() {
            let mut facts = good();
            change(&mut facts);
            let bad: Vec<_> = server(&facts).into_iter().filter(|finding| finding.severity != Severity::Ok).collect();
            assert!(bad.iter().all(|finding| finding.fix.as_ref().is_some_and(|fix| !fix.is_empty())), "case {number}");
            let bad: Vec<_> = bad.iter().map(|finding| (finding.code, finding.severity)).collect();
            assert_eq!(bad, *expected, "case {number}");
        }
    }

    #[test]
    fn every_fault_has_a_remedy_with_every_provider() {
        use Provider::*;
        for provider in [Rds, Aurora, CloudSql, AlloyDb, Azure, Supabase, Neon, Aiven, Crunchy, SelfHosted] {
            let mut facts = ServerFacts {
                provider,
                version: 130_000,
                wal_level: "replica".into(),
                slots: (4, 4),
                can_replicate: false,
                encrypted: false,
                keep_size_mb: -1,
                failover: Failover { standbys: 1, ..Failover::default() },
                prepared: 1,
                can_heartbeat: false,
                spilled: Some(1 << 40),
                fdw: None,
                pgvector: Some("0.4.4".into()),
                clock_skew_s: 9.0,
                idle_slots: vec![("theirs".into(), 1 << 40)],
                ..good()
            };
            for version in [130_000, 170_000] {
                facts.version = version;
                let bad: Vec<_> = server(&facts).into_iter().filter(|one| one.severity != Severity::Ok).collect();
                assert!(bad.len() >= 13, "{provider:?} {}", bad.len());
                for finding in bad {
                    let fix = finding.fix.unwrap_or_default();
                    assert!(!fix.is_empty(), "{provider:?} {}", finding.code);
                    // Nobody is told to do what he cannot do there.
                    let own = ["ALTER SYSTEM", "contrib package", "primary_conninfo"];
                    let managed = provider != SelfHosted;
                    assert!(
                        !managed || own.iter().all(|word| !fix.contains(word)),
                        "{provider:?} {} {fix}",
                        finding.code
                    );
                }
            }
            assert!(!provider.direct().is_empty() && !provider.ipv4().is_empty(), "{provider:?}");
        }
    }

    #[test]
    fn a_pooler_is_told_from_a_role_that_may_not() {
        let sql = |code: &str| SourceError::Sql { code: code.into(), message: String::new() };
        let why = |code: &str, host: &str, port| why_no_replication(&sql(code), host, port, Provider::SelfHosted);
        assert!(why("53300", "h", 5432).contains("D03") && why("42501", "h", 5432).contains("D04"));
        assert!(why("28000", "h", 5432).contains("pg_hba.conf"));
        assert!(why("08P01", "h", 5432).contains("probably") && why("08P01", "h", 6543).contains("is a pooler"));
        assert!(why("08P01", "ep-x-pooler.eu.neon.tech", 5432).contains("is a pooler"));
    }

    #[test]
    fn a_table_is_judged_by_its_content() {
        let good = ContentFacts {
            sampled: 10,
            columns: vec![("e".into(), 3, 0, 0)],
            persistence: 'p',
            ..ContentFacts::default()
        };
        let bad = |facts: &ContentFacts| {
            let bad = content("docs", facts).into_iter().filter(|finding| finding.severity != Severity::Ok);
            bad.map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(bad(&good).is_empty());
        assert_eq!(bad(&ContentFacts { columns: vec![("e".into(), 0, 1, 0)], ..good.clone() }), ["D12"]);
        assert_eq!(bad(&ContentFacts { columns: vec![("e".into(), 0, 0, 1)], ..good.clone() }), ["D12"]);
        assert_eq!(bad(&ContentFacts { persistence: 'u', ..good.clone() }), ["D18"]);
        assert_eq!(bad(&ContentFacts { is_partition: true, ..good.clone() }), ["D18"]);
        assert_eq!(bad(&ContentFacts { page_us: Some(1_000_000), pages: 1_000_000, ..good }), ["D22"]);
    }
}
