//! Every vector type by every metric it has: our answers beside those of pgvector (of plain SQL where pgvector has no such
//! metric), over random rows with NULLs, zeros, equal ones and ties, with updates and deletes in between.

mod support;

use ruvector::model::{ColumnType, Metric};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use support::{Database, Service, cluster};

use ruvector::cli::private_postgres::Settings;

/// Reproducible noise (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

const ROWS: u64 = 240;

/// A vector column.
#[derive(Clone, Copy)]
struct Case {
    kind: ColumnType,
    metric: Metric,
}

impl Case {
    /// All of a type.
    fn of(kind: ColumnType) -> Vec<Case> {
        // halfvec rounds hyperbolic vectors, which plain SQL would not see.
        let exact = |metric: &Metric| kind != ColumnType::Halfvec || Metric::PLAIN.contains(metric);
        Metric::of_type(kind).into_iter().filter(exact).map(|metric| Case { kind, metric }).collect()
    }

    fn column(self) -> &'static str {
        self.metric.name()
    }

    fn dimensions(self) -> usize {
        match self.kind {
            ColumnType::Bit | ColumnType::Varbit => 19,
            ColumnType::Sparsevec => 40,
            _ => 7,
        }
    }

    fn column_type(self) -> String {
        match self.kind {
            ColumnType::Vector | ColumnType::Halfvec | ColumnType::Sparsevec | ColumnType::Bit => {
                format!("{}({})", self.kind, self.dimensions())
            }
            kind => kind.to_string(),
        }
    }

    /// On a grid, so that there are ties, and halves are exact.
    fn row(self, random: &mut Random) -> Vec<f64> {
        let mut grid = |steps: u64, step: f64| -> Vec<f64> {
            let element = |_| match self.kind == ColumnType::Sparsevec && random.below(6) > 0 {
                true => 0.0,
                false => (random.below(2 * steps + 1) as f64 - steps as f64) * step,
            };
            (0..self.dimensions()).map(element).collect()
        };
        match self.metric {
            Metric::Hamming | Metric::Jaccard => grid(1, 1.0).iter().map(|x| x.max(0.0)).collect(),
            Metric::Poincare => loop {
                let row = grid(6, 0.125);
                if row.iter().map(|x| x * x).sum::<f64>() < 1.0 {
                    break row;
                }
            },
            // Whole numbers, which are exactly on the hyperboloid.
            Metric::Lorentz => loop {
                let mut row = grid(3, 1.0);
                row[0] = (1.0 + row[1..].iter().map(|x| x * x).sum::<f64>()).sqrt();
                if row[0].fract() == 0.0 {
                    break row;
                }
            },
            _ => grid(8, 0.25),
        }
    }

    fn zero(self) -> Vec<f64> {
        let mut zero = vec![0.0; self.dimensions()];
        zero[0] = if self.metric == Metric::Lorentz { 1.0 } else { 0.0 };
        zero
    }

    /// Off the grid where the metric lets it: rounding to the column's type counts.
    fn query(self, random: &mut Random) -> Vec<f64> {
        let row = self.row(random);
        match self.metric {
            Metric::Lorentz | Metric::Hamming | Metric::Jaccard => row,
            _ if self.kind == ColumnType::Sparsevec => row.iter().map(|x| x * 0.9).collect(),
            _ => row.iter().map(|x| x * 0.9 + 0.0123).collect(),
        }
    }

    fn literal(self, row: &[f64]) -> String {
        let join = |separator: &str| row.iter().map(f64::to_string).collect::<Vec<_>>().join(separator);
        match self.kind {
            ColumnType::Bit | ColumnType::Varbit => format!("B'{}'", join("")),
            ColumnType::Float4Array | ColumnType::Float8Array => format!("'{{{}}}'::{}", join(","), self.kind),
            ColumnType::Jsonb => format!("'[{}]'::jsonb", join(", ")),
            ColumnType::Sparsevec => format!("'{}'::sparsevec", sparse_text(row)),
            kind => format!("'[{}]'::{kind}", join(",")),
        }
    }

    fn json(self, query: &[f64]) -> Json {
        match self.kind {
            ColumnType::Bit | ColumnType::Varbit => json!(query.iter().map(f64::to_string).collect::<String>()),
            // In both forms.
            ColumnType::Sparsevec if query.iter().sum::<f64>() < 0.5 => json!(sparse_text(query)),
            ColumnType::Sparsevec => {
                let (indices, values): (Vec<usize>, Vec<f64>) =
                    query.iter().copied().enumerate().filter(|(_, x)| *x != 0.0).unzip();
                json!({ "indices": indices, "values": values, "dim": query.len() })
            }
            _ => json!(query),
        }
    }

    /// The distance in SQL.
    fn distance(self, query: &[f64]) -> String {
        let operator = match self.metric {
            Metric::L2 => "<->",
            Metric::Cosine => "<=>",
            Metric::Ip => "<#>",
            Metric::L1 => "<+>",
            Metric::Hamming => "<~>",
            Metric::Jaccard => "<%>",
            // The definitions, with the query as real as the rows are.
            Metric::Poincare | Metric::Lorentz => {
                let numbers = |what: String| match self.kind {
                    ColumnType::Jsonb => format!("jsonb_array_elements_text({what})::float4::float8"),
                    ColumnType::Vector => format!("unnest({what}::real[])::float8"),
                    _ => format!("unnest({what}::float4[]::float8[])"),
                };
                let (a, b) = (numbers(self.column().into()), numbers(self.literal(query)));
                let pairs = format!("SELECT a, b, row_number() OVER () AS n FROM (SELECT {a} AS a, {b} AS b) s");
                let value = match self.metric {
                    Metric::Poincare => "acosh(1 + 2 * sum((a - b) ^ 2) / ((1 - sum(a ^ 2)) * (1 - sum(b ^ 2))))",
                    _ => "acosh(greatest(1, sum(a * b) FILTER (WHERE n = 1) - sum(a * b) FILTER (WHERE n > 1)))",
                };
                return format!("(SELECT {value} FROM ({pairs}) p)");
            }
        };
        let (e, query) = (self.column(), self.literal(query));
        match self.kind {
            ColumnType::Varbit => format!("{e}::bit({0}) {operator} {query}::bit({0})", self.dimensions()),
            ColumnType::Jsonb => format!("{e}::text::vector {operator} {query}::text::vector"),
            ColumnType::Float4Array | ColumnType::Float8Array => format!("{e}::vector {operator} {query}::vector"),
            _ => format!("{e} {operator} {query}"),
        }
    }

    /// A vector, or none.
    fn value(self, random: &mut Random) -> String {
        match random.below(20) {
            0 => "NULL".to_owned(),
            1 => self.literal(&self.zero()),
            _ => self.literal(&self.row(random)),
        }
    }

    /// Our answers to some queries beside the source's.
    fn check(self, database: &Database, service: &Service, random: &mut Random) {
        let stored = self.row(random);
        let queries = [self.zero(), stored, self.query(random), self.query(random), self.query(random)];
        for (number, query) in queries.iter().enumerate() {
            let distance = self.distance(query);
            let (table, column) = (table(self.kind), self.column());
            let sql = format!(
                "SELECT id, d FROM (SELECT id, {distance} AS d FROM {table} WHERE {column} IS NOT NULL) s ORDER BY d"
            );
            let theirs: Vec<(i64, f64)> = database
                .sql
                .rows(&sql)
                .iter()
                .map(|row| {
                    let text = |at: usize| row[at].as_deref().expect("not NULL");
                    (text(0).parse().expect("a key"), text(1).parse().expect("a distance"))
                })
                .collect();
            for recheck in ["none", "exact"] {
                let limit = if number == 0 { 1000 } else { 10 + 20 * number };
                let body = json!({
                    "query": { "vector": self.json(query), "using": column },
                    "limit": limit,
                    "search": { "exact": true },
                    "recheck": recheck,
                });
                let context = format!("{table} {column} {recheck} {query:?}");
                compare(&service.search(&table, &body), &theirs, limit, &context);
            }
        }
    }
}

