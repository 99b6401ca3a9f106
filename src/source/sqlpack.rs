//! The SQL pack: what makes vector search out of postgres_fdw in the source. Written for reading first and running second.

use crate::model::{CollectionDef, ColumnType, VectorColumn, quote_ident, quote_literal};
use crate::source::registrations;

/// The parts that are the same for all: searches first, who may what last.
const BASE: &str = include_str!("../../migrations/0002_sql.sql");
const REGISTRATIONS: &str = include_str!("../../migrations/0003_registrations.sql");
const OPERATORS: &str = include_str!("../../migrations/0004_operators.sql");
const RIGHTS: &str = include_str!("../../migrations/0005_rights.sql");

/// Has the pack a relation of this name, or functions that would be taken for those of a collection of this name?
fn is_ours(name: &str) -> bool {
    let made = [BASE, REGISTRATIONS].into_iter().flat_map(str::lines);
    let made = made.filter_map(|line| {
        let words = line.split_once(" ruvector.").filter(|(before, _)| before.starts_with("CREATE "));
        words.filter(|(before, _)| ["TABLE", "EXISTS", "VIEW"].iter().any(|end| before.ends_with(end)))
    });
    let mut made = made.filter_map(|(_, rest)| rest.split([' ', '(']).next());
    name == "ruvector" || made.any(|made| made == name) || ["registrations_table", "registrations_pkey"].contains(&name)
}

/// As it can stand in a comment, which any kind of line's end ends.
fn in_comment(name: &str) -> String {
    name.replace(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}', " ")
}

/// A tag of dollar quotes that does not occur in what they are around.
fn tag(inside: &[&str]) -> String {
    let mut tag = "$pack$".to_owned();
    while inside.iter().any(|text| text.contains(&tag)) {
        tag.insert(1, '_');
    }
    tag
}

/// Takes out what an earlier pack made for collections that are no more. What others built on it keeps it there.
fn gone(collections: &[CollectionDef]) -> String {
    let names: Vec<_> = collections.iter().map(|def| quote_literal(&def.name)).collect();
    let tag = tag(&names.iter().map(String::as_str).collect::<Vec<_>>());
    format!(
        "\n-- What is there of collections that are no more.\nDO {tag}\nDECLARE\n  found record;\nBEGIN\n  \
         FOR found IN SELECT c.relname FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid\n     \
         JOIN pg_foreign_server s ON s.oid = f.ftserver AND s.srvname = 'ruvector'\n    \
         WHERE c.relnamespace = 'ruvector'::regnamespace AND 'schema_name=collections' = ANY (f.ftoptions)\n      \
         AND c.relname <> ALL (ARRAY[{}]::text[]) LOOP\n    \
         BEGIN\n      EXECUTE format('DROP FUNCTION IF EXISTS ruvector.%I, ruvector.%I', found.relname || '_search', found.relname || '_nearest');\n      \
         EXECUTE format('DROP FOREIGN TABLE ruvector.%I', found.relname);\n    \
         EXCEPTION WHEN dependent_objects_still_exist OR ambiguous_function THEN\n      \
         RAISE WARNING 'ruvector.% stays: %', found.relname, SQLERRM;\n    END;\n  END LOOP;\nEND {tag};\n",
        names.join(", ")
    )
}

/// What the pack is made for.
#[derive(Debug, Clone)]
pub struct Pack<'a> {
    /// Where the service listens for SQL, as the source sees it.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// How the source connects.
    pub sslmode: &'a str,
    /// As whom.
    pub user: &'a str,
    /// Schema of pgvector's types, where they are.
    pub vector_schema: Option<&'a str>,
    /// The service's publication.
    pub publication: &'a str,
    /// As whom the service reads the source.
    pub service_user: &'a str,
    /// Roles that may search.
    pub grantees: &'a [String],
}

