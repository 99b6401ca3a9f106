//! The tables of Postgres' own catalog as they would be, had the endpoint one: what exists here, in its columns.

use crate::model::ColumnType;
use crate::query::Pinned;
use crate::server::pg::User;
use crate::server::pg::catalog::tables;
use crate::server::pg::catalog::value::{Datum, Rows};
use crate::server::pg::tables::{COLLECTIONS, SCHEMA, Table};
use crate::server::pg::types;

/// What has numbers of its own.
const OWNER: i64 = 10;
const PG_CATALOG: i64 = 11;
const OF_SCHEMA: i64 = 16_384;
const OF_COLLECTIONS: i64 = 16_385;
const FIRST_TABLE: i64 = 16_400;
const FIRST_COLLECTION: i64 = 20_000;

/// Tables that exist and have no rows, because nothing of their kind exists here. Whatever column of them is asked for
/// is no value of any row.
const EMPTY: &str = "pg_aggregate pg_amop pg_amproc pg_attrdef pg_auth_members pg_cast pg_constraint pg_conversion \
    pg_cursors pg_db_role_setting pg_default_acl pg_depend pg_description pg_enum pg_event_trigger pg_extension \
    pg_foreign_data_wrapper pg_foreign_server pg_foreign_table pg_index pg_indexes pg_inherits pg_init_privs pg_language \
    pg_locks pg_matviews pg_opclass pg_operator pg_opfamily pg_partitioned_table pg_policies pg_policy \
    pg_prepared_statements pg_prepared_xacts pg_proc pg_publication pg_publication_namespace pg_publication_rel pg_range \
    pg_replication_slots pg_rewrite pg_rules pg_seclabel pg_sequence pg_sequences pg_shdepend pg_shdescription \
    pg_shseclabel pg_stat_activity pg_stat_gssapi pg_stat_ssl pg_stat_user_tables pg_statio_user_tables pg_statistic \
    pg_statistic_ext pg_stats pg_subscription pg_transform pg_trigger pg_ts_config pg_ts_dict pg_ts_parser pg_ts_template \
    pg_user_mapping pg_user_mappings pg_views";

/// The same of `information_schema`.
const EMPTY_INFORMATION: &str = "key_column_usage table_constraints referential_constraints constraint_column_usage views \
    routines parameters sequences triggers check_constraints element_types column_privileges table_privileges";

const PG_NAMESPACE: &str = "oid:o nspname:n nspowner:o=10 nspacl:T?";
const PG_CLASS: &str = "oid:o relname:n relnamespace:o reltype:o=0 reloftype:o=0 relowner:o=10 relam:o=2 relfilenode:o=0 \
    reltablespace:o=0 relpages:i=0 reltuples:f=-1 relallvisible:i=0 reltoastrelid:o=0 relhasindex:b=f relisshared:b=f \
    relpersistence:c=p relkind:c=r relnatts:s relchecks:s=0 relhasrules:b=f relhastriggers:b=f relhassubclass:b=f \
    relrowsecurity:b=f relforcerowsecurity:b=f relispopulated:b=t relreplident:c=d relispartition:b=f relrewrite:o=0 \
    relfrozenxid:i=0 relminmxid:i=0 relacl:T? reloptions:T? relpartbound:t? xmin:i=1 tableoid:o=1259";
const PG_ATTRIBUTE: &str = "attrelid:o attname:n atttypid:o attlen:s attnum:s attcacheoff:i=-1 atttypmod:i=-1 attndims:s=0 \
    attbyval:b=f attalign:c=i attstorage:c=p attcompression:c= attnotnull:b=f atthasdef:b=f atthasmissing:b=f \
    attidentity:c= attgenerated:c= attisdropped:b=f attislocal:b=t attinhcount:s=0 attstattarget:s=-1 attcollation:o=0 \
    attacl:T? attoptions:T? attfdwoptions:T? attmissingval:T?";
const PG_TYPE: &str = "oid:o typname:n typnamespace:o=11 typowner:o=10 typlen:s typbyval:b=f typtype:c=b typcategory:c \
    typispreferred:b=f typisdefined:b=t typdelim:c=, typrelid:o=0 typsubscript:t? typelem:o=0 typarray:o=0 typalign:c=i \
    typstorage:c=p typnotnull:b=f typbasetype:o=0 typtypmod:i=-1 typndims:i=0 typcollation:o=0 typdefault:t? typacl:T? \
    typinput:t";
