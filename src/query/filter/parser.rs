//! The grammar of filters over their tokens: OR, AND, NOT, IS, comparisons, operands, in PostgreSQL's precedence.

use crate::model::{ColumnType, Comparison, Filter, FilterColumn};
use serde_json::Value as Json;

use super::constant::{Cast, Constant, Raw, unify_list};
use super::lexer::{Placed, Token};
use super::truth::{always, is_false, is_true, is_unknown, never, not, size};
use super::{FilterError, MAX_DEPTH, MAX_NODES};

/// IS TRUE and its like repeat conditions; this bounds how often.
const MAX_TREE: usize = 4 * MAX_NODES;

type Parsed<T> = Result<T, FilterError>;

/// What stands somewhere: a condition already, or something a condition is made of.
enum Term {
    Filter(Filter),
    Column(usize, usize),
    Constant(Constant),
}

/// Reads one filter.
pub(super) struct Parser<'a> {
    tokens: Vec<Placed>,
    at: usize,
    params: &'a [Json],
    used: Vec<bool>,
    columns: &'a [FilterColumn],
    depth: usize,
    nodes: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(tokens: Vec<Placed>, params: &'a [Json], columns: &'a [FilterColumn]) -> Parser<'a> {
        Parser { tokens, at: 0, params, used: vec![false; params.len()], columns, depth: 0, nodes: 0 }
    }

    /// The whole filter.
    pub(super) fn filter(mut self) -> Parsed<Filter> {
        if *self.peek() == Token::End {
            return Err(FilterError::new("the filter is empty").hint("leave it out to search all rows"));
        }
        let term = self.disjunction()?;
        if *self.peek() != Token::End {
            return Err(self.unexpected("AND, OR or the end of the filter"));
        }
        let filter = self.condition(term)?;
        match self.used.iter().position(|used| !used) {
            Some(i) => {
                let error = FilterError::new(format!("parameter ${} is not used in the filter", i + 1));
                Err(error.hint("use it, or leave it out of `params`"))
            }
            None => Ok(filter),
        }
    }

    fn disjunction(&mut self) -> Parsed<Term> {
        let first = self.conjunction()?;
        self.chain(first, "or", Parser::conjunction, Filter::Or)
    }

    fn conjunction(&mut self) -> Parsed<Term> {
        let first = self.negation()?;
        self.chain(first, "and", Parser::negation, Filter::And)
    }

    /// One flat list however long: `a AND b AND c` nests nothing.
    fn chain(
        &mut self,
        first: Term,
        word: &str,
        next: fn(&mut Self) -> Parsed<Term>,
        join: fn(Vec<Filter>) -> Filter,
    ) -> Parsed<Term> {
        if !self.peek_word(word) {
            return Ok(first);
        }
        let mut parts = vec![self.condition(first)?];
        while self.take_word(word) {
            let part = next(self)?;
            parts.push(self.condition(part)?);
        }
        Ok(Term::Filter(join(parts)))
    }

    fn negation(&mut self) -> Parsed<Term> {
        if !self.take_word("not") {
            return self.test();
        }
        self.enter()?;
        let term = self.negation()?;
        self.depth -= 1;
        Ok(Term::Filter(not(self.condition(term)?)))
    }

    /// `... IS [NOT] NULL | TRUE | FALSE | UNKNOWN`
    fn test(&mut self) -> Parsed<Term> {
        let term = self.predicate()?;
        let position = self.position();
        if !self.take_word("is") {
            return Ok(term);
        }
        let negated = self.take_word("not");
        let filter = match self.next() {
            Token::Word(word) if word == "null" => self.null_test(term)?,
            Token::Word(word) if word == "true" => is_true(&self.condition(term)?),
            Token::Word(word) if word == "false" => is_false(&self.condition(term)?),
            Token::Word(word) if word == "unknown" => is_unknown(&self.condition(term)?),
            Token::Word(word) if word == "distinct" => {
                return Err(unsupported("IS DISTINCT FROM", "write column = value OR column IS NULL").at(position));
            }
            _ => {
                self.at = self.at.saturating_sub(1);
                return Err(self.unexpected("NULL, TRUE, FALSE or UNKNOWN"));
            }
        };
        if size(&filter) > MAX_TREE {
            return Err(too_many().at(position));
        }
        Ok(Term::Filter(if negated { not(filter) } else { filter }))
    }

    fn null_test(&mut self, term: Term) -> Parsed<Filter> {
        match term {
            Term::Column(column, _) => self.count().map(|()| Filter::IsNull { column }),
            Term::Constant(constant) if constant.is_null() => Ok(always()),
            Term::Constant(_) => Ok(never()),
            Term::Filter(filter) => Ok(is_unknown(&filter)),
        }
    }

    /// A comparison, or just an operand.
    fn predicate(&mut self) -> Parsed<Term> {
        let left = self.operand()?;
        let position = self.position();
        if let Token::Compare(op) = *self.peek() {
            self.at += 1;
            let filter = self.comparison(left, op, position)?;
            if matches!(self.peek(), Token::Compare(_)) {
                return Err(self.unexpected("AND, OR or the end of the filter"));
            }
            return Ok(Term::Filter(filter));
        }
        let negated = self.peek_word("not");
        self.at += usize::from(negated);
        let filter = match self.peek_keyword() {
            Some("in") => self.list(left, position)?,
            Some("between") => self.between(left, position)?,
            Some("like" | "ilike" | "similar") => {
                return Err(unsupported("pattern matching", "compare with =, IN or IS NULL").at(self.position()));
            }
            _ if negated => return Err(self.unexpected("IN or BETWEEN")),
            _ => return Ok(left),
        };
        Ok(Term::Filter(if negated { not(filter) } else { filter }))
    }

    fn comparison(&mut self, left: Term, op: Comparison, position: usize) -> Parsed<Filter> {
        if let Some(quantifier @ ("any" | "some" | "all")) = self.peek_keyword() {
            let all = quantifier == "all";
            return self.quantified(left, op, all, position);
        }
        match (left, self.operand()?) {
            (Term::Column(column, at), Term::Constant(constant)) => self.compare(column, at, op, &constant),
            (Term::Constant(constant), Term::Column(column, at)) => self.compare(column, at, mirrored(op), &constant),
            (Term::Column(..), Term::Column(..)) => Err(column_to_column().at(position)),
            (Term::Constant(_), Term::Constant(_)) => Err(constants_only().at(position)),
            _ => Err(unsupported("comparing conditions", "use AND, OR, NOT and IS TRUE").at(position)),
        }
    }

    fn compare(&mut self, column: usize, at: usize, op: Comparison, constant: &Constant) -> Parsed<Filter> {
        self.count()?;
        self.check_operator(column, op).map_err(|error| error.at(at))?;
        let value = constant.resolve(&self.columns[column])?;
        Ok(Filter::Compare { column, op, value })
    }

    fn check_operator(&self, column: usize, op: Comparison) -> Parsed<()> {
        check_operator(&self.columns[column], op)
    }

    /// `IN (constant, ...)`
    fn list(&mut self, left: Term, position: usize) -> Parsed<Filter> {
        self.at += 1;
        self.expect(&Token::Open, "(")?;
        self.refuse_subselect()?;
        let mut constants = self.constants(&Token::Close)?;
        if let Term::Column(column, _) = left {
            self.check_operator(column, Comparison::Eq).map_err(|error| error.at(position))?;
            constants = unify_list(constants, &self.columns[column])?;
        }
        self.membership(left, &constants, position)
    }

    /// `= ANY (array)` is IN, `<> ALL (array)` is NOT IN.
    fn quantified(&mut self, left: Term, op: Comparison, all: bool, position: usize) -> Parsed<Filter> {
        self.at += 1;
        if !matches!((op, all), (Comparison::Eq, false) | (Comparison::Ne, true)) {
            return Err(unsupported("this operator with ANY or ALL", "= ANY and <> ALL are possible").at(position));
        }
        self.expect(&Token::Open, "(")?;
        self.refuse_subselect()?;
        let constants = self.array()?;
        self.expect(&Token::Close, ")")?;
        let filter = self.membership(left, &constants, position)?;
        Ok(if all { not(filter) } else { filter })
    }

    /// `$1`, `$1::type[]`, `ARRAY[constant, ...]`
    fn array(&mut self) -> Parsed<Vec<Constant>> {
        let position = self.position();
        if self.take_word("array") {
            self.expect(&Token::OpenBracket, "[")?;
            return self.constants(&Token::CloseBracket);
        }
        let wrong =
            || FilterError::new("ANY and ALL need an array").hint("send a JSON array as a parameter").at(position);
        let Token::Param(number) = *self.peek() else { return Err(wrong()) };
        self.at += 1;
        let mut array = self.param(number, position)?;
        if *self.peek() == Token::Cast {
            self.at += 1;
            array = array.cast(self.type_name()?)?;
            self.expect(&Token::OpenBracket, "[")?;
            self.expect(&Token::CloseBracket, "]")?;
        }
        array.elements().unwrap_or_else(|| Err(wrong()))
    }

    fn constants(&mut self, close: &Token) -> Parsed<Vec<Constant>> {
        let mut constants = Vec::new();
        if self.peek() == close && *close == Token::CloseBracket {
            self.at += 1;
            return Ok(constants);
        }
        loop {
            let position = self.position();
            match self.operand()? {
                Term::Constant(constant) => constants.push(constant),
                Term::Column(..) => return Err(column_to_column().at(position)),
                Term::Filter(_) => return Err(FilterError::new("a list may hold constants only").at(position)),
            }
            if constants.len() > MAX_NODES {
                return Err(too_many().at(position));
            }
            if self.peek() == close {
                self.at += 1;
                return Ok(constants);
            }
            self.expect(&Token::Comma, "a comma or the end of the list")?;
        }
    }

    fn membership(&mut self, left: Term, constants: &[Constant], position: usize) -> Parsed<Filter> {
        let column = match left {
            Term::Column(column, _) => column,
            Term::Constant(_) => return Err(constants_only().at(position)),
            Term::Filter(_) => return Err(unsupported("a list of conditions", "use OR").at(position)),
        };
        self.check_operator(column, Comparison::Eq).map_err(|error| error.at(position))?;
        self.nodes += constants.len();
        self.count()?;
        if constants.is_empty() {
            return Ok(never());
        }
        let values = constants.iter().map(|constant| constant.resolve(&self.columns[column]));
        Ok(Filter::In { column, values: values.collect::<Parsed<_>>()? })
    }

    fn between(&mut self, left: Term, position: usize) -> Parsed<Filter> {
        self.at += 1;
        let Term::Column(column, at) = left else { return Err(constants_only().at(position)) };
        let low = self.bound()?;
        if !self.take_word("and") {
            return Err(self.unexpected("AND"));
        }
        let high = self.bound()?;
        let low = self.compare(column, at, Comparison::Ge, &low)?;
        let high = self.compare(column, at, Comparison::Le, &high)?;
        Ok(Filter::And(vec![low, high]))
    }

    fn bound(&mut self) -> Parsed<Constant> {
        let position = self.position();
        match self.operand()? {
            Term::Constant(constant) => Ok(constant),
            Term::Column(..) => Err(column_to_column().at(position)),
            Term::Filter(_) => Err(FilterError::new("a bound must be a constant").at(position)),
        }
    }

    /// A column, a constant, or anything in parentheses, with its casts.
    fn operand(&mut self) -> Parsed<Term> {
        let mut term = self.primary()?;
        loop {
            let position = self.position();
            match self.peek() {
                Token::Cast => {
                    self.at += 1;
                    let cast = self.type_name()?;
                    term = Term::Constant(castable(term, position)?.cast(cast)?);
                }
                Token::OpenBracket => return Err(unsupported("an element of an array", "").at(position)),
                Token::Plus | Token::Minus => return Err(arithmetic().at(position)),
                Token::Other(text) if text.bytes().all(|byte| b"+-*/<>=~!@#%^&|`?".contains(&byte)) => {
                    let operator = format!("the operator {}", shortened(text));
                    let hint = "=, <>, <, <=, >, >=, IN, BETWEEN and IS are possible";
                    return Err(unsupported(&operator, hint).at(position));
                }
                Token::Word(word) if word == "collate" => return Err(unsupported("COLLATE", "").at(position)),
                Token::Word(word) if word == "at" => {
                    return Err(unsupported("AT TIME ZONE", "write the zone into the constant").at(position));
                }
                _ => return Ok(term),
            }
        }
    }

    fn primary(&mut self) -> Parsed<Term> {
        let position = self.position();
        let constant = |raw| Ok(Term::Constant(Constant::new(raw, position)));
        match self.next() {
            Token::Open => self.parenthesised(),
            Token::Number(digits) => constant(Raw::Number(digits)),
            Token::Text(text) => constant(Raw::Text(text)),
            Token::Plus => self.signed("", position),
            Token::Minus => self.signed("-", position),
            Token::Param(number) => self.param(number, position).map(Term::Constant),
            Token::Quoted(name) => self.column(&name, true, position),
            Token::Word(word) => match word.as_str() {
                "true" => constant(Raw::Bool(true)),
                "false" => constant(Raw::Bool(false)),
                "null" => constant(Raw::Null),
                _ => self.word(&word, position),
            },
            _ => {
                self.at = self.at.saturating_sub(1);
                Err(self.unexpected("a column or a constant"))
            }
        }
    }

    fn parenthesised(&mut self) -> Parsed<Term> {
        self.refuse_subselect()?;
        self.enter()?;
        let term = self.disjunction()?;
        self.depth -= 1;
        if *self.peek() == Token::Comma {
            return Err(unsupported("a row of several values", "compare the columns one by one").at(self.position()));
        }
        self.expect(&Token::Close, ")")?;
        Ok(term)
    }

    fn signed(&mut self, sign: &str, position: usize) -> Parsed<Term> {
        match self.next() {
            Token::Number(digits) => {
                Ok(Term::Constant(Constant::new(Raw::Number(format!("{sign}{digits}")), position)))
            }
            _ => Err(arithmetic().at(position)),
        }
    }

    /// A typed literal, a column, or something that is not taken.
    fn word(&mut self, word: &str, position: usize) -> Parsed<Term> {
        if let Some(literal) = self.typed_literal(position)? {
            return Ok(Term::Constant(literal));
        }
        match word {
            "cast" if *self.peek() == Token::Open => return self.cast_call(),
            "select" | "exists" | "values" | "with" => return Err(subselect().at(position)),
            "case" => return Err(unsupported("CASE", "use AND and OR").at(position)),
            "array" | "row" | "interval" => {
                return Err(unsupported(&word.to_uppercase(), "").at(position));
            }
            _ => {}
        }
        if RESERVED.contains(&word) {
            self.at = self.at.saturating_sub(1);
            return Err(self.unexpected("a column or a constant"));
        }
        self.column(word, false, position)
    }

    fn column(&mut self, name: &str, quoted: bool, position: usize) -> Parsed<Term> {
        match self.peek() {
            Token::Open => {
                let what = format!("the function {}", shortened(name));
                return Err(unsupported(&what, "compare columns with constants").at(position));
            }
            Token::Dot => {
                let hint = "columns are named without their table";
                return Err(unsupported("a qualified name", hint).at(position));
            }
            _ => {}
        }
        match self.columns.iter().position(|column| column.name == name) {
            Some(column) => Ok(Term::Column(column, position)),
            None => Err(unknown_column(name, quoted, self.columns).at(position)),
        }
    }

    /// `DATE '...'` and the like; stands still when it is something else.
    fn typed_literal(&mut self, position: usize) -> Parsed<Option<Constant>> {
        let start = self.at;
        self.at = self.at.saturating_sub(1);
        if let Ok(cast) = self.type_name()
            && let Token::Text(text) = self.peek()
        {
            let constant = Constant::new(Raw::Text(text.clone()), position).cast(cast)?;
            self.at += 1;
            return Ok(Some(constant));
        }
        self.at = start;
        Ok(None)
    }

    /// `CAST(constant AS type)`
    fn cast_call(&mut self) -> Parsed<Term> {
        self.expect(&Token::Open, "(")?;
        self.enter()?;
        let position = self.position();
        let term = self.operand()?;
        self.depth -= 1;
        if !self.take_word("as") {
            return Err(self.unexpected("AS"));
        }
        let constant = castable(term, position)?.cast(self.type_name()?)?;
        self.expect(&Token::Close, ")")?;
        Ok(Term::Constant(constant))
    }

    fn type_name(&mut self) -> Parsed<Cast> {
        use ColumnType::*;
        let position = self.position();
        let Token::Word(word) = self.next() else {
            self.at = self.at.saturating_sub(1);
            return Err(self.unexpected("a type"));
        };
        let kind = match word.as_str() {
            "bool" | "boolean" => Bool,
            "int2" | "smallint" => Int2,
            "int4" | "int" | "integer" => Int4,
            "int8" | "bigint" => Int8,
            "float4" | "real" => Float4,
            "float8" | "float" => Float8,
            "double" if self.take_word("precision") => Float8,
            "text" => Text,
            "varchar" => Varchar,
            "character" if self.take_word("varying") => Varchar,
            "uuid" => Uuid,
            "date" => Date,
            "timestamptz" => Timestamptz,
            "timestamp" => self.timestamp_zone()?,
            "numeric" | "decimal" => return Ok(Cast::Numeric),
            _ => return Err(unsupported(&format!("the type {}", shortened(&word)), "").at(position)),
        };
        if *self.peek() == Token::Open {
            return Err(unsupported("a type with a modifier", "leave out the modifier").at(position));
        }
        Ok(Cast::Column(kind))
    }

    fn timestamp_zone(&mut self) -> Parsed<ColumnType> {
        let kind = match self.peek_keyword() {
            Some("with") => ColumnType::Timestamptz,
            Some("without") => ColumnType::Timestamp,
            _ => return Ok(ColumnType::Timestamp),
        };
        self.at += 1;
        if self.take_word("time") && self.take_word("zone") { Ok(kind) } else { Err(self.unexpected("TIME ZONE")) }
    }

    fn param(&mut self, number: usize, position: usize) -> Parsed<Constant> {
        let Some(json) = self.params.get(number - 1) else {
            let message = format!("parameter ${number} has no value; {} were sent", self.params.len());
            return Err(FilterError::new(message).hint("send its value in `params`: $1 is the first").at(position));
        };
        if json.as_array().is_some_and(|items| items.len() > MAX_NODES) {
            return Err(too_many().at(position));
        }
        self.used[number - 1] = true;
        Constant::param(json, position)
    }

    /// The term as a condition.
    fn condition(&mut self, term: Term) -> Parsed<Filter> {
        match term {
            Term::Filter(filter) => Ok(filter),
            Term::Column(column, at) => self.boolean_column(column, at),
            Term::Constant(Constant { raw: Raw::Bool(true), cast: None, .. }) => Ok(always()),
            Term::Constant(Constant { raw: Raw::Bool(false), cast: None, .. }) => Ok(never()),
            Term::Constant(Constant { raw: Raw::Null, position, .. }) => self.unknown(position),
            Term::Constant(Constant { position, .. }) => Err(no_condition("a constant").at(position)),
        }
    }

    fn boolean_column(&mut self, column: usize, at: usize) -> Parsed<Filter> {
        let FilterColumn { name, kind } = &self.columns[column];
        if *kind != ColumnType::Bool {
            return Err(no_condition(&format!("column \"{name}\" of type {kind}")).at(at));
        }
        self.compare(column, at, Comparison::Eq, &Constant::new(Raw::Bool(true), at))
    }

    /// A condition that is NULL whatever the row: any comparison with NULL is.
    fn unknown(&mut self, position: usize) -> Parsed<Filter> {
        self.count()?;
        if self.columns.is_empty() {
            return Err(no_condition("NULL").at(position));
        }
        Ok(Filter::Compare { column: 0, op: Comparison::Eq, value: None })
    }

    fn refuse_subselect(&self) -> Parsed<()> {
        match self.peek_keyword() {
            Some("select" | "with" | "values" | "table") => Err(subselect().at(self.position())),
            _ => Ok(()),
        }
    }

    fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        let error = FilterError::new(format!("the filter is nested more than {MAX_DEPTH} deep"));
        Err(error.hint("leave out parentheses, or write a chain of OR as column IN (...)").at(self.position()))
    }

    fn count(&mut self) -> Parsed<()> {
        self.nodes += 1;
        if self.nodes <= MAX_NODES { Ok(()) } else { Err(too_many().at(self.position())) }
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |placed| &placed.token)
    }

    fn position(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |placed| placed.position)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn peek_keyword(&self) -> Option<&str> {
        match self.peek() {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }

    fn peek_word(&self, word: &str) -> bool {
        self.peek_keyword() == Some(word)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_word(word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token, name: &str) -> Parsed<()> {
        if self.peek() == token {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(name))
    }

    fn unexpected(&self, wanted: &str) -> FilterError {
        let found = match self.peek() {
            Token::End => "the end of the filter".to_owned(),
            Token::Word(word) => format!("\"{}\"", shortened(word)),
            Token::Quoted(_) => "a column".to_owned(),
            Token::Number(_) | Token::Text(_) | Token::Param(_) => "a constant".to_owned(),
            Token::Compare(op) => op.sql().to_owned(),
            Token::Other(text) => shortened(text),
            Token::Open => "(".into(),
            Token::Close => ")".into(),
            Token::OpenBracket => "[".into(),
            Token::CloseBracket => "]".into(),
            Token::Comma => ",".into(),
            Token::Dot => ".".into(),
            Token::Cast => "::".into(),
            Token::Plus => "+".into(),
            Token::Minus => "-".into(),
        };
        FilterError::new(format!("found {found} where {wanted} should be")).at(self.position())
    }
}

/// Words that Postgres takes for a column in quotes only, as far as they can meet in a filter.
const RESERVED: [&str; 20] = [
    "and", "or", "not", "in", "is", "between", "like", "ilike", "similar", "any", "some", "all", "as", "from", "where",
    "order", "group", "having", "limit", "union",
];

/// Can the column be compared in this way? Its errors' texts need no room in the frames of a deep filter.
#[inline(never)]
pub(super) fn check_operator(FilterColumn { name, kind }: &FilterColumn, op: Comparison) -> Parsed<()> {
    let ordering = !matches!(op, Comparison::Eq | Comparison::Ne);
    if kind.is_vector() {
        let message = format!("column \"{name}\" holds vectors and cannot be compared");
        return Err(FilterError::new(message).hint("only IS NULL and IS NOT NULL are possible"));
    }
    if ordering && !kind.is_ordered() {
        let message = format!("{} is not supported on column \"{name}\" of type {kind}", op.sql());
        let hint = "the order of text depends on the column's collation, which only the source has; use =, <> or IN";
        return Err(FilterError::new(message).hint(hint));
    }
    Ok(())
}

fn mirrored(op: Comparison) -> Comparison {
    match op {
        Comparison::Lt => Comparison::Gt,
        Comparison::Le => Comparison::Ge,
        Comparison::Gt => Comparison::Lt,
        Comparison::Ge => Comparison::Le,
        Comparison::Eq | Comparison::Ne => op,
    }
}

fn castable(term: Term, position: usize) -> Parsed<Constant> {
    match term {
        Term::Constant(constant) => Ok(constant),
        Term::Column(..) | Term::Filter(_) => {
            Err(unsupported("casting anything but a constant", "cast the constant instead").at(position))
        }
    }
}

fn unsupported(what: &str, hint: &str) -> FilterError {
    let error = FilterError::new(format!("{what} is not supported in a filter"));
    if hint.is_empty() { error } else { error.hint(hint) }
}

fn subselect() -> FilterError {
    unsupported("a sub-select", "filters see the replicated columns of one row; send the list as a parameter")
}

fn arithmetic() -> FilterError {
    unsupported("arithmetic", "compute the constant first")
}

fn column_to_column() -> FilterError {
    unsupported("comparing two columns", "compare a column with a constant")
}

fn constants_only() -> FilterError {
    unsupported("a comparison without a column", "compare a column with a constant")
}

pub(super) fn too_many() -> FilterError {
    let error = FilterError::new(format!("the filter has more than {MAX_NODES} conditions and list elements"));
    error.hint("search in parts, or by a column that says the same")
}

fn no_condition(what: &str) -> FilterError {
    FilterError::new(format!("{what} is not a condition")).hint("compare it with something")
}

pub(super) fn unknown_column(name: &str, quoted: bool, columns: &[FilterColumn]) -> FilterError {
    let error = FilterError::new(format!("there is no replicated column \"{}\"", shortened(name)));
    let twin = columns.iter().find(|column| column.name.to_lowercase() == name.to_lowercase());
    if let Some(twin) = twin {
        let why = if quoted { "in quotes case matters" } else { "without quotes names are folded to lower case" };
        return error.hint(format!("{why}; write \"{}\"", twin.name));
    }
    let names: Vec<_> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    error.hint(if names.is_empty() {
        "the collection replicates no filter columns".to_owned()
    } else {
        format!("replicated columns: {}", names.join(", "))
    })
}

/// Names from the filter's text may be of any length.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 63;
    if text.chars().count() > MOST { text.chars().take(MOST).chain("...".chars()).collect() } else { text.to_owned() }
}
