//! The SQL that prepares a source: role, grants, publication. Written for reading first and running second.

use crate::model::{quote_ident, quote_literal};
use crate::source::publication::MADE_BY_US;

/// A password in SQL.
#[derive(Debug, Clone, Copy)]
pub enum Password<'a> {
    /// As it is, to be run.
    Literal(&'a str),
    /// A variable of psql, to be shown: what is pasted without setting it is a syntax error, and changes nothing.
    Variable(&'a str),
}

/// What to prepare for.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// Role of the service.
    pub role: &'a str,
    /// Its password; without one the role gets none.
    pub password: Option<Password<'a>>,
    /// Name of the publication.
    pub publication: &'a str,
    /// Tables as (schema, table).
    pub tables: &'a [(String, String)],
    /// Those of them with row security.
    pub row_security: bool,
    /// On RDS and Aurora the right to replicate is a membership.
    pub rds: bool,
}

/// The statements, in order. Each can be run again.
pub fn statements(setup: &Setup<'_>) -> Vec<String> {
    let role = quote_ident(setup.role);
    let exists = |what: &str, create: &str| {
        format!("DO $ruvector$ BEGIN IF NOT EXISTS ({what}) THEN {create}; END IF; END $ruvector$")
    };
    let tables: Vec<_> =
        setup.tables.iter().map(|(schema, table)| format!("{}.{}", quote_ident(schema), quote_ident(table))).collect();
    let list = tables.join(", ");
    let mut schemas: Vec<_> = setup.tables.iter().map(|(schema, _)| quote_ident(schema)).collect();
    schemas.sort();
    schemas.dedup();
    let publication = quote_ident(setup.publication);
    let mut sql = vec![exists(
        &format!("SELECT FROM pg_roles WHERE rolname = {}", quote_literal(setup.role)),
        &format!("CREATE ROLE {role} LOGIN"),
    )];
    if let Some(password) = setup.password {
        let password = match password {
            Password::Literal(text) => quote_literal(text),
            Password::Variable(name) => format!(":'{name}'"),
        };
        sql.push(format!("ALTER ROLE {role} PASSWORD {password}"));
    }
    sql.push(if setup.rds {
        format!("GRANT rds_replication TO {role}")
    } else {
        format!("ALTER ROLE {role} REPLICATION")
    });
    if setup.row_security {
        sql.push(format!("ALTER ROLE {role} BYPASSRLS"));
    }
    if !tables.is_empty() {
        sql.push(format!("GRANT USAGE ON SCHEMA {} TO {role}", schemas.join(", ")));
        sql.push(format!("GRANT SELECT ON {list} TO {role}"));
    }
    let of_tables = if tables.is_empty() { String::new() } else { format!("FOR TABLE {list} ") };
    sql.push(exists(
        &format!("SELECT FROM pg_publication WHERE pubname = {}", quote_literal(setup.publication)),
        &format!(
            "CREATE PUBLICATION {publication} {of_tables}WITH (publish_via_partition_root = true); \
             COMMENT ON PUBLICATION {publication} IS '{MADE_BY_US}'"
        ),
    ));
    for table in &tables {
        sql.push(exists(
            &format!(
                "SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                 WHERE p.pubname = {} AND r.prrelid = {}::regclass",
                quote_literal(setup.publication),
                quote_literal(table)
            ),
            &format!("ALTER PUBLICATION {publication} ADD TABLE {table}"),
        ));
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_nothing_more_than_needed_is_granted() {
        let tables = [("public".to_owned(), "do\"cs".to_owned()), ("public".to_owned(), "x".to_owned())];
        let setup = Setup {
            role: "r'x",
            password: Some(Password::Literal("p'w")),
            publication: "p",
            tables: &tables,
            row_security: false,
            rds: false,
        };
        let sql = statements(&setup).join(";\n");
        for expected in
            ["'r''x'", "\"r'x\"", "'p''w'", "\"public\".\"do\"\"cs\", \"public\".\"x\"", "ON SCHEMA \"public\" TO"]
        {
            assert!(sql.contains(expected), "{expected} in {sql}");
        }
        let shown = statements(&Setup { password: Some(Password::Variable("pw")), ..setup.clone() }).join(";\n");
        assert!(shown.contains("PASSWORD :'pw'"), "{shown}");
        for never in ["SUPERUSER", "BYPASSRLS", "FOR ALL TABLES", "TO PUBLIC", "rds_replication"] {
            assert!(!sql.contains(never), "{never} in {sql}");
        }
        let later = statements(&Setup { tables: &[], ..setup.clone() }).join(";\n");
        assert!(later.contains("CREATE PUBLICATION \"p\" WITH (") && !later.contains("GRANT "), "{later}");
        let rds = statements(&Setup { rds: true, row_security: true, ..setup }).join(";\n");
        assert!(rds.contains("GRANT rds_replication") && rds.contains("BYPASSRLS"));
    }
}
