//! What clients ask of Postgres' own catalog. What postgres_fdw asks for IMPORT FOREIGN SCHEMA and ANALYZE, and asyncpg of types,
//! is recognised by its text: it comes from programs, which always write the same. Any other query over the catalog is run
//! (`lookup.rs`, `from.rs`, `eval.rs`, `calls.rs`, `pattern.rs`) over tables made of what exists here (`relations.rs`, `value.rs`).

mod calls;
mod eval;
mod from;
mod lookup;
mod pattern;
mod relations;
mod value;
mod window;

use crate::consistency::blocking;
use crate::model::{ColumnType, Value};
use crate::query::Pinned;
use crate::server::pg::User;
use crate::server::pg::catalog::lookup::Lookup;
use crate::server::pg::catalog::relations::World;
use crate::server::pg::catalog::value::{Datum, Rows};
use crate::server::pg::condition::{self, Params};
use crate::server::pg::rows::Row;
use crate::server::pg::select::Output;
use crate::server::pg::session::Limits;
use crate::server::pg::tables::{COLLECTIONS, Column, SCHEMA, Table};
use crate::server::pg::types::{Form, Param};
use crate::server::problem::Problem;
use sqlparser::ast::{Query, SetExpr, TableFactor};

const IMPORT: &str = "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull,";
const SCHEMAS: &str = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ";
const SIZE: &str = "SELECT pg_catalog.pg_relation_size(";
const TUPLES: &str = "SELECT reltuples, relkind FROM pg_catalog.pg_class WHERE oid = ";
/// psycopg 3 looks for types of extensions by their names. There are none here.
const TYPES: &str = "SELECT typname AS name, oid, typarray AS array_oid, oid::regtype::text AS regtype,";
/// asyncpg asks for a type and all that it is made of.
const TREE: &str = "WITH RECURSIVE typeinfo_tree(";

