//! Reads the collections that are registered by SQL, and has the publication say when they change.

use crate::model::registration::{Registration, TABLE};
use crate::model::{quote_ident, quote_literal};
use crate::source::{Result, SourceError};
use tokio_postgres::Client;

/// What was there.
#[derive(Debug)]
pub enum Found {
    /// The SQL pack is not installed.
    Nothing,
    /// It is, and may not be read: why, and what helps.
    Hidden(String),
    /// Its rows, in the order in which they were registered.
    Rows {
        /// The rows.
        rows: Vec<Registration>,
        /// Which transactions that reading saw.
        snapshot: Snapshot,
    },
}

/// Which transactions a statement saw: `xmin:xmax:xip,...`.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    end: u64,
    open: Vec<u64>,
}

impl Snapshot {
    fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':').skip(1);
        let end = parts.next()?.parse().ok()?;
        let open = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        Some(Snapshot { end, open: open.map(str::parse).collect::<std::result::Result<_, _>>().ok()? })
    }

    /// Did it see what this transaction, which is committed, wrote? A commit is streamed before others see it.
    pub fn sees(&self, xid: u32) -> bool {
        // Numbers go round: those in use lie within half of them.
        let after = xid.wrapping_sub(self.end as u32) < 1 << 31;
        !after && !self.open.iter().any(|open| *open as u32 == xid)
    }
}

fn name() -> String {
    format!("{}.{}", quote_ident(TABLE.0), quote_ident(TABLE.1))
}

/// Is the table there, is it what the pack makes, and is all of it seen?
const THERE: &str = "SELECT row_security_active(c.oid),
           (SELECT array_agg(format_type(a.atttypid, NULL) ORDER BY a.attname) = '{text,text,jsonb,jsonb}'
              FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('name', 'service', 'spec', 'tuning'))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'";

/// Looks what is registered. One statement: one state. What is wrong with the table is told, and nothing else waits for it:
/// only a connection that breaks is an error.
pub async fn read(client: &Client) -> Result<Found> {
    match found(client).await {
        Err(SourceError::Sql { code, message }) if !code.starts_with("08") && !code.starts_with("57P") => {
            let help = match code.starts_with("42") {
                true => format!("; as its owner: {}", grant(client).await?),
                false => String::new(),
            };
            Ok(Found::Hidden(format!("{message} ({code}){help}")))
        }
        other => other,
    }
}

async fn found(client: &Client) -> Result<Found> {
    let Some(there) = client.query_opt(THERE, &[&TABLE.0, &TABLE.1]).await? else { return Ok(Found::Nothing) };
    if there.get(0) {
        let why = "row level security hides rows of ruvector.registrations: give the service's role BYPASSRLS, or ALTER TABLE ruvector.registrations DISABLE ROW LEVEL SECURITY";
        return Ok(Found::Hidden(why.to_owned()));
    }
    if there.get::<_, Option<bool>>(1) != Some(true) {
        let why =
            "ruvector.registrations is not the table that the SQL pack makes: ruvector sqlpack install tells more";
        return Ok(Found::Hidden(why.to_owned()));
    }
    // Whoever owns the table decides what is in it, and gets nothing indexed that he may not read himself.
    let sql = format!(
        "SELECT txid_current_snapshot()::text, r.service, r.name, r.spec::text, r.tuning::text,
                hashtextextended(r.spec::text || r.tuning::text, 0)::text,
                coalesce(has_table_privilege(
                  (SELECT relowner FROM pg_class WHERE oid = r.tableoid),
                  to_regclass(CASE WHEN r.spec ->> 'table' IS NULL THEN NULL WHEN strpos(r.spec ->> 'table', '.') > 0
                    THEN format('%I.%I', split_part(r.spec ->> 'table', '.', 1), substr(r.spec ->> 'table', strpos(r.spec ->> 'table', '.') + 1))
                    ELSE format('public.%I', r.spec ->> 'table') END),
                  'SELECT'), true)
           FROM (VALUES (1)) one LEFT JOIN {} r ON true ORDER BY r.id",
        name()
    );
    let found = client.query(&sql, &[]).await?;
    let snapshot = found.first().map(|row| row.get::<_, &str>(0)).and_then(Snapshot::parse);
    let snapshot = snapshot.ok_or_else(|| SourceError::Unavailable("a snapshot that is not understood".into()))?;
    // Constraints may have been dropped: a row without a value says nothing.
    let row = |row: &tokio_postgres::Row| {
        Some(Registration {
            service: row.get::<_, Option<String>>(1)?,
            name: row.get::<_, Option<String>>(2)?,
            spec: row.get::<_, Option<String>>(3)?,
            tuning: row.get::<_, Option<String>>(4)?,
            seen: row.get::<_, Option<String>>(5)?,
            readable: row.get(6),
        })
    };
    Ok(Found::Rows { rows: found.iter().filter_map(row).collect(), snapshot })
}