/// pgvector's form of a sparse vector.
fn sparse_text(row: &[f64]) -> String {
    let elements = row.iter().enumerate().filter(|(_, x)| **x != 0.0);
    let elements: Vec<_> = elements.map(|(at, x)| format!("{}:{x}", at + 1)).collect();
    format!("{{{}}}/{}", elements.join(","), row.len())
}

/// The same rows up to ties, at the same distances: as pgvector's operators give them, undefined ones last.
fn compare(answer: &Json, theirs: &[(i64, f64)], limit: usize, context: &str) {
    let hits = answer["hits"].as_array().expect("hits");
    assert_eq!(hits.len(), limit.min(theirs.len()), "{context}");
    assert_eq!(answer["complete"], true, "{context}");
    let by_key: HashMap<i64, f64> = theirs.iter().copied().collect();
    let mut seen = std::collections::HashSet::new();
    for (place, hit) in hits.iter().enumerate() {
        let key = hit["id"].as_i64().expect("a key");
        assert!(seen.insert(key), "{context}: {key} twice");
        let ours = hit["distance"].as_f64().unwrap_or(f64::NAN);
        // Theirs is a sum of f32s, and so is ours without a recheck.
        let near =
            |other: f64| (ours - other).abs() <= 1e-5 * other.abs().max(0.2) || (ours.is_nan() && other.is_nan());
        assert!(near(by_key[&key]), "{context}: row {key} at {ours}, by the source at {}", by_key[&key]);
        assert!(near(theirs[place].1), "{context}: place {place} at {ours}, by the source at {}", theirs[place].1);
    }
}

