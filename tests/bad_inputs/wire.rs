//! Bad inputs over PostgreSQL's protocol: each case in a session of its own; SQLSTATE, code, hint.

use crate::support::Sql;
use crate::table::{Case, Names, written_out};

/// Runs the statements of a case as the user that the last `@` line names. What its driver tells is judged.
pub fn check(case: &Case, names: &Names) -> Result<(), String> {
    let address = format!("postgresql://{}@{}/ruvector", case.under, names["SQL"]);
    let failed = Sql::try_connect(&address).and_then(|sql| sql.try_run(&case.text(names)));
    let Err(error) = failed else { return Err("it was answered".to_owned()) };
    let Some(error) = error.as_db_error() else { return Err(format!("{error:?}")) };
    let (hint, detail) = (error.hint().unwrap_or_default(), error.detail().unwrap_or_default());
    let told = format!("{} {}\ndetail: {detail}\nhint: {hint}", error.code().code(), error.message());
    let expected = &case.expected;
    let code = expected.code.as_deref().unwrap_or_else(|| panic!("{}: which code?", case.place));
    let well = error.code().code() == expected.outcome && detail.starts_with(&format!("{code}: ")) && !hint.is_empty();
    match well && expected.words.iter().all(|word| told.contains(&written_out(word, names))) {
        true => Ok(()),
        false => Err(told),
    }
}
