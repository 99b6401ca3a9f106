//! Both lines on fakes: scripted WAL frames through replication, change log and engine to answers, without PostgreSQL.

#[path = "../soak_disk/disk.rs"]
#[allow(dead_code, reason = "another suite's faults")]
mod disk;
#[path = "../epoch/mod.rs"]
mod epoch;
#[path = "../model/random.rs"]
#[allow(dead_code, reason = "another suite's numbers")]
mod random;
mod wire;

use epoch::Epoch;
use ruvector::consistency::frontier::{Frontier, NoView};
use ruvector::consistency::recheck::{Seen, Visibility};
use ruvector::engine::apply::Command;
use ruvector::engine::view::{CollectionView, View};
use ruvector::engine::{NewCollection, Options};
use ruvector::model::{
    Answer, Cell, Change, CollectionDef, CollectionId, ColumnType, CommitLsn, Comparison, Consistency, Filter,
    FilterColumn, KeyColumn, LogRecord, Lsn, Metric, Op, Recheck, RowImage, RowKey, SearchBy, SearchRequest, Shape,
    TransactionHead, Value, VectorColumn,
};
use ruvector::query::{QueryError, QueryService};
use ruvector::replication::definitions::Definitions;
use ruvector::replication::frame::Frame;
use ruvector::replication::progress::Progress;
use ruvector::replication::stream::Intake;
use ruvector::replication::{ReplicationError, follow};
use ruvector::source::SourceError;
use ruvector::source::rows::{Ask, HeapRow};
use ruvector::storage::changelog::{self, ChangeLog, LogPosition, start_of};
use ruvector::storage::files;
use ruvector::storage::state::CollectionState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wire::{Col, ITEMS, Script, Status, Tx, garbage, group, keepalive, keepalive_that_asks, row, stream_abort, vector};

/// Where the slot starts.
const START: u64 = 100;

fn items() -> CollectionDef {
    CollectionDef {
        id: CollectionId(0),
        name: "items".into(),
        schema: "public".into(),
        table: "items".into(),
        oid: ITEMS,
        partitioned: false,
        key: vec![KeyColumn { name: "id".into(), kind: ColumnType::Int8 }],
        vectors: vec![VectorColumn {
            name: "embedding".into(),
            kind: ColumnType::Vector,
            metric: Metric::L2,
            dimensions: Some(3),
            m: 8,
            ef_construction: 32,
            encoding: Default::default(),
            index: Default::default(),
            lists: None,
        }],
        filters: vec![FilterColumn { name: "grp".into(), kind: ColumnType::Int4 }],
    }
}

fn key(number: i64) -> RowKey {
    RowKey::encode(&[Value::Int(number)]).expect("an integer can be a key")
}

/// The point at `x` on the first axis.
fn at(x: f32) -> Col {
    vector(&[x, 0.0, 0.0])
}

/// The source's heap as rechecks see it: keys with their vectors.
#[derive(Clone, Default)]
struct Heap(Arc<Mutex<BTreeMap<RowKey, Vec<f32>>>>);

impl Heap {
    fn put(&self, number: i64, x: f32) {
        self.0.lock().expect("not poisoned").insert(key(number), vec![x, 0.0, 0.0]);
    }

    fn hide(&self, number: i64) {
        self.0.lock().expect("not poisoned").remove(&key(number));
    }
}

impl Visibility for Heap {
    async fn visible(&self, _: &CollectionDef, keys: &[RowKey], ask: Ask<'_>) -> Result<Seen, SourceError> {
        let rows = self.0.lock().expect("not poisoned");
        let row = |key: &RowKey| {
            let vector = rows.get(key)?.clone();
            let vector = ask.vector.map(|_| Cell::Value(Value::Vector(vector.into())));
            Some(HeapRow { key: key.clone(), columns: None, vector })
        };
        Ok(Seen { rows: keys.iter().rev().filter_map(row).collect(), together: 1 })
    }
}

/// Both lines, joined.
struct Lines {
    epoch: Epoch,
    progress: Arc<Progress>,
    frontier: Arc<Frontier>,
    heap: Heap,
    service: QueryService<Heap>,
    statuses: Arc<Mutex<Vec<Status>>>,
    wire: Option<Wire>,
    dir: tempfile::TempDir,
}