const KINDS: [ColumnType; 8] = [
    ColumnType::Vector,
    ColumnType::Halfvec,
    ColumnType::Sparsevec,
    ColumnType::Float4Array,
    ColumnType::Float8Array,
    ColumnType::Jsonb,
    ColumnType::Bit,
    ColumnType::Varbit,
];

fn table(kind: ColumnType) -> String {
    format!("t_{kind:?}").to_lowercase()
}

/// A table with a column for each metric of the type, and its first rows: every seventh is like the one before it.
fn create(kind: ColumnType, database: &Database, random: &mut Random) {
    let cases = Case::of(kind);
    let columns: Vec<_> = cases.iter().map(|case| format!("{} {}", case.column(), case.column_type())).collect();
    let (table, mut row, mut rows) = (table(kind), Vec::new(), Vec::new());
    for id in 1..=ROWS {
        if id % 7 != 0 {
            row = cases.iter().map(|case| case.value(random)).collect();
        }
        rows.push(format!("({id}, {})", row.join(", ")));
    }
    database.sql.run(&format!(
        "CREATE TABLE {table} (id bigint PRIMARY KEY, {}); INSERT INTO {table} VALUES {}",
        columns.join(", "),
        rows.join(", ")
    ));
}

/// Other vectors, other keys, NULLs that come and go, deletes, new rows.
fn change(kind: ColumnType, database: &Database, random: &mut Random) {
    let (table, cases, mut sql) = (table(kind), Case::of(kind), String::new());
    for _ in 0..80 {
        let id = random.below(ROWS) + 1;
        let values: Vec<_> = cases.iter().map(|case| case.value(random)).collect();
        let case = cases[random.below(cases.len() as u64) as usize];
        sql += &match random.below(6) {
            0 => format!("DELETE FROM {table} WHERE id = {id};"),
            1 => format!("UPDATE {table} SET {} = NULL WHERE id = {id};", case.column()),
            2 => format!("UPDATE {table} SET id = id + 100000 WHERE id = {id};"),
            3 => format!("INSERT INTO {table} VALUES ({}, {});", random.next() >> 2, values.join(", ")),
            _ => format!("UPDATE {table} SET {} = {} WHERE id = {id};", case.column(), case.value(random)),
        };
    }
    database.sql.run(&sql);
}

fn collection(kind: ColumnType) -> String {
    let table = table(kind);
    let vector = |case: Case| {
        format!(
            "[[collections.vectors]]\ncolumn = \"{0}\"\nmetric = \"{0}\"\nm = 8\nef_construction = 40\n",
            case.column()
        )
    };
    let vectors: String = Case::of(kind).into_iter().map(vector).collect();
    format!("[[collections]]\ntable = \"public.{table}\"\nname = \"{table}\"\n{vectors}")
}

