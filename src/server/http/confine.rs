//! Those who may see some rows only: their filter is a part of every request's, and what would tell of other rows is not
//! told. Filters are joined as trees; no text is put together.

use crate::consistency::recheck::Visibility;
use crate::model::{Answer, CollectionDef, Filter, Recheck, SearchRequest};
use crate::query::{QueryError, QueryService, filter};
use crate::server::http::access::Principal;
use crate::server::problem::{self, Problem};

/// The rows of one collection that exist for somebody.
pub struct Confined(Option<Filter>);

impl Principal {
    /// Its rows of this collection.
    pub fn confined(&self, def: &CollectionDef) -> Result<Confined, Problem> {
        let Some(text) = &self.filter else { return Ok(Confined(None)) };
        let parsed = filter::parse(text, &[], &def.filters).map_err(|error| {
            tracing::warn!(principal = self.name, collection = def.name, %error, "a forced filter does not fit");
            let detail = format!("the filter of this key or token does not fit collection {:?}", def.name);
            Problem::new(problem::UNFIT_FILTER, detail).hint("its columns must be in the collection's filter_columns")
        });
        Ok(Confined(Some(parsed?)))
    }
}

impl Confined {
    /// What was asked for, among its rows.
    pub fn filter(&self, asked: Option<Filter>) -> Option<Filter> {
        match (&self.0, asked) {
            (None, asked) => asked,
            (Some(own), None) => Some(own.clone()),
            (Some(own), Some(asked)) => Some(Filter::And(vec![own.clone(), asked])),
        }
    }

    /// Columns that the source shows are those of a row as it is now, which may be somebody else's by now: the source must
    /// apply the filter, too.
    pub fn recheck(&self, asked: Recheck, columns: &[String]) -> Recheck {
        match asked {
            Recheck::Exists if self.0.is_some() && !columns.is_empty() => Recheck::Exact,
            asked => asked,
        }
    }

    /// Confines searches.
    pub fn searches(&self, requests: &mut [SearchRequest]) -> Result<(), Problem> {
        for request in requests {
            request.filter = self.filter(request.filter.take());
            request.recheck = self.recheck(request.recheck, &request.columns);
            if self.0.is_some() && request.shape.explain {
                let detail = "`explain` tells of all rows, and not all of them are for this key or token";
                return Err(Problem::new(problem::FORBIDDEN, detail).hint("leave `explain` out"));
            }
        }
        Ok(())
    }

    /// Rows to search by must be its own, or they are not there. Asked before and after a search: the rows it reads may
    /// change hands meanwhile.
    pub fn examples<V: Visibility>(
        &self,
        query: &QueryService<V>,
        requests: &[SearchRequest],
    ) -> Result<(), QueryError> {
        match &self.0 {
            Some(own) => requests.iter().try_for_each(|request| query.check_examples(request, own)),
            None => Ok(()),
        }
    }

    /// Without what an answer tells of all rows.
    pub fn answer(&self, mut answer: Answer) -> Answer {
        if self.0.is_some() {
            answer.stats.tell_nothing();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cell, Comparison, Value};

    fn compare(column: usize, op: Comparison, value: i64) -> Filter {
        Filter::Compare { column, op, value: Some(Value::Int(value)) }
    }

    /// Rows of tenant 1 only, whatever is asked for: always true, negated, NULL.
    #[test]
    fn no_filter_reaches_beyond_the_forced_one() {
        let own = compare(0, Comparison::Eq, 1);
        let confined = Confined(Some(own.clone()));
        let always = Filter::Or(vec![own.clone(), Filter::Not(Box::new(own.clone())), Filter::IsNull { column: 0 }]);
        let cells = [Cell::Value(Value::Int(1)), Cell::Value(Value::Int(2)), Cell::Null, Cell::Unchanged];
        for asked in [
            None,
            Some(always.clone()),
            Some(Filter::Not(Box::new(own.clone()))),
            Some(Filter::And(vec![])),
            Some(Filter::IsNull { column: 0 }),
            Some(compare(0, Comparison::Eq, 2)),
            Some(Filter::Or(vec![always, compare(0, Comparison::Ge, 0)])),
        ] {
            let joined = confined.filter(asked.clone()).expect("a filter");
            for cell in &cells {
                let cells = std::slice::from_ref(cell);
                let wanted = own.passes(cells) && asked.as_ref().is_none_or(|asked| asked.passes(cells));
                assert_eq!(joined.passes(cells), wanted, "{asked:?} {cell:?}");
                assert!(!joined.passes(cells) || own.passes(cells), "{asked:?} {cell:?}");
            }
        }
        assert_eq!(Confined(None).filter(None), None);
    }

    #[test]
    fn columns_of_the_source_are_shown_behind_the_filter_only() {
        let (confined, free, columns) =
            (Confined(Some(compare(0, Comparison::Eq, 1))), Confined(None), ["a".to_owned()]);
        assert_eq!(confined.recheck(Recheck::Exists, &columns), Recheck::Exact);
        assert_eq!(confined.recheck(Recheck::Exists, &[]), Recheck::Exists);
        assert_eq!(confined.recheck(Recheck::None, &columns), Recheck::None);
        assert_eq!(free.recheck(Recheck::Exists, &columns), Recheck::Exists);
    }
}
