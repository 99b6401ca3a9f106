//! The seam between an open socket and the two clients that speak on it: tokio-postgres and our replication session.

use crate::source::Result;
use crate::source::conninfo::{ConnInfo, Secret, SessionKind, Target};
use crate::source::socket::Socket;

/// What a server said of itself while it let us in.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServerState {
    pub standby: bool,
    pub read_only: bool,
}

impl ServerState {
    /// One of the parameters that a server reports (these since version 14).
    pub fn learn(&mut self, name: &str, value: &str) {
        match name {
            "in_hot_standby" => self.standby = value == "on",
            "default_transaction_read_only" => self.read_only = value == "on",
            _ => {}
        }
    }

    /// Is it a server of the kind that was asked for?
    pub fn is(self, wanted: SessionKind) -> bool {
        match wanted {
            SessionKind::Any | SessionKind::PreferStandby => true,
            SessionKind::ReadWrite => !self.standby && !self.read_only,
            SessionKind::ReadOnly => self.standby || self.read_only,
            SessionKind::Primary => !self.standby,
            SessionKind::Standby => self.standby,
        }
    }
}

/// A session and what its server said of itself.
pub(super) struct Opened<S> {
    pub session: S,
    pub state: ServerState,
}

/// What is spoken on a socket once it is open.
pub(super) trait Protocol: Sync {
    type Session: Send;

    /// Start-up and authentication.
    fn open(
        &self,
        socket: Socket,
        info: &ConnInfo,
        target: &Target,
        password: Option<Secret>,
    ) -> impl Future<Output = Result<Opened<Self::Session>>> + Send;
}
