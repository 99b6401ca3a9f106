//! A filter as SQL for the source. Constants travel as text parameters and are cast there; none is ever part of the
//! SQL text.

use crate::model::{ColumnType, Comparison, Filter, FilterColumn, Value, pgtype, quote_ident};

/// The condition as SQL. The first constant becomes `$first_param`, each next one the next number; their texts are
/// appended to `params` in that order. Each is cast to the column's type, or where it does not fit that one, to a type
/// which holds it and compares exactly.
pub fn to_sql(filter: &Filter, columns: &[FilterColumn], first_param: usize, params: &mut Vec<String>) -> String {
    let mut writer = Writer { columns, next: first_param, params, sql: String::new() };
    writer.filter(filter);
    writer.sql
}

struct Writer<'a> {
    columns: &'a [FilterColumn],
    next: usize,
    params: &'a mut Vec<String>,
    sql: String,
}

impl Writer<'_> {
    fn filter(&mut self, filter: &Filter) {
        match filter {
            Filter::And(parts) => self.joined(parts, " AND ", "TRUE"),
            Filter::Or(parts) => self.joined(parts, " OR ", "FALSE"),
            Filter::Not(part) => {
                self.sql.push_str("(NOT ");
                self.filter(part);
                self.sql.push(')');
            }
            Filter::Compare { column, op, value } => self.compare(*column, *op, value.as_ref()),
            Filter::In { column, values } => self.list(*column, values),
            Filter::IsNull { column } => {
                self.sql.push('(');
                self.column(*column);
                self.sql.push_str(" IS NULL)");
            }
        }
    }

    fn joined(&mut self, parts: &[Filter], operator: &str, without_parts: &str) {
        if parts.is_empty() {
            self.sql.push_str(without_parts);
            return;
        }
        self.sql.push('(');
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                self.sql.push_str(operator);
            }
            self.filter(part);
        }
        self.sql.push(')');
    }

    fn compare(&mut self, column: usize, op: Comparison, value: Option<&Value>) {
        self.sql.push('(');
        self.column(column);
        self.sql.push_str(&format!(" {} ", op.sql()));
        self.constant(column, value);
        self.sql.push(')');
    }

    /// Constants of several types are compared one by one: in one list Postgres would bring them, and with them the
    /// column, to one type first.
    fn list(&mut self, column: usize, values: &[Option<Value>]) {
        let mut casts = values.iter().flatten().map(|value| self.cast(column, value));
        let first = casts.next();
        if values.is_empty() {
            self.sql.push_str("FALSE");
        } else if casts.all(|cast| Some(cast) == first) {
            self.one_list(column, values);
        } else {
            let each = values.iter().map(|value| Filter::Compare { column, op: Comparison::Eq, value: value.clone() });
            self.joined(&each.collect::<Vec<_>>(), " OR ", "FALSE");
        }
    }

    fn one_list(&mut self, column: usize, values: &[Option<Value>]) {
        self.sql.push('(');
        self.column(column);
        self.sql.push_str(" IN (");
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                self.sql.push_str(", ");
            }
            self.constant(column, value.as_ref());
        }
        self.sql.push_str("))");
    }

    fn column(&mut self, column: usize) {
        // A place without a column has no value in any row.
        let name = self.columns.get(column).map_or_else(|| "NULL".to_owned(), |column| quote_ident(&column.name));
        self.sql.push_str(&name);
    }

    fn constant(&mut self, column: usize, value: Option<&Value>) {
        let Some(value) = value else {
            self.sql.push_str("NULL");
            return;
        };
        let cast = self.cast(column, value);
        let through_text = if cast == "text" { "" } else { "::text" };
        self.sql.push_str(&format!("${}{through_text}::{cast}", self.next));
        self.params.push(pgtype::to_text(value));
        self.next += 1;
    }

    fn cast(&self, column: usize, value: &Value) -> &'static str {
        cast_of(self.columns.get(column).map_or(ColumnType::Text, |column| column.kind), value)
    }
}

fn cast_of(kind: ColumnType, value: &Value) -> &'static str {
    use ColumnType::{Float4, Float8, Int2, Int4, Int8};
    match (kind, value) {
        (Int2, Value::Int(v)) if i16::try_from(*v).is_err() => Int8.sql_name(),
        (Int4, Value::Int(v)) if i32::try_from(*v).is_err() => Int8.sql_name(),
        (Int2 | Int4 | Int8, Value::Float(v)) => {
            if v.is_finite() {
                "numeric"
            } else {
                Float8.sql_name()
            }
        }
        (Float4, Value::Float(v)) if !v.is_nan() && f64::from(*v as f32) != *v => Float8.sql_name(),
        _ => kind.sql_name(),
    }
}