#[test]
fn answers_are_those_of_pgvector() {
    let Some(bin_dir) = support::pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), own_identity: true, ..Settings::default() });
    let database = Database::of(&postgres);
    database.sql.run("CREATE EXTENSION vector");
    let mut random = Random(0xE5EED);
    KINDS.into_iter().for_each(|kind| create(kind, &database, &mut random));
    let mut service = Service::ready(&database, &KINDS.map(collection).concat());
    for round in 0..3 {
        for case in KINDS.into_iter().flat_map(Case::of) {
            case.check(&database, &service, &mut random);
        }
        for kind in KINDS {
            service.verify_clean(&table(kind));
            assert_eq!(service.dead_letters(&table(kind)), [], "{kind}");
        }
        // What is on disk comes back as it was.
        if round == 1 {
            service.terminate();
        }
        KINDS.into_iter().for_each(|kind| change(kind, &database, &mut random));
        if round == 1 {
            service.start();
            service.wait_ready();
        }
        service.catch_up(&database.sql);
    }
    // By the vector of a row, which is not in the answer.
    for case in KINDS.into_iter().flat_map(Case::of) {
        let (table, column) = (table(case.kind), case.column());
        let id = database.sql.one(&format!("SELECT min(id) FROM {table} WHERE {column} IS NOT NULL"));
        let body = json!({ "query": { "id": id, "using": column }, "limit": 1000, "recheck": "exact" });
        let rows = database.sql.one(&format!("SELECT count(*) - 1 FROM {table} WHERE {column} IS NOT NULL"));
        let answer = service.search(&table, &body);
        assert_eq!(answer["hits"].as_array().map(|hits| hits.len().to_string()), Some(rows), "{table} {column}");
    }
    service.terminate();
}

/// A walk through a graph of bits finds what a scan finds, as often as it must.
#[test]
fn graphs_of_bits_are_walked() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE codes (id bigint PRIMARY KEY, hamming bit(256), jaccard bit varying(256));
         INSERT INTO codes SELECT i, b, b FROM (SELECT i, string_agg((sin(i * 0.0007 * (1 + at % 17) + at) > 0)::int::text, '')::bit(256) AS b
           FROM generate_series(1, 6000) i, generate_series(1, 256) at GROUP BY i) s",
    );
    let vector = |name: &str| {
        format!("[[collections.vectors]]\ncolumn = \"{name}\"\nmetric = \"{name}\"\nm = 8\nef_construction = 40\n")
    };
    let collection = format!("[[collections]]\ntable = \"public.codes\"\n{}{}", vector("hamming"), vector("jaccard"));
    let mut service = Service::ready(&database, &collection);
    service.wait_for("all is linked", |service| {
        let vectors = service.collection("public.codes")["vectors"].clone();
        vectors.as_array().is_some_and(|all| all.iter().all(|one| one["linked"] == one["nodes"]))
    });
    assert_eq!(service.verify_clean("public.codes"), 6000);
    for using in ["hamming", "jaccard"] {
        let mut found = 0;
        for id in 1..=40 {
            let ask = |exact: bool| {
                let body = json!({ "query": { "id": id * 53, "using": using }, "search": { "exact": exact }, "recheck": "none" });
                service.search("public.codes", &body)
            };
            let (walked, scanned) = (ask(false), ask(true));
            assert_eq!(
                (walked["stats"]["plan"].as_str(), scanned["stats"]["plan"].as_str()),
                (Some("hnsw"), Some("exact"))
            );
            let distances = |answer: &Json| -> Vec<f64> {
                answer["hits"].as_array().expect("hits").iter().filter_map(|hit| hit["distance"].as_f64()).collect()
            };
            let worst = distances(&scanned).last().copied().expect("ten rows");
            found += distances(&walked).iter().filter(|distance| **distance <= worst).count();
        }
        assert!(found >= 380, "{using}: {found} of 400");
    }
    service.terminate();
}

