//! The private PostgreSQL cluster: what it offers, and that it leaves nothing behind, however its owner ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ruvector::cli::private_postgres::{PrivatePostgres, Settings, Stop};
use tokio_postgres::{Client, NoTls};

/// Set in the process that a test starts in order to kill it.
const VICTIM: &str = "RUVECTOR_TEST_VICTIM";

async fn connect(cluster: &PrivatePostgres) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&cluster.dsn(), NoTls).await.expect("the cluster accepts clients");
    tokio::spawn(connection);
    client
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.expect("the query runs").get::<_, String>(0)
}

fn runs(pid: u32) -> bool {
    // A zombie has a folder in /proc as well, but no longer a command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Every process that names the directory: server, children (by their working directory) and keeper.
fn processes_of(root: &Path) -> Vec<String> {
    let named = root.to_string_lossy().into_owned();
    let of_process = |folder: PathBuf| {
        let line = String::from_utf8_lossy(&std::fs::read(folder.join("cmdline")).ok()?).replace('\0', " ");
        let works_there = std::fs::read_link(folder.join("cwd")).is_ok_and(|cwd| cwd.starts_with(root));
        (works_there || line.contains(&named)).then_some(line)
    };
    let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    processes.filter_map(|entry| of_process(entry.path())).collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn two_clusters_run_side_by_side_and_leave_nothing() {
    let starting = Instant::now();
    let (one, two) = std::thread::scope(|scope| {
        let start = || PrivatePostgres::start(Settings::default()).expect("a private cluster");
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().expect("no panic"), two.join().expect("no panic"))
    });
    println!("two clusters in {:?}", starting.elapsed());
    assert_ne!(one.port(), two.port());
    for cluster in [&one, &two] {
        let client = connect(cluster).await;
        assert_eq!(text(&client, "SHOW wal_level").await, "logical");
        assert_eq!(text(&client, "SHOW max_prepared_transactions").await, "10");
        assert_eq!(text(&client, "SHOW server_encoding").await, "UTF8");
        assert_eq!(text(&client, "SHOW fsync").await, "off");
        assert_eq!(text(&client, "SHOW port").await, cluster.port().to_string());
        let slot = "SELECT slot_name::text FROM pg_create_logical_replication_slot('s', 'pgoutput')";
        assert_eq!(text(&client, slot).await, "s");
    }

    let left: Vec<_> = [&one, &two].map(|cluster| (cluster.root_dir().to_path_buf(), cluster.server_pid())).into();
    drop((one, two));
    for (root, pid) in left {
        assert!(!runs(pid.expect("it ran")));
        assert!(!root.exists());
        assert_eq!(processes_of(&root), Vec::<String>::new());
    }
}

#[tokio::test]
async fn settings_given_win_over_the_usual_ones() {
    let settings = Settings { fsync: true, ..Settings::default() }
        .with("wal_level", "replica")
        .with("application_name", r"it's a back\slash");
    let mut cluster = PrivatePostgres::start(settings).expect("a private cluster");
    let client = connect(&cluster).await;
    assert_eq!(text(&client, "SHOW wal_level").await, "replica");
    assert_eq!(text(&client, "SHOW fsync").await, "on");
    let from_file = "SELECT setting FROM pg_file_settings WHERE name = 'application_name'";
    assert_eq!(text(&client, from_file).await, r"it's a back\slash");

    cluster.set("wal_sender_timeout", "3s").expect("the file is there");
    cluster.reload().expect("it runs");
    wait_until("the new setting holds", || {
        cluster.log_tail(20).contains(r#"parameter "wal_sender_timeout" changed to "3s""#)
    });
}

#[tokio::test]
async fn what_was_committed_survives_every_kind_of_stop() {
    let mut cluster = PrivatePostgres::start(Settings::default()).expect("a private cluster");
    let dsn = cluster.dsn();
    connect(&cluster).await.batch_execute("CREATE TABLE t (how text)").await.expect("a new table");
    for (round, how) in [Stop::Fast, Stop::Immediate, Stop::Killed].into_iter().enumerate() {
        let client = connect(&cluster).await;
        client.execute("INSERT INTO t VALUES ('row')", &[]).await.expect("a new row");
        let pid = cluster.server_pid().expect("it runs");
        cluster.stop(how).expect("it stops");
        cluster.stop(how).expect("a second stop does nothing");
        assert!(!runs(pid), "{how:?}");
        assert_eq!(cluster.server_pid(), None);
        assert!(tokio_postgres::connect(&dsn, NoTls).await.is_err());

        cluster.start_again().expect("it starts again");
        assert!(cluster.start_again().is_err(), "it runs already");
        assert_eq!(cluster.dsn(), dsn);
        let rows = text(&connect(&cluster).await, "SELECT count(*)::text FROM t").await;
        assert_eq!(rows, (round + 1).to_string(), "{how:?}");
    }
    let root = cluster.root_dir().to_path_buf();
    drop(cluster);
    assert!(!root.exists());
    assert_eq!(processes_of(&root), Vec::<String>::new());
}

#[tokio::test]
async fn only_an_own_identity_makes_another_cluster() {
    async fn identifier(settings: Settings) -> String {
        let cluster = PrivatePostgres::start(settings).expect("a private cluster");
        text(&connect(&cluster).await, "SELECT system_identifier::text FROM pg_control_system()").await
    }
    let usual = identifier(Settings::default()).await;
    assert_ne!(usual, identifier(Settings { own_identity: true, ..Settings::default() }).await);
}

#[test]
fn a_server_that_cannot_start_says_why_and_leaves_nothing() {
    let error = PrivatePostgres::start(Settings::default().with("shared_buffers", "much")).expect_err("no such size");
    let error = format!("{error:#}");
    assert!(error.contains(r#"invalid value for parameter "shared_buffers": "much""#), "{error}");

    let missing = Settings { bin_dir: Some(PathBuf::from("/nonexistent")), ..Settings::default() };
    let error = format!("{:#}", PrivatePostgres::start(missing).expect_err("no server there"));
    assert!(error.contains("cannot run /nonexistent/"), "{error}");
}

#[test]
fn a_stopped_cluster_leaves_nothing_either() {
    let mut cluster = PrivatePostgres::start(Settings::default()).expect("a private cluster");
    cluster.stop(Stop::Fast).expect("it stops");
    let root = cluster.root_dir().to_path_buf();
    drop(cluster);
    assert!(!root.exists());
    assert_eq!(processes_of(&root), Vec::<String>::new());
}

#[test]
fn a_server_that_dies_by_itself_is_noticed() {
    let mut cluster = PrivatePostgres::start(Settings::default()).expect("a private cluster");
    let pid = cluster.server_pid().expect("it runs");
    // The shell's own kill: a small Debian has no program of that name.
    let kill = format!("kill -s QUIT {pid}");
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("sh runs").success());
    wait_until("the server is gone", || !runs(pid));
    cluster.stop(Stop::Fast).expect("nothing to stop");
    cluster.start_again().expect("it starts again");
    let root = cluster.root_dir().to_path_buf();
    drop(cluster);
    assert!(!root.exists());
}

#[test]
fn a_parent_killed_with_9_leaves_no_server() {
    if let Ok(state) = std::env::var(VICTIM) {
        let mut cluster = PrivatePostgres::start(Settings::default()).expect("a private cluster");
        let pid = cluster.server_pid().expect("it runs");
        if state == "stopped" {
            cluster.stop(Stop::Fast).expect("it stops");
        }
        println!("\ncluster {pid} {}", cluster.root_dir().display());
        // Until it is killed, but not for ever where the test that would kill it was killed itself.
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    for state in ["running", "stopped"] {
        let mut victim = Command::new(std::env::current_exe().expect("a test knows its program"))
            .args(["--exact", "a_parent_killed_with_9_leaves_no_server", "--nocapture"])
            .env(VICTIM, state)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test program starts");
        let output = BufReader::new(victim.stdout.take().expect("stdout is piped"));
        let line = output.lines().map_while(Result::ok).find(|line| line.starts_with("cluster "));
        let line = line.expect("the victim tells its cluster");
        let mut words = line.split(' ').skip(1);
        let pid: u32 = words.next().and_then(|pid| pid.parse().ok()).expect("a process number");
        let root = PathBuf::from(words.next().expect("a directory"));
        assert_eq!((runs(pid), root.exists()), (state == "running", true));

        victim.kill().expect("the victim is ours");
        victim.wait().expect("the victim is ours");
        wait_until("server, keeper and directory are gone", || {
            !runs(pid) && !root.exists() && processes_of(&root).is_empty()
        });
    }
}
