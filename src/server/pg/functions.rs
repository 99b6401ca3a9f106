//! Functions without a table: what clients ask of a server before they ask for rows.

use crate::model::{ColumnType, Value};
use crate::server::pg::condition::{Known, arguments, pieces, short, unsupported};
use crate::server::pg::plan::Context;
use crate::server::pg::select::{Output, literal};
use crate::server::pg::settings::SERVER_VERSION;
use crate::server::pg::tables::SCHEMA;
use crate::server::pg::types::Form;
use crate::server::problem::Problem;
use sqlparser::ast::{Expr, Function, SelectItem, Value as Literal};

/// The columns of `SELECT ...` without FROM.
pub fn outputs(projection: &[SelectItem], context: Context<'_>) -> Result<Vec<Output>, Problem> {
    let each = projection.iter().map(|item| match item {
        SelectItem::UnnamedExpr(expr) => output(expr, context),
        SelectItem::ExprWithAlias { expr, alias } => {
            let name = crate::server::pg::condition::folded(alias);
            output(expr, context).map(|output| Output { name, ..output })
        }
        other => Err(unsupported(format!("{other} without a table"))),
    });
    each.collect()
}

fn output(expr: &Expr, context: Context<'_>) -> Result<Output, Problem> {
    match expr {
        Expr::Function(function) => call(function, context)?.ok_or_else(|| refused(expr)),
        // current_user and its like are words, and some parsers see columns in them.
        Expr::Identifier(ident) => named(&ident.value.to_lowercase(), &[], context)?.ok_or_else(|| refused(expr)),
        Expr::Value(value) => match &value.value {
            Literal::Placeholder(_) => constant(expr, context, "?column?"),
            plain => literal(plain, "?column?").ok_or_else(|| refused(expr)),
        },
        Expr::Cast { data_type, .. } => {
            let kind = crate::server::pg::types::by_name(&data_type.to_string());
            let kind = kind.and_then(ColumnType::from_builtin_oid).unwrap_or(ColumnType::Text);
            let Output { what, .. } = constant(expr, context, "")?;
            let crate::server::pg::select::What::Constant(value) = what else { return Err(refused(expr)) };
            let value = match value {
                Some(Value::Text(text)) => {
                    Some(crate::model::pgtype::parse_literal(kind, &text).map_err(|reason| {
                        Problem::new(crate::server::problem::BAD_PARAMETER, format!("invalid {kind}: {reason}"))
                    })?)
                }
                other => other,
            };
            Ok(Output::constant(kind.sql_name(), kind, value))
        }
        Expr::Nested(inner) => output(inner, context),
        _ => constant(expr, context, "?column?"),
    }
}

fn refused(expr: &Expr) -> Problem {
    unsupported(format!("the expression {} without a table", short(expr)))
}

fn constant(expr: &Expr, context: Context<'_>, name: &str) -> Result<Output, Problem> {
    let value = match context.params.constant(expr)? {
        Known::Text(text) => text.map(|text| Value::Text(text.into())),
        Known::Vector(_) | Known::Unknown => None,
    };
    Ok(Output::constant(name, ColumnType::Text, value))
}

fn call(function: &Function, context: Context<'_>) -> Result<Option<Output>, Problem> {
    let (Some(name), Some(arguments)) = (pieces(&function.name).pop(), arguments(function)) else { return Ok(None) };
    let each = arguments.into_iter().map(|argument| context.params.constant(argument));
    let arguments = each.collect::<Result<Vec<_>, _>>()?;
    named(&name, &arguments, context)
}

/// What `set_config` sets, if this is one: name, value, only for the transaction.
pub fn set_config(expr: &SelectItem, context: Context<'_>) -> Option<(String, String, bool)> {
    let (SelectItem::UnnamedExpr(Expr::Function(function))
    | SelectItem::ExprWithAlias { expr: Expr::Function(function), .. }) = expr
    else {
        return None;
    };
    if pieces(&function.name).pop()? != "set_config" {
        return None;
    }
    let [name, value, local] = arguments(function)?[..] else { return None };
    let text = |expr| match context.params.constant(expr) {
        Ok(Known::Text(Some(text))) => Some(text),
        _ => None,
    };
    Some((text(name)?, text(value)?, text(local)?.starts_with('t')))
}

fn named(name: &str, arguments: &[Known], context: Context<'_>) -> Result<Option<Output>, Problem> {
    let text = |value: &str| Ok(Some(Output::constant(name, ColumnType::Text, Some(Value::Text(value.into())))));
    let given = |at: usize| match arguments.get(at) {
        Some(Known::Text(Some(text))) => Some(text.as_str()),
        _ => None,
    };
    match name {
        "version" => text(&format!("PostgreSQL {SERVER_VERSION}, a vector search endpoint beside PostgreSQL")),
        "current_schema" => text(SCHEMA),
        "current_database" | "current_catalog" => text("ruvector"),
        "current_user" | "session_user" | "user" | "current_role" => text(&context.user.name),
        "current_setting" => match given(0) {
            Some(setting) => match context.settings.show(setting) {
                Ok(value) => text(&value),
                // missing_ok
                Err(_) if arguments.len() == 2 => Ok(Some(Output::constant(name, ColumnType::Text, None))),
                Err(problem) => Err(problem),
            },
            None => text(""),
        },
        "set_config" => text(given(1).unwrap_or_default()),
        "pg_is_in_recovery" => Ok(Some(Output::constant(name, ColumnType::Bool, Some(Value::Bool(false))))),
        "pg_advisory_unlock_all" => text(""),
        "ruvector_version" => text(env!("CARGO_PKG_VERSION")),
        "ruvector_last_applied_lsn" => {
            let applied = context.view.and_then(|view| crate::server::pg::fixed::lsn(view.applied()));
            Ok(Some(Output { form: Form::Lsn, ..Output::constant(name, ColumnType::Int8, applied) }))
        }
        _ => Ok(None),
    }
}