async fn grant(client: &Client) -> Result<String> {
    let user: String = client.query_one("SELECT current_user::text", &[]).await?.get(0);
    let user = quote_ident(&user);
    Ok(format!("GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {} TO {user};", quote_ident(TABLE.0), name()))
}

/// Has the publication send the changes, where it may be changed. Why it does not, if so: they are then noticed by looking.
pub async fn ensure_sent(client: &Client, publication: &str, create: bool) -> Result<Option<String>> {
    let sent = "SELECT puballtables OR EXISTS (SELECT FROM pg_publication_tables t
                        WHERE t.pubname = p.pubname AND t.schemaname = $2 AND t.tablename = $3)
                  FROM pg_publication p WHERE p.pubname = $1";
    match client.query_opt(sent, &[&publication, &TABLE.0, &TABLE.1]).await? {
        Some(row) if row.get(0) => return Ok(None),
        // It is made with the first collection.
        None => return Ok(None),
        Some(_) => {}
    }
    let sql = format!("ALTER PUBLICATION {} ADD TABLE ONLY {}", quote_ident(publication), name());
    let late = |why: &str| Some(format!("{why}: what is registered is noticed by looking only; {sql};"));
    if !create {
        return Ok(late(&format!("publication {} does not have {}", quote_ident(publication), name())));
    }
    match client.batch_execute(&sql).await.map_err(SourceError::from) {
        Ok(()) => {
            tracing::info!(sql, "changing the publication");
            Ok(None)
        }
        Err(SourceError::Sql { code, message }) if !code.starts_with("08") => Ok(late(&format!("{message} ({code})"))),
        Err(other) => Err(other),
    }
}

/// What `sqlpack install` runs: the service may read the table, and its publication has it. What may not be done by who
/// runs it is left; the service says so.
pub fn installing(publication: &str, user: &str) -> String {
    let (publication, user, table) = (quote_literal(publication), quote_literal(user), name());
    format!(
        "\n-- The service reads the table, and hears of changes through its slot.\nDO $pack$\nBEGIN\n  \
         IF EXISTS (SELECT FROM pg_roles WHERE rolname = {user}) THEN\n    \
         EXECUTE format('GRANT USAGE ON SCHEMA ruvector TO %I', {user});\n    \
         EXECUTE format('GRANT SELECT ON {table} TO %I', {user});\n  ELSE\n    \
         RAISE WARNING 'there is no role %: grant the service SELECT on {table}', {user};\n  END IF;\n  \
         IF EXISTS (SELECT FROM pg_publication WHERE pubname = {publication} AND NOT puballtables)\n     \
         AND NOT EXISTS (SELECT FROM pg_publication_tables\n                      \
         WHERE pubname = {publication} AND schemaname = {} AND tablename = {}) THEN\n    \
         EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY {table}', {publication});\n  END IF;\n\
         EXCEPTION WHEN insufficient_privilege THEN\n  \
         RAISE WARNING '%: what is registered is noticed by looking only; its owner has to add {table}', SQLERRM;\nEND $pack$;\n",
        quote_literal(TABLE.0),
        quote_literal(TABLE.1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        let snapshot = Snapshot::parse("10:20:12,15").expect("a snapshot");
        let seen: Vec<_> = (8..23).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        // Past the end of 32 bits, and nothing open.
        let snapshot = Snapshot::parse("4294967300:4294967300:").expect("a snapshot");
        assert!(snapshot.sees(3) && snapshot.sees(u32::MAX) && !snapshot.sees(4));
        assert_eq!(Snapshot::parse("10"), None);
    }
}
