//! `row_number() OVER (PARTITION BY ... ORDER BY ...)` in queries over the catalog: what JDBC's `getColumns` numbers columns by.

use crate::server::pg::catalog::lookup::{At, Lookup, Scope, Source, in_order};
use crate::server::pg::catalog::value::Datum;
use crate::server::pg::condition::{pieces, unsupported};
use crate::server::problem::Problem;
use sqlparser::ast::{Expr, Function, FunctionArguments, OrderBySort, SelectItem, WindowSpec, WindowType};

impl Lookup<'_> {
    /// For each item of the list that is such a number: that of each row, from 1.
    pub(super) fn numbers(
        &self,
        projection: &[SelectItem],
        sources: &[Source],
        rows: &[At],
        around: Option<&Scope<'_>>,
    ) -> Result<Vec<Option<Vec<i64>>>, Problem> {
        let of = |item: &SelectItem| match item {
            SelectItem::UnnamedExpr(Expr::Function(function))
            | SelectItem::ExprWithAlias { expr: Expr::Function(function), .. } => match window(function)? {
                Some(window) => self.numbered(window, sources, rows, around).map(Some),
                None => Ok(None),
            },
            _ => Ok(None),
        };
        projection.iter().map(of).collect()
    }

    fn numbered(
        &self,
        window: &WindowSpec,
        sources: &[Source],
        rows: &[At],
        around: Option<&Scope<'_>>,
    ) -> Result<Vec<i64>, Problem> {
        // Each number is a value, and sorting looks at each more than once.
        let keys = 1 + window.partition_by.len() + window.order_by.len();
        self.spend(rows.len().saturating_mul(keys * 4))?;
        let mut keyed: Vec<(Vec<Datum>, Vec<Datum>, usize)> = Vec::with_capacity(rows.len());
        for (place, at) in rows.iter().enumerate() {
            let scope = Scope { sources, at, around };
            let values = |exprs: &mut dyn Iterator<Item = &Expr>| {
                exprs.map(|expr| self.expr(expr, Some(&scope))).collect::<Result<Vec<_>, _>>()
            };
            let part = values(&mut window.partition_by.iter())?;
            keyed.push((part, values(&mut window.order_by.iter().map(|by| &by.expr))?, place));
        }
        let first: Vec<_> = window.order_by.iter().map(|by| by.options.nulls_first.unwrap_or(false)).collect();
        let compared = |a: &[Datum], b: &[Datum], first: &dyn Fn(usize) -> bool| {
            let mut each = a.iter().zip(b).enumerate().map(|(at, (a, b))| in_order(a, b, false, first(at)));
            each.find(|found| found.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
        };
        keyed.sort_by(|a, b| compared(&a.0, &b.0, &|_| false).then_with(|| compared(&a.1, &b.1, &|at| first[at])));
        let mut numbers = vec![0; rows.len()];
        let mut number = 0;
        for (at, (part, _, place)) in keyed.iter().enumerate() {
            let same = at > 0 && keyed[at - 1].0 == *part;
            number = if same { number + 1 } else { 1 };
            numbers[*place] = number;
        }
        Ok(numbers)
    }
}

/// Has it nothing but its name and its window?
fn is_bare(function: &Function) -> bool {
    let nothing = |arguments: &FunctionArguments| match arguments {
        FunctionArguments::None => true,
        FunctionArguments::List(list) => {
            list.args.is_empty() && list.clauses.is_empty() && list.duplicate_treatment.is_none()
        }
        FunctionArguments::Subquery(_) => false,
    };
    let rest = function.filter.is_none() && function.null_treatment.is_none() && function.within_group.is_empty();
    nothing(&function.args) && nothing(&function.parameters) && rest
}

/// The window of a `row_number()`; none: it is an ordinary function.
fn window(function: &Function) -> Result<Option<&WindowSpec>, Problem> {
    let name = pieces(&function.name).pop().unwrap_or_default();
    match &function.over {
        None => Ok(None),
        Some(WindowType::WindowSpec(window))
            if name == "row_number"
                && is_bare(function)
                && window.window_frame.is_none()
                && window.window_name.is_none()
                && window.order_by.iter().all(|by| matches!(by.options.sort, None | Some(OrderBySort::Asc))) =>
        {
            Ok(Some(window))
        }
        Some(_) => Err(unsupported(format!("this form of {name} ... OVER in a query over the catalog"))),
    }
}
