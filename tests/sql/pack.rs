//! The SQL pack: roles, what they may, functions about the service, and operators without pgvector.

use crate::support::{Database, Sql};
use crate::world::{World, firsts, refusal, world};

/// What an exact distance is compared with.
fn number(sql: &Sql, query: &str) -> f64 {
    sql.one(query).parse().unwrap_or_else(|_| panic!("{query}"))
}

#[test]
fn operators_over_arrays_are_exact_and_refuse_what_pgvector_refuses() {
    let world = world();
    let sql = world.source();
    for (operator, function, expected) in [
        ("<->", "l2_distance", 5.0),
        ("<#>", "vector_negative_inner_product", -16.0),
        ("<=>", "cosine_distance", 1.0 - 16.0 / (5.0 * 52.0_f64).sqrt()),
        ("<+>", "l1_distance", 7.0),
    ] {
        let (a, b) = ("ARRAY[1, 2]::real[]", "ARRAY[4, 6]::real[]");
        for form in [format!("{a} {operator} {b}"), format!("{b} {operator} {a}"), format!("{function}({a}, {b})")] {
            assert!((number(&sql, &format!("SELECT {form}")) - expected).abs() < 1e-12, "{form}");
        }
        assert_eq!(sql.text(&format!("SELECT NULL::real[] {operator} {a}")), None);
        assert_eq!(sql.text(&format!("SELECT {a} {operator} NULL::real[]")), None);
        for (other, code, message) in [
            ("ARRAY[1]::real[]", "22000", "different vector dimensions 2 and 1"),
            ("ARRAY[1, NULL]::real[]", "22004", "array must not contain nulls"),
            ("ARRAY['NaN', 1]::real[]", "22000", "NaN not allowed in vector"),
            ("ARRAY['-Infinity', 1]::real[]", "22000", "infinite value not allowed in vector"),
            ("ARRAY[[1, 2]]::real[]", "22000", "array must be 1-D"),
            ("'{}'::real[]", "22000", "vector must have at least 1 dimension"),
        ] {
            let (found, said, _) = refusal(&sql, &format!("SELECT {a} {operator} {other}"));
            assert_eq!((found.as_str(), said.as_str()), (code, message), "{operator} {other}");
        }
    }
    assert_eq!(sql.one("SELECT ARRAY[0, 0]::real[] <=> ARRAY[1, 0]::real[]"), "NaN");
    assert_eq!(sql.one("SELECT '{3,4}'::real[] <-> '{0,0}'"), "5", "a literal takes the other's type");
    assert_eq!(sql.one("SELECT vector_dims('{3,4}'::real[]) + vector_norm('{3,4}'::real[])"), "7");
    assert_eq!(sql.one("SELECT l2_normalize('{3,4}')"), "{0.6,0.8}");
    // The same rows, in the same order, by a scan of the table itself.
    let found = firsts(&sql, "SELECT id FROM public.docs ORDER BY embedding <-> vec(7, 4), id LIMIT 10");
    assert_eq!(found, world.nearest("vec(7, 4)", "true", 10));
}

