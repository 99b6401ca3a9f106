//! EXPLAIN in Postgres' text form. postgres_fdw reads the costs and decides by them what it sends.

use crate::model::{ColumnType, SearchRequest};
use crate::query::Pinned;
use crate::server::pg::plan::{Plan, Source};
use crate::server::pg::tables::Table;

/// What cannot be run costs more than anything else, so that a planner takes another way.
const IMPOSSIBLE: f64 = 1e10;
/// A walk before its first row, in units of a page read.
const OPENING: f64 = 10.0;
/// A row nearest first, and one in any order.
const PER_ROW: f64 = 0.05;
const PER_SCANNED: f64 = 0.01;
/// Rows where a collection is not known yet.
const UNKNOWN_ROWS: f64 = 1000.0;

/// A plan's lines.
pub fn lines(plan: &Plan, view: Option<&Pinned>) -> Vec<String> {
    let Estimate { startup, total, rows, what } = estimate(plan, view);
    let rows = plan.limit.map_or(rows, |limit| rows.min(limit as f64)).max(if rows == 0.0 { 0.0 } else { 1.0 });
    let width: usize = plan.outputs.iter().map(|output| width(output.kind)).sum();
    let mut lines = vec![format!("{what}  (cost={startup:.2}..{total:.2} rows={rows:.0} width={width})")];
    if let Source::Nearest(request) | Source::Open(request) = &plan.source {
        lines.push(format!("  Collection: {}", request.collection));
        if request.filter.is_some() {
            lines.push("  Filter: in the index".into());
        }
    }
    if plan.residual.is_some() {
        lines.push("  Filter: on rows found".into());
    }
    if !plan.order.is_empty() {
        lines.push("  Sort: here".into());
    }
    lines
}

/// What a statement that cannot be planned at all costs.
pub fn impossible(why: &str) -> Vec<String> {
    let first = format!("Impossible  (cost={IMPOSSIBLE:.2}..{IMPOSSIBLE:.2} rows=1000000 width=100)");
    vec![first, format!("  {why}")]
}

struct Estimate {
    startup: f64,
    total: f64,
    rows: f64,
    what: String,
}

fn estimate(plan: &Plan, view: Option<&Pinned>) -> Estimate {
    let of = |what: &str, startup: f64, per_row: f64, rows: f64| Estimate {
        startup,
        total: startup + per_row * rows,
        rows,
        what: what.to_owned(),
    };
    // How many rows pass is not for those to hear who see some only.
    let view = view.filter(|_| plan.viewer().is_none());
    let passing = |request: &SearchRequest| {
        let def = view?.definition(&request.collection).ok()?;
        let (column, _) = def.vector(request.using.as_deref())?;
        view?.count(&request.collection, column, request.filter.as_ref()).ok().map(|(_, passing)| passing as f64)
    };
    let mut found = match &plan.source {
        Source::Nearest(request) => {
            let rows = passing(request).unwrap_or(UNKNOWN_ROWS).min(request.limit as f64);
            of("Vector Search", OPENING, PER_ROW, rows)
        }
        Source::Open(request) => {
            let rows = passing(request).unwrap_or(UNKNOWN_ROWS);
            // What is within a distance is not counted before it is found.
            let rows = if request.shape.max_distance.is_some() { (rows / 100.0).max(1.0) } else { rows };
            of("Vector Search, nearest first", OPENING, PER_ROW, rows)
        }
        Source::Every(scan) => {
            let count = |view: &Pinned| view.count(&scan.collection, scan.column, scan.filter.as_ref()).ok();
            let counted = view.and_then(count);
            of("Scan", 0.0, PER_SCANNED, counted.map_or(UNKNOWN_ROWS, |(_, passing)| passing as f64))
        }
        Source::Unknown => match (&plan.table, view) {
            (Some(Table::Search), _) => {
                let rows = plan.inputs.get(&crate::server::pg::tables::Input::K).cloned().flatten();
                let rows = match rows {
                    Some(crate::model::Value::Int(k)) if k > 0 => k as f64,
                    _ => 10.0,
                };
                of("Vector Search", OPENING, PER_ROW, rows)
            }
            (Some(Table::Collection(def)), Some(view)) => {
                let rows = view.count(&def.name, 0, None).map_or(UNKNOWN_ROWS, |(live, _)| live as f64);
                of("Vector Search, nearest first", OPENING, PER_ROW, rows)
            }
            _ => of("Vector Search, nearest first", OPENING, PER_ROW, UNKNOWN_ROWS * 10.0),
        },
        Source::Impossible(_) => of("Impossible", IMPOSSIBLE, 0.0, 1e6),
        Source::Nothing => of("Result", 0.0, 0.0, 0.0),
        Source::Fixed => of("Scan", 0.0, PER_SCANNED, 10.0),
        Source::One => of("Result", 0.0, PER_SCANNED, 1.0),
    };
    found.rows *= plan.sample.unwrap_or(1.0);
    if plan.residual.is_some() {
        found.total += found.rows * 0.0025;
        found.rows = (found.rows / 3.0).max(1.0);
    }
    if !plan.order.is_empty() {
        // All of it is fetched before the first row is given.
        found.total += found.rows.max(2.0).log2() * found.rows * 0.005;
        found.startup = found.total;
    } else if let Some(limit) = plan.limit.filter(|_| found.rows > 0.0) {
        let share = ((limit as f64 + plan.offset as f64) / found.rows).min(1.0);
        found.total = found.startup + (found.total - found.startup) * share;
    }
    found
}

/// Bytes of a value, about.
fn width(kind: ColumnType) -> usize {
    match kind {
        ColumnType::Bool => 1,
        ColumnType::Int2 => 2,
        ColumnType::Int4 | ColumnType::Float4 | ColumnType::Date => 4,
        ColumnType::Int8 | ColumnType::Float8 | ColumnType::Timestamp | ColumnType::Timestamptz => 8,
        ColumnType::Uuid => 16,
        ColumnType::Text | ColumnType::Varchar => 32,
        kind if kind.is_vector() => 1024,
        _ => 32,
    }
}
