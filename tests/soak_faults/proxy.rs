//! A network that misbehaves when it is told to: a TCP proxy on 127.0.0.1.

use super::support::soak::Random;
use socket2::SockRef;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What happens to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They go through.
    Pass,
    /// They wait until another mode comes; nothing is lost.
    Paused,
    /// They vanish, and nobody is told. Connections of that time never recover.
    HalfOpen,
    /// Every connection is reset, and each new one.
    Cut,
    /// Each piece is late by at most so many milliseconds.
    Slow(u64),
    /// One piece of each connection goes half through, then it is reset.
    Truncating,
    /// One piece in a hundred resets its connection.
    Flaky,
}

struct State {
    mode: watch::Sender<Mode>,
    target: AtomicU16,
    /// Connections with a smaller number are dead, and nobody was told.
    dead_before: AtomicU64,
    connections: AtomicU64,
    /// Pieces and connections that did not simply go through.
    harmed: AtomicU64,
    random: Mutex<Random>,
}

impl State {
    fn chance(&self, of: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(of)
    }
}

/// The proxy; it ends with this.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// In front of this port.
    pub fn start(target: u16, seed: u64) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State {
            mode: watch::Sender::new(Mode::Pass),
            target: AtomicU16::new(target),
            dead_before: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            harmed: AtomicU64::new(0),
            random: Mutex::new(Random(seed)),
        });
        runtime.spawn(accept(listener, state.clone()));
        Proxy { port, state, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        if mode == Mode::HalfOpen {
            self.state.dead_before.store(self.state.connections.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.state.mode.send_replace(mode);
    }

    /// How many pieces and connections did not simply go through so far.
    pub fn harmed(&self) -> u64 {
        self.state.harmed.load(Ordering::SeqCst)
    }

    /// New connections lead there; those that are open are reset.
    pub fn lead_to(&self, port: u16) {
        self.state.target.store(port, Ordering::SeqCst);
        let mode = *self.state.mode.borrow();
        self.set(Mode::Cut);
        std::thread::sleep(Duration::from_millis(50));
        self.set(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let number = state.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(connection(client, state.clone(), number));
    }
}

async fn connection(client: TcpStream, state: Arc<State>, number: u64) {
    let target = ("127.0.0.1", state.target.load(Ordering::SeqCst));
    let mode = *state.mode.borrow();
    let server = match mode {
        Mode::Cut => None,
        _ => TcpStream::connect(target).await.ok(),
    };
    let Some(server) = server else {
        state.harmed.fetch_add(1, Ordering::SeqCst);
        reset(&client);
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let link = Arc::new(Link { state, number, broken: watch::Sender::new(false), swallowed: AtomicBool::new(false) });
    tokio::join!(pump(from_client, to_server, link.clone()), pump(from_server, to_client, link.clone()));
}

struct Link {
    state: Arc<State>,
    number: u64,
    broken: watch::Sender<bool>,
    swallowed: AtomicBool,
}

impl Link {
    fn is_swallowed(&self, mode: Mode) -> bool {
        if mode == Mode::HalfOpen || self.number < self.state.dead_before.load(Ordering::SeqCst) {
            self.swallowed.store(true, Ordering::SeqCst);
        }
        self.swallowed.load(Ordering::SeqCst)
    }
}

/// One direction, until it ends or the connection is reset.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, link: Arc<Link>) {
    let mut mode = link.state.mode.subscribe();
    let mut broken = link.broken.subscribe();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = mode.wait_for(|mode| *mode == Mode::Cut) => {
                link.state.harmed.fetch_add(1, Ordering::SeqCst);
                break;
            }
            _ = broken.wait_for(|broken| *broken) => break,
        };
        let now = *mode.borrow_and_update();
        if now != Mode::Pass {
            link.state.harmed.fetch_add(1, Ordering::SeqCst);
        }
        if link.is_swallowed(now) {
            if !matches!(read, Ok(1..)) {
                // The other side is not told that this one is gone.
                tokio::select! {
                    _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
                    () = tokio::time::sleep(Duration::from_secs(60)) => {}
                }
                break;
            }
            continue;
        }
        let Ok(length @ 1..) = read else {
            if read.is_ok() {
                // In order: what came before is with the other side.
                let _ = to.shutdown().await;
                return;
            }
            break;
        };
        let mut piece = &buffer[..length];
        let mut last = false;
        match now {
            Mode::Paused => {
                let until = async { mode.wait_for(|mode| *mode != Mode::Paused).await.map(|mode| *mode) };
                if until.await.is_ok_and(|mode| mode == Mode::Cut) {
                    break;
                }
            }
            Mode::Slow(most) => tokio::time::sleep(Duration::from_millis(link.state.chance(most + 1))).await,
            Mode::Truncating if link.state.chance(4) == 0 => (piece, last) = (&piece[..length / 2], true),
            Mode::Flaky if link.state.chance(100) == 0 => last = true,
            _ => {}
        }
        if to.write_all(piece).await.is_err() || last {
            break;
        }
    }
    reset(from.as_ref());
    reset(to.as_ref());
    link.broken.send_replace(true);
}

/// Closing it sends a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