#[test]
fn what_cannot_be_compared_is_a_dead_letter_with_the_reason() {
    let database = Database::shared();
    database.sql.run(
        "CREATE TABLE odd (id bigint PRIMARY KEY, j jsonb, b bit varying, p real[], l real[]);
         INSERT INTO odd VALUES (1, '[1, 2]', B'010', '{0.5, 0.5}', '{1, 0}'), (2, '[3, 4]', B'111', '{0, 0}', '{3, 2, 2}')",
    );
    database.sql.run("DELETE FROM odd WHERE id = 2");
    let vector = |name: &str, metric| format!("[[collections.vectors]]\ncolumn = \"{name}\"\nmetric = \"{metric}\"\n");
    let columns = [("j", "l2"), ("b", "hamming"), ("p", "poincare"), ("l", "lorentz")];
    let columns: String = columns.iter().map(|(name, metric)| vector(name, metric)).collect();
    let mut service = Service::ready(&database, &format!("[[collections]]\ntable = \"public.odd\"\n{columns}"));
    assert_eq!(service.dead_letters("public.odd"), []);
    let good = "'[1, 2]', B'010', '{0.5, 0.5}', '{1, 0}'";
    database.sql.run(&format!("INSERT INTO odd SELECT i, {good} FROM generate_series(10, 21) i"));
    let bad = [
        ("j = '[1, 2, 3]'", "3 dimensions instead of 2"),
        ("j = '[1, null]'", "element 2 is not a number (jsonb)"),
        ("j = '{\"a\": [1, 2]}'", "not a vector (jsonb)"),
        ("b = B'0101'", "4 dimensions instead of 3"),
        ("b = B''", "no bits"),
        ("p = '{0.8, 0.8}'", "a norm of 1.1313708667"),
        ("p = '{1, 0}'", "a norm of 1; poincare takes vectors inside the unit ball only"),
        ("p = '{NULL, 0}'", "element 1 is NULL"),
        ("l = '{1, 1}'", "lorentz takes vectors of the hyperboloid only"),
        ("l = '{-1, 0}'", "x0 is -1"),
    ];
    for (id, (change, _)) in (10..).zip(&bad) {
        database.sql.run(&format!("UPDATE odd SET {change} WHERE id = {id}"));
    }
    service.catch_up(&database.sql);
    let letters = service.dead_letters("public.odd");
    assert_eq!(letters.len(), bad.len(), "{letters:#?}");
    for ((key, found), (id, (change, reason))) in letters.iter().zip((10..).zip(&bad)) {
        assert!(*key == format!("{id}") && found.contains(reason), "{change}: {key} {found}");
    }
    assert_eq!(service.verify_clean("public.odd"), 13);
    // The heap is asked for the vector as it is now: one that has no distance is no neighbour.
    let near = |using: &str, vector: Json| {
        let body = json!({ "query": { "vector": vector, "using": using }, "limit": 50, "recheck": "exact" });
        service.search("public.odd", &body)["hits"].as_array().map(Vec::len)
    };
    assert_eq!(near("j", json!([0, 0])), Some(10));
    assert_eq!(near("b", json!("000")), Some(11));
    assert_eq!(near("p", json!([0, 0])), Some(10));
    assert_eq!(near("l", json!([1, 0])), Some(11));
    for (using, vector, code) in [
        ("j", json!("[1, 2"), "RV1001"),
        ("j", json!([1, 2, 3]), "RV1003"),
        ("b", json!([0, 1, 0]), "RV1001"),
        ("b", json!("0101"), "RV1003"),
        ("p", json!([1, 0]), "RV1013"),
        ("l", json!([1, 1]), "RV1013"),
    ] {
        let body = json!({ "query": { "vector": vector, "using": using } });
        let error = service.try_search("public.odd", &body).expect_err("a problem");
        assert!(format!("{error:#}").contains(code), "{body}: {error:#}");
    }
    database.sql.run("UPDATE odd SET j = '[1, 2]', b = B'010', p = '{0.5, 0.5}', l = '{1, 0}'");
    service.catch_up(&database.sql);
    assert_eq!(service.dead_letters("public.odd"), []);
    service.terminate();
}

