//! SQL text -> statements of the session. Anything that is not understood is refused here with what to do instead.

use crate::server::pg::catalog;
use crate::server::pg::condition::{Params, folded, pieces, unsupported};
use crate::server::problem::{self, Problem};
use sqlparser::ast::{
    CloseCursor, ContextModifier, DiscardObject, Expr, FetchDirection, Query, Reset, Set, Statement as Ast,
    TransactionIsolationLevel, TransactionMode, Value as Literal,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// Longest text of statements, in bytes.
pub const MAX_TEXT: usize = 4 << 20;
/// Most words and signs in a row. The parser makes a tree as deep as a chain of operators is long, and what walks through
/// it, shows it or drops it, takes a piece of the stack for each level.
const MAX_DEPTH: usize = 1_000;
/// Stack of a thread that reads statements, with room for the deepest.
pub const STACK: usize = 32 << 20;
/// Most statements of one text.
const MAX_STATEMENTS: usize = 100;

/// A statement of the session.
#[derive(Debug, Clone)]
pub enum Statement {
    /// Rows of a table.
    Query(Box<Query>),
    /// A cursor over them.
    Declare(String, Box<Query>),
    /// Rows of a cursor: so many, or all of them.
    Fetch(String, Option<u64>),
    /// Over so many rows without showing them; all of them.
    Move(String, Option<u64>),
    /// A cursor starts again from its first row.
    Rewind(String),
    /// A cursor, or all.
    Close(Option<String>),
    /// What a query would cost.
    Explain(Box<Query>),
    /// A query that is no search: its text, read by the catalog.
    Catalog(String),
    /// A query over the tables of Postgres' own catalog.
    Lookup(Box<Query>),
    /// `true` for repeatable read and serializable.
    Begin(bool),
    /// COMMIT
    Commit,
    /// ROLLBACK
    Rollback,
    /// SAVEPOINT
    Savepoint(String),
    /// RELEASE SAVEPOINT
    Release(String),
    /// ROLLBACK TO SAVEPOINT
    RollbackTo(String),
    /// SET name = value; `true` for SET LOCAL.
    Set(String, String, bool),
    /// `true` for repeatable read and serializable, of the transaction or of those to come.
    SetIsolation(bool),
    /// RESET
    Reset(Option<String>),
    /// SHOW
    Show(String),
    /// A prepared statement, or all.
    Deallocate(Option<String>),
    /// DISCARD
    Discard,
    /// UNLISTEN and its like, which change nothing here: the tag to answer with.
    Nothing(&'static str),
}

impl Statement {
    /// May it run in a transaction that has failed?
    pub fn ends_failure(&self) -> bool {
        matches!(self, Statement::Rollback | Statement::Commit | Statement::RollbackTo(_))
    }
}

/// The statements of a text.
pub fn parse(sql: &str) -> Result<Vec<Statement>, Problem> {
    if sql.len() > MAX_TEXT {
        return Err(Problem::new(problem::TOO_LARGE, format!("the text has {} bytes", sql.len()))
            .hint(format!("at most {MAX_TEXT} are taken; send vectors as parameters")));
    }
    if let Some(found) = by_text(sql) {
        return Ok(vec![found]);
    }
    let dialect = PostgreSqlDialect {};
    let syntax = |error: String| {
        Problem::new(problem::SYNTAX, format!("syntax error: {error}"))
            .hint("docs/sql.md lists the forms that are taken")
    };
    let tokens = Tokenizer::new(&dialect, sql).tokenize_with_location();
    let tokens = joined(tokens.map_err(|error| syntax(error.to_string()))?);
    check_depth(&tokens)?;
    let parsed = Parser::new(&dialect).with_tokens_with_locations(tokens).parse_statements();
    let parsed = parsed.map_err(|error| syntax(error.to_string()))?;
    if parsed.len() > MAX_STATEMENTS {
        return Err(unsupported(format!("more than {MAX_STATEMENTS} statements at once")));
    }
    parsed.into_iter().map(statement).collect()
}

/// Refuses statements that would be a deep tree: how deep is at most the number of words and signs in a row, and of those
/// around them where they are in parentheses. What a comma separates lies side by side.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<(), Problem> {
    // Of each open parenthesis the longest row so far, and the one that goes on.
    let mut open = vec![(0, 0)];
    let mut depth = 0;
    let mut last = &Token::EOF;
    for TokenWithSpan { token, .. } in tokens {
        let starts = matches!(last, Token::Comma | Token::LBracket | Token::LParen);
        let mut add = 1;
        match token {
            Token::Whitespace(_) => continue,
            Token::SemiColon => (open, depth, add) = (vec![(0, 0)], 0, 0),
            Token::Comma => {
                if let Some((longest, current)) = open.last_mut() {
                    depth -= *current;
                    *longest = (*longest).max(std::mem::take(current));
                }
                add = 0;
            }
            Token::LParen | Token::LBracket => open.push((0, 0)),
            Token::RParen | Token::RBracket if open.len() > 1 => {
                let (longest, current) = open.pop().unwrap_or_default();
                add = longest.max(current);
                depth -= current;
            }
            Token::Number(..) | Token::Placeholder(_) => add = 0,
            token if is_text(token) => add = 0,
            Token::Minus if starts => add = 0,
            _ => {}
        }
        depth += add;
        open.last_mut().expect("the outermost is never closed").1 += add;
        if depth > MAX_DEPTH {
            let detail = format!("a statement of more than {MAX_DEPTH} words and signs in a row");
            let hint = "write `column IN (...)` or `= ANY ($1)` instead of a chain of OR; send vectors as parameters";
            return Err(Problem::new(problem::TOO_COMPLEX, detail).hint(hint));
        }
        last = token;
    }
    Ok(())
}

fn is_text(token: &Token) -> bool {
    matches!(
        token,
        Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::DollarQuotedString(_)
    )
}

/// What the parser does not know, and what the catalog answers by its text.
fn by_text(sql: &str) -> Option<Statement> {
    let plain = sql.trim().trim_end_matches(';').trim();
    let (word, rest) = plain.split_once(|c: char| c.is_ascii_whitespace())?;
    match word.to_ascii_uppercase().as_str() {
        "MOVE" => moved(rest),
        "UNLISTEN" => Some(Statement::Nothing("UNLISTEN")),
        "SELECT" | "WITH" if catalog::answers(plain) => Some(Statement::Catalog(plain.to_owned())),
        _ => None,
    }
}

/// MOVE, which the parser does not have: direction, IN or FROM, name.
fn moved(rest: &str) -> Option<Statement> {
    let upper = rest.to_ascii_uppercase();
    let (at, length) = [" IN ", " FROM "].iter().find_map(|word| Some((upper.find(word)?, word.len())))?;
    let name = name(rest[at + length..].trim())?;
    let direction: Vec<_> = upper[..at].split_ascii_whitespace().collect();
    match direction[..] {
        ["BACKWARD", "ALL"] => Some(Statement::Rewind(name)),
        ["ALL"] | ["FORWARD", "ALL"] => Some(Statement::Move(name, None)),
        ["NEXT"] | ["FORWARD"] => Some(Statement::Move(name, Some(1))),
        [count] | ["FORWARD", count] => Some(Statement::Move(name, Some(count.parse().ok()?))),
        _ => None,
    }
}

/// A name out of a text, as Postgres folds it; none where it is more than that.
fn name(text: &str) -> Option<String> {
    match text.strip_prefix('"') {
        Some(rest) => {
            let inner = rest.strip_suffix('"')?.replace("\"\"", "\u{1}");
            (!inner.contains('"')).then(|| inner.replace('\u{1}', "\""))
        }
        None => {
            let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            (!text.is_empty() && text.chars().all(plain)).then(|| text.to_lowercase())
        }
    }
}

/// pgvector's `<+>`, which the tokenizer takes for two operators.
fn joined(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut joined: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    for next in tokens {
        if let Some(last) = joined.last_mut()
            && last.span.end == next.span.start
            && format!("{}{}", last.token, next.token) == "<+>"
        {
            last.token = Token::CustomBinaryOperator("<+>".to_owned());
            last.span.end = next.span.end;
            continue;
        }
        if let [.., first, second] = &mut joined[..]
            && (first.token == Token::Lt && second.token == Token::Plus && next.token == Token::Gt)
            && first.span.end == second.span.start
            && second.span.end == next.span.start
        {
            first.token = Token::CustomBinaryOperator("<+>".to_owned());
            first.span.end = next.span.end;
            joined.pop();
            continue;
        }
        joined.push(next);
    }
    joined
}

fn statement(ast: Ast) -> Result<Statement, Problem> {
    Ok(match ast {
        Ast::Query(query) if catalog::is_asked(&query) => Statement::Lookup(query),
        Ast::Query(query) => Statement::Query(query),
        Ast::Declare { stmts } => declare(stmts)?,
        Ast::Fetch { name, direction, into: None, .. } => Statement::Fetch(folded(&name), count(&direction)?),
        Ast::Close { cursor: CloseCursor::All } => Statement::Close(None),
        Ast::Close { cursor: CloseCursor::Specific { name } } => Statement::Close(Some(folded(&name))),
        Ast::Explain { analyze: false, statement, .. } => match *statement {
            Ast::Query(query) => Statement::Explain(query),
            _ => return Err(unsupported("EXPLAIN of anything but a query")),
        },
        Ast::Explain { .. } => return Err(unsupported("EXPLAIN ANALYZE")),
        Ast::StartTransaction { modes, .. } => Statement::Begin(repeatable(&modes).unwrap_or(false)),
        Ast::Commit { chain: false, .. } => Statement::Commit,
        Ast::Rollback { chain: false, savepoint: None } => Statement::Rollback,
        Ast::Rollback { chain: false, savepoint: Some(name) } => Statement::RollbackTo(folded(&name)),
        Ast::Savepoint { name } => Statement::Savepoint(folded(&name)),
        Ast::ReleaseSavepoint { name } => Statement::Release(folded(&name)),
        Ast::Set(set) => settings(set)?,
        Ast::Reset(reset) => match reset.reset {
            Reset::ALL => Statement::Reset(None),
            Reset::SessionAuthorization => Statement::Nothing("RESET"),
            Reset::ConfigurationParameter(name) => Statement::Reset(Some(pieces(&name).join("."))),
        },
        Ast::ShowVariable { variable } => {
            let name = variable.iter().map(|ident| ident.value.clone()).collect::<Vec<_>>();
            Statement::Show(shown(&name))
        }
        Ast::Deallocate { name, .. } if name.value.eq_ignore_ascii_case("all") => Statement::Deallocate(None),
        Ast::Deallocate { name, .. } => Statement::Deallocate(Some(folded(&name))),
        Ast::Discard { object_type: DiscardObject::ALL } => Statement::Discard,
        Ast::Discard { .. } => Statement::Nothing("DISCARD"),
        Ast::UNLISTEN { .. } => Statement::Nothing("UNLISTEN"),
        other => {
            let word = other.to_string().split_whitespace().next().unwrap_or_default().to_owned();
            return Err(match word.as_str() {
                "INSERT" | "UPDATE" | "DELETE" | "TRUNCATE" | "MERGE" | "COPY" => {
                    unsupported(word).hint("what is searched is written in the source: this service follows its tables")
                }
                _ => unsupported(word),
            });
        }
    })
}

fn declare(mut declares: Vec<sqlparser::ast::Declare>) -> Result<Statement, Problem> {
    let (Some(mut declare), true) = (declares.pop(), declares.is_empty()) else {
        return Err(unsupported("several cursors in one DECLARE"));
    };
    if declare.hold == Some(true) {
        return Err(unsupported("a cursor WITH HOLD"));
    }
    if declare.scroll == Some(true) || declare.binary == Some(true) {
        return Err(unsupported("a SCROLL or BINARY cursor"));
    }
    match (declare.names.pop(), declare.for_query) {
        (Some(name), Some(query)) if declare.names.is_empty() => Ok(Statement::Declare(folded(&name), query)),
        _ => Err(unsupported("DECLARE of anything but a cursor for a query")),
    }
}

fn count(direction: &FetchDirection) -> Result<Option<u64>, Problem> {
    let number = |literal: &Literal| {
        literal.to_string().parse().map(Some).map_err(|_| unsupported("FETCH of anything but a number of rows"))
    };
    match direction {
        FetchDirection::Count { limit } | FetchDirection::Forward { limit: Some(limit) } => number(&limit.value),
        FetchDirection::Next | FetchDirection::Forward { limit: None } => Ok(Some(1)),
        FetchDirection::All | FetchDirection::ForwardAll => Ok(None),
        _ => Err(unsupported("FETCH in any direction but forward")),
    }
}

fn repeatable(modes: &[TransactionMode]) -> Option<bool> {
    modes.iter().rev().find_map(|mode| match mode {
        TransactionMode::IsolationLevel(level) => Some(matches!(
            level,
            TransactionIsolationLevel::RepeatableRead
                | TransactionIsolationLevel::Serializable
                | TransactionIsolationLevel::Snapshot
        )),
        TransactionMode::AccessMode(_) => None,
    })
}

fn settings(set: Set) -> Result<Statement, Problem> {
    let text = |values: &[Expr]| {
        let one = |expr: &Expr| match Params(None).constant(expr) {
            Ok(crate::server::pg::condition::Known::Text(Some(text))) => text,
            _ => expr.to_string(),
        };
        values.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    Ok(match set {
        Set::SingleAssignment { scope, variable, values, .. } => {
            let (name, value) = (pieces(&variable).join("."), text(&values));
            match value.eq_ignore_ascii_case("default") {
                true => Statement::Reset(Some(name)),
                false => Statement::Set(name, value, scope == Some(ContextModifier::Local)),
            }
        }
        Set::SetTimeZone { local, value } => Statement::Set("timezone".into(), text(&[value]), local),
        Set::SetNames { charset_name, .. } => Statement::Set("client_encoding".into(), charset_name.value, false),
        Set::SetTransaction { modes, .. } => match repeatable(&modes) {
            Some(repeatable) => Statement::SetIsolation(repeatable),
            None => Statement::Nothing("SET"),
        },
        Set::SetRole { .. } | Set::SetSessionAuthorization(_) => {
            return Err(unsupported("another role than the one that logged in"));
        }
        _ => return Err(unsupported("this form of SET")),
    })
}

/// `SHOW TIME ZONE` and `SHOW TRANSACTION ISOLATION LEVEL` have words instead of a name.
fn shown(words: &[String]) -> String {
    match words.iter().map(|word| word.to_lowercase()).collect::<Vec<_>>().join(" ").as_str() {
        "time zone" => "timezone".to_owned(),
        "transaction isolation level" => "transaction_isolation".to_owned(),
        name => name.replace(" . ", ".").replace(' ', "."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str) -> String {
        match parse(sql) {
            Ok(statements) => format!("{statements:?}"),
            Err(problem) => format!("{} {}", problem.kind.sqlstate, problem.detail),
        }
    }

    #[test]
    fn what_postgres_fdw_sends_is_understood() {
        for (sql, expected) in [
            ("SET search_path = pg_catalog", "[Set(\"search_path\", \"pg_catalog\", false)]"),
            ("SET timezone = 'GMT'", "[Set(\"timezone\", \"GMT\", false)]"),
            ("SET datestyle = ISO", "[Set(\"datestyle\", \"ISO\", false)]"),
            ("SET extra_float_digits = 3", "[Set(\"extra_float_digits\", \"3\", false)]"),
            ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ", "[Begin(true)]"),
            ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY", "[Begin(true)]"),
            ("BEGIN", "[Begin(false)]"),
            ("FETCH 100 FROM c1", "[Fetch(\"c1\", Some(100))]"),
            ("CLOSE c1", "[Close(Some(\"c1\"))]"),
            ("MOVE BACKWARD ALL IN c1", "[Rewind(\"c1\")]"),
            ("MOVE 2 IN \"My c\"", "[Move(\"My c\", Some(2))]"),
            ("SET LOCAL a.b = 1", "[Set(\"a.b\", \"1\", true)]"),
            ("SAVEPOINT s2", "[Savepoint(\"s2\")]"),
            ("ROLLBACK TO SAVEPOINT s2; RELEASE SAVEPOINT s2", "[RollbackTo(\"s2\"), Release(\"s2\")]"),
            ("COMMIT TRANSACTION", "[Commit]"),
            ("ABORT TRANSACTION", "[Rollback]"),
            ("DEALLOCATE ALL", "[Deallocate(None)]"),
            ("DISCARD ALL", "[Discard]"),
            ("RESET ALL", "[Reset(None)]"),
            ("SHOW transaction isolation level", "[Show(\"transaction_isolation\")]"),
            ("CLOSE ALL", "[Close(None)]"),
            (" ; ", "[]"),
        ] {
            assert_eq!(one(sql), expected, "{sql}");
        }
        let declare = one("DECLARE c1 CURSOR FOR\nSELECT key, distance FROM ruvector.search WHERE ((k = 10))");
        assert!(declare.starts_with("[Declare(\"c1\""), "{declare}");
    }

    #[test]
    fn the_operator_that_the_tokenizer_splits_is_one() {
        assert!(one("SELECT id FROM t ORDER BY e <+> '[1]'").contains("<+>"));
        assert!(!one("SELECT id FROM t WHERE a < +1").contains("<+>"));
    }

    #[test]
    fn no_statement_is_deeper_than_the_stack() {
        let small = std::thread::Builder::new().stack_size(STACK / 2).spawn(chains).expect("a thread");
        small.join().expect("it comes to its end");
    }

    fn chains() {
        let chain =
            |first: &str, link: &str, count: usize| format!("SELECT 1 FROM t WHERE {first}{}", link.repeat(count));
        for (first, link) in [
            ("id=1", " OR id=1"),
            ("id=1", " AND id=1"),
            ("id=1", "::int"),
            ("id=", "1-"),
            ("", "NOT "),
            ("id=1 - ", "- "),
            ("id=", "("),
            ("a", ".a"),
            ("id=1", " IS NULL"),
            ("id=1", " COLLATE \"C\""),
        ] {
            let refused = parse(&chain(first, link, 100_000)).expect_err(link);
            assert!(refused.kind == problem::TOO_COMPLEX && refused.hint.is_some(), "{link}: {}", refused.detail);
            // What is let through is walked, shown and dropped; it may be refused for another reason.
            let words = Tokenizer::new(&PostgreSqlDialect {}, link).tokenize().expect("words");
            let each = words.iter().filter(|word| !matches!(word, Token::Whitespace(_) | Token::Number(..))).count();
            if let Ok(statements) = parse(&chain(first, link, (MAX_DEPTH - 10) / each)) {
                let Some(Statement::Query(query)) = statements.first() else { panic!("{link}") };
                let parts = crate::server::pg::select::parts(query).expect("a plain query");
                let condition = parts.condition.expect("a condition");
                assert!(!crate::server::pg::condition::conjuncts(condition).is_empty());
                assert!(crate::server::pg::inputs::first_distance(condition, &|_| true).is_none());
                let _ = Params(None).constant(condition);
                assert!(!query.to_string().is_empty());
            }
        }
        let values = vec!["-1.5"; 16_000].join(",");
        assert!(parse(&format!("SELECT id FROM t ORDER BY e <-> ARRAY[{values}] LIMIT 3")).is_ok());
        assert!(parse(&format!("SELECT id FROM t WHERE id IN ({values})")).is_ok());
        // Arguments lie side by side, and parentheses behind each other do not; what is in them counts all the same.
        let casts = vec!["'a'::text"; 5_000].join(",");
        assert!(parse(&format!("SELECT id FROM t WHERE id IN ({casts})")).is_ok());
        let nested = format!("SELECT f(1{}, 2){}", "-1".repeat(600), "-1".repeat(600));
        assert!(parse(&nested).is_err_and(|problem| problem.kind == problem::TOO_COMPLEX));
    }

    #[test]
    fn what_is_not_taken_says_so() {
        for (sql, code) in [
            ("INSERT INTO t VALUES (1)", "0A000"),
            ("COPY t FROM STDIN", "0A000"),
            ("EXPLAIN ANALYZE SELECT 1", "0A000"),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "0A000"),
            ("SELEC 1", "42601"),
            ("SELECT 'open", "42601"),
            (&"(".repeat(900), "42601"),
            (&"(".repeat(20_000), "54001"),
        ] {
            assert!(one(sql).starts_with(code), "{sql:.40}: {}", one(sql));
        }
    }
}
