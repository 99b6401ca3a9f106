//! `GET /v1/collections/{name}/rows/{key}`: one row.

use crate::model::{CollectionDef, Lsn, RecheckReport, RowKey, RowRequest, pgtype};
use crate::server::http::access::Who;
use crate::server::http::admission::Class;
use crate::server::http::answers::{render_id, rendered};
use crate::server::http::listing::{Moment, moment};
use crate::server::http::recheck::Asked;
use crate::server::http::search::{Freshness, check_columns, freshness, id_hint, parse_id};
use crate::server::http::{Shared, refused_path};
use crate::server::problem::{self, Problem};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// What stands behind the question mark.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Names with commas between them; all filter columns when absent.
    #[serde(default)]
    columns: Option<String>,
    /// `none`, `exists`, `exact`, or `role:NAME` for the eyes of a role of the source; `exists` when left out.
    #[serde(default)]
    recheck: Option<String>,
    /// An LSN: the answer reflects everything up to there, or is an error.
    #[serde(default)]
    at_least: Option<String>,
    /// The answer is not older than this, or is an error.
    #[serde(default)]
    #[schemars(range(min = 1))]
    max_staleness_ms: Option<u64>,
    /// How long to wait for either.
    #[serde(default)]
    #[schemars(range(max = 60_000))]
    timeout_ms: Option<u64>,
}

/// One row.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneRow")]
pub struct One {
    /// The key: the value of its column, or an object of all of them.
    id: Json,
    /// The columns asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<std::collections::BTreeMap<String, Json>>")]
    columns: Option<Box<RawValue>>,
    /// The transaction that wrote the version of the row that was found.
    vector_lsn: Lsn,
    #[serde(flatten)]
    moment: Moment,
    recheck: RecheckReport,
}

/// The row with this key.
pub async fn row(
    State(app): Shared,
    Who(who): Who,
    path: Result<Path<(String, String)>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Path((collection, key)) = path.map_err(refused_path)?;
    let Query(wanted) = wanted.map_err(|error| {
        let hint = "after ? there can be columns, recheck, at_least, max_staleness_ms and timeout_ms";
        Problem::new(problem::MALFORMED, error.body_text()).hint(hint)
    })?;
    let def = app.query.definition(&collection)?;
    let confined = who.confined(&def)?;
    let columns: Vec<String> = match wanted.columns.as_deref() {
        None => def.filters.iter().map(|column| column.name.clone()).collect(),
        Some("") => Vec::new(),
        Some(names) => names.split(',').map(str::to_owned).collect(),
    };
    check_columns(&columns)?;
    let recheck = match &wanted.recheck {
        None => Asked::default(),
        Some(text) => {
            let text: serde::de::value::StrDeserializer<'_, serde_json::Error> = text.as_str().into_deserializer();
            let bad = |error: serde_json::Error| Problem::new(problem::MALFORMED, format!("recheck: {error}"));
            Asked::deserialize(text).map_err(|error| bad(error).hint("recheck is none, exists, exact or role:NAME"))?
        }
    };
    let Wanted { at_least, max_staleness_ms, timeout_ms, .. } = wanted;
    let consistency = freshness(Some(Freshness { at_least, max_staleness_ms, timeout_ms }))?;
    let (key, filter) = (parse_key(&def, &key)?, confined.filter(None));
    let (level, viewer) = (confined.recheck(recheck.level, &columns), recheck.viewer);
    let request = RowRequest { collection, key, filter, columns, consistency, recheck: level, viewer };
    let (pinned, _turn) = app.admitted(&request.consistency, Class::Cheap).await?;
    let (row, as_of, recheck) = app.query.row(&pinned, &request).await?;
    app.query.check_same(&def)?;
    let lsn = as_of.applied_lsn;
    let one = One {
        id: render_id(&def, &row.key),
        columns: row.columns,
        vector_lsn: Lsn(row.version.commit.0),
        moment: moment(as_of),
        recheck,
    };
    Ok(rendered(&one, lsn))
}

/// A key in a path: the value of a single key column as text, or a JSON object of all of them.
fn parse_key(def: &CollectionDef, text: &str) -> Result<RowKey, Problem> {
    let [column] = &def.key[..] else {
        let json = serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned()));
        return parse_id(def, &json);
    };
    let value = pgtype::parse_literal(column.kind, text);
    let bad = |detail: String| Problem::new(problem::BAD_ID, detail).hint(id_hint(def));
    let value = value.map_err(|error| bad(format!("`{}`: {error}", column.name)))?;
    RowKey::encode(&[value]).ok_or_else(|| bad("not a key".to_owned()))
}