const PG_DATABASE: &str = "oid:o=16383 datname:n=ruvector datdba:o=10 encoding:i=6 datlocprovider:c=c datistemplate:b=f \
    datallowconn:b=t datconnlimit:i=-1 datfrozenxid:i=0 datminmxid:i=0 dattablespace:o=1663 datcollate:t=C.UTF-8 \
    datctype:t=C.UTF-8 daticulocale:t? daticurules:t? datcollversion:t? datacl:T?";
const PG_ROLES: &str = "oid:o rolname:n rolsuper:b=f rolinherit:b=t rolcreaterole:b=f rolcreatedb:b=f rolcanlogin:b=t \
    rolreplication:b=f rolconnlimit:i=-1 rolpassword:t? rolvaliduntil:t? rolbypassrls:b=f rolconfig:T?";
const PG_USER: &str =
    "usesysid:o usename:n usecreatedb:b=f usesuper:b=f userepl:b=f usebypassrls:b=f passwd:t? valuntil:t? useconfig:T?";
const PG_AM: &str = "oid:o=2 amname:n=ruvector amhandler:t=- amtype:c=t";
const PG_TABLESPACE: &str = "oid:o=1663 spcname:n=pg_default spcowner:o=10 spcacl:T? spcoptions:T?";
const PG_COLLATION: &str = "oid:o=950 collname:n=C collnamespace:o=11 collowner:o=10 collprovider:c=c collisdeterministic:b=t \
    collencoding:i=-1 collcollate:t=C collctype:t=C colliculocale:t? collicurules:t? collversion:t?";
const PG_TABLES: &str = "schemaname:n tablename:n tableowner:n=ruvector tablespace:n? hasindexes:b=f hasrules:b=f \
    hastriggers:b=f rowsecurity:b=f";
const INFORMATION_SCHEMATA: &str = "catalog_name:n=ruvector schema_name:n schema_owner:n=ruvector";
const INFORMATION_TABLES: &str = "table_catalog:n=ruvector table_schema:n table_name:n table_type:t=BASE~TABLE \
    is_insertable_into:t=NO is_typed:t=NO";
const INFORMATION_COLUMNS: &str = "table_catalog:n=ruvector table_schema:n table_name:n column_name:n ordinal_position:i \
    column_default:t? is_nullable:t=YES data_type:t character_maximum_length:i? numeric_precision:i? numeric_scale:i? \
    datetime_precision:i? udt_schema:n=pg_catalog udt_name:n is_identity:t=NO is_generated:t=NEVER is_updatable:t=NO";

/// Types that columns and parameters can have: OID, name, length, category, element, array.
const TYPES: [(u32, &str, i64, &str, u32, u32); 36] = [
    (16, "bool", 1, "B", 0, 1000),
    (17, "bytea", -1, "U", 0, 1001),
    (18, "char", 1, "Z", 0, 1002),
    (19, "name", 64, "S", 18, 1003),
    (20, "int8", 8, "N", 0, 1016),
    (21, "int2", 2, "N", 0, 1005),
    (23, "int4", 4, "N", 0, 1007),
    (25, "text", -1, "S", 0, 1009),
    (26, "oid", 4, "N", 0, 1028),
    (114, "json", -1, "U", 0, 199),
    (700, "float4", 4, "N", 0, 1021),
    (701, "float8", 8, "N", 0, 1022),
    (1042, "bpchar", -1, "S", 0, 1014),
    (1043, "varchar", -1, "S", 0, 1015),
    (1082, "date", 4, "D", 0, 1182),
    (1114, "timestamp", 8, "D", 0, 1115),
    (1184, "timestamptz", 8, "D", 0, 1185),
    (1560, "bit", -1, "V", 0, 1561),
    (1562, "varbit", -1, "V", 0, 1563),
    (1700, "numeric", -1, "N", 0, 1231),
    (2950, "uuid", 16, "U", 0, 2951),
    (3220, "pg_lsn", 8, "U", 0, 3221),
    (3802, "jsonb", -1, "U", 0, 3807),
    (1000, "_bool", -1, "A", 16, 0),
    (1003, "_name", -1, "A", 19, 0),
    (1005, "_int2", -1, "A", 21, 0),
    (1007, "_int4", -1, "A", 23, 0),
    (1009, "_text", -1, "A", 25, 0),
    (1015, "_varchar", -1, "A", 1043, 0),
    (1016, "_int8", -1, "A", 20, 0),
    (1021, "_float4", -1, "A", 700, 0),
    (1022, "_float8", -1, "A", 701, 0),
    (1028, "_oid", -1, "A", 26, 0),
    (1182, "_date", -1, "A", 1082, 0),
    (1185, "_timestamptz", -1, "A", 1184, 0),
    (2951, "_uuid", -1, "A", 2950, 0),
];