impl Pack<'_> {
    /// The statements: one transaction, which can be run again.
    pub fn install(&self, collections: &[CollectionDef]) -> String {
        let mut sql = BASE
            .replace("@host@", &quote_literal(self.host))
            .replace("@port@", &quote_literal(&self.port.to_string()))
            .replace("@sslmode@", &quote_literal(self.sslmode))
            .replace("@sql_user@", &quote_literal(self.user));
        sql.push_str(REGISTRATIONS);
        sql.push_str(OPERATORS);
        sql.push_str(&gone(collections));
        collections.iter().for_each(|def| sql.push_str(&self.collection(def)));
        // Rights are taken away, and given at the end of all.
        sql.push_str(RIGHTS);
        sql.push_str(&registrations::installing(self.publication, self.service_user));
        for role in self.grantees {
            let role = quote_ident(role);
            sql.push_str(&format!(
                "GRANT USAGE ON SCHEMA ruvector TO {role};\nGRANT SELECT ON ALL TABLES IN SCHEMA ruvector TO {role};\n\
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ruvector TO {role};\n"
            ));
        }
        sql.push_str("COMMIT;\n");
        sql
    }

    /// A typed foreign table, and the functions over it.
    fn collection(&self, def: &CollectionDef) -> String {
        let name = &def.name;
        if is_ours(name) {
            let name = in_comment(name);
            return format!("\n-- Collection {name}: no table and no functions, the pack has one of that name.\n");
        }
        let table = format!("ruvector.{}", quote_ident(name));
        let columns = self.columns(def);
        let listed: Vec<_> = columns.iter().map(|(name, kind)| format!("{} {kind}", quote_ident(name))).collect();
        let listed = listed.join(", ");
        let shape = quote_literal(&listed);
        let options = format!(
            "schema_name 'collections', table_name {}, fetch_size '100', use_remote_estimate 'true'",
            quote_literal(name)
        );
        let block = tag(&[&shape, &table]);
        let mut sql = format!(
            "\n-- Collection {}: {}. The comment tells whether it is still the same.\n\
             DO {block}\nBEGIN\n  \
             IF to_regclass({}) IS NOT NULL AND obj_description(to_regclass({}), 'pg_class') IS DISTINCT FROM {shape} THEN\n    \
             EXECUTE 'DROP FOREIGN TABLE ' || {} || ' CASCADE';\n  END IF;\nEND {block};\n\
             CREATE FOREIGN TABLE IF NOT EXISTS {table} ({listed})\n  SERVER ruvector OPTIONS ({options});\n\
             COMMENT ON FOREIGN TABLE {table} IS {shape};\n",
            in_comment(name),
            in_comment(&def.quoted_table()),
            quote_literal(&table),
            quote_literal(&table),
            quote_literal(&table),
        );
        // The functions take arrays of numbers.
        if def.vectors[0].kind.is_bits() || def.vectors[0].kind == ColumnType::Sparsevec {
            return sql;
        }
        let ours = ["distance", "row", "query", "k", "condition", "options", "min_lsn"];
        if def.key.iter().any(|key| ours.contains(&key.name.as_str())) {
            sql.push_str("-- No functions: a key column has the name of one of their arguments.\n");
            return sql;
        }
        let key = |what: &dyn Fn(&str, ColumnType) -> String| {
            let each: Vec<_> = def.key.iter().map(|key| what(&quote_ident(&key.name), key.kind)).collect();
            each.join(", ")
        };
        let typed = key(&|name, kind| format!("{name} {kind}"));
        // The foreign table sorts as the service does; what is joined compares as the table does.
        let shown = key(&|name, kind| match kind {
            ColumnType::Text | ColumnType::Varchar => format!("s.{name} COLLATE \"default\""),
            _ => format!("s.{name}"),
        });
        let joined: Vec<_> = def.key.iter().map(|key| format!("t.{0} = s.{0}", quote_ident(&key.name))).collect();
        let joined = joined.join(" AND ");
        let (nearest, search) = (quote_ident(&format!("{name}_nearest")), quote_ident(&format!("{name}_search")));
        sql.push_str(&format!(
            "-- Keys nearest first, without an end: join, filter, ORDER BY distance LIMIT, and exactly so many rows are left.\n\
             CREATE OR REPLACE FUNCTION ruvector.{nearest}(query double precision[], condition text DEFAULT NULL, \
             options jsonb DEFAULT NULL, min_lsn pg_lsn DEFAULT NULL)\n\
             RETURNS TABLE ({typed}, distance double precision) LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 1000\n\
             BEGIN ATOMIC\n  SELECT {shown}, s._distance FROM {table} s\n   WHERE s._query = (SELECT $1::real[])\n     \
             AND s._filter = (SELECT coalesce($2, ''))\n     \
             AND s._options = (SELECT ruvector.search_options($3, 'none', NULL, NULL, $4))\n   \
             ORDER BY s._distance OFFSET 0;\nEND;\n\
             -- The k nearest rows that the caller may see: his snapshot, his row security. The settings keep the join lazy.\n\
             CREATE OR REPLACE FUNCTION ruvector.{search}(query double precision[], k integer DEFAULT 10, \
             condition text DEFAULT NULL, options jsonb DEFAULT NULL, min_lsn pg_lsn DEFAULT NULL)\n\
             RETURNS TABLE (\"row\" {rows}, distance double precision) LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10\n\
             SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off AS {body}\n  \
             SELECT t, s.distance FROM ruvector.{nearest}($1, $3, $4, $5) s JOIN {from} t ON {joined}\n   \
             ORDER BY s.distance LIMIT coalesce($2, 10)\n{body};\n",
            body = tag(&[&nearest, &def.from_clause(), &joined]),
            rows = def.quoted_table(),
            from = def.from_clause(),
        ));
        sql
    }

    fn columns(&self, def: &CollectionDef) -> Vec<(String, String)> {
        let mut columns: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, kind: String| {
            if columns.iter().all(|(other, _)| other != name) {
                columns.push((name.to_owned(), kind));
            }
        };
        let plain = |kind: ColumnType| match kind {
            // As the service sorts.
            ColumnType::Text | ColumnType::Varchar => format!("{kind} COLLATE \"C\""),
            kind => kind.sql_name().to_owned(),
        };
        def.key.iter().for_each(|key| add(&key.name, plain(key.kind)));
        def.filters.iter().for_each(|filter| add(&filter.name, plain(filter.kind)));
        def.vectors.iter().for_each(|vector| add(&vector.name, self.vector_type(vector)));
        for (name, kind) in
            [("_distance", "double precision"), ("_query", "real[]"), ("_filter", "text"), ("_options", "jsonb")]
        {
            add(name, kind.to_owned());
        }
        columns
    }

    fn vector_type(&self, vector: &VectorColumn) -> String {
        let dimensions = vector.dimensions.map_or(String::new(), |dimensions| format!("({dimensions})"));
        match (vector.kind, self.vector_schema) {
            (ColumnType::Vector | ColumnType::Halfvec | ColumnType::Sparsevec, Some(schema)) => {
                format!("{}.{}{dimensions}", quote_ident(schema), vector.kind)
            }
            (ColumnType::Bit, _) if vector.dimensions.is_none() => ColumnType::Varbit.sql_name().to_owned(),
            (ColumnType::Bit, _) => format!("bit{dimensions}"),
            (kind, _) => kind.sql_name().to_owned(),
        }
    }
}

