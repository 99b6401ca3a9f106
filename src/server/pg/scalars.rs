//! Scalar sub-selects: `ORDER BY embedding <-> (SELECT embedding FROM items WHERE id = 1)`. Each is asked first, on the same
//! state of the index, and what it gives takes its place.

use crate::model::pgtype;
use crate::server::pg::condition::{arguments, is_null_of_a_type, unsupported};
use crate::server::pg::session::Session;
use crate::server::pg::types::Param;
use crate::server::problem::Problem;
use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, OrderByKind, Query, SelectItem, SetExpr, Value as Literal,
};

/// Most of them in one statement.
const MOST: usize = 16;

/// May there be one? Statements without one are not copied to find out.
pub fn any(query: &Query) -> bool {
    fn within(expr: &Expr) -> bool {
        match expr {
            Expr::Subquery(query) => !is_null_of_a_type(query),
            Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } | Expr::Cast { expr: inner, .. } => within(inner),
            Expr::BinaryOp { left, right, .. } => within(left) || within(right),
            Expr::Between { expr, low, high, .. } => within(expr) || within(low) || within(high),
            Expr::InList { list, .. } => list.iter().any(within),
            Expr::Function(function) => arguments(function).into_iter().flatten().any(within),
            _ => false,
        }
    }
    let SetExpr::Select(select) = &*query.body else { return false };
    let listed = select.projection.iter().any(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => within(expr),
        _ => false,
    });
    let ordered = match query.order_by.as_ref().map(|order| &order.kind) {
        Some(OrderByKind::Expressions(list)) => list.iter().any(|one| within(&one.expr)),
        _ => false,
    };
    listed || ordered || select.selection.as_ref().is_some_and(within)
}

impl Session {
    /// The query with their values in their places; none where it has none.
    pub(super) async fn without_scalars(&mut self, query: &Query, params: &[Param]) -> Result<Option<Query>, Problem> {
        let mut query = query.clone();
        let mut places = Vec::new();
        of_query(&mut query, &mut places);
        if places.is_empty() {
            return Ok(None);
        }
        if places.len() > MOST {
            return Err(unsupported(format!("more than {MOST} sub-selects")));
        }
        for place in places {
            let Expr::Subquery(inner) = &*place else { continue };
            let inner = inner.clone();
            // A sub-select in it is found in its turn.
            let mut running = self.query(&inner, params).await?;
            let [output] = &running.outputs[..] else { return Err(unsupported("a sub-select of several columns")) };
            let kind = output.kind;
            let mut rows = running.next(2).await?;
            if rows.len() > 1 {
                return Err(unsupported("a sub-select of more than one row as a value"));
            }
            let value = rows.pop().and_then(|mut row| row.pop()).flatten();
            *place = Expr::value(match value {
                Some(value) => Literal::SingleQuotedString(pgtype::to_text_as(kind, &value)),
                None => Literal::Null,
            });
        }
        Ok(Some(query))
    }
}

fn of_query<'q>(query: &'q mut Query, places: &mut Vec<&'q mut Expr>) {
    if let SetExpr::Select(select) = &mut *query.body {
        select.selection.iter_mut().for_each(|expr| of_expr(expr, places));
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                of_expr(expr, places);
            }
        }
    }
    if let Some(OrderByKind::Expressions(list)) = query.order_by.as_mut().map(|order| &mut order.kind) {
        list.iter_mut().for_each(|one| of_expr(&mut one.expr, places));
    }
}

fn of_expr<'q>(expr: &'q mut Expr, places: &mut Vec<&'q mut Expr>) {
    if let Expr::Subquery(query) = &*expr {
        // That is a planner which does not know the value of a parameter.
        if !is_null_of_a_type(query) {
            places.push(expr);
        }
        return;
    }
    match expr {
        Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } | Expr::Cast { expr: inner, .. } => {
            of_expr(inner, places)
        }
        Expr::BinaryOp { left, right, .. } => {
            of_expr(left, places);
            of_expr(right, places);
        }
        Expr::Between { expr, low, high, .. } => [expr, low, high].into_iter().for_each(|expr| of_expr(expr, places)),
        Expr::InList { list, .. } => list.iter_mut().for_each(|expr| of_expr(expr, places)),
        Expr::Function(function) => {
            if let FunctionArguments::List(list) = &mut function.args {
                for argument in &mut list.args {
                    if let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument {
                        of_expr(expr, places);
                    }
                }
            }
        }
        _ => {}
    }
}
