//! FROM in queries over the catalog: tables, joins, sub-selects, arrays.

use crate::server::pg::catalog::lookup::{Lookup, Scope, Source, rename};
use crate::server::pg::catalog::value::{Datum, Kind, Rows};
use crate::server::pg::condition::{folded, pieces, unsupported};
use crate::server::problem::{self, Problem};
use sqlparser::ast::{
    FunctionArg, FunctionArgExpr, Join, JoinConstraint, JoinOperator, ObjectName, TableFactor, TableWithJoins,
};
use std::rc::Rc;

impl Lookup<'_> {
    /// The tables in FROM, and which rows of them belong together.
    #[allow(clippy::type_complexity, reason = "rows that belong together are rows of places")]
    pub(super) fn from(
        &self,
        from: &[TableWithJoins],
        around: Option<&Scope<'_>>,
    ) -> Result<(Vec<Source>, Vec<Vec<Option<usize>>>), Problem> {
        let (mut sources, mut combined) = (Vec::new(), vec![Vec::new()]);
        // What has no rows is looked at first: then nothing else is.
        let mut empty = false;
        for one in from {
            let first = self.source(&one.relation, around)?;
            empty |= first.rows.rows.is_empty();
            let from = sources.len();
            sources.push(first);
            for join in &one.joins {
                sources.push(self.source(&join.relation, around)?);
            }
            if empty {
                continue;
            }
            combined = self.paired(&sources[..=from], combined, None, around)?;
            for (at, join) in one.joins.iter().enumerate() {
                combined = self.paired(&sources[..=from + 1 + at], combined, Some(join), around)?;
            }
        }
        Ok((sources, if empty { Vec::new() } else { combined }))
    }

    /// Adds the rows of the last table to those that belong together.
    fn paired(
        &self,
        sources: &[Source],
        combined: Vec<Vec<Option<usize>>>,
        join: Option<&Join>,
        around: Option<&Scope<'_>>,
    ) -> Result<Vec<Vec<Option<usize>>>, Problem> {
        let (outer, constraint) = match join.map(|join| &join.join_operator) {
            None => (false, &JoinConstraint::None),
            Some(JoinOperator::CrossJoin(JoinConstraint::None)) => (false, &JoinConstraint::None),
            Some(JoinOperator::Join(constraint) | JoinOperator::Inner(constraint)) => (false, constraint),
            Some(JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint)) => (true, constraint),
            _ => return Err(unsupported("a join over the catalog that is neither JOIN nor LEFT JOIN")),
        };
        if matches!(constraint, JoinConstraint::Natural) {
            return Err(unsupported("NATURAL JOIN over the catalog"));
        }
        let Some(last) = sources.last() else { return Ok(combined) };
        let mut paired = Vec::new();
        for at in combined {
            let before = paired.len();
            for row in 0..last.rows.rows.len() {
                self.step()?;
                let mut at = at.clone();
                at.push(Some(row));
                let holds = match constraint {
                    JoinConstraint::On(on) => {
                        self.expr(on, Some(&Scope { sources, at: &at, around }))?.truth() == Some(true)
                    }
                    JoinConstraint::Using(names) => self.same_named(names, sources, &at)?,
                    JoinConstraint::None | JoinConstraint::Natural => true,
                };
                if holds {
                    paired.push(at);
                    self.check_kept(paired.len())?;
                }
            }
            if outer && paired.len() == before {
                let mut at = at;
                at.push(None);
                paired.push(at);
            }
        }
        Ok(paired)
    }

    /// Have the columns of these names the same values in the last table and in those before it?
    fn same_named(&self, names: &[ObjectName], sources: &[Source], at: &[Option<usize>]) -> Result<bool, Problem> {
        let split = sources.len() - 1;
        for name in names {
            self.step()?;
            let name = pieces(name).pop().unwrap_or_default();
            let of = |from: usize, to: usize| {
                Scope { sources: &sources[from..to], at: &at[from..to], around: None }.column(None, &name)
            };
            let (Some(before), Some(after)) = (of(0, split), of(split, sources.len())) else {
                let detail = format!("column \"{name}\" specified in USING clause does not exist");
                return Err(Problem::new(problem::UNKNOWN_COLUMN, detail));
            };
            if before.compare(&after) != Some(std::cmp::Ordering::Equal) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn source(&self, factor: &TableFactor, around: Option<&Scope<'_>>) -> Result<Source, Problem> {
        let (rows, alias, own) = match factor {
            TableFactor::Table { name, alias, args: None, sample: None, .. } => {
                let pieces = pieces(name);
                (self.table(&pieces)?, alias, pieces.last().cloned().unwrap_or_default())
            }
            TableFactor::Derived { lateral: false, subquery, alias, .. } => {
                (Rc::new(self.query(subquery, around)?), alias, String::new())
            }
            TableFactor::Table { name, alias, args: Some(args), with_ordinality: false, .. } => {
                let name = pieces(name).pop().unwrap_or_default();
                let own = alias.as_ref().map_or_else(|| name.clone(), |alias| folded(&alias.name));
                (Rc::new(self.unnested(&name, &own, &args.args, around)?), alias, name)
            }
            TableFactor::UNNEST { alias, array_exprs, with_ordinality: false, .. } => {
                let own = alias.as_ref().map_or_else(|| "unnest".to_owned(), |alias| folded(&alias.name));
                let [array] = &array_exprs[..] else { return Err(unsupported("unnest of several arrays")) };
                let rows = Rc::new(items(&own, self.expr(array, around)?));
                (rows, alias, own)
            }
            _ => return Err(unsupported("another form in FROM of a query over the catalog")),
        };
        let Some(alias) = alias else { return Ok(Source { alias: own, rows }) };
        let mut rows = rows;
        if !alias.columns.is_empty() {
            rename(Rc::make_mut(&mut rows), alias.columns.iter().map(|column| folded(&column.name)));
        }
        Ok(Source { alias: folded(&alias.name), rows })
    }

    /// `unnest(array)` or `generate_series(first, last)` in FROM; its column has the name of its alias.
    fn unnested(
        &self,
        name: &str,
        own: &str,
        arguments: &[FunctionArg],
        around: Option<&Scope<'_>>,
    ) -> Result<Rows, Problem> {
        match (name, arguments) {
            ("unnest", [FunctionArg::Unnamed(FunctionArgExpr::Expr(array))]) => {
                Ok(items(own, self.expr(array, around)?))
            }
            (
                "generate_series",
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(first)), FunctionArg::Unnamed(FunctionArgExpr::Expr(last))],
            ) => {
                let columns = vec![(own.to_owned(), Kind::Int8)];
                let (first, last) = (self.expr(first, around)?.int(), self.expr(last, around)?.int());
                let mut rows = Vec::new();
                // NULL gives no rows.
                for number in first.zip(last).into_iter().flat_map(|(first, last)| first..=last) {
                    self.step()?;
                    rows.push(vec![Datum::Int(number)]);
                    self.check_kept(rows.len())?;
                }
                Ok(Rows { columns, rows, any: false })
            }
            _ => Err(unsupported(format!("the function {name} in FROM of a query over the catalog"))),
        }
    }

    fn table(&self, pieces: &[String]) -> Result<Rc<Rows>, Problem> {
        let (schema, name) = match pieces {
            [name] => (None, name),
            [schema, name] => (Some(schema.as_str()), name),
            _ => return Err(unsupported("a name of three pieces")),
        };
        if schema.is_none()
            && let Some((_, rows)) = self.named.borrow().iter().rev().find(|(other, _)| other == name)
        {
            return Ok(rows.clone());
        }
        let rows = self.world.table(schema, name).ok_or_else(|| {
            Problem::new(problem::UNKNOWN_COLLECTION, format!("relation \"{}\" does not exist", pieces.join(".")))
                .hint("a query over the catalog cannot name collections; collection_list tells of them")
        })?;
        // A sub-select makes it again for each row.
        self.spend(rows.rows.len())?;
        Ok(Rc::new(rows))
    }
}

/// The items of an array as rows; NULL has none.
fn items(name: &str, array: Datum) -> Rows {
    let rows = array.items().unwrap_or_default().into_iter().map(|item| vec![item]).collect();
    Rows { columns: vec![(name.to_owned(), Kind::Text)], rows, any: false }
}