/// A connection under way.
struct Wire {
    frames: UnboundedSender<Result<Frame, ReplicationError>>,
    stop: CancellationToken,
    following: JoinHandle<(ChangeLog, ReplicationError)>,
}

impl Lines {
    /// An empty table, and a stream that has started.
    fn new() -> Lines {
        Lines::with_status_every(Duration::from_millis(5))
    }

    fn with_status_every(interval: Duration) -> Lines {
        Lines::within(tempfile::tempdir().expect("a folder"), interval)
    }

    fn within(dir: tempfile::TempDir, interval: Duration) -> Lines {
        let options = Options { segment_rows: 64, build_threads: 1, seal_rows_on_stop: 16, ..Options::default() };
        let epoch = Epoch::create(dir.path(), vec![(items(), Vec::new())], Lsn(START), options);
        let progress = Arc::new(Progress::default());
        let frontier = epoch.frontier(progress.clone());
        let heap = Heap::default();
        let options = ruvector::query::Options { default_ef: 64 };
        let service = QueryService::new(frontier.clone(), heap.clone(), options);
        let statuses = Arc::default();
        let mut lines = Lines { epoch, progress, frontier, heap, service, statuses, wire: None, dir };
        lines.connect(interval);
        lines
    }

    fn connect(&mut self, status_interval: Duration) {
        let log = self.epoch.log.take().expect("the log is not in use");
        let (frames, receiver) = tokio::sync::mpsc::unbounded_channel();
        let script = Script {
            frames: receiver,
            statuses: self.statuses.clone(),
            log: log.tail(),
            log_dir: self.dir.path().join("log"),
        };
        let stop = CancellationToken::new();
        let (progress, stopped) = (self.progress.clone(), stop.clone());
        let intake =
            Intake { status_interval, silence_limit: Duration::from_secs(60), queue_bytes: 1 << 20, spool_bytes: 4096 };
        let definitions = Arc::new(Definitions::new(vec![items()]));
        let following =
            tokio::spawn(async move { follow(script, intake, definitions, log, &progress, &stopped).await });
        self.wire = Some(Wire { frames, stop, following });
    }

    fn send(&self, frames: impl IntoIterator<Item = Frame>) {
        let wire = self.wire.as_ref().expect("connected");
        frames.into_iter().for_each(|frame| wire.frames.send(Ok(frame)).expect("somebody follows"));
    }

    /// Breaks the connection after what was sent; why following ended.
    async fn disconnect(&mut self) -> ReplicationError {
        let Wire { frames, stop: _stop, following } = self.wire.take().expect("connected");
        drop(frames);
        let (log, error) = following.await.expect("no panic");
        self.epoch.log = Some(log);
        error
    }

    /// Stops following as a shutdown does.
    async fn stop(&mut self) -> ReplicationError {
        let wire = self.wire.take().expect("connected");
        wire.stop.cancel();
        let (log, error) = wire.following.await.expect("no panic");
        self.epoch.log = Some(log);
        error
    }

    fn reconnect(&mut self) {
        self.connect(Duration::from_millis(5));
    }

    async fn applied(&self, position: u64) {
        tokio::task::block_in_place(|| self.epoch.wait(Lsn(position)));
    }

    fn view(&self) -> Arc<View> {
        self.epoch.engine.view()
    }

    fn collection(&self) -> Arc<CollectionView> {
        self.view().collections["items"].clone()
    }

    /// The nearest to the origin, as of `position` or later.
    async fn search(&self, position: u64, change: impl FnOnce(&mut SearchRequest)) -> Result<Answer, QueryError> {
        let mut request = SearchRequest {
            collection: "items".into(),
            using: None,
            by: SearchBy::Vector(vec![0.0; 3].into()),
            limit: 10,
            filter: None,
            columns: Vec::new(),
            ef: None,
            exact: false,
            consistency: Consistency { at_least: Some(Lsn(position)), ..Consistency::default() },
            recheck: Recheck::None,
            viewer: None,
            after: None,
            shape: Shape::default(),
        };
        change(&mut request);
        self.service.search(&request).await
    }

