//! Checks of the source before anything is done to it and while it is followed: each finding with what to paste.

pub mod facts;
pub mod judge;
pub mod provider;

use crate::model::{CollectionDef, CollectionId, CollectionSpec, quote_ident};
use crate::source::catalog::{self, Table};
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

/// A finding; the fix is kept only when there is something to fix.
pub fn finding(code: &'static str, severity: Severity, check: &str, observed: String, fix: &str) -> Finding {
    let fix = (severity != Severity::Ok).then(|| fix.to_owned());
    Finding { code, severity, check: check.to_owned(), observed, fix }
}

fn from_result(code: &'static str, check: &str, result: Result<String>) -> Finding {
    match result {
        Ok(observed) => finding(code, Severity::Ok, check, observed, ""),
        Err(SourceError::Refused { problem, remedy }) => finding(code, Severity::Error, check, problem, &remedy),
        Err(other) => finding(code, Severity::Error, check, other.to_string(), "see the server's log"),
    }
}

/// Runs every check. Never an error: a source that cannot be reached is a finding.
pub async fn run(dsn: &Dsn, slot: &str, name: &str, create: bool, specs: &[CollectionSpec]) -> Vec<Finding> {
    let client = match dsn.connect().await {
        Ok(client) => client,
        Err(SourceError::Refused { problem, remedy }) => {
            return vec![finding("D05", Severity::Error, "connection", problem, &remedy)];
        }
        Err(error) => {
            let fix = "check source.dsn, the server's listen_addresses and pg_hba.conf, and that it is no pooler";
            return vec![finding("D05", Severity::Error, "connection", error.to_string(), fix)];
        }
    };
    let mut findings = vec![finding("D05", Severity::Ok, "connection", dsn.to_string(), "")];
    let mut role = "<our role>".to_owned();
    match facts::server(&client, slot, &dsn.host()).await {
        Ok(facts) => {
            role = quote_ident(&facts.role);
            findings.extend(judge::server(&facts));
        }
        Err(error) => findings.push(from_result("D01", "server facts", Err(error))),
    }
    findings.extend(address(&dsn.host()).await);
    let mut defs = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let (schema, table) = spec.schema_and_table();
        if let Ok(Some(table)) = catalog::table(&client, schema, table).await {
            findings.extend(rights(spec, &table, &role));
        }
        let resolved = async {
            let (mut def, table) = catalog::resolve(&client, CollectionId(number as u32), spec).await?;
            catalog::learn_dimensions(&client, &mut def).await?;
            Ok((def, table))
        };
        let resolved = resolved.await;
        findings.push(from_result(
            "D07",
            &format!("table {}", spec.table),
            resolved.as_ref().map(describe).map_err(copy_of),
        ));
        if let Ok((def, table)) = resolved {
            findings.extend(identity(&def, &table));
            match facts::content(&client, &def, &table).await {
                Ok(facts) => findings.extend(judge::content(&spec.table, &facts)),
                Err(error) => findings.push(from_result("D12", &format!("content of {}", spec.table), Err(error))),
            }
            defs.push(def);
        }
    }
    findings.push(published(&client, name, create, &defs).await);
    findings
}

fn rights(spec: &CollectionSpec, table: &Table, role: &str) -> [Finding; 2] {
    let error_if = |bad: bool| if bad { Severity::Error } else { Severity::Ok };
    let (schema, name) = spec.schema_and_table();
    let quoted = format!("{}.{}", quote_ident(schema), quote_ident(name));
    let select = if table.can_select { "our role may read it" } else { "our role may not read it" };
    let hidden = if table.row_security_active { "hides rows from our role" } else { "hides nothing from our role" };
    [
        finding(
            "D10",
            error_if(!table.can_select),
            &format!("SELECT on {}", spec.table),
            select.into(),
            &format!("GRANT SELECT ON {quoted} TO {role};"),
        ),
        finding(
            "D11",
            error_if(table.row_security_active),
            &format!("row security of {}", spec.table),
            hidden.into(),
            &format!("ALTER ROLE {role} BYPASSRLS;"),
        ),
    ]
}

fn describe((def, table): &(CollectionDef, Table)) -> String {
    let key: Vec<_> = def.key.iter().map(|column| column.name.as_str()).collect();
    let dimensions: Vec<_> =
        def.vectors.iter().map(|v| v.dimensions.map_or("unknown".into(), |d| d.to_string())).collect();
    format!(
        "key ({}), {} dimensions, about {} rows",
        key.join(", "),
        dimensions.join(" / "),
        table.estimated_rows.max(0)
    )
}

/// Errors are not `Clone`; the checks need the text and the remedy twice.
fn copy_of(error: &SourceError) -> SourceError {
    match error {
        SourceError::Refused { problem, remedy } => SourceError::refused(problem, remedy),
        other => SourceError::Unavailable(other.to_string()),
    }
}

fn identity(def: &CollectionDef, table: &Table) -> Option<Finding> {
    let full = table.replica_identity == 'f';
    let observed = if full { "FULL: every UPDATE and DELETE carries the whole old row" } else { "by key" };
    let severity = if full { Severity::Warning } else { Severity::Ok };
    let fix = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT; -- halves the stream", def.quoted_table());
    Some(finding("D08", severity, &format!("replica identity of {}", def.table), observed.into(), &fix))
}

async fn published(client: &Client, name: &str, create: bool, defs: &[CollectionDef]) -> Finding {
    let check = format!("publication {}", quote_ident(name));
    if defs.is_empty() {
        let observed = "not looked at: no collection is configured, or none fits its table";
        return finding("D09", Severity::Ok, &check, observed.into(), "");
    }
    let published = publication::ensure(client, name, defs, false).await;
    let each = published.and_then(|each| each.into_iter().collect::<Result<Vec<_>>>());
    let mut finding = from_result("D09", &check, each.map(|_| "has every table and column".into()));
    if create && finding.severity == Severity::Error {
        // The service makes it itself; where it may not after all, this is the SQL.
        finding.severity = Severity::Warning;
    }
    finding
}

/// A name that only has IPv6 addresses cannot be reached from hosts without it.
async fn address(host: &str) -> Option<Finding> {
    if host.starts_with('/') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let found: Vec<_> = tokio::net::lookup_host((host, 5432)).await.ok()?.collect();
    let only_v6 = !found.is_empty() && found.iter().all(|address| address.is_ipv6());
    let severity = if only_v6 { Severity::Warning } else { Severity::Ok };
    let observed = if only_v6 { "IPv6 only" } else { "has an IPv4 address" };
    let fix = "run the service where there is IPv6, or buy the provider's IPv4 address";
    Some(finding("D23", severity, &format!("address of {host}"), observed.into(), fix))
}

/// 0 all well, 1 warnings, 2 errors.
pub fn exit_code(findings: &[Finding]) -> u8 {
    findings.iter().map(|finding| finding.severity as u8).max().unwrap_or(0)
}