/// A type's row: OID, name, length, category, element, array.
pub fn type_of(oid: i64) -> Option<(u32, &'static str, i64, &'static str, u32, u32)> {
    TYPES.into_iter().find(|(other, ..)| i64::from(*other) == oid)
}

/// The OID of a type by its name in the catalog or in SQL.
pub fn type_named(name: &str) -> Option<i64> {
    let plain = name.trim().trim_start_matches("pg_catalog.").trim_matches('"');
    let found = TYPES.iter().find(|(_, other, ..)| *other == plain).map(|(oid, ..)| *oid);
    found.or_else(|| types::by_name(plain)).map(i64::from)
}

/// A type as `format_type` writes it.
pub fn type_shown(oid: i64) -> String {
    let plain = |oid: u32, name: &str| match ColumnType::from_builtin_oid(oid) {
        Some(kind) => kind.sql_name().to_owned(),
        None => name.to_owned(),
    };
    match type_of(oid) {
        Some((_, _, _, "A", element, _)) => format!("{}[]", type_shown(i64::from(element))),
        Some((18, ..)) => "\"char\"".to_owned(),
        Some((1042, ..)) => "character".to_owned(),
        Some((oid, name, ..)) => plain(oid, name),
        None => "???".to_owned(),
    }
}

/// What exists for somebody.
pub struct World<'a> {
    /// The collections; none while no data is loaded.
    pub view: Option<&'a Pinned>,
    /// Who asks.
    pub user: &'a User,
}

/// A table that exists: its number, schema, name.
pub struct Relation {
    /// Its number, the same for as long as it exists.
    pub oid: i64,
    /// Its schema.
    pub schema: &'static str,
    /// Its name.
    pub name: String,
}

