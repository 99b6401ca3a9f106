//! Checks of the source before anything is done to it: each finding with the exact SQL to paste.

use crate::model::{CollectionId, CollectionSpec, quote_ident};
use crate::source::catalog;
use crate::source::connect::Dsn;
use crate::source::publication;
use crate::source::{Result, SourceError};
use serde::Serialize;
use tokio_postgres::Client;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// Will not work.
    Error,
}

/// One check's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable code of the check.
    pub code: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What was looked at.
    pub check: String,
    /// What was found.
    pub observed: String,
    /// What to do, with SQL to paste; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

fn finding(code: &'static str, severity: Severity, check: &str, observed: String, fix: &str) -> Finding {
    let fix = (severity != Severity::Ok).then(|| fix.to_owned());
    Finding { code, severity, check: check.to_owned(), observed, fix }
}

/// What the pure checks look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `server_version_num`.
    pub version: i32,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots` and how many are taken.
    pub slots: (i32, i32),
    /// `max_wal_senders` and how many are taken.
    pub senders: (i32, i32),
    /// Our role.
    pub role: String,
    /// May it replicate: superuser, REPLICATION, or a member of `rds_replication`.
    pub can_replicate: bool,
    /// `max_slot_wal_keep_size` in MB; -1 is without limit.
    pub keep_size_mb: i32,
    /// Is our slot there, and can it be used?
    pub slot: Option<catalog::Slot>,
    /// Name of our slot.
    pub slot_name: String,
    /// Seconds the oldest transaction is open.
    pub oldest_transaction_s: i64,
}

const FACTS: &str = "
    SELECT current_setting('server_version_num')::int4, current_setting('wal_level'),
           current_setting('max_replication_slots')::int4, (SELECT count(*)::int4 FROM pg_replication_slots),
           current_setting('max_wal_senders')::int4, (SELECT count(*)::int4 FROM pg_stat_replication),
           current_user::text,
           (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
             OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(current_user, oid, 'MEMBER')),
           (SELECT setting::int4 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
           COALESCE((SELECT extract(epoch FROM max(now() - xact_start))::int8 FROM pg_stat_activity
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()), 0)";

async fn facts(client: &Client, slot: &str) -> Result<Facts> {
    let row = client.query_one(FACTS, &[]).await?;
    Ok(Facts {
        version: row.get(0),
        wal_level: row.get(1),
        slots: (row.get(2), row.get(3)),
        senders: (row.get(4), row.get(5)),
        role: row.get(6),
        can_replicate: row.get(7),
        keep_size_mb: row.get::<_, Option<i32>>(8).unwrap_or(-1),
        slot: catalog::slot(client, slot).await?,
        slot_name: slot.to_owned(),
        oldest_transaction_s: row.get(9),
    })
}

/// The checks of the server itself.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    use Severity::{Error, Ok, Warning};
    let bad_if = |bad: bool, severity: Severity| if bad { severity } else { Ok };
    let needs_slot = facts.slot.is_none();
    let free = |(limit, taken): (i32, i32)| limit - taken;
    let short = |pair: (i32, i32), wanted: i32| bad_if(needs_slot && free(pair) < wanted, Error);
    let taken = |(limit, taken): (i32, i32)| format!("{taken} of {limit} in use");
    let version = match facts.version {
        ..140_000 => Error,
        140_000..150_000 => Warning,
        _ => Ok,
    };
    vec![
        finding(
            "D01",
            version,
            "server version",
            facts.version.to_string(),
            "version 14 is the least that sends rows in binary; from 15 on row filters and column lists can be seen",
        ),
        finding(
            "D02",
            bad_if(facts.wal_level != "logical", Error),
            "wal_level",
            facts.wal_level.clone(),
            "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server. On RDS and Aurora set \
             rds.logical_replication = 1, on Cloud SQL cloudsql.logical_decoding = on",
        ),
        finding(
            "D03",
            short(facts.slots, 1).max(short(facts.senders, 1)),
            "free slots and senders",
            format!("slots {}, senders {}", taken(facts.slots), taken(facts.senders)),
            "drop an unused slot, or: ALTER SYSTEM SET max_replication_slots = 20; ALTER SYSTEM SET max_wal_senders = 20; \
             -- then restart the server",
        ),
        finding(
            "D04",
            bad_if(!facts.can_replicate, Error),
            "role may replicate",
            facts.role.clone(),
            &format!(
                "ALTER ROLE {0} REPLICATION; -- on RDS and Aurora: GRANT rds_replication TO {0};",
                quote_ident(&facts.role)
            ),
        ),
        finding(
            "D13",
            bad_if(facts.keep_size_mb < 0, Warning),
            "max_slot_wal_keep_size",
            if facts.keep_size_mb < 0 { "no limit".into() } else { format!("{} MB", facts.keep_size_mb) },
            "while this service is down its slot keeps WAL without limit; choose one that the disk can bear: \
             ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf();",
        ),
        finding(
            "D15",
            bad_if(facts.oldest_transaction_s > 600, Warning),
            "oldest open transaction",
            format!("{} s", facts.oldest_transaction_s),
            "making a slot waits for every open transaction; see SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start;",
        ),
        slot_finding(facts),
    ]
}

fn slot_finding(facts: &Facts) -> Finding {
    let name = quote_ident(&facts.slot_name);
    let (severity, observed) = match &facts.slot {
        None => (Severity::Ok, format!("{name} does not exist yet; the service makes it")),
        Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
            (Severity::Error, format!("{name} is not a pgoutput slot"))
        }
        Some(slot) if !slot.is_usable() => (Severity::Warning, format!("{name} is lost; the service will copy again")),
        Some(slot) if slot.active => (Severity::Ok, format!("{name} is in use")),
        Some(_) => (Severity::Ok, format!("{name} exists and is idle")),
    };
    let fix = format!("choose another source.slot, or: SELECT pg_drop_replication_slot('{}');", facts.slot_name);
    finding("D25", severity, "replication slot", observed, &fix)
}

fn from_refusal(code: &'static str, check: String, result: Result<String>) -> Finding {
    match result {
        Ok(observed) => finding(code, Severity::Ok, &check, observed, ""),
        Err(SourceError::Refused { problem, remedy }) => finding(code, Severity::Error, &check, problem, &remedy),
        Err(other) => finding(code, Severity::Error, &check, other.to_string(), "see the server's log"),
    }
}

/// Runs every check. Never an error: a source that cannot be reached is a finding.
pub async fn run(dsn: &Dsn, slot: &str, publication: &str, specs: &[CollectionSpec]) -> Vec<Finding> {
    let client = match dsn.connect().await {
        Ok(client) => client,
        Err(error) => {
            let fix = "check source.dsn, the server's listen_addresses and pg_hba.conf, and that it is no pooler";
            return vec![finding("D05", Severity::Error, "connection", error.to_string(), fix)];
        }
    };
    let mut findings = vec![finding("D05", Severity::Ok, "connection", dsn.to_string(), "")];
    match facts(&client, slot).await {
        Ok(facts) => findings.extend(judge(&facts)),
        Err(error) => findings.push(from_refusal("D01", "server facts".into(), Err(error))),
    }
    let mut defs = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let resolved = async {
            let (mut def, table) = catalog::resolve(&client, CollectionId(number as u32), spec).await?;
            catalog::learn_dimensions(&client, &mut def).await?;
            Ok((def, table))
        };
        let resolved = resolved.await;
        let observed = resolved.map(|(def, table)| {
            let key: Vec<_> = def.key.iter().map(|column| column.name.as_str()).collect();
            let dimensions = def.vectors.iter().map(|v| v.dimensions.map_or("?".into(), |d| d.to_string()));
            let dimensions: Vec<String> = dimensions.collect();
            let text = format!(
                "key ({}), {} dimensions, about {} rows",
                key.join(", "),
                dimensions.join(" / "),
                table.estimated_rows.max(0)
            );
            defs.push(def);
            text
        });
        findings.push(from_refusal("D07", format!("table {}", spec.table), observed));
    }
    let published = publication::ensure(&client, publication, &defs, false).await;
    let mut finding = from_refusal(
        "D09",
        format!("publication {}", quote_ident(publication)),
        published.map(|()| "has every table and column".into()),
    );
    if finding.severity == Severity::Error {
        // With source.create_publication the service does it itself; where it may not, this is the SQL.
        finding.severity = Severity::Warning;
    }
    findings.push(finding);
    findings
}

/// 0 all well, 1 warnings, 2 errors.
pub fn exit_code(findings: &[Finding]) -> u8 {
    findings.iter().map(|finding| finding.severity as u8).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            version: 150_004,
            wal_level: "logical".into(),
            slots: (10, 0),
            senders: (10, 0),
            role: "me".into(),
            can_replicate: true,
            keep_size_mb: 1000,
            slot: None,
            slot_name: "ruvector".into(),
            oldest_transaction_s: 0,
        }
    }

    #[test]
    fn each_check_finds_its_fault_and_nothing_else() {
        let judged = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            let bad = judge(&facts).into_iter().filter(|f| f.severity != Severity::Ok);
            bad.map(|f| (f.code, f.severity, f.fix.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(judged(|_| ()), []);
        assert_eq!(judged(|f| f.version = 130_000), [("D01", Severity::Error, true)]);
        assert_eq!(judged(|f| f.wal_level = "replica".into()), [("D02", Severity::Error, true)]);
        assert_eq!(judged(|f| f.slots = (4, 4)), [("D03", Severity::Error, true)]);
        assert_eq!(judged(|f| f.can_replicate = false), [("D04", Severity::Error, true)]);
        assert_eq!(judged(|f| f.keep_size_mb = -1), [("D13", Severity::Warning, true)]);
        assert_eq!(judged(|f| f.oldest_transaction_s = 3600), [("D15", Severity::Warning, true)]);
    }
}
