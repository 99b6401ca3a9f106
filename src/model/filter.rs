//! A filter on replicated columns: the tree, and its three-valued meaning.

use crate::model::value::{Cell, Value};
use std::cmp::Ordering;

/// A comparison of a column with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

impl Comparison {
    /// The SQL operator.
    pub fn sql(self) -> &'static str {
        match self {
            Comparison::Eq => "=",
            Comparison::Ne => "<>",
            Comparison::Lt => "<",
            Comparison::Le => "<=",
            Comparison::Gt => ">",
            Comparison::Ge => ">=",
        }
    }

    /// Is that what this ordering of column and constant means?
    pub fn holds(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Eq => ordering.is_eq(),
            Comparison::Ne => ordering.is_ne(),
            Comparison::Lt => ordering.is_lt(),
            Comparison::Le => ordering.is_le(),
            Comparison::Gt => ordering.is_gt(),
            Comparison::Ge => ordering.is_ge(),
        }
    }
}

/// A filter. Columns are places in the collection's list of filter columns; constants already have the column's type.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of them.
    And(Vec<Filter>),
    /// Any of them.
    Or(Vec<Filter>),
    /// Not it.
    Not(Box<Filter>),
    /// `column op value`; a NULL constant makes it unknown, as in SQL.
    Compare {
        /// Which column.
        column: usize,
        /// Which comparison.
        op: Comparison,
        /// With what; `None` is NULL.
        value: Option<Value>,
    },
    /// `column IN (values)`.
    In {
        /// Which column.
        column: usize,
        /// The list; `None` is NULL.
        values: Vec<Option<Value>>,
    },
    /// `column IS NULL`.
    IsNull {
        /// Which column.
        column: usize,
    },
}

impl Filter {
    /// Does the row pass? As WHERE does: only what is true passes, unknown does not.
    pub fn passes(&self, cells: &[Cell]) -> bool {
        self.truth(cells) == Some(true)
    }

    /// True, false, or unknown (`None`). A cell without a usable value counts as NULL: it never passes by accident.
    fn truth(&self, cells: &[Cell]) -> Option<bool> {
        match self {
            Filter::And(parts) => fold(parts, cells, false),
            Filter::Or(parts) => fold(parts, cells, true),
            Filter::Not(part) => part.truth(cells).map(|truth| !truth),
            Filter::Compare { column, op, value } => {
                Some(op.holds(value_at(cells, *column)?.compare(value.as_ref()?)?))
            }
            Filter::In { column, values } => {
                let cell = value_at(cells, *column)?;
                let mut unknown = false;
                for value in values {
                    match value.as_ref().and_then(|value| cell.compare(value)) {
                        Some(Ordering::Equal) => return Some(true),
                        Some(_) => {}
                        None => unknown = true,
                    }
                }
                (!unknown).then_some(false)
            }
            Filter::IsNull { column } => Some(value_at(cells, *column).is_none()),
        }
    }
}

fn value_at(cells: &[Cell], column: usize) -> Option<&Value> {
    match cells.get(column) {
        Some(Cell::Value(value)) => Some(value),
        _ => None,
    }
}

/// AND (`decisive` false) and OR (`decisive` true): one decisive part decides, else one unknown part makes it unknown.
fn fold(parts: &[Filter], cells: &[Cell], decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for part in parts {
        match part.truth(cells) {
            Some(truth) if truth == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eq(value: Option<i64>) -> Filter {
        Filter::Compare { column: 0, op: Comparison::Eq, value: value.map(Value::Int) }
    }

    #[test]
    fn null_is_unknown_as_in_sql() {
        let (null, one) = ([Cell::Null], [Cell::Value(Value::Int(1))]);
        assert!(!eq(Some(1)).passes(&null));
        assert!(!Filter::Not(Box::new(eq(Some(1)))).passes(&null), "NOT unknown is unknown");
        assert!(Filter::IsNull { column: 0 }.passes(&null));
        assert!(!Filter::Not(Box::new(Filter::IsNull { column: 0 })).passes(&null));
        assert!(!eq(None).passes(&one), "= NULL is unknown");
        assert!(Filter::Or(vec![eq(None), eq(Some(1))]).passes(&one));
        assert!(!Filter::And(vec![eq(None), eq(Some(1))]).passes(&one));
    }

    #[test]
    fn in_lists_follow_sql() {
        let list = |values: &[Option<i64>]| Filter::In {
            column: 0,
            values: values.iter().map(|value| value.map(Value::Int)).collect(),
        };
        let one = [Cell::Value(Value::Int(1))];
        assert!(list(&[Some(2), Some(1)]).passes(&one));
        assert!(Filter::Not(Box::new(list(&[Some(2)]))).passes(&one));
        assert!(!Filter::Not(Box::new(list(&[Some(2), None]))).passes(&one), "1 NOT IN (2, NULL) is unknown");
    }
}