impl World<'_> {
    /// All tables that the user may see.
    pub fn relations(&self) -> Vec<Relation> {
        let number = |schema: &str, name: &str| match schema {
            SCHEMA => FIRST_TABLE + Table::FIXED.iter().position(|fixed| *fixed == name).unwrap_or(0) as i64,
            _ => {
                FIRST_COLLECTION
                    + self.view.and_then(|view| view.definition(name).ok()).map_or(0, |def| i64::from(def.id.0))
            }
        };
        let found = tables(self.view, self.user).into_iter();
        found.map(|(schema, name)| Relation { oid: number(schema, &name), schema, name }).collect()
    }

    fn columns(&self, relation: &Relation) -> Vec<crate::server::pg::tables::Column> {
        let name = [relation.schema.to_owned(), relation.name.clone()];
        Table::find(&name, self.view, self.user).map_or_else(|_| Vec::new(), |table| table.columns())
    }

    /// A table of the catalog by schema and name; none: there is no such table.
    pub fn table(&self, schema: Option<&str>, name: &str) -> Option<Rows> {
        match schema {
            Some("information_schema") => return self.information(name),
            None | Some("pg_catalog") => {}
            Some(_) => return None,
        }
        let one = |spec: &str| Rows::new(spec, vec![vec![]]);
        Some(match name {
            "pg_namespace" => self.namespaces(),
            "pg_class" => self.classes(),
            "pg_attribute" => self.attributes(),
            "pg_type" => all_types(),
            "pg_database" => one(PG_DATABASE),
            "pg_roles" | "pg_authid" => {
                let role = |oid, name: &str| vec![("oid", Datum::Int(oid)), ("rolname", name.into())];
                Rows::new(PG_ROLES, vec![role(OWNER, "ruvector"), role(OWNER + 1, &self.user.name)])
            }
            "pg_user" => {
                let user = vec![("usesysid", Datum::Int(OWNER + 1)), ("usename", self.user.name.as_str().into())];
                Rows::new(PG_USER, vec![user])
            }
            "pg_am" => one(PG_AM),
            "pg_tablespace" => one(PG_TABLESPACE),
            "pg_collation" => one(PG_COLLATION),
            "pg_tables" => {
                let row = |found: Relation| vec![("schemaname", found.schema.into()), ("tablename", found.name.into())];
                Rows::new(PG_TABLES, self.relations().into_iter().map(row).collect())
            }
            name if EMPTY.split_ascii_whitespace().any(|empty| empty == name) => Rows::empty(),
            _ => return None,
        })
    }

    fn namespaces(&self) -> Rows {
        let schemas = [
            (PG_CATALOG, "pg_catalog"),
            (12, "information_schema"),
            (OF_SCHEMA, SCHEMA),
            (OF_COLLECTIONS, COLLECTIONS),
        ];
        let row = |(oid, name): (i64, &str)| vec![("oid", Datum::Int(oid)), ("nspname", name.into())];
        Rows::new(PG_NAMESPACE, schemas.into_iter().map(row).collect())
    }

    fn classes(&self) -> Rows {
        let rows = self.relations().into_iter().map(|relation| {
            let columns = self.columns(&relation).len();
            let namespace = if relation.schema == SCHEMA { OF_SCHEMA } else { OF_COLLECTIONS };
            let live = self.view.and_then(|view| view.count(&relation.name, 0, None).ok());
            let live = live.filter(|_| relation.schema == COLLECTIONS && self.user.may_count());
            vec![
                ("oid", Datum::Int(relation.oid)),
                ("relname", relation.name.into()),
                ("relnamespace", Datum::Int(namespace)),
                ("relnatts", Datum::Int(columns as i64)),
                ("reltuples", Datum::Float(live.map_or(-1.0, |(live, _)| live as f64))),
            ]
        });
        Rows::new(PG_CLASS, rows.collect())
    }

    fn attributes(&self) -> Rows {
        let mut rows = Vec::new();
        for relation in self.relations() {
            for (at, column) in self.columns(&relation).into_iter().enumerate() {
                let (oid, size) = column.form.shown(column.kind);
                rows.push(vec![
                    ("attrelid", Datum::Int(relation.oid)),
                    ("attname", column.name.into()),
                    ("atttypid", Datum::Int(oid.into())),
                    ("attlen", Datum::Int(size.into())),
                    ("attnum", Datum::Int(at as i64 + 1)),
                ]);
            }
        }
        Rows::new(PG_ATTRIBUTE, rows)
    }

    fn information(&self, name: &str) -> Option<Rows> {
        let named = |relation: &Relation| {
            vec![("table_schema", relation.schema.into()), ("table_name", relation.name.as_str().into())]
        };
        Some(match name {
            "schemata" => {
                let rows = [SCHEMA, COLLECTIONS].map(|name| vec![("schema_name", name.into())]);
                Rows::new(INFORMATION_SCHEMATA, rows.into())
            }
            "tables" => Rows::new(INFORMATION_TABLES, self.relations().iter().map(named).collect()),
            "columns" => {
                let mut rows = Vec::new();
                for relation in self.relations() {
                    for (at, column) in self.columns(&relation).into_iter().enumerate() {
                        let oid = i64::from(column.form.shown(column.kind).0);
                        let mut row = named(&relation);
                        row.push(("column_name", column.name.into()));
                        row.push(("ordinal_position", Datum::Int(at as i64 + 1)));
                        let shown = type_shown(oid);
                        row.push(("data_type", if shown.ends_with("[]") { "ARRAY".into() } else { shown.into() }));
                        row.push(("udt_name", type_of(oid).map_or("text", |(_, name, ..)| name).into()));
                        rows.push(row);
                    }
                }
                Rows::new(INFORMATION_COLUMNS, rows)
            }
            name if EMPTY_INFORMATION.split_ascii_whitespace().any(|empty| empty == name) => Rows::empty(),
            _ => return None,
        })
    }
}

fn all_types() -> Rows {
    let row = |(oid, name, size, category, element, array): (u32, &str, i64, &str, u32, u32)| {
        vec![
            ("oid", Datum::Int(oid.into())),
            ("typname", name.into()),
            ("typlen", Datum::Int(size)),
            ("typcategory", category.into()),
            ("typelem", Datum::Int(element.into())),
            ("typarray", Datum::Int(array.into())),
            ("typinput", Datum::Text(if category == "A" { "array_in".into() } else { format!("{name}in") })),
        ]
    };
    Rows::new(PG_TYPE, TYPES.into_iter().map(row).collect())
}