#[test]
fn functions_tell_about_the_service() {
    let world = world();
    let sql = world.source();
    sql.run("SELECT count(*) FROM ruvector_search('docs', ARRAY[1, 2, 3, 4], 5)");
    assert_eq!(sql.one("SELECT ruvector_index_stats('docs') #>> '{indexes,0,vector_count}'"), "3000");
    assert_eq!(sql.one("SELECT ruvector_index_stats('docs.embedding') #>> '{indexes,0,index_type}'"), "hnsw");
    assert_eq!(sql.text("SELECT ruvector_index_stats('nothing')"), None);
    assert_eq!(sql.one("SELECT sum(vector_count) FROM ruvector_tier_report('docs')"), "3000");
    assert_eq!(sql.one("SELECT count(*) FROM ruvector_tier_report('nothing')"), "0");
    assert_eq!(sql.one("SELECT (ruvector_memory_stats() #>> '{collections,docs}')::bigint > 3000 * 4"), "t");
    assert_eq!(
        sql.one("SELECT (m ->> 'index_bytes')::bigint = (SELECT sum(value::bigint) FROM jsonb_each_text(m -> 'collections')) FROM ruvector_memory_stats() m"),
        "t"
    );
    assert_eq!(sql.one("SELECT total_searches > 0 AND visibility_rechecks >= 5 FROM visibility_stats WHERE collection_name = 'docs'"), "t");
    assert_eq!(sql.one("SELECT count(*) FROM consistency_status"), "2");
    assert_eq!(firsts(&sql, "SELECT name FROM my_collections ORDER BY name"), ["docs", "notes"]);
    // Exactness by name, and what there is not.
    let nearest = world.nearest("ARRAY[0.3, 0.1, 0.7, 0.5]::real[]", "true", 5);
    for exactness in ["exact", "balanced"] {
        let found = format!(
            "SELECT id FROM ruvector_search('docs', ARRAY[0.3, 0.1, 0.7, 0.5], 5, exactness => '{exactness}') ORDER BY distance"
        );
        assert_eq!(firsts(&sql, &found), nearest, "{exactness}");
    }
    sql.run("SELECT * FROM ruvector_search('docs', ARRAY[0.3, 0.1, 0.7, 0.5], 5, exactness => 'fast')");
    let (code, ..) =
        refusal(&sql, "SELECT * FROM ruvector_search('docs', ARRAY[1, 2, 3, 4], 5, exactness => 'nearly')");
    assert_eq!(code, "22023");
    let (_, message, _) = refusal(&sql, "SELECT * FROM ruvector_search('docs', ARRAY[1, 2, 3, 4], 5, NULL, true)");
    assert!(message.contains("use_gnn"), "{message}");
}

/// `role` and nobody else.
fn as_role(world: &World, role: &str) -> Sql {
    let member = world.role(&format!("member_{role}"));
    world.database.sql.run(&format!(
        "CREATE ROLE {member} LOGIN; GRANT ruvector_{role} TO {member}; GRANT USAGE ON SCHEMA public TO {member}"
    ));
    world.source_as(&member)
}

