//! Checks of the source before anything is done to it and while it is followed: each finding with what to paste.

pub mod facts;
pub mod judge;
pub mod provider;

use crate::model::{CollectionDef, CollectionId, CollectionSpec, quote_ident};
use crate::source::catalog::{self, Table};
use crate::source::connect::Dsn;
use crate::source::policy::Policy;
use crate::source::preflight::provider::Provider;
use crate::source::publication;
use crate::source::{Result, SourceError};
use parking_lot::Mutex;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// Will not work.
    Error,
}

impl Severity {
    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The source.
    pub dsn: &'a Dsn,
    /// Our slot, which may not be there yet.
    pub slot: &'a str,
    /// The name that it and those of later copies are made from.
    pub base: &'a str,
    /// The slots that the data directory knows to be ours; none where nobody looked into one.
    pub known: Option<&'a [String]>,
    /// Our publication.
    pub publication: &'a str,
    /// May the service make it?
    pub create: bool,
    /// What is to be served.
    pub collections: &'a [CollectionSpec],
    /// Whom rechecks may be asked for as.
    pub roles: &'a [String],
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything: a person waits for it.
    All,
    /// All but what the service itself shows at once: whether it gets a replication session.
    Start,
    /// Without [`ONLY_AT_START`] either.
    Again,
}

/// Checks that read tables.
pub const ONLY_AT_START: [&str; 2] = ["D12", "D22"];

/// The findings of the last time, shared by who checks and who reports.
#[derive(Debug, Default)]
pub struct Latest(Mutex<Option<(Instant, Vec<Finding>)>>);

impl Latest {
    /// The findings; none before the first time.
    pub fn findings(&self) -> Vec<Finding> {
        self.0.lock().as_ref().map(|(_, findings)| findings.clone()).unwrap_or_default()
    }

    /// How old they are.
    pub fn age(&self) -> Option<Duration> {
        self.0.lock().as_ref().map(|(at, _)| at.elapsed())
    }

    /// From now on these.
    pub fn set(&self, findings: Vec<Finding>) {
        *self.0.lock() = Some((Instant::now(), findings));
    }
}

/// One check's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
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
pub async fn run(subject: &Subject<'_>, depth: Depth) -> Vec<Finding> {
    let Subject { dsn, slot, publication, create, collections, .. } = *subject;
    let client = match dsn.connect().await {
        Ok(client) => client,
        Err(SourceError::Refused { problem, remedy }) => {
            return vec![finding("D05", Severity::Error, "connection", problem, &remedy)];
        }
        Err(error) => {
            let fix = match error.policy() {
                Policy::Refuse { remedy } => remedy,
                _ => "check source.dsn, the server's listen_addresses and pg_hba.conf, and that it is no pooler",
            };
            let observed = match &error {
                SourceError::Sql { code, message } => format!("{message} (SQLSTATE {code})"),
                other => other.to_string(),
            };
            return vec![finding("D05", Severity::Error, "connection", observed, fix)];
        }
    };
    let mut findings = Vec::new();
    let mut role = "<our role>".to_owned();
    let mut provider = Provider::SelfHosted;
    match facts::server(&client, slot, &dsn.host()).await {
        Ok(mut facts) => {
            facts.slot_base = subject.base.to_owned();
            let known = subject.known.unwrap_or_default();
            // They go by themselves.
            facts.idle_slots.retain(|(name, _)| !known.contains(name));
            facts.slot_unknown = subject.known.is_some_and(|known| !known.iter().any(|name| name == slot));
            role = quote_ident(&facts.role);
            provider = facts.provider;
            findings.extend(judge::server(&facts));
        }
        Err(error) => findings.push(from_result("D01", "server facts", Err(error))),
    }
    findings.insert(
        0,
        match depth {
            Depth::All => direct(dsn, provider).await,
            _ => finding("D05", Severity::Ok, "connection", dsn.to_string(), ""),
        },
    );
    findings.extend(address(&dsn.host(), provider).await);
    let mut defs = Vec::new();
    for (number, spec) in collections.iter().enumerate() {
        let (schema, table) = spec.schema_and_table();
        if let Ok(Some(table)) = catalog::table(&client, schema, table).await {
            findings.extend(rights(spec, &table, &role));
        }
        let resolved = async {
            let (mut def, table) = catalog::resolve(&client, CollectionId(number as u32), spec).await?;
            if depth != Depth::Again {
                catalog::learn_dimensions(&client, &mut def).await?;
            }
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
            match facts::content(&client, &def, &table, depth != Depth::Again).await {
                Ok(facts) => findings.extend(judge::content(&spec.table, &facts)),
                Err(error) => findings.push(from_result("D12", &format!("content of {}", spec.table), Err(error))),
            }
            defs.push(def);
        }
    }
    for viewer in subject.roles {
        findings.push(viewable(&client, viewer, &role, &defs).await);
    }
    findings.push(published(&client, publication, create, &defs).await);
    findings
}