    /// Keys and distances of everything, as of `position` or later.
    async fn all(&self, position: u64) -> Vec<(i64, f64)> {
        let answer = self.search(position, |request| request.limit = 1_000).await.expect("an answer");
        assert!(answer.complete && answer.applied_lsn >= Lsn(position), "{answer:?}");
        answer.hits.iter().map(|hit| (number(&hit.key), hit.distance)).collect()
    }

    fn letters(&self) -> Vec<(String, String)> {
        let letters = self.epoch.engine.dead_letters(CollectionId(0), 100).expect("dead letters can be read");
        letters.into_iter().map(|letter| (letter.key, letter.reason)).collect()
    }

    /// Every record that is durable in the change log.
    fn records(&self) -> Vec<LogRecord> {
        let dir = self.dir.path().join("log");
        let from: LogPosition = start_of(&dir).expect("a log");
        let mut reader = self.epoch.log.as_ref().expect("disconnected").reader(from);
        std::iter::from_fn(|| reader.next_record().expect("readable")).collect()
    }
}

fn number(key: &RowKey) -> i64 {
    match key.decode().as_deref() {
        Some([Value::Int(number)]) => *number,
        other => panic!("not a key of ours: {other:?}"),
    }
}

fn keys(answer: &Answer) -> Vec<i64> {
    answer.hits.iter().map(|hit| number(&hit.key)).collect()
}

fn in_group(group: i64) -> Option<Filter> {
    Some(Filter::Compare { column: 0, op: Comparison::Eq, value: Some(Value::Int(group)) })
}

