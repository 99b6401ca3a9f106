//! Bad inputs for columns of pgvector's types. Without pgvector they are left out, and that is said.

use crate::support::{Database, Service, cluster, pgvector};
use crate::table::Names;
use crate::{all, http};
use ruvector::cli::private_postgres::Settings;
use serde_json::json;

const COLLECTIONS: &str = "[[collections]]
table = \"public.thin\"
name = \"thin\"
filter_columns = [\"tag\"]
[[collections.vectors]]
column = \"sparse\"
metric = \"ip\"
[[collections.vectors]]
column = \"half\"
metric = \"l2\"
";

#[test]
fn sparse_and_half_vectors() {
    let Some(bin_dir) = pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), own_identity: true, ..Settings::default() });
    let database = Database::of(&postgres);
    database.sql.run(
        "CREATE EXTENSION vector;
         CREATE TABLE thin (id bigint PRIMARY KEY, tag text, sparse sparsevec(5), half halfvec(2));
         INSERT INTO thin SELECT i, 'a', ('{1:' || i || ',3:2}/5')::sparsevec, '[1,2]' FROM generate_series(1, 9) i",
    );
    let service = Service::ready(&database, COLLECTIONS);
    all("sparse.txt", &Names::new(), |case, names| http::check(&service, case, names));
    let found = service.search("thin", &json!({"query": {"vector": "{1:1}/5"}, "limit": 1}));
    assert_eq!(found["hits"][0]["id"], 9, "{found:#}");
    assert_eq!(service.logged("panicked"), 0, "{}", service.log_tail());
}