#[test]
fn roles_may_what_they_are_for_and_nobody_else_anything() {
    let world = World::new(Database::shared());
    let name = &world.database.name;
    // Without CREATEROLE the pack is whole but for the roles, and says so.
    let missing = || world.database.sql.one("SELECT count(*) FROM pg_roles WHERE rolname = 'ruvector_admin'") == "0";
    let before = missing();
    let output = world.pack("upgrade", &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Roles are the whole server's, and other tests make and drop them.
    if before == missing() {
        assert_eq!(said.contains("CREATEROLE"), before, "{said}");
    }
    world.database.sql.run(&format!("ALTER ROLE owner_{name} CREATEROLE"));
    let output = world.pack("upgrade", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("CREATEROLE"));
    let source = &world.database.sql;
    let grants = "SELECT count(*) FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'ruvector'::regnamespace AND a.grantee = 0";
    assert_eq!(source.one(grants), "0");
    let grants = "SELECT count(*) FROM pg_proc p WHERE p.pronamespace = 'ruvector'::regnamespace
                   AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))";
    assert_eq!(source.one(grants), "0");
    let search = "SELECT count(*) FROM ruvector.ruvector_search('docs', ARRAY[1, 2, 3, 4], 5)";
    let tune = "SELECT ruvector.ruvector_set_compression('more', 'hot', 'f16')";
    let register = "SELECT ruvector.ruvector_register_collection('more', 'public', 'more', 'embedding')";
    source.run(&format!(
        "SET SESSION AUTHORIZATION owner_{name}; CREATE TABLE more (LIKE docs INCLUDING ALL); RESET SESSION AUTHORIZATION"
    ));
    let (user, operator, admin) = (as_role(&world, "user"), as_role(&world, "operator"), as_role(&world, "admin"));
    let denied = |sql: &Sql, statement: &str| assert_eq!(refusal(sql, statement).0, "42501", "{statement}");
    for sql in [&user, &operator] {
        assert_eq!(sql.one(search), "5");
        assert_eq!(sql.one("SELECT ARRAY[3, 4]::real[] <-> ARRAY[0, 0]::real[]"), "5");
        for statement in [
            "SELECT ruvector_version(), ruvector_simd_info(), ruvector_last_applied_lsn(), ruvector_memory_stats()",
            "SELECT * FROM ruvector_tier_report('docs')",
            "SELECT ruvector_index_stats('docs')",
            "SELECT * FROM ruvector_list_collections()",
            "SELECT * FROM ruvector_search_batch('docs', ARRAY[[1, 2, 3, 4]], 2)",
            "SELECT * FROM consistency_status, visibility_stats",
        ] {
            sql.run(statement);
        }
        // Whose table he may not read is none of his.
        assert_eq!(sql.one("SELECT count(*) FROM my_collections"), "0");
        for statement in [
            "SELECT id FROM ruvector.docs",
            "SELECT * FROM ruvector.stream_table WHERE collection = 'docs' AND query = ARRAY[1, 2, 3, 4]::real[]",
            "SELECT * FROM ruvector.docs_nearest(ARRAY[1, 2, 3, 4])",
            register,
            "SELECT ruvector.ruvector_unregister_collection('more')",
            "INSERT INTO ruvector.registrations (name, spec) VALUES ('x', '{}')",
            "UPDATE ruvector.registrations SET spec = '{}'",
        ] {
            denied(sql, statement);
        }
    }
    denied(&user, tune);
    denied(&user, "SELECT * FROM ruvector.registrations");
    // An admin registers what he may read himself.
    denied(&admin, register);
    denied(&admin, "INSERT INTO ruvector.registrations (name, spec) VALUES ('more', '{\"table\": \"public.more\"}')");
    source.run(&format!("GRANT SELECT ON more TO {}", world.role("member_admin")));
    admin.run(
        "SELECT ruvector_register_collection('more', 'public', 'more', 'embedding', 4, 'l2', ARRAY['section'],
           '{\"m\": 8, \"tiers\": {\"warm_after_h\": 1}}')",
    );
    let stored: serde_json::Value = admin.one("SELECT spec FROM registrations").parse().expect("JSON");
    let wanted = serde_json::json!({
        "table": "public.more",
        "vectors": [{ "column": "embedding", "metric": "l2", "dimensions": 4, "m": 8 }],
        "filter_columns": ["section"],
        "tiers": { "warm_after_h": 1 },
    });
    assert_eq!(stored, wanted);
    assert_eq!(operator.one(tune), "t");
    assert_eq!(operator.one("SELECT ruvector_set_tiers('more', 2, 4, 6)"), "t");
    let tuned = "SELECT tuning #>> '{tiers,warm_after_h}' || ' ' || (tuning ->> 'encoding') FROM registrations";
    assert_eq!(admin.one(tuned), "2 f16");
    assert_eq!(admin.one("SELECT ruvector_unregister_collection('more')"), "t");
    assert_eq!(admin.one("SELECT count(*) FROM ruvector.docs_nearest(ARRAY[1, 2, 3, 4]) s LIMIT 1"), "3000");
    // Nobody at all.
    source.run(&format!("CREATE ROLE nobody_{name} LOGIN"));
    let nobody = world.source_as(&world.role("nobody"));
    for statement in [search, "SELECT ruvector.ruvector_version()", "SELECT * FROM ruvector.consistency_status"] {
        denied(&nobody, statement);
    }
    drop((user, operator, admin, nobody));
    let output = world.pack("uninstall", &["--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(source.one("SELECT count(*) FROM pg_foreign_server WHERE srvname = 'ruvector'"), "0");
    assert_eq!(source.one("SELECT count(*) FROM pg_namespace WHERE nspname = 'ruvector'"), "0");
}