fn inserts(commit: u64, numbers: std::ops::Range<i64>) -> Tx {
    numbers.fold(Tx::new(commit), |tx, n| tx.insert(row(n, at(n as f32), group(n as i32 % 2))))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_become_answers() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..6).commit(210));
    lines.send([keepalive(220)]);
    lines.send(Tx::new(300).delete(1).update(row(5, at(0.5), Col::Null)).commit(310));
    assert_eq!(lines.all(310).await, [(5, 0.5), (2, 2.0), (3, 3.0), (4, 4.0)]);
    let answer = lines.search(310, |request| request.filter = in_group(0)).await.expect("an answer");
    assert_eq!((keys(&answer), answer.complete, answer.applied_lsn), (vec![2, 4], true, Lsn(310)));
    let answer = lines.search(310, |request| request.by = SearchBy::Row(key(3))).await.expect("an answer");
    assert_eq!(keys(&answer), [2, 4, 5], "the row itself is not in the answer");
    let missing = lines.search(310, |request| request.by = SearchBy::Row(key(1))).await;
    assert!(matches!(missing, Err(QueryError::NoRow(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recheck_drops_what_is_not_visible_and_the_index_keeps_it() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..31).commit(210));
    (1..31).for_each(|n| lines.heap.put(n, n as f32));
    lines.heap.hide(1);
    lines.heap.hide(3);
    lines.heap.put(2, 2.5);
    let nearest = |level| lines.search(210, move |request| (request.limit, request.recheck) = (3, level));
    let exists = nearest(Recheck::Exists).await.expect("an answer");
    assert_eq!((keys(&exists), exists.complete), (vec![2, 4, 5], true));
    assert_eq!((exists.recheck.dropped, exists.recheck.refilled), (2, 2));
    assert!(exists.recheck.checked >= 5);
    assert_eq!(exists.hits[0].distance, 2.0, "as indexed");
    let exact = nearest(Recheck::Exact).await.expect("an answer");
    assert_eq!((keys(&exact), exact.hits[0].distance), (vec![2, 4, 5], 2.5), "as the heap has it now");
    lines.heap.put(1, 1.0);
    lines.heap.put(3, 3.0);
    let again = nearest(Recheck::Exists).await.expect("an answer");
    assert_eq!((keys(&again), again.recheck.dropped), (vec![1, 2, 3], 0), "only the stream deletes");
    (1..31).for_each(|n| lines.heap.hide(n));
    let nothing = nearest(Recheck::Exists).await.expect("an answer");
    assert_eq!((nothing.hits.len(), nothing.complete, nothing.recheck.dropped), (0, true, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_operations_on_one_key_in_one_transaction_leave_the_last() {
    let lines = Lines::new();
    let tx = Tx::new(200)
        .insert(row(1, at(1.0), group(1)))
        .update(row(1, at(2.0), group(1)))
        .delete(1)
        .insert(row(1, at(3.0), group(3)))
        .insert(row(2, at(4.0), group(4)))
        .delete(2)
        .insert(row(3, at(5.0), group(5)))
        .rekey(3, row(4, Col::Unchanged, group(6)))
        .rekey(4, row(3, Col::Unchanged, group(7)))
        .update(row(1, Col::Unchanged, group(8)));
    lines.send(tx.commit(210));
    assert_eq!(lines.all(210).await, [(1, 3.0), (3, 5.0)]);
    let answer = lines.search(210, |request| request.filter = in_group(8)).await.expect("an answer");
    assert_eq!(keys(&answer), [1]);
    assert_eq!(lines.collection().rows, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_indexed_become_dead_letters_with_their_reason() {
    let lines = Lines::new();
    let tx = Tx::new(200)
        .insert(row(1, at(1.0), group(1)))
        .insert(row(2, Col::Null, group(1)))
        .insert(row(3, vector(&[1.0, 2.0]), group(1)))
        .insert(row(4, vector(&[1.0, f32::NAN, 2.0]), group(1)))
        .insert(row(5, Col::Binary(vec![9]), group(1)));
    lines.send(tx.commit(210));
    assert_eq!(lines.all(210).await, [(1, 1.0)], "the others are no neighbours");
    assert_eq!((lines.collection().rows, lines.collection().dead_letters), (5, 3), "NULL is no mistake");
    let letters = lines.letters();
    assert_eq!(letters.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["3", "4", "5"]);
    assert!(letters[0].1.contains("2 dimensions instead of 3"), "{letters:?}");
    assert!(letters[1].1.contains("element 2 is NaN"), "{letters:?}");
    let without = lines.search(210, |request| request.by = SearchBy::Row(key(2))).await;
    assert!(matches!(without, Err(QueryError::NoVector(_))));
    // Still wrong, mended, mended by NULL, moved while wrong.
    let tx = Tx::new(300)
        .update(row(3, Col::Unchanged, group(2)))
        .update(row(4, at(4.0), group(2)))
        .rekey(3, row(6, Col::Unchanged, group(2)))
        .update(row(5, Col::Null, group(2)));
    lines.send(tx.commit(310));
    assert_eq!(lines.all(310).await, [(1, 1.0), (4, 4.0)]);
    assert_eq!(lines.letters().iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["6"]);
    assert_eq!(lines.collection().dead_letters, 1);
    lines.send(Tx::new(400).delete(6).commit(410));
    lines.applied(410).await;
    assert_eq!((lines.letters().len(), lines.collection().dead_letters), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_only_update_writes_nothing_to_the_graph() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..11).commit(210));
    lines.applied(210).await;
    let before = lines.collection().graph_writes;
    assert_eq!(before, 10);
    let tx = (1..11).fold(Tx::new(300), |tx, n| tx.update(row(n, Col::Unchanged, group(7))));
    let tx = (1..11).fold(tx, |tx, n| tx.update(row(n, at(n as f32), group(8))));
    lines.send(tx.commit(310));
    let answer = lines.search(310, |request| request.filter = in_group(8)).await.expect("an answer");
    assert_eq!(answer.hits.len(), 10, "the other columns follow");
    assert_eq!(lines.collection().graph_writes, before);
    lines.send(Tx::new(400).update(row(1, at(1.5), group(8))).commit(410));
    lines.applied(410).await;
    assert_eq!(lines.collection().graph_writes, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_vector_stays_with_its_row_also_when_the_key_changes() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..4).commit(210));
    lines.send(Tx::new(300).update(row(1, Col::Unchanged, group(9))).commit(310));
    assert_eq!(lines.all(310).await, [(1, 1.0), (2, 2.0), (3, 3.0)]);
    // Two rows change places by way of a third key.
    let tx = Tx::new(400)
        .rekey(1, row(-1, Col::Unchanged, group(9)))
        .rekey(2, row(1, Col::Unchanged, group(9)))
        .rekey(-1, row(2, Col::Unchanged, group(9)))
        .rekey(3, row(30, at(0.5), group(9)));
    lines.send(tx.commit(410));
    assert_eq!(lines.all(410).await, [(30, 0.5), (2, 1.0), (1, 2.0)]);
    assert_eq!((lines.collection().rows, lines.collection().graph_writes), (3, 4));
    let by_row = lines.search(410, |request| request.by = SearchBy::Row(key(2))).await.expect("an answer");
    assert_eq!(by_row.hits.iter().map(|hit| hit.distance).collect::<Vec<_>>(), [0.5, 1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_empties_and_later_rows_of_the_same_transaction_stay() {
    let lines = Lines::new();
    let tx = inserts(200, 1..200).insert(row(999, vector(&[1.0]), group(1)));
    lines.send(tx.commit(210));
    lines.applied(210).await;
    lines.send(Tx::new(300).truncate().commit(310));
    assert_eq!(lines.all(310).await, []);
    assert_eq!((lines.collection().rows, lines.collection().dead_letters, lines.letters().len()), (0, 0, 0));
    let tx = Tx::new(400).insert(row(1, at(1.0), group(1))).truncate().insert(row(2, at(2.0), group(1)));
    lines.send(tx.commit(410));
    assert_eq!(lines.all(410).await, [(2, 2.0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keepalive_moves_the_position_between_transactions_and_not_inside_one() {
    let mut lines = Lines::new();
    lines.send([keepalive(150)]);
    lines.applied(150).await;
    assert_eq!(lines.view().applied, Lsn(150));
    let tx = Tx::new(200).insert(row(1, at(1.0), group(1))).keepalive(500).insert(row(2, at(2.0), group(1)));
    let mut frames = tx.commit(210);
    let commit = frames.pop().expect("COMMIT");
    lines.send(frames);
    let heard = Instant::now();
    while lines.progress.received() < Lsn(500) {
        assert!(heard.elapsed() < Duration::from_secs(30), "the keepalive was heard");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((lines.view().applied, lines.epoch.durable()), (Lsn(150), Lsn(150)));
    lines.send([commit]);
    lines.applied(210).await;
    assert_eq!(lines.view().applied, Lsn(210), "the transaction's end, not the keepalive's position");
    assert_eq!(lines.all(210).await.len(), 2);
    lines.send([keepalive(500)]);
    lines.applied(500).await;
    assert_eq!(lines.view().applied, Lsn(500));
    lines.stop().await;
    let last = *lines.statuses.lock().expect("not poisoned").last().expect("statuses");
    assert!(last.flushed <= Lsn(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_abort_that_nobody_asked_for_is_ignored() {
    let mut lines = Lines::new();
    lines.send([stream_abort(7)]);
    let mut frames = Tx::new(200).insert(row(1, at(1.0), group(1))).commit(210);
    frames.insert(frames.len() - 1, stream_abort(9));
    lines.send(frames);
    lines.applied(210).await;
    assert_eq!(lines.all(210).await.len(), 1);
    lines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_confirmed_before_it_is_durable_and_everything_is_in_the_end() {
    let lines = Lines::with_status_every(Duration::from_millis(1));
    for n in 0..300 {
        let commit = 1_000 + n * 10;
        lines.send(inserts(commit, n as i64..n as i64 + 3).commit(commit + 5));
        lines.send((n % 7 == 0).then(|| keepalive(commit + 6)));
    }
    lines.applied(3_995).await;
    // The script checks every status when it comes, against the log's files.
    let confirmed = Instant::now();
    while lines.progress.confirmed() < Lsn(3_995) {
        assert!(confirmed.elapsed() < Duration::from_secs(30), "everything durable is confirmed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let statuses = lines.statuses.lock().expect("not poisoned").clone();
    assert!(statuses.len() > 1 && statuses.is_sorted_by_key(|status| status.flushed), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_sent_at_once_when_it_is_asked_for_and_when_somebody_waits() {
    let lines = Lines::with_status_every(Duration::from_secs(600));
    let count = || lines.statuses.lock().expect("not poisoned").len();
    let more_than = async |count_before: usize| {
        let started = Instant::now();
        while count() <= count_before {
            assert!(started.elapsed() < Duration::from_secs(30), "a status comes");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    more_than(0).await;
    lines.send([keepalive_that_asks(150)]);
    more_than(1).await;
    let before = count();
    let timeout = Some(Duration::from_millis(50));
    let late = lines.search(9_999, |request| request.consistency.timeout = timeout).await;
    assert!(matches!(late, Err(QueryError::NoView(NoView::TimedOut { asked: Lsn(9_999), .. }))), "{late:?}");
    more_than(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_half_a_transaction() {
    const ROWS: i64 = 600;
    let lines = Lines::new();
    lines.send(inserts(1_000, 0..ROWS).commit(1_005));
    lines.applied(1_005).await;
    let done = AtomicBool::new(false);
    let transactions = 40;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let view = lines.view();
                let (collection, commit) = (&view.collections["items"], view.commit_time);
                let groups: BTreeSet<_> = collection.indexes[0]
                    .rows
                    .iter()
                    .map(|(_, row)| match row.cell(0) {
                        Some(Value::Int(group)) => group,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                let expected = if commit == 1_000 { BTreeSet::from([0, 1]) } else { BTreeSet::from([commit]) };
                assert_eq!(groups, expected, "every row is of the last transaction");
                assert_eq!((collection.indexes[0].live, collection.rows), (ROWS as usize, ROWS as u64));
                assert_eq!(view.applied, Lsn(commit as u64 + 5));
                seen.insert(view.applied);
            }
            seen.len()
        });
        for n in 1..=transactions {
            let commit = 1_000 + n * 100;
            // Every other row gets another vector as well, so that nodes come and go.
            let embedding = |row: i64| if row % 2 == 0 { Col::Unchanged } else { at(row as f32 + 0.01 * n as f32) };
            let tx = (0..ROWS).fold(Tx::new(commit), |tx, id| tx.update(row(id, embedding(id), group(commit as i32))));
            lines.send(tx.commit(commit + 5));
            if n % 4 == 0 {
                lines.epoch.wait(Lsn(commit + 5));
            }
        }
        lines.epoch.wait(Lsn(1_000 + transactions * 100 + 5));
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("the reader found nothing wrong") > 3, "several views were seen");
    });
}

/// Breaks the stream inside a transaction of `rows` rows and sends it again; the state and the log it leaves.
async fn broken_and_replayed(rows: i64) -> (Vec<(i64, f64)>, Vec<LogRecord>) {
    let mut lines = Lines::new();
    lines.send(inserts(200, 1..4).commit(210));
    let tx = (2..rows + 2).fold(Tx::new(300).delete(1), |tx, n| match n {
        2 | 3 => tx.update(row(n, at(10.0 + n as f32), group(1))),
        _ => tx.insert(row(n, at(n as f32), group(1))),
    });
    let frames = tx.commit(310);
    lines.applied(210).await;
    lines.send(frames[..frames.len() - 1].to_vec());
    assert!(matches!(lines.disconnect().await, ReplicationError::Transport(_)));
    assert_eq!(lines.epoch.durable(), Lsn(210), "half a transaction moves nothing");
    assert_eq!(lines.all(210).await, [(1, 1.0), (2, 2.0), (3, 3.0)]);
    lines.reconnect();
    // The source begins with what it does not know to be durable.
    lines.send(inserts(200, 1..4).commit(210));
    lines.send(frames);
    let found = lines.all(310).await;
    lines.disconnect().await;
    (found, lines.records())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_inside_a_transaction_goes_on_where_it_was() {
    let (found, records) = broken_and_replayed(6).await;
    assert_eq!(found, [(4, 4.0), (5, 5.0), (6, 6.0), (7, 7.0), (2, 12.0), (3, 13.0)]);
    assert_eq!(records.len(), 6, "two transactions, each once: {records:?}");
}

/// A large one is in the log before it is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_that_broke_off_is_replayed_whole() {
    let (found, records) = broken_and_replayed(900).await;
    assert_eq!(found.len(), 900);
    let begins = records.iter().filter(|record| matches!(record, LogRecord::Begin(_))).count();
    assert_eq!((begins, records.len()), (2, 7), "two transactions, each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_transactions_before_an_error_are_in_the_log_once() {
    let mut lines = Lines::new();
    let first: Vec<_> =
        (0..20).flat_map(|n| inserts(200 + n * 10, n as i64..n as i64 + 1).commit(205 + n * 10)).collect();
    lines.send(first.clone().into_iter().chain([garbage()]).chain(Tx::new(900).frames));
    let error = lines.disconnect().await;
    assert!(matches!(error, ReplicationError::Protocol(_)), "{error}");
    lines.reconnect();
    lines.send(first.into_iter().chain(Tx::new(500).delete(0).commit(510)));
    assert_eq!(lines.all(510).await.len(), 19);
    lines.disconnect().await;
    assert_eq!(lines.records().len(), 21 * 3, "none is there twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_named_like_the_position_before_it_is_not_lost() {
    let mut lines = Lines::new();
    lines.send(inserts(200, 1..2).commit(210));
    lines.send([keepalive(300)]);
    lines.applied(300).await;
    lines.send(inserts(300, 2..3).commit(310));
    assert_eq!(lines.all(310).await, [(1, 1.0), (2, 2.0)], "on the same connection");
    lines.send([keepalive(400)]);
    lines.applied(400).await;
    lines.disconnect().await;
    assert_eq!(lines.epoch.durable(), Lsn(400));
    lines.reconnect();
    // What is covered comes again and changes nothing; what only begins at the position is new.
    lines.send(inserts(300, 2..3).commit(310));
    lines.send(inserts(400, 3..4).commit(410));
    assert_eq!(lines.all(410).await, [(1, 1.0), (2, 2.0), (3, 3.0)], "on the next one");
    assert_eq!(lines.collection().graph_writes, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tables_move_the_position_and_nothing_else() {
    let mut lines = Lines::new();
    lines.send(Tx::new(200).insert_elsewhere(1).commit(210));
    lines.applied(210).await;
    assert_eq!((lines.collection().rows, lines.view().applied), (0, Lsn(210)));
    lines.send(Tx::new(300).insert_elsewhere(1).insert(row(1, at(1.0), group(1))).commit(310));
    assert_eq!(lines.all(310).await, [(1, 1.0)]);
    assert!(matches!(lines.stop().await, ReplicationError::Stopped));
    assert!(matches!(lines.records()[0], LogRecord::Progress { upto: Lsn(210) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_no_longer_fits_pauses_its_collection_loudly() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..3).commit(210));
    lines.applied(210).await;
    lines.send(Tx::new(300).describe(&["id", "payload", "grp"]).commit(310));
    lines.applied(310).await;
    let CollectionState::Paused { reason } = lines.collection().state.clone() else { panic!("not paused") };
    assert!(reason.contains("embedding"), "{reason}");
    assert!(matches!(lines.search(310, |_| ()).await, Err(QueryError::Paused { .. })));
    lines.send([keepalive(400)]);
    lines.applied(400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_as_of_when_and_how_old() {
    let lines = Lines::new();
    lines.send(inserts(200, 1..3).commit(210));
    let unproven = lines.search(210, |_| ()).await.expect("an answer");
    assert_eq!((unproven.applied_lsn, unproven.staleness), (Lsn(210), None), "nothing is proven yet");
    lines.send([keepalive(220)]);
    let sent = lines.search(220, |_| ()).await.expect("an answer");
    assert_eq!((sent.applied_lsn, sent.staleness), (Lsn(220), None), "what was sent is not all there is");
    lines.progress.hear(Lsn(220), Instant::now());
    let fresh = lines.search(220, |_| ()).await.expect("an answer");
    assert!(fresh.staleness.is_some_and(|age| age < Duration::from_secs(30)));
    lines.progress.hear(Lsn(900), Instant::now() + Duration::from_secs(60));
    let behind = lines.search(220, |_| ()).await.expect("an answer");
    assert!(behind.staleness >= fresh.staleness, "the proof ages");
    lines.progress.set_stale(Some("copying again".into()));
    let stale = lines.search(220, |_| ()).await.expect("an answer");
    assert_eq!((stale.complete, stale.stale.as_deref()), (false, Some("copying again")));
    let positions = lines.frontier.positions();
    assert_eq!((positions.applied, positions.durable, positions.source), (Lsn(220), Lsn(220), Lsn(900)));
}

/// The service ends with the disk's error, and until then what is in memory answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_following_and_nothing_more_is_confirmed() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = disk::Disk::new(dir.path(), disk::Image::default(), 1);
    let _mounted = files::mount(dir.path(), disk.handle());
    let mut lines = Lines::within(dir, Duration::from_millis(5));
    lines.send(inserts(200, 1..6).commit(210));
    assert_eq!(lines.all(210).await.len(), 5);
    disk.fill();
    lines.send(inserts(300, 6..9).commit(310));
    let Wire { frames: _frames, following, .. } = lines.wire.take().expect("connected");
    let (mut log, error) = following.await.expect("no panic");
    assert!(matches!(error, ReplicationError::Storage(_)), "{error}");
    assert!(!error.is_transient() && error.to_string().contains("No space left on device"), "{error}");
    let confirmed = lines.statuses.lock().expect("not poisoned").iter().map(|status| status.flushed).max();
    assert!(confirmed <= Some(Lsn(210)), "confirmed {confirmed:?}");
    // Also when there is room again: nobody knows what is on disk.
    disk.disarm();
    assert!(log.sync().is_err() && log.durable() == Lsn(210));
    assert_eq!(lines.all(210).await.len(), 5);
    assert_eq!(ChangeLog::open(&lines.dir.path().join("log")).expect("opens").durable(), Lsn(210));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_catches_up_across_a_roll_of_the_log() {
    let dir = tempfile::tempdir().expect("dir");
    let options = Options { segment_rows: 64, build_threads: 1, seal_rows_on_stop: 1000, ..Options::default() };
    let mut epoch = Epoch::create(dir.path(), vec![(items(), Vec::new())], Lsn(START), options);
    let mut log = epoch.log.take().expect("the log");
    // A file per transaction: behind each there is a new one without a record.
    log.set_roll_bytes(1);
    let def = CollectionDef { id: epoch.engine.next_collection().expect("a number"), name: "more".into(), ..items() };
    let copy_dir = dir.path().join("copy-1");
    let mut copy = ChangeLog::create(&copy_dir, Lsn::ZERO).expect("a copy log");
    let from = log.tail().durable().position;
    let new = NewCollection { def: def.clone(), from, expected_rows: 1, fingerprint: String::new() };
    let add = epoch.engine.order(Command::Add(Box::new(new), copy.reader(changelog::START)));
    add.await.expect("added");
    for n in 1..=3u64 {
        let image = RowImage {
            key: RowKey::encode(&[Value::Int(n as i64)]).expect("a key"),
            vectors: vec![Cell::Value(Value::Vector([n as f32, 0.0, 0.0].into()))],
            filters: vec![Cell::Null; def.filters.len()],
        };
        let op = Op::Upsert { old_key: None, row: image };
        for record in [
            LogRecord::Begin(TransactionHead { commit: CommitLsn(START + 10 * n), commit_time: 0 }),
            LogRecord::Changes(vec![Change { collection: def.id, ordinal: 1, op }]),
            LogRecord::Commit { end: Lsn(START + 10 * n + 5) },
        ] {
            log.append(&record).expect("appended");
        }
        log.sync().expect("synced");
    }
    epoch.wait(Lsn(START + 35));
    let end = [LogRecord::CopyStart { at: Lsn(START), filenode: 1 }, LogRecord::CopyEnd { at: Lsn(START), rows: 0 }];
    end.iter().for_each(|record| copy.append(record).expect("appended"));
    copy.sync().expect("synced");
    epoch.wait_until("it is live", |epoch| epoch.engine.view().incoming.is_empty());
    assert_eq!(epoch.engine.view().collections["more"].rows, 3);
}
