//! A filter's text as the tokens the grammar knows, each with its place.

use crate::model::Comparison;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Location, Token as SqlToken, Tokenizer};

use super::FilterError;

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A keyword or an identifier without quotes, folded to lower case as Postgres folds it.
    Word(String),
    /// An identifier in quotes.
    Quoted(String),
    /// Digits, perhaps with a point and an exponent.
    Number(String),
    /// A string literal.
    Text(String),
    /// `$n`
    Param(usize),
    /// `=`, `<>`, `<`, `<=`, `>`, `>=`
    Compare(Comparison),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `,`
    Comma,
    /// `.`
    Dot,
    /// `::`
    Cast,
    /// `+`
    Plus,
    /// `-`
    Minus,
    /// Anything else, as written.
    Other(String),
    /// After the last one.
    End,
}

/// A token and its place: one-based, in characters.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) position: usize,
}

/// The tokens of the text, without spaces and comments, closed by `End`.
pub(super) fn tokens(sql: &str) -> Result<Vec<Placed>, FilterError> {
    if let Some(at) = sql.chars().position(|c| c == '\0') {
        return Err(FilterError::new("the filter contains a zero byte")
            .hint("no text in PostgreSQL has one")
            .at(at + 1));
    }
    let lines = line_starts(sql);
    let raw = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location();
    let raw = raw.map_err(|error| {
        let place = position(&lines, error.location);
        FilterError::new(format!("the filter cannot be read: {}", error.message.to_lowercase())).at(place)
    })?;
    let mut tokens = Vec::with_capacity(raw.len() + 1);
    for found in raw {
        let place = position(&lines, found.span.start);
        push(&mut tokens, found.token, place)?;
    }
    tokens.push(Placed { token: Token::End, position: sql.chars().count() + 1 });
    Ok(tokens)
}

/// How many characters stand before each line.
fn line_starts(sql: &str) -> Vec<usize> {
    let ends = sql.chars().enumerate().filter(|(_, c)| *c == '\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(ends).collect()
}

fn position(lines: &[usize], location: Location) -> usize {
    let line = usize::try_from(location.line).unwrap_or(1).saturating_sub(1);
    let column = usize::try_from(location.column).unwrap_or(1).max(1);
    lines.get(line).copied().unwrap_or(0) + column
}

fn push(tokens: &mut Vec<Placed>, token: SqlToken, position: usize) -> Result<(), FilterError> {
    let token = match token {
        SqlToken::Whitespace(_) | SqlToken::EOF => return Ok(()),
        SqlToken::Word(word) => match word.quote_style {
            None => Token::Word(word.value.to_ascii_lowercase()),
            Some(_) => Token::Quoted(word.value),
        },
        SqlToken::Number(digits, _) => Token::Number(digits),
        SqlToken::SingleQuotedString(text) => Token::Text(text),
        SqlToken::DollarQuotedString(text) => Token::Text(text.value),
        SqlToken::Placeholder(name) => Token::Param(placeholder(&name).map_err(|error| error.at(position))?),
        SqlToken::CustomBinaryOperator(operator) => return push_operator(tokens, &operator, position),
        SqlToken::LParen => Token::Open,
        SqlToken::RParen => Token::Close,
        SqlToken::LBracket => Token::OpenBracket,
        SqlToken::RBracket => Token::CloseBracket,
        SqlToken::Comma => Token::Comma,
        SqlToken::Period => Token::Dot,
        SqlToken::DoubleColon => Token::Cast,
        SqlToken::Plus => Token::Plus,
        SqlToken::Minus => Token::Minus,
        other => operator(&other.to_string()),
    };
    tokens.push(Placed { token, position });
    Ok(())
}

/// `=-` is two operators in Postgres: a name of `<`, `=`, `>` only cannot end in a sign (manual, "Operators").
fn push_operator(tokens: &mut Vec<Placed>, text: &str, position: usize) -> Result<(), FilterError> {
    let bare = text.trim_end_matches(['+', '-']);
    if !matches!(operator(bare), Token::Compare(_)) {
        tokens.push(Placed { token: operator(text), position });
        return Ok(());
    }
    tokens.push(Placed { token: operator(bare), position });
    for (i, sign) in text[bare.len()..].chars().enumerate() {
        let token = if sign == '+' { Token::Plus } else { Token::Minus };
        tokens.push(Placed { token, position: position + bare.len() + i });
    }
    Ok(())
}

fn operator(text: &str) -> Token {
    Token::Compare(match text {
        "=" => Comparison::Eq,
        "<>" | "!=" => Comparison::Ne,
        "<" => Comparison::Lt,
        "<=" => Comparison::Le,
        ">" => Comparison::Gt,
        ">=" => Comparison::Ge,
        _ => return Token::Other(text.to_owned()),
    })
}

fn placeholder(name: &str) -> Result<usize, FilterError> {
    let digits = name.strip_prefix('$').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| FilterError::new("a parameter is not numbered").hint("parameters are $1, $2, ..."))
}
