//! The publication: what the slot sends. Made for exactly the tables of the collections, never for all tables, never
//! for one whose UPDATEs would then fail.

use crate::model::{CollectionDef, quote_ident};
use crate::source::{Result, SourceError};
use tokio_postgres::Client;

/// A table of a publication: its name, the published columns (`None` is all), whether a row filter applies.
struct Member {
    schema: String,
    table: String,
    columns: Option<Vec<String>>,
    filtered: bool,
}

/// The comment of a publication that this program made.
pub const MADE_BY_US: &str = "made by ruvector";

/// Is there a publication of this name, and did this program make it?
pub async fn is_ours(client: &Client, name: &str) -> Result<Option<bool>> {
    let sql = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = $1";
    let row = client.query_opt(sql, &[&name]).await?;
    Ok(row.map(|row| row.get::<_, Option<String>>(0).as_deref() == Some(MADE_BY_US)))
}

/// A publication without tables, where there is none: a stream needs one before the first collection is registered.
/// With `create` it is made, else it is an error that carries the SQL.
pub async fn begin(client: &Client, name: &str, create: bool) -> Result<()> {
    let there = client.query_opt("SELECT FROM pg_publication WHERE pubname = $1", &[&name]).await?;
    if there.is_none() {
        let publication = quote_ident(name);
        let sql = format!("CREATE PUBLICATION {publication} WITH (publish_via_partition_root = true)");
        make(client, create, &publication, &sql).await?;
    }
    Ok(())
}

/// Makes sure that the publication sends what the collections need. With `create` what is missing is made, else it is
/// an error that carries the SQL. For each collection: true when its table was missing, so that changes made before now
/// were not sent; or why it cannot be followed.
pub async fn ensure(
    client: &Client,
    name: &str,
    collections: &[CollectionDef],
    create: bool,
) -> Result<Vec<Result<bool>>> {
    let publication = quote_ident(name);
    let tables: Vec<_> = collections.iter().map(CollectionDef::from_clause).collect();
    let head = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?;
    let Some(head) = head else {
        if collections.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "CREATE PUBLICATION {publication} FOR TABLE {} WITH (publish_via_partition_root = true)",
            tables.join(", ")
        );
        make(client, create, &publication, &sql).await?;
        return Ok(collections.iter().map(|_| Ok(true)).collect());
    };
    for (at, op) in ["insert", "update", "delete", "truncate"].iter().enumerate() {
        if !head.get::<_, bool>(at) {
            let sql = format!("ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')");
            let refused = || SourceError::refused(format!("publication {publication} does not publish {op}"), &sql);
            return Ok(collections.iter().map(|_| Err(refused())).collect());
        }
    }
    let members = members(client, name).await?;
    let mut ensured = Vec::new();
    for (def, table) in collections.iter().zip(&tables) {
        let member = members.iter().find(|member| member.schema == def.schema && member.table == def.table);
        ensured.push(match member {
            _ if def.partitioned && !head.get::<_, bool>(4) => {
                let problem = format!(
                    "publication {publication} sends the partitions of {} under their own names",
                    def.quoted_table()
                );
                let sql = format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true);");
                Err(SourceError::refused(problem, sql))
            }
            Some(member) => check_member(member, def, &publication).map(|()| false),
            None => {
                let sql = format!("ALTER PUBLICATION {publication} ADD TABLE {table}");
                let problem = format!("publication {publication} does not have table {}", def.quoted_table());
                run(client, create, problem, &sql).await.map(|()| true)
            }
        });
    }
    Ok(ensured)
}

/// What has no event in the stream when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// Since when, and how, the publication has the table. Row versions of the catalog: a table that was taken out and put
    /// back looks the same otherwise.
    pub publication: String,
    /// Where the rows lie, by table or by partition, and which columns bear our names.
    pub table: String,
}

impl Fingerprint {
    /// As it is stored.
    pub fn to_text(&self) -> String {
        format!("{}/{}", self.publication, self.table)
    }
}

