//! Types of a statement's parameters where the client does not say: from casts, and from what they stand beside.

use crate::query::Pinned;
use crate::server::pg::User;
use crate::server::pg::condition::{column_name, distance};
use crate::server::pg::select::parts;
use crate::server::pg::tables::{Column, Role, Table};
use crate::server::pg::types::{self, TEXT};
use sqlparser::ast::{BinaryOperator, Expr, Query, SelectItem, Value as Literal};

/// Most parameters of one statement, as in PostgreSQL.
const MOST: usize = 65_535;

/// OIDs of a query's parameters. `said`: as far as the client knows them, 0 where not.
pub fn infer(query: &Query, said: &[u32], view: Option<&Pinned>, user: &User) -> Vec<u32> {
    let mut found = Found { types: said.to_vec(), columns: Vec::new() };
    if let Ok(parts) = parts(query) {
        if let Some(Ok(table)) = parts.table.as_ref().map(|name| Table::find(name, view, user)) {
            found.columns = table.columns();
        }
        parts.condition.iter().for_each(|expr| found.look(expr, None));
        parts.order.iter().for_each(|(expr, ..)| found.look(expr, None));
        // bigint, as Postgres has it.
        [parts.limit, parts.offset].into_iter().flatten().for_each(|expr| found.look(expr, Some(20)));
        for item in parts.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                found.look(expr, None);
            }
        }
    }
    found.types.iter_mut().filter(|oid| **oid == 0).for_each(|oid| *oid = TEXT);
    found.types
}

/// The same of a query over the catalog: by the casts behind its parameters.
pub fn by_text(sql: &str, said: &[u32]) -> Vec<u32> {
    let mut found = Found { types: said.to_vec(), columns: Vec::new() };
    for (at, _) in sql.match_indices('$') {
        let rest = &sql[at + 1..];
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let cast = rest[digits.len()..].strip_prefix("::").map(|name| {
            let end = name.find(|c: char| !(c.is_alphanumeric() || "_.[]\"".contains(c)));
            &name[..end.unwrap_or(name.len())]
        });
        found.parameter(&format!("${digits}"), cast.and_then(types::by_name));
    }
    found.types.iter_mut().filter(|oid| **oid == 0).for_each(|oid| *oid = TEXT);
    found.types
}

struct Found {
    types: Vec<u32>,
    columns: Vec<Column>,
}

impl Found {
    /// `beside`: the type that a bare parameter has here.
    fn look(&mut self, expr: &Expr, beside: Option<u32>) {
        let is_vector = |name: &str| self.columns.iter().any(|c| c.name == name && matches!(c.role, Role::Vector(_)));
        if let Some(distance) = distance(expr, &is_vector) {
            return self.look(distance.query, Some(TEXT));
        }
        match expr {
            Expr::Value(value) => {
                if let Literal::Placeholder(name) = &value.value {
                    self.parameter(name, beside);
                }
            }
            Expr::Cast { expr, data_type, .. } => {
                let named = types::by_name(&data_type.to_string());
                self.look(expr, named.or(beside));
            }
            Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } => self.look(inner, beside),
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => self.look(inner, None),
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => self.pair(left, right),
            Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
                self.look(left, Some(16));
                self.look(right, Some(16));
            }
            Expr::BinaryOp { left, right, .. } => self.pair(left, right),
            Expr::InList { expr, list, .. } => list.iter().for_each(|item| self.pair(expr, item)),
            Expr::Between { expr, low, high, .. } => {
                self.pair(expr, low);
                self.pair(expr, high);
            }
            Expr::AnyOp { left, right, .. } | Expr::AllOp { left, right, .. } => {
                let element = self.type_of(left);
                self.look(right, element.and_then(types::array_of));
            }
            Expr::Array(array) => array.elem.iter().for_each(|element| self.look(element, Some(701))),
            _ => {}
        }
    }

    fn pair(&mut self, left: &Expr, right: &Expr) {
        let (of_left, of_right) = (self.type_of(left), self.type_of(right));
        self.look(left, of_right);
        self.look(right, of_left);
    }

    fn type_of(&self, expr: &Expr) -> Option<u32> {
        let is_vector = |name: &str| self.columns.iter().any(|c| c.name == name && matches!(c.role, Role::Vector(_)));
        if distance(expr, &is_vector).is_some() {
            return Some(701);
        }
        let name = column_name(expr)?;
        self.columns.iter().find(|column| column.name == name).map(|column| column.form.shown(column.kind).0)
    }

    fn parameter(&mut self, name: &str, beside: Option<u32>) {
        let at = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        let Some(at) = at.filter(|at| (1..=MOST).contains(at)) else { return };
        if self.types.len() < at {
            self.types.resize(at, 0);
        }
        if self.types[at - 1] == 0 {
            self.types[at - 1] = beside.unwrap_or(0);
        }
    }
}