/// A text with single blanks.
fn plain(sql: &str) -> String {
    sql.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Is it one of those that are answered here?
pub fn answers(sql: &str) -> bool {
    let begin: String = sql.chars().take(200).collect();
    let begin = plain(&begin);
    [IMPORT, SCHEMAS, SIZE, TUPLES, TYPES, TREE].iter().any(|known| begin.starts_with(known))
}

/// An answer: columns and rows.
pub struct Found {
    /// Its columns.
    pub outputs: Vec<Output>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// The table that is going to be analysed, if that is what this prepares.
    pub analysed: Option<String>,
}

/// Is it a query over the catalog: is one of its tables there?
pub fn is_asked(query: &Query) -> bool {
    fn of_body(body: &SetExpr) -> bool {
        match body {
            SetExpr::Select(select) => select
                .from
                .iter()
                .any(|one| of_factor(&one.relation) || one.joins.iter().any(|join| of_factor(&join.relation))),
            SetExpr::Query(query) => is_asked(query),
            SetExpr::SetOperation { left, right, .. } => of_body(left) || of_body(right),
            _ => false,
        }
    }
    fn of_factor(factor: &TableFactor) -> bool {
        match factor {
            TableFactor::Table { name, .. } => {
                let pieces = condition::pieces(name);
                match &pieces[..] {
                    [name] => name.starts_with("pg_"),
                    [schema, ..] => schema == "pg_catalog" || schema == "information_schema",
                    [] => false,
                }
            }
            TableFactor::Derived { subquery, .. } => is_asked(subquery),
            _ => false,
        }
    }
    let named = query.with.iter().flat_map(|with| &with.cte_tables);
    of_body(&query.body) || named.into_iter().any(|named| is_asked(&named.query))
}

/// The answer to a query over the catalog.
pub fn lookup(
    query: &Query,
    params: Params<'_>,
    view: Option<&Pinned>,
    user: &User,
    limits: Option<&Limits>,
) -> Result<Found, Problem> {
    blocking(|| {
        let found = Lookup::new(World { view, user }, params).within(limits).query(query, None)?;
        let outputs = found.columns.iter().map(|(name, kind)| kind.output(name)).collect();
        let row = |row: &Vec<value::Datum>| {
            found.columns.iter().zip(row).map(|((_, kind), value)| kind.value(value)).collect::<Row>()
        };
        Ok(Found { outputs, rows: found.rows.iter().map(row).collect(), analysed: None })
    })
}

/// The types asked for, those of their elements first.
fn tree(params: &[Param]) -> Result<Found, Problem> {
    let names = "oid:o ns:n name:n kind:c=b basetype:o elemtype:o elemdelim:c=, range_subtype:o attrtypoids:O attrnames:T depth:i \
                 basetype_name elemtype_name range_subtype_name";
    let wanted = params.first().map(Param::items).transpose()?.flatten().unwrap_or_default();
    let mut rows = Vec::new();
    for oid in wanted.iter().filter_map(|item| item.as_i64().or_else(|| item.as_str()?.parse().ok())) {
        let Some((_, name, _, _, element, _)) = relations::type_of(oid) else { continue };
        let row = |oid: i64, name: &str, depth: i64| {
            vec![
                ("oid", Datum::Int(oid)),
                ("ns", "pg_catalog".into()),
                ("name", name.into()),
                ("depth", Datum::Int(depth)),
            ]
        };
        let mut outer = row(oid, name, 0);
        if let Some((element, name, ..)) = relations::type_of(element.into()) {
            outer.push(("elemtype", Datum::Int(element.into())));
            outer.push(("elemtype_name", relations::type_shown(element.into()).into()));
            rows.insert(0, row(element.into(), name, 1));
        }
        rows.push(outer);
    }
    let found = Rows::new(names, rows);
    let outputs = found.columns.iter().map(|(name, kind)| kind.output(name)).collect();
    let row = |row: &Vec<Datum>| found.columns.iter().zip(row).map(|((_, kind), value)| kind.value(value)).collect();
    Ok(Found { outputs, rows: found.rows.iter().map(row).collect(), analysed: None })
}

/// The answer to one of them.
pub fn answer(sql: &str, params: &[Param], view: Option<&Pinned>, user: &User) -> Result<Found, Problem> {
    let sql = plain(sql);
    let literals = literals(&sql);
    let first = literals.first().cloned().unwrap_or_default();
    let found = |outputs: &[(&str, ColumnType)], rows| Found {
        outputs: outputs.iter().map(|(name, kind)| Output::constant(name, *kind, None)).collect(),
        rows,
        analysed: None,
    };
    if sql.starts_with(SCHEMAS) {
        let known = [SCHEMA, COLLECTIONS].contains(&first.as_str());
        return Ok(found(
            &[("?column?", ColumnType::Int4)],
            if known { vec![vec![Some(Value::Int(1))]] } else { vec![] },
        ));
    }
    if sql.starts_with(IMPORT) {
        return Ok(import(&sql, view, user));
    }
    if sql.starts_with(TYPES) {
        let names = ["name", "oid", "array_oid", "regtype", "delimiter"].map(|name| (name, ColumnType::Text));
        return Ok(found(&names, vec![]));
    }
    if sql.starts_with(TREE) {
        return tree(params);
    }
    let table = Table::find(&name_pieces(&first), view, user)?;
    let rows = match (&table, view) {
        (Table::Collection(def), Some(view)) if user.may_count() => view.count(&def.name, 0, None)?.0,
        _ => 0,
    };
    let mut found = match sql.starts_with(SIZE) {
        true => found(&[("?column?", ColumnType::Int8)], vec![vec![Some(Value::Int(rows as i64 / 10 + 1))]]),
        false => {
            let row = vec![Some(Value::Float(rows as f64)), Some(Value::Text("r".into()))];
            found(&[("reltuples", ColumnType::Float4), ("relkind", ColumnType::Text)], vec![row])
        }
    };
    found.analysed = Some(first);
    Ok(found)
}

/// `"a"."b"` or `a.b` in pieces.
pub fn name_pieces(name: &str) -> Vec<String> {
    let (mut pieces, mut piece, mut quoted) = (Vec::new(), String::new(), false);
    for c in name.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => pieces.push(std::mem::take(&mut piece)),
            c => piece.push(c),
        }
    }
    pieces.push(piece);
    pieces
}

/// The string literals of a text.
fn literals(sql: &str) -> Vec<String> {
    let (mut literals, mut rest) = (Vec::new(), sql);
    while let Some((_, after)) = rest.split_once('\'') {
        let (mut literal, mut tail) = (String::new(), after);
        loop {
            let Some((inner, behind)) = tail.split_once('\'') else { return literals };
            literal.push_str(inner);
            tail = behind;
            match tail.strip_prefix('\'') {
                Some(more) => {
                    literal.push('\'');
                    tail = more;
                }
                None => break,
            }
        }
        literals.push(literal);
        rest = tail;
    }
    literals
}