/// Takes a table's fingerprint.
pub async fn fingerprint(client: &Client, name: &str, def: &CollectionDef) -> Result<Fingerprint> {
    let namespace = match crate::source::catalog::server_version(client).await? {
        150_000.. => {
            "(SELECT string_agg(concat_ws(' ', n.oid, n.xmin), ',' ORDER BY n.oid) FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)"
        }
        _ => "NULL",
    };
    let sql = format!(
        "SELECT concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin, {namespace}),
                concat_ws(' ', pg_relation_filenode($2::oid),
                (SELECT md5(string_agg(concat_ws(' ', t.relid::oid, i.xmin, pg_relation_filenode(t.relid)), ',' ORDER BY t.relid::oid))
                   FROM pg_partition_tree($2::oid) t LEFT JOIN pg_inherits i ON i.inhrelid = t.relid
                  WHERE t.relid::oid <> $2::oid),
                (SELECT string_agg(a.attnum::text, ',' ORDER BY a.attnum) FROM pg_attribute a
                  WHERE a.attrelid = $2::oid AND a.attname::text = ANY ($3) AND NOT a.attisdropped))
           FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = $2::oid
          WHERE p.pubname = $1"
    );
    let names = def.key.iter().map(|column| &column.name).chain(def.vectors.iter().map(|column| &column.name));
    let names: Vec<_> = names.chain(def.filters.iter().map(|column| &column.name)).collect();
    let row = client.query_opt(&sql, &[&name, &def.oid, &names]).await?;
    Ok(row.map(|row| Fingerprint { publication: row.get(0), table: row.get(1) }).unwrap_or_default())
}

/// Makes it, and says at the same time that it may be dropped later: in one transaction, as all that is sent at once.
async fn make(client: &Client, create: bool, publication: &str, sql: &str) -> Result<()> {
    let sql = match create {
        true => format!("{sql}; COMMENT ON PUBLICATION {publication} IS '{MADE_BY_US}'"),
        false => sql.to_owned(),
    };
    run(client, create, format!("publication {publication} does not exist"), &sql).await
}

async fn run(client: &Client, create: bool, problem: String, sql: &str) -> Result<()> {
    if !create {
        return Err(SourceError::refused(problem, format!("{sql};")));
    }
    tracing::info!(sql, "changing the publication");
    client.batch_execute(sql).await.map_err(|error| match SourceError::from(error) {
        SourceError::Sql { code, message } => SourceError::refused(
            format!("{problem}, and making it failed: {message} ({code})"),
            format!("as a role that owns the tables and the publication and may CREATE in the database: {sql};"),
        ),
        other => other,
    })?;
    crate::failpoint!("publication.changed");
    Ok(())
}

async fn members(client: &Client, name: &str) -> Result<Vec<Member>> {
    let version = crate::source::catalog::server_version(client).await?;
    // Column lists and row filters exist since version 15.
    let extra = if version >= 150_000 { "attnames::text[], rowfilter IS NOT NULL" } else { "NULL::text[], false" };
    let sql =
        format!("SELECT schemaname::text, tablename::text, {extra} FROM pg_publication_tables WHERE pubname = $1");
    let rows = client.query(&sql, &[&name]).await?;
    let member = |row: &tokio_postgres::Row| Member {
        schema: row.get(0),
        table: row.get(1),
        columns: row.get(2),
        filtered: row.get(3),
    };
    Ok(rows.iter().map(member).collect())
}

fn check_member(member: &Member, def: &CollectionDef, publication: &str) -> Result<()> {
    let table = def.quoted_table();
    if member.filtered {
        let problem = format!(
            "publication {publication} has a row filter on {table}: the copy would bring rows that the stream hides"
        );
        return Err(SourceError::refused(
            problem,
            format!(
                "ALTER PUBLICATION {publication} DROP TABLE {table}; ALTER PUBLICATION {publication} ADD TABLE {table};"
            ),
        ));
    }
    let needed = def.key.iter().map(|column| &column.name);
    let needed = needed
        .chain(def.vectors.iter().map(|column| &column.name))
        .chain(def.filters.iter().map(|column| &column.name));
    let Some(published) = &member.columns else { return Ok(()) };
    let missing: Vec<_> = needed.filter(|name| !published.contains(name)).map(|name| quote_ident(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let problem = format!("publication {publication} leaves out {} of {table}", missing.join(", "));
    Err(SourceError::refused(
        problem,
        format!(
            "ALTER PUBLICATION {publication} DROP TABLE {table}; ALTER PUBLICATION {publication} ADD TABLE {table};"
        ),
    ))
}