/// Takes all of it back. What others built on it goes with it, which is why it is shown before it is run.
pub fn uninstall() -> String {
    "BEGIN;\nSET LOCAL lock_timeout = '10s';\nDROP SERVER IF EXISTS ruvector CASCADE;\nDROP SCHEMA IF EXISTS ruvector CASCADE;\n\
     -- Roles that it made, where no other database has use for them.\nDO $pack$\nDECLARE\n  found text;\nBEGIN\n  \
     FOR found IN SELECT rolname FROM pg_roles WHERE rolname IN ('ruvector_admin', 'ruvector_operator', 'ruvector_user')\n     \
     AND shobj_description(oid, 'pg_authid') = 'made by ruvector' LOOP\n    \
     BEGIN\n      EXECUTE format('DROP ROLE %I', found);\n    \
     EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege OR undefined_object THEN\n      \
     RAISE NOTICE 'the role % stays: %', found, SQLERRM;\n    END;\n  END LOOP;\nEND $pack$;\nCOMMIT;\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CollectionId, KeyColumn, Metric};

    #[test]
    fn the_packs_own_names_are_no_collections() {
        for name in ["search_table", "registrations", "consistency_status", "tier_list", "ruvector"] {
            assert!(is_ours(name), "{name}");
        }
        assert!(!is_ours("docs") && !is_ours("ruvector_search"));
    }

    #[test]
    fn no_name_ends_a_comment_or_a_body() {
        assert_eq!(in_comment("x\rALTER ROLE a SUPERUSER;\n--"), "x ALTER ROLE a SUPERUSER; --");
        assert_eq!(tag(&["plain"]), "$pack$");
        assert_eq!(tag(&["a $pack$ b", "$_pack$"]), "$__pack$");
    }

    #[test]
    fn names_and_secrets_are_quoted() {
        let column = VectorColumn {
            name: "e".into(),
            kind: ColumnType::Vector,
            metric: Metric::L2,
            dimensions: Some(3),
            m: 16,
            ef_construction: 200,
            encoding: Default::default(),
            index: Default::default(),
            lists: None,
        };
        let def = CollectionDef {
            id: CollectionId(0),
            name: "a\"b'c".into(),
            schema: "s".into(),
            table: "T t".into(),
            oid: 1,
            partitioned: false,
            key: vec![KeyColumn { name: "code".into(), kind: ColumnType::Text }],
            vectors: vec![column],
            filters: vec![],
        };
        let pack = Pack {
            host: "h",
            port: 5480,
            sslmode: "require",
            user: "it's",
            vector_schema: Some("ext"),
            publication: "it's",
            service_user: "reader",
            grantees: &["Some One".to_owned()],
        };
        let sql = pack.install(&[def]);
        for wanted in [
            "'it''s'",
            "CREATE FOREIGN TABLE IF NOT EXISTS ruvector.\"a\"\"b'c\"",
            "table_name 'a\"b''c'",
            "\"e\" \"ext\".vector(3)",
            "\"code\" text COLLATE \"C\"",
            "JOIN ONLY \"s\".\"T t\" t ON t.\"code\" = s.\"code\"",
            "TO \"Some One\";",
        ] {
            assert!(sql.contains(wanted), "{wanted} in\n{sql}");
        }
        assert!(!sql.contains("@host@") && sql.ends_with("COMMIT;\n"), "{sql}");
    }
}