/// Longest wait for an answer of a replication session.
const ANSWER: Duration = Duration::from_secs(20);

/// Really opens a replication session: what a pooler or a proxy in between cannot pass on shows here and nowhere else.
async fn direct(dsn: &Dsn, provider: Provider) -> Finding {
    let identified = async {
        let mut session = dsn.connect_replication().await?;
        session.query("IDENTIFY_SYSTEM").await
    };
    let late = || Err(SourceError::Unavailable(format!("no answer within {} s", ANSWER.as_secs())));
    match tokio::time::timeout(ANSWER, identified).await.unwrap_or_else(|_| late()) {
        Ok(_) => finding("D05", Severity::Ok, "connection", format!("{dsn}, also for replication"), ""),
        Err(error) => {
            let fix = judge::why_no_replication(&error, &dsn.host(), dsn.port(), provider);
            let observed = format!("SQL works, replication does not: {error}");
            finding("D05", Severity::Error, "connection", observed, &fix)
        }
    }
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

/// Can rechecks be done as this role, and does it see what it is asked about?
async fn viewable(client: &Client, viewer: &str, role: &str, defs: &[CollectionDef]) -> Finding {
    let (check, quoted) = (format!("recheck as {viewer}"), quote_ident(viewer));
    let bad = |severity, observed: String, fix: &str| finding("D26", severity, &check, observed, fix);
    // From version 16 on a member need not be one who may become the role.
    let sql = "SELECT pg_has_role(oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END), \
               rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1";
    let found = client.query_opt(sql, &[&viewer]).await.map_err(SourceError::from);
    let (member, sees_all): (bool, bool) = match found {
        Ok(Some(row)) => (row.get(0), row.get(1)),
        Ok(None) => {
            let fix = format!("CREATE ROLE {quoted}; or correct search.recheck_roles");
            return bad(Severity::Error, "there is no such role".into(), &fix);
        }
        Err(error) => return from_result("D26", &check, Err(error)),
    };
    if !member {
        return bad(Severity::Error, "our role may not become it".into(), &format!("GRANT {quoted} TO {role};"));
    }
    for def in defs {
        let table = def.from_clause();
        let sql = "SELECT has_any_column_privilege($1::text::name, $2::oid, 'SELECT')";
        match client.query_one(sql, &[&viewer, &def.oid]).await.map(|row| row.get::<_, Option<bool>>(0)) {
            Ok(Some(true)) => {}
            Ok(_) => {
                let fix = format!("GRANT SELECT ON {table} TO {quoted}; where it is to see rows of it");
                return bad(Severity::Warning, format!("it may not read {table}"), &fix);
            }
            Err(error) => return from_result("D26", &check, Err(error.into())),
        }
    }
    match sees_all {
        true => bad(
            Severity::Warning,
            "no row security holds for it".into(),
            &format!("ALTER ROLE {quoted} NOSUPERUSER NOBYPASSRLS;"),
        ),
        false => finding("D26", Severity::Ok, &check, "our role may become it".into(), ""),
    }
}

fn describe((def, table): &(CollectionDef, Table)) -> String {
    let key: Vec<_> = def.key.iter().map(|column| column.name.as_str()).collect();
    let dimensions: Vec<_> =
        def.vectors.iter().map(|v| v.dimensions.map_or("unknown".into(), |d| d.to_string())).collect();
    let rows = estimated(table.estimated_rows);
    format!("key ({}), {} dimensions, {rows}", key.join(", "), dimensions.join(" / "))
}

/// The planner's estimate of a table's rows, for people.
fn estimated(rows: i64) -> String {
    match rows {
        0.. => format!("about {rows} rows"),
        _ => "not analysed yet, so nobody knows how many rows".into(),
    }
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
async fn address(host: &str, provider: Provider) -> Option<Finding> {
    if host.starts_with('/') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let found: Vec<_> = tokio::net::lookup_host((host, 5432)).await.ok()?.collect();
    let only_v6 = !found.is_empty() && found.iter().all(|address| address.is_ipv6());
    let severity = if only_v6 { Severity::Warning } else { Severity::Ok };
    let observed = if only_v6 { "IPv6 only" } else { "has an IPv4 address" };
    Some(finding("D23", severity, &format!("address of {host}"), observed.into(), provider.ipv4()))
}

/// 0 all well, 1 warnings, 2 errors.
pub fn exit_code(findings: &[Finding]) -> u8 {
    findings.iter().map(|finding| finding.severity as u8).max().unwrap_or(0)
}
