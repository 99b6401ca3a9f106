//! Every kind of search against a real PostgreSQL, compared with a plain reference that is computed here from the same
//! vectors; and the examples of docs/search.md, run as they stand.

mod support;

use half::f16;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use support::{DOCS, Database, Service, ids, near, vec_of, wait_until};

/// Dimensions of the repository's embeddings.
const DIM: usize = 384;
/// Distances of the index are in single precision.
const CLOSE: f64 = 1e-5;

const COLLECTION: &str = "[search]
recheck_roles = [\"tenant_a\"]
recheck_settings = [\"app.tenant\"]
[[collections]]
table = \"public.docs\"
name = \"docs\"
filter_columns = [\"section\", \"views\"]
[[collections.vectors]]
column = \"embedding\"
metric = \"cosine\"
";

struct Doc {
    id: i64,
    section: Option<String>,
    views: i64,
    vector: Vec<f32>,
}

/// The repository's 4,000 texts in a table, a service beside it, and everything once more in memory.
struct World {
    service: Service,
    database: Database,
    docs: Vec<Doc>,
    queries: Vec<Vec<f32>>,
}

/// One for all tests that run at the same time.
fn world() -> Arc<World> {
    static WORLD: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let world = Arc::new(World::new());
        *shared = Arc::downgrade(&world);
        world
    })
}

/// The values behind the header of a `.npy` file.
fn npy(name: &str) -> Vec<u8> {
    let path = format!("{}/examples/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("the examples");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].to_vec()
}

impl World {
    fn new() -> World {
        let vectors: Vec<f32> =
            npy("docs.f16.npy").chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let queries = npy("queries.f32.npy");
        let queries: Vec<f32> =
            queries.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
        let texts = std::fs::read_to_string(format!("{}/examples/data/docs.jsonl", env!("CARGO_MANIFEST_DIR")));
        let texts = texts.expect("the examples");
        let doc = |(line, vector): (&str, &[f32])| {
            let text: Json = serde_json::from_str(line).expect("JSON");
            let id = text["id"].as_i64().expect("a number");
            // Some rows without a section.
            let section = text["section"].as_str().filter(|_| id % 37 != 5).map(str::to_owned);
            Doc { id, section, views: id * 7 % 100, vector: vector.to_vec() }
        };
        let docs: Vec<_> = texts.lines().zip(vectors.chunks(DIM)).map(doc).collect();
        assert_eq!(docs.len(), 4_000);
        let database = Database::shared();
        database
            .sql
            .run("CREATE TABLE docs (id bigint PRIMARY KEY, name text, section text, views int, embedding real[])");
        let mut lines = String::new();
        for doc in &docs {
            let vector = doc.vector.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
            let section = doc.section.as_deref().unwrap_or("\\N");
            writeln!(lines, "{}\tdoc {}\t{section}\t{}\t{{{vector}}}", doc.id, doc.id, doc.views).expect("memory");
        }
        database.sql.copy_in("COPY docs FROM STDIN", lines);
        // The role is the cluster's, and there may have been a world before.
        let _ = database.sql.try_run("CREATE ROLE tenant_a");
        database.sql.run("GRANT SELECT ON docs TO tenant_a");
        // Rows without a vector are counted and listed, and never found.
        database.sql.run("INSERT INTO docs VALUES (10000, 'none', 'net', 1, NULL), (10001, 'none', NULL, 2, NULL)");
        let mut service = Service::ready(&database, COLLECTION);
        service.catch_up(&database.sql);
        service.wait_for("all is linked", |service| {
            let vector = &service.collection("docs")["vectors"][0];
            vector["linked"] == 4_000 && vector["vectors"] == 4_000
        });
        World { service, database, docs, queries: queries.chunks(DIM).map(<[f32]>::to_vec).collect() }
    }

    fn search(&self, body: Json) -> Json {
        self.service.search("docs", &body)
    }

    /// Every row that passes with its distance, nearest first.
    fn ranked(&self, query: &[f32], passes: impl Fn(&Doc) -> bool) -> Vec<(f64, i64)> {
        let mut all: Vec<_> =
            self.docs.iter().filter(|doc| passes(doc)).map(|doc| (cosine(query, &doc.vector), doc.id)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all
    }

    fn doc(&self, id: i64) -> &Doc {
        &self.docs[id as usize]
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Ids and distances of hits, in their order.
fn hits(of: &Json) -> Vec<(f64, i64)> {
    let hit = |hit: &Json| (hit["distance"].as_f64().expect("a distance"), hit["id"].as_i64().expect("an id"));
    of["hits"].as_array().expect("hits").iter().map(hit).collect()
}

/// The same rows in the same order; rows whose distances are equal but for rounding may change places.
fn assert_same(found: &[(f64, i64)], expected: &[(f64, i64)], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = (found.0 - expected.0).abs() < CLOSE;
        assert!(close, "{what}: row {at} is {found:?} instead of {expected:?}");
    }
    let keys = |rows: &[(f64, i64)]| rows.iter().map(|row| row.1).collect::<BTreeSet<_>>();
    // A tie at the end may be cut either way.
    let last = expected.last().map_or(0.0, |row| row.0);
    let differ: Vec<_> = keys(found).symmetric_difference(&keys(expected)).copied().collect();
    let of = |id: &i64| found.iter().chain(expected).find(|row| row.1 == *id).expect("in one of them").0;
    assert!(differ.iter().all(|id| (of(id) - last).abs() < CLOSE), "{what}: {differ:?}");
}

/// A bound with `rank` rows within it and none near it.
fn bound(ranked: &[(f64, i64)], rank: usize) -> (f64, usize) {
    let gap = |at: usize| ranked[at].0 - if at == 0 { ranked[0].0 - 1.0 } else { ranked[at - 1].0 };
    let rank = (rank..).find(|&at| gap(at) > 4.0 * CLOSE).expect("a gap");
    (if rank == 0 { ranked[0].0 - 0.5 } else { (ranked[rank - 1].0 + ranked[rank].0) / 2.0 }, rank)
}

#[test]
fn a_range_has_all_rows_within_the_distance() {
    let world = world();
    let (mut within, mut missed, mut visited, mut walks) = (0, 0, 0, 0);
    for (number, query) in world.queries.iter().enumerate() {
        let ranked = world.ranked(query, |_| true);
        for rank in [0, 1, 7, 60, 120] {
            let (max, rank) = bound(&ranked, rank);
            let what = format!("query {number}, {rank} rows within {max}");
            // Every row compared: proven to be all.
            let exact = world.search(json!({"query": {"vector": query}, "max_distance": max, "recheck": "none"}));
            assert_same(&hits(&exact), &ranked[..rank], &what);
            assert_eq!((&exact["complete"], &exact["stats"]["ended"]), (&json!(true), &json!("dry")), "{exact}");
            // A cap small enough for a walk.
            let body = json!({"query": {"vector": query}, "max_distance": max, "limit": 150, "recheck": "none"});
            let walk = world.search(body);
            assert_eq!(walk["stats"]["plan"], "hnsw");
            let found = hits(&walk);
            assert!(found.iter().all(|hit| hit.0 <= max), "{what}: {found:?}");
            assert!(found.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{what}: {found:?}");
            let truth: BTreeSet<_> = ranked[..rank].iter().map(|row| row.1).collect();
            assert!(found.iter().all(|hit| truth.contains(&hit.1)), "{what}: {found:?}");
            // What is not proven is not called complete.
            assert_eq!((&walk["complete"], &walk["stats"]["ended"]), (&json!(false), &json!("margin")), "{walk}");
            (within, missed) = (within + rank, missed + rank - found.len());
            (visited, walks) = (visited + walk["stats"]["visited"].as_u64().expect("a count"), walks + 1);
        }
    }
    println!("walks: {missed} of {within} rows within the distance missed, {} distances each", visited / walks);
    assert!(missed * 1_000 <= within, "{missed} of {within} missed");
}

#[test]
fn a_range_with_a_cap_a_filter_or_a_recheck_keeps_its_word() {
    let world = world();
    for query in &world.queries[..10] {
        let ranked = world.ranked(query, |_| true);
        let (max, rank) = bound(&ranked, 60);
        let body = |limit: usize, exact: bool| json!({"query": {"vector": query}, "max_distance": max, "limit": limit, "search": {"exact": exact}});
        for exact in [true, false] {
            let capped = world.search(body(5, exact));
            assert_same(&hits(&capped), &ranked[..5], "capped");
            assert_eq!((&capped["complete"], &capped["stats"]["ended"]), (&json!(false), &json!("limit")));
        }
        let just = world.search(body(rank, true));
        assert_eq!((just["complete"].clone(), hits(&just).len()), (json!(true), rank), "the cap hides nothing");
        let filtered = world.ranked(query, |doc| doc.views < 50);
        let (max, rank) = bound(&filtered, 30);
        for level in ["none", "exists", "exact"] {
            let answer = world.search(json!({"query": {"vector": query}, "max_distance": max, "recheck": level,
                "filter": "views < $1", "params": [50], "columns": ["views"]}));
            assert_same(&hits(&answer), &filtered[..rank], level);
            assert_eq!(answer["complete"], true);
            let shown = answer["hits"].as_array().expect("hits").iter().map(|hit| hit["columns"]["views"].as_i64());
            assert!(shown.flatten().filter(|&views| views < 50).count() == rank, "{answer}");
            let checked = answer["recheck"]["checked"].as_u64().expect("a count") as usize;
            assert_eq!(checked, if level == "none" { 0 } else { rank }, "rows beyond the distance are not asked about");
        }
    }
    let nothing = world.search(json!({"query": {"id": 1}, "max_distance": -1}));
    assert_eq!((nothing["hits"].clone(), nothing["complete"].clone()), (json!([]), json!(true)));
}

/// Groups as the reference has them: value, and its rows nearest first.
type Groups = Vec<(Option<String>, Vec<(f64, i64)>)>;

fn reference_groups(world: &World, ranked: &[(f64, i64)], groups: usize, size: usize) -> Groups {
    let mut found: Groups = Vec::new();
    for row in ranked {
        let section = &world.doc(row.1).section;
        let known = found.len();
        match found.iter_mut().find(|(value, _)| value == section) {
            Some((_, rows)) if rows.len() < size => rows.push(*row),
            Some(_) => {}
            None if known < groups => found.push((section.clone(), vec![*row])),
            None => {}
        }
    }
    found
}

fn groups(answer: &Json) -> Groups {
    let group = |group: &Json| (group["value"].as_str().map(str::to_owned), hits(group));
    answer["groups"].as_array().expect("groups").iter().map(group).collect()
}

fn assert_same_groups(found: &Groups, expected: &Groups, what: &str) {
    let values = |groups: &Groups| groups.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>();
    assert_eq!(values(found), values(expected), "{what}");
    for ((value, found), (_, expected)) in found.iter().zip(expected) {
        assert_same(found, expected, &format!("{what}, {value:?}"));
    }
}

#[test]
fn groups_are_the_nearest_by_their_best_row() {
    let world = world();
    let rows_of = |section: &Option<String>| world.docs.iter().filter(|doc| doc.section == *section).count();
    let (mut same, mut all) = (0, 0);
    for query in &world.queries {
        let ranked = world.ranked(query, |_| true);
        let expected = reference_groups(&world, &ranked, 5, 3);
        let body = |exact: bool, level: &str| {
            json!({"query": {"vector": query}, "group_by": "section", "group_size": 3, "limit": 5,
                "search": {"exact": exact}, "recheck": level})
        };
        let exact = world.search(body(true, "none"));
        assert_same_groups(&groups(&exact), &expected, "exact");
        assert_eq!((exact["complete"].clone(), exact["hits"].clone()), (json!(true), json!([])));
        let walk = world.search(body(false, "exists"));
        assert_eq!((&walk["stats"]["plan"], &walk["complete"]), (&json!("hnsw"), &json!(true)));
        let found = groups(&walk);
        let full = |(value, rows): &(Option<String>, Vec<_>)| rows.len() == rows_of(value).min(3);
        assert!(found.len() == 5 && found.iter().all(full), "{walk:#}");
        all += 5;
        same += found.iter().zip(&expected).filter(|(found, expected)| found.0 == expected.0).count();
    }
    println!("walks: {same} of {all} groups in their places");
    assert!(same * 100 >= all * 98, "{same} of {all}");
}

#[test]
fn all_groups_are_found_however_many_are_asked_for() {
    let world = world();
    let sections: BTreeMap<_, usize> = world.docs.iter().fold(BTreeMap::new(), |mut counts, doc| {
        *counts.entry(doc.section.clone()).or_default() += 1;
        counts
    });
    assert!(sections.len() > 10 && sections.contains_key(&None), "{sections:?}");
    for query in &world.queries[..5] {
        let ranked = world.ranked(query, |_| true);
        // By a walk that has to be followed by a scan of what is left.
        for (limit, size) in [(sections.len() + 1, 1), (sections.len(), 3), (sections.len() + 10, 5)] {
            let answer = world.search(json!({"query": {"vector": query}, "group_by": "section", "group_size": size,
                "limit": limit}));
            let what = format!("{limit} groups of {size}: {} {}", answer["stats"], answer["recheck"]);
            assert_eq!(answer["complete"], true, "{what}");
            let mut found = groups(&answer);
            let mut expected = reference_groups(&world, &ranked, limit, size);
            assert_eq!(found.len(), sections.len(), "{what}");
            found.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            let sizes =
                |groups: &Groups| groups.iter().map(|(value, rows)| (value.clone(), rows.len())).collect::<Vec<_>>();
            assert_eq!(sizes(&found), sizes(&expected), "{what}");
        }
        // With a filter and within a distance.
        let filtered = world.ranked(query, |doc| doc.views >= 90);
        let (max, rank) = bound(&filtered, 40);
        let answer = world.search(json!({"query": {"vector": query}, "group_by": "section", "group_size": 2,
            "limit": 100, "filter": "views >= 90", "max_distance": max}));
        assert_eq!(answer["complete"], true);
        assert_same_groups(&groups(&answer), &reference_groups(&world, &filtered[..rank], 100, 2), "filtered");
    }
}

/// mean(positive) + mean(positive) - mean(negative), of vectors of length 1.
fn target(positive: &[&[f32]], negative: &[&[f32]]) -> Vec<f32> {
    let mean = |vectors: &[&[f32]]| {
        let mut sum = vec![0.0; DIM];
        for vector in vectors {
            let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            sum.iter_mut().zip(*vector).for_each(|(sum, &x)| *sum += f64::from(x) / norm / vectors.len() as f64);
        }
        sum
    };
    let (liked, disliked) = (mean(positive), mean(negative));
    let factor = if negative.is_empty() { 1.0 } else { 2.0 };
    liked.iter().zip(&disliked).map(|(liked, disliked)| (factor * liked - disliked) as f32).collect()
}

#[test]
fn recommendations_are_near_the_liked_and_away_from_the_disliked() {
    let world = world();
    for seed in 0..20 {
        let id = |n: i64| (seed * 631 + n * 97) % 4_000;
        let vector = &world.queries[seed as usize];
        let by_id = |ids: &[i64]| ids.iter().map(|&id| &world.doc(id).vector[..]).collect::<Vec<_>>();
        let liked = [id(1), id(2)];
        let disliked = [id(3)];
        let query = json!({"recommend": {"positive": [liked[0], liked[1], vector], "negative": disliked}});
        let positive = [by_id(&liked), vec![&vector[..]]].concat();
        let target = target(&positive, &by_id(&disliked));
        let expected = world.ranked(&target, |doc| !liked.contains(&doc.id) && !disliked.contains(&doc.id));
        let answer = world.search(json!({"query": query, "search": {"exact": true}, "limit": 20}));
        assert_same(&hits(&answer), &expected[..20], &format!("recommendation {seed}"));
        // Without dislikes, with a filter.
        let target = self::target(&by_id(&liked), &[]);
        let expected = world.ranked(&target, |doc| !liked.contains(&doc.id) && doc.views < 10);
        let answer = world.search(json!({"query": {"recommend": {"positive": liked}}, "filter": "views < 10"}));
        assert_same(&hits(&answer), &expected[..10], &format!("positive recommendation {seed}"));
    }
}

/// Maximal marginal relevance as it is written in the paper, with similarities.
fn reference_mmr(world: &World, candidates: &[(f64, i64)], lambda: f64, limit: usize) -> Vec<i64> {
    let mut left = candidates.to_vec();
    let mut chosen: Vec<i64> = Vec::new();
    while chosen.len() < limit && !left.is_empty() {
        let score = |row: &(f64, i64)| {
            let sim = |id: &i64| 1.0 - cosine(&world.doc(*id).vector, &world.doc(row.1).vector);
            let nearest = chosen.iter().map(sim).fold(f64::NEG_INFINITY, f64::max);
            lambda * (1.0 - row.0) - if chosen.is_empty() { 0.0 } else { (1.0 - lambda) * nearest }
        };
        // From the nearest on: with lambda 0 nothing else says where to begin.
        let best = if chosen.is_empty() {
            0
        } else {
            (1..left.len()).fold(0, |best, at| if score(&left[at]) > score(&left[best]) { at } else { best })
        };
        chosen.push(left.remove(best).1);
    }
    chosen
}

#[test]
fn diverse_rows_are_those_of_maximal_marginal_relevance() {
    let world = world();
    for query in &world.queries[..20] {
        let ranked = world.ranked(query, |_| true);
        for (lambda, candidates, limit) in [(1.0, 50, 10), (0.7, 100, 10), (0.3, 40, 40), (0.0, 60, 5)] {
            let answer = world.search(json!({"query": {"vector": query}, "limit": limit, "search": {"exact": true},
                "mmr": {"lambda": lambda, "candidates": candidates}}));
            let expected = reference_mmr(&world, &ranked[..candidates], lambda, limit);
            let found: Vec<_> = hits(&answer).iter().map(|hit| hit.1).collect();
            assert_eq!(found, expected, "lambda {lambda} of {candidates}");
            assert_eq!(answer["complete"], true);
        }
        // The nearest of the walk's, by default.
        let answer = world.search(json!({"query": {"vector": query}, "mmr": {}}));
        assert_eq!(hits(&answer)[0].1, ranked[0].1);
        assert_eq!(hits(&answer).len(), 10);
    }
}

#[test]
fn a_batch_answers_each_search_as_it_would_be_answered_alone() {
    let world = world();
    let mut searches = Vec::new();
    for (number, query) in world.queries.iter().enumerate() {
        let mut one = json!({"query": {"vector": query}, "limit": 3 + number % 9, "columns": ["name"]});
        match number % 6 {
            0 => one["max_distance"] = json!(0.6),
            1 => one["group_by"] = json!("section"),
            2 => one["mmr"] = json!({"lambda": 0.5}),
            3 => one["filter"] = json!(format!("views < {}", number + 5)),
            4 => one["query"] = json!({"recommend": {"positive": [number, number + 100], "negative": [number + 200]}}),
            _ => one["recheck"] = json!(["none", "exact"][number / 6 % 2]),
        }
        if one["recheck"] == "none" {
            one["columns"] = json!(["section"]);
        }
        searches.push(one);
    }
    let batch = world.search(json!({"searches": searches}));
    let answers = batch["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), searches.len());
    for (search, answer) in searches.into_iter().zip(answers) {
        let alone = world.search(search.clone());
        for field in ["hits", "groups", "complete"] {
            assert_eq!(answer[field], alone[field], "{field} of {search}");
        }
        assert_eq!(answer["applied_lsn"], answers[0]["applied_lsn"]);
    }
}

#[test]
fn a_batch_is_one_view_and_one_statement_a_round() {
    let database = Database::shared();
    database.docs(300);
    let mut service = Service::ready(&database, DOCS);
    service.catch_up(&database.sql);
    let one = |seed: i64, level: &str| {
        let mut body = near(seed, 4, 5);
        body["recheck"] = json!(level);
        if level != "none" {
            body["columns"] = json!(["body"]);
        }
        body
    };
    let statements = || service.metric("ruvector_search_recheck_seconds_count");
    let before = statements();
    let searches: Vec<_> = (1..=40).map(|seed| one(seed, "exists")).collect();
    let answer = service.search("docs", &json!({ "searches": searches }));
    assert_eq!(statements() - before, 1.0, "40 searches, one statement");
    for (seed, answer) in (1..=40).zip(answer["answers"].as_array().expect("answers")) {
        assert_eq!((ids(answer)[0].clone(), ids(answer).len()), (json!(seed), 5));
        assert_eq!(answer["hits"][0]["columns"]["body"], format!("body {seed}"));
    }
    let mixed: Vec<_> = ["none", "exists", "exact", "exists"].map(|level| one(7, level)).to_vec();
    let before = statements();
    service.search("docs", &json!({ "searches": mixed }));
    assert_eq!(statements() - before, 2.0, "as many as there are different questions");
    // While a row moves to and fro, every batch sees it in exactly one of its two places.
    let places = [vec_of(1, 4), vec_of(2, 4)];
    let at = |place: &Vec<f64>| json!({"query": {"vector": place}, "max_distance": 1e-6, "recheck": "none"});
    let both = json!({"searches": places.iter().map(at).collect::<Vec<_>>()});
    database.sql.run("UPDATE docs SET embedding = vec(1, 4) WHERE id = 300");
    service.catch_up(&database.sql);
    let (other, stop) = (database.connect(), AtomicBool::new(false));
    let wrong = std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in (1..=2).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                other.run(&format!("UPDATE docs SET embedding = vec({turn}, 4) WHERE id = 300"));
            }
        });
        let in_one_place = |answer: &Json| {
            let found = answer["answers"].as_array().into_iter().flatten().flat_map(ids);
            found.filter(|id| *id == 300).count() == 1
        };
        let mut batches = (0..300).map(|_| service.try_search("docs", &both).unwrap_or_default());
        let wrong = batches.find(|answer| !in_one_place(answer));
        stop.store(true, Ordering::Relaxed);
        wrong
    });
    assert_eq!(wrong, None);
}

#[test]
fn explain_tells_how_the_answer_came_about() {
    let world = world();
    let query = &world.queries[0];
    let walk = world.search(json!({"query": {"vector": query}, "explain": true}));
    let explain = &walk["explain"];
    assert_eq!((&explain["plan"], &explain["ef"], &explain["pages"]), (&json!("hnsw"), &json!(100), &json!(1)));
    assert_eq!(explain["visited"], walk["stats"]["visited"]);
    let vectors = |segment: &Json| segment["vectors"].as_u64().expect("a count");
    assert_eq!(explain["segments"].as_array().expect("segments").iter().map(vectors).sum::<u64>(), 4_000);
    let us = |stage: &str| explain["timings_us"][stage].as_u64().unwrap_or_else(|| panic!("{stage}: {explain}"));
    let stages = ["wait", "prepare", "search", "recheck", "rerank"];
    assert!(stages.iter().map(|stage| us(stage)).sum::<u64>() <= us("total"), "{explain}");
    assert!(us("search") > 0 && us("recheck") > 0, "{explain}");
    let scan = world.search(json!({"query": {"vector": query}, "explain": true, "search": {"exact": true}}));
    assert_eq!((&scan["explain"]["plan"], &scan["explain"]["visited"]), (&json!("exact"), &json!(4_000)));
    assert!(world.search(json!({"query": {"vector": query}})).get("explain").is_none());
}

#[test]
fn rows_are_counted_and_listed_as_postgres_does() {
    let world = world();
    let post = |what: &str, body: &Json| {
        let answer = world.service.client().post(&format!("/v1/collections/docs/{what}"), body);
        answer.unwrap_or_else(|error| panic!("{what} {body}: {error:#}"))
    };
    for filter in
        [None, Some("views < 30"), Some("section IS NULL"), Some("section = 'net' OR views = 1"), Some("views = -1")]
    {
        let where_clause = filter.unwrap_or("true");
        let expected: u64 = world
            .database
            .sql
            .one(&format!("SELECT count(*) FROM docs WHERE {where_clause}"))
            .parse()
            .expect("a number");
        let mut body = json!({});
        if let Some(filter) = filter {
            body["filter"] = json!(filter);
        }
        let counted = post("count", &body);
        assert_eq!((&counted["count"], &counted["complete"]), (&json!(expected), &json!(true)), "{filter:?}");
        let sql = format!("SELECT id, views FROM docs WHERE {where_clause} ORDER BY id");
        let number = |text: &Option<String>| json!(text.as_deref().and_then(|text| text.parse::<i64>().ok()));
        let expected: Vec<_> =
            world.database.sql.rows(&sql).iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
        for (level, limit) in [("none", 700), ("exists", 1_000), ("exact", 4_002)] {
            let mut body = body.clone();
            (body["recheck"], body["limit"], body["columns"]) = (json!(level), json!(limit), json!(["views"]));
            let mut found = Vec::new();
            loop {
                let page = post("scroll", &body);
                let rows = page["rows"].as_array().expect("rows");
                assert!(page["complete"] == true && (rows.len() == limit || page["next"].is_null()), "{page}");
                found.extend(rows.iter().map(|row| (row["id"].clone(), row["columns"]["views"].clone())));
                if page["next"].is_null() {
                    break;
                }
                body["after"] = page["next"].clone();
            }
            assert_eq!(found, expected, "{filter:?} {level}");
        }
    }
}

#[test]
fn rows_that_are_not_visible_any_more_are_in_no_kind_of_answer() {
    let database = Database::shared();
    database.docs(60);
    let mut service = Service::ready(&database, DOCS);
    service.catch_up(&database.sql);
    // Deleted and searched for in the same breath: the delete is often not streamed yet, and never in an answer.
    let mut dropped = 0;
    for id in 1..=40 {
        database.sql.run(&format!("DELETE FROM docs WHERE id = {id}"));
        let vector = vec_of(id, 4);
        let searches = json!({"searches": [
            {"query": {"vector": vector}},
            {"query": {"vector": vector}, "max_distance": 1e-6},
            {"query": {"vector": vector}, "group_by": "section", "group_size": 2, "limit": 3},
            {"query": {"vector": vector}, "mmr": {"lambda": 0.5}, "limit": 5},
        ]});
        let answer = service.search("docs", &searches);
        let answers = answer["answers"].as_array().expect("answers");
        let in_groups = answers[2]["groups"].as_array().expect("groups").iter().flat_map(ids);
        let found: Vec<_> = answers.iter().flat_map(ids).chain(in_groups).collect();
        let gone = |found: &Json| found.as_i64().is_some_and(|found| found <= id);
        assert!(!found.iter().any(gone), "{id}: {answer:#}");
        assert_eq!((ids(&answers[0]).len(), ids(&answers[1]).len(), ids(&answers[3]).len()), (10, 0, 5));
        let groups = answers[2]["groups"].as_array().expect("groups");
        assert!(groups.len() == 3 && groups.iter().all(|group| ids(group).len() == 2), "{answer:#}");
        assert!(answers.iter().all(|answer| answer["complete"] == true), "{answer:#}");
        dropped += answers.iter().map(|answer| answer["recheck"]["dropped"].as_u64().expect("a count")).sum::<u64>();
    }
    println!("{dropped} rows dropped by rechecks");
    wait_until("the deletes are streamed", || service.collection("docs")["rows"] == 20);
}

#[test]
fn the_command_line_searches_in_the_same_ways() {
    let world = world();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
        command.args(["search", "docs", "--url", world.service.url(), "--json"]).args(args);
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str::<Json>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let query = &world.doc(7).vector;
    let ranked = world.ranked(query, |doc| doc.id != 7);
    let (max, rank) = bound(&ranked, 12);
    let range = run(&["--id", "7", "--max-distance", &max.to_string()]);
    assert_same(&hits(&range), &ranked[..rank], "range");
    let exact = run(&["--id", "7", "--exact", "-n", "4"]);
    assert_same(&hits(&exact), &ranked[..4], "exact");
    let mmr = run(&["--id", "7", "--exact", "-n", "5", "--mmr", "0.5"]);
    let found: Vec<_> = hits(&mmr).iter().map(|hit| hit.1).collect();
    assert_eq!(found, reference_mmr(&world, &ranked[..50], 0.5, 5));
    let grouped = run(&["--id", "7", "--exact", "-n", "2", "--group-by", "section", "--group-size", "2"]);
    assert_same_groups(&groups(&grouped), &reference_groups(&world, &ranked, 2, 2), "groups");
}

#[test]
fn the_examples_of_the_documentation_work() {
    let world = world();
    let text =
        std::fs::read_to_string(format!("{}/docs/search.md", env!("CARGO_MANIFEST_DIR"))).expect("docs/search.md");
    let examples: Vec<_> = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 9, "{}", examples.len());
    for example in examples {
        let command = example.replace("http://127.0.0.1:8480", world.service.url());
        let command = command.replace("curl -s ", "curl -sS --fail-with-body ");
        let output = Command::new("sh").args(["-c", &command]).output().expect("sh");
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}\n{answer}{}", String::from_utf8_lossy(&output.stderr));
        let answer: Json = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{command}: {error}: {answer}"));
        let whole = |answer: &Json| answer["complete"].is_boolean();
        let told = |answer: &Json| whole(answer) || answer["recall"].is_f64() || answer["waited_ms"].is_f64();
        let batch = answer["answers"].as_array();
        assert!(batch.map_or(told(&answer), |answers| answers.iter().all(told)), "{command}: {answer}");
    }
}