/// Rows of a billion dimensions, as long as pgvector lets them be, in every kind of search, over a `kill -9`.
#[test]
fn sparse_vectors_are_searched_in_every_way() {
    let Some(bin_dir) = support::pgvector() else { return };
    let postgres = cluster(Settings { bin_dir: Some(bin_dir), own_identity: true, ..Settings::default() });
    let database = Database::of(&postgres);
    // The third column has no dimensions of its own: its first vector says how many.
    database.sql.run(
        "CREATE EXTENSION vector;
         CREATE TABLE thin (id bigint PRIMARY KEY, cat int, note text, e sparsevec(1000000000), free sparsevec);
         CREATE FUNCTION few(i bigint) RETURNS sparsevec LANGUAGE sql IMMUTABLE AS $$
           SELECT ('{' || string_agg(x || ':' || (1 + (i * x) % 7)::float4 / 4, ',') || '}/1000000000')::sparsevec
             FROM (SELECT DISTINCT 1 + (i * n * 7919 + n * n) % CASE WHEN n % 2 = 0 THEN 60 ELSE 1000000000 END AS x
                     FROM generate_series(1, 4 + i % 9) n) s $$;
         CREATE FUNCTION many(i bigint) RETURNS sparsevec LANGUAGE sql IMMUTABLE AS $$
           SELECT ('{' || string_agg(n * 60000 || ':' || (1 + (n * i + n / 7) % 5)::float4 / 4, ',') || '}/1000000000')::sparsevec
             FROM generate_series(1, 16000) n $$;
         INSERT INTO thin SELECT i, i % 5, 'n', few(i), '{1:1}/9' FROM generate_series(1, 3000) i;
         INSERT INTO thin SELECT i, 1, 'many', many(i), NULL FROM generate_series(3001, 3003) i;
         INSERT INTO thin VALUES (4000, 2, 'zero', '{}/1000000000', '{}/9'), (4001, 2, 'none', NULL, NULL)",
    );
    let collection = "[[collections]]\ntable = \"public.thin\"\nname = \"thin\"\nfilter_columns = [\"cat\"]\n
        [[collections.vectors]]\ncolumn = \"e\"\nmetric = \"cosine\"\n
        [[collections.vectors]]\ncolumn = \"free\"\nmetric = \"ip\"\n";
    let mut service = Service::ready(&database, collection);
    let check = |service: &Service, condition: &str, id: i64, limit: usize, recheck: &str| {
        let condition_sql = if condition.is_empty() { "true" } else { condition };
        let query = database.sql.one(&format!("SELECT e FROM thin WHERE id = {id}"));
        let sql = format!(
            "SELECT id, d FROM (SELECT id, e <=> '{query}' AS d FROM thin WHERE e IS NOT NULL AND {condition_sql}) s ORDER BY d"
        );
        let theirs = database.sql.rows(&sql);
        let text = |row: &Vec<Option<String>>, at: usize| row[at].clone().expect("not NULL");
        let theirs: Vec<(i64, f64)> = theirs
            .iter()
            .map(|row| (text(row, 0).parse().expect("a key"), text(row, 1).parse().expect("a distance")))
            .collect();
        let mut body = json!({ "query": { "vector": query, "using": "e" }, "limit": limit, "recheck": recheck });
        if !condition.is_empty() {
            body["filter"] = json!(condition);
        }
        let answer = service.search("thin", &body);
        assert_eq!(answer["stats"]["plan"], "exact", "{answer}");
        compare(&answer, &theirs, limit, &format!("{condition} {id} {recheck}"));
        theirs
    };
    let check_all = |service: &Service| {
        for (condition, id) in [("", 17), ("cat = 3", 18), ("", 3002), ("cat IN (1, 2)", 3001), ("", 4000)] {
            check(service, condition, id, 40, "none");
            check(service, condition, id, 25, "exact");
        }
    };
    check_all(&service);
    service.verify_clean("thin");
    // Updates that do not carry the vector, which is stored apart; others that change it; what does not fit.
    database.sql.run("UPDATE thin SET note = 'new', cat = 4 WHERE id > 3000 AND e IS NOT NULL");
    database
        .sql
        .run("UPDATE thin SET e = few(id + 7) WHERE id % 11 = 0 AND id <= 3000; DELETE FROM thin WHERE id % 13 = 0");
    database.sql.run("UPDATE thin SET free = '{1:1}/8' WHERE id = 1; UPDATE thin SET id = id + 100000 WHERE id = 2");
    database.sql.run("UPDATE thin SET e = few(id + 8) WHERE id % 2 = 0 AND id <= 3000");
    service.catch_up(&database.sql);
    let letters = service.dead_letters("thin");
    assert_eq!(letters, [("1".to_owned(), "8 dimensions instead of 9".to_owned())]);
    service.verify_clean("thin");
    check_all(&service);
    // All that was taken in is there again, whether it was durable or not.
    service.kill();
    database.sql.run("INSERT INTO thin SELECT i, 3, 'late', few(i), NULL FROM generate_series(5001, 5500) i");
    service.start();
    service.wait_ready();
    service.catch_up(&database.sql);
    service.verify_clean("thin");
    check_all(&service);
    // All within a distance.
    let theirs = check(&service, "", 19, 50, "none");
    let (query, bound) = (json!({ "id": 19, "using": "e" }), theirs[30].1 + 1e-4);
    let within = service.search("thin", &json!({ "query": query, "max_distance": bound, "recheck": "none" }));
    let wanted = theirs.iter().filter(|(id, distance)| *id != 19 && *distance <= bound).count();
    assert_eq!((within["hits"].as_array().map(Vec::len), &within["complete"]), (Some(wanted), &json!(true)));
    // Groups: the nearest row of each.
    let groups = service.search("thin", &json!({ "query": query, "group_by": "cat", "limit": 5, "recheck": "none" }));
    for group in groups["groups"].as_array().expect("groups") {
        let sql = format!(
            "SELECT id FROM thin WHERE id <> 19 AND cat = {} ORDER BY e <=> (SELECT e FROM thin WHERE id = 19) LIMIT 1",
            group["value"]
        );
        let theirs =
            database.sql.one(&format!("SELECT e <=> (SELECT e FROM thin WHERE id = 19) FROM thin WHERE id = ({sql})"));
        let (ours, theirs) = (group["hits"][0]["distance"].as_f64().expect("one"), theirs.parse::<f64>().expect("one"));
        assert!((ours - theirs).abs() < 1e-5, "{group}: {theirs}");
    }
    assert_eq!(groups["groups"].as_array().map(Vec::len), Some(5));
    // By examples, by difference, several at once.
    let recommend = json!({ "query": { "recommend": { "positive": [19, { "indices": [3], "values": [2], "dim": 1000000000 }], "negative": [20] },
                                       "using": "e" }, "limit": 5 });
    let mmr = json!({ "query": query, "mmr": { "lambda": 0.3 }, "limit": 5 });
    let answer = service.search("thin", &json!({ "searches": [recommend, mmr, { "query": query, "limit": 5 }] }));
    for answer in answer["answers"].as_array().expect("answers") {
        assert_eq!((answer["hits"].as_array().map(Vec::len), &answer["complete"]), (Some(5), &json!(true)), "{answer}");
    }
    for (using, vector, code) in [
        ("e", json!([1, 2]), "RV1001"),
        ("e", json!("{1:1}/5"), "RV1003"),
        ("e", json!("{6:1}/5"), "RV1001"),
        ("free", json!({ "indices": [0], "values": [1], "dim": 8 }), "RV1003"),
        ("free", json!({ "indices": [0, 1], "values": [1], "dim": 9 }), "RV1001"),
    ] {
        let body = json!({ "query": { "vector": vector, "using": using } });
        let error = service.try_search("thin", &body).expect_err("a problem");
        assert!(format!("{error:#}").contains(code), "{body}: {error:#}");
    }
    // Nothing is left of a table that was emptied, and nodes are not given twice.
    database.sql.run("TRUNCATE thin; INSERT INTO thin SELECT i, 1, 'n', few(i), NULL FROM generate_series(17, 40) i");
    service.catch_up(&database.sql);
    service.terminate();
    service.start();
    service.wait_ready();
    assert_eq!(service.verify_clean("thin"), 24);
    check(&service, "", 17, 100, "exact");
    service.terminate();
}

#[test]
fn a_metric_that_does_not_fit_its_type_is_refused_with_the_choice() {
    let database = Database::shared();
    database.sql.run("CREATE TABLE odd (id bigint PRIMARY KEY, b bit(8), r real[], long bit(64001))");
    for (column, metric, dimensions, wanted) in [
        ("b", "cosine", "", "set collections.vectors.metric to one of hamming, jaccard"),
        ("r", "hamming", "", "set collections.vectors.metric to one of l2, cosine, ip, l1, poincare, lorentz"),
        ("r", "l2", "dimensions = 16001", "can have 1 to 16000 dimensions"),
        ("b", "jaccard", "dimensions = 9", "has 8 dimensions, configured are 9"),
        ("long", "hamming", "", "can have 1 to 64000 dimensions"),
    ] {
        let vector = format!("[[collections.vectors]]\ncolumn = \"{column}\"\nmetric = \"{metric}\"\n{dimensions}\n");
        let mut service =
            Service::configured(&database, "", &format!("[[collections]]\ntable = \"public.odd\"\n{vector}"));
        let why = service.refusal();
        assert!(why.contains(wanted), "{column} {metric}: {why}");
    }
}