/// All tables that the user may see: schema, name.
fn tables(view: Option<&Pinned>, user: &User) -> Vec<(&'static str, String)> {
    let fixed = Table::FIXED.into_iter().map(|name| (SCHEMA, name.to_owned()));
    let names = view.into_iter().flat_map(Pinned::collections).map(|(name, _)| name);
    let collections = names.filter(|name| user.may_see(name)).map(|name| (COLLECTIONS, name.to_owned()));
    fixed.chain(collections).collect()
}

/// One row for each column of each table. The text says which schema, and which tables only or not.
fn import(sql: &str, view: Option<&Pinned>, user: &User) -> Found {
    let condition = sql.split(" WHERE ").nth(1).unwrap_or_default();
    let schema = condition
        .split("n.nspname = ")
        .nth(1)
        .map(literals)
        .and_then(|mut found| if found.is_empty() { None } else { Some(found.remove(0)) });
    let schema = schema.unwrap_or_default();
    let listed = |begin: &str| {
        let (_, rest) = condition.split_once(begin)?;
        Some(literals(rest.split(')').next().unwrap_or_default()))
    };
    let (only, except) = (listed("c.relname IN ("), listed("c.relname NOT IN ("));
    // 14 asks for attgenerated before the default.
    let generated_first = sql.find("attgenerated").unwrap_or(0) < sql.find("pg_get_expr").unwrap_or(0);
    let mut names: Vec<_> = tables(view, user)
        .into_iter()
        .filter(|(of, name)| {
            // Collections are in both schemas; where a fixed table has the name, in theirs only.
            *of == schema || schema == SCHEMA && !Table::FIXED.contains(&name.as_str())
        })
        .map(|(of, name)| (of.to_owned(), name))
        .filter(|(_, name)| only.as_ref().is_none_or(|only| only.contains(name)))
        .filter(|(_, name)| except.as_ref().is_none_or(|except| !except.contains(name)))
        .collect();
    names.sort_by(|a, b| a.1.cmp(&b.1));
    let text = |text: &str| Some(Value::Text(text.into()));
    let mut rows = Vec::new();
    for (of, name) in names {
        let Ok(table) = Table::find(&[of, name.clone()], view, user) else { continue };
        let (none, empty) = (None, text(""));
        for Column { name: column, kind, form, .. } in table.columns() {
            let defaults = if generated_first { [empty.clone(), none.clone()] } else { [none.clone(), empty.clone()] };
            let [a, b] = defaults;
            // Text sorts by code point here, so it must there.
            let collated = matches!(kind, ColumnType::Text | ColumnType::Varchar);
            let collation = |part: &str| if collated { text(part) } else { None };
            let kind = if form == Form::Lsn { "pg_lsn".to_owned() } else { type_name(&table, &column, kind) };
            let not_null = Some(Value::Bool(false));
            rows.push(vec![
                text(&name),
                text(&column),
                text(&kind),
                not_null,
                a,
                b,
                collation("C"),
                collation("pg_catalog"),
            ]);
        }
    }
    let names =
        ["relname", "attname", "format_type", "attnotnull", "pg_get_expr", "attgenerated", "collname", "nspname"];
    let kind = |name: &str| if name == "attnotnull" { ColumnType::Bool } else { ColumnType::Text };
    let outputs = names.iter().map(|name| Output::constant(name, kind(name), None)).collect();
    Found { outputs, rows, analysed: None }
}

/// The type that a column has in the source: vectors with their dimensions, which the planner of the other side wants.
fn type_name(table: &Table, column: &str, kind: ColumnType) -> String {
    let Table::Collection(def) = table else { return kind.sql_name().to_owned() };
    let dimensions = def.vectors.iter().find(|vector| vector.name == column).and_then(|vector| vector.dimensions);
    match dimensions.filter(|_| kind.has_dimensions()) {
        Some(dimensions) => format!("{}({dimensions})", kind.sql_name()),
        None => kind.sql_name().to_owned(),
    }
}
