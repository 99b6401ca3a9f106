//! The extended protocol: Parse, Bind, Describe, Execute.

use crate::server::pg::condition::unsupported;
use crate::server::pg::portal::{Portal, Prepared, fields, format};
use crate::server::pg::session::{Failure, Limits, MOST_KEPT, Session, Started, guarded, no_cursor};
use crate::server::pg::statement;
use crate::server::pg::types::Param;
use crate::server::problem::{self, Problem};
use bytes::Bytes;
use std::sync::Arc;

impl Session {
    pub(super) async fn parse(&mut self, name: String, sql: &str, types: Vec<u32>) -> Result<(), Failure> {
        let mut statements = statement::parse(sql)?;
        let statement = statements.pop();
        if !statements.is_empty() {
            return Err(unsupported("several statements in one prepared statement").into());
        }
        self.refuse_failed(statement.as_ref())?;
        if !name.is_empty() && self.statements.contains_key(&name) {
            let detail = format!("prepared statement \"{name}\" already exists");
            return Err(Problem::new(problem::STATEMENT_EXISTS, detail).into());
        }
        self.check_kept()?;
        let types = match &statement {
            Some(statement) => self.types(statement, types).await?,
            None => types,
        };
        self.statements.insert(name, Arc::new(Prepared { statement, types }));
        self.connection.output.empty(b'1');
        Ok(())
    }

    pub(super) fn check_kept(&self) -> Result<(), Problem> {
        if self.statements.len() + self.portals.len() + self.transaction.savepoints.len() < MOST_KEPT {
            return Ok(());
        }
        let detail = format!("the session keeps {MOST_KEPT} statements, cursors and savepoints");
        Err(Problem::new(problem::TOO_MANY_ROWS, detail).hint("close or release some of them, or DEALLOCATE ALL"))
    }

    pub(super) fn bind(
        &mut self,
        portal: String,
        statement: &str,
        formats: &[i16],
        values: Vec<Option<Bytes>>,
        results: Vec<i16>,
    ) -> Result<(), Failure> {
        let prepared = self.prepared(statement)?;
        self.refuse_failed(prepared.statement.as_ref())?;
        if values.len() < prepared.types.len() {
            let (sent, taken) = (values.len(), prepared.types.len());
            let detail = format!("bind message supplies {sent} parameters, but the statement takes {taken}");
            return Err(Problem::new(problem::PROTOCOL, detail).into());
        }
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            let detail = format!("cursor \"{portal}\" already exists");
            return Err(Problem::new(problem::CURSOR_EXISTS, detail).into());
        }
        self.check_kept()?;
        let param = |(at, bytes)| Param {
            oid: prepared.types.get(at).copied().unwrap_or(0),
            format: format(formats, at),
            bytes,
        };
        let params = values.into_iter().enumerate().map(param).collect();
        let level = self.transaction.savepoints.len();
        let made = Portal { prepared, params, formats: results, running: None, level, is_cursor: false };
        self.portals.insert(portal, made);
        self.connection.output.empty(b'2');
        Ok(())
    }

    fn prepared(&self, name: &str) -> Result<Arc<Prepared>, Problem> {
        self.statements
            .get(name)
            .cloned()
            .ok_or_else(|| Problem::new(problem::NO_STATEMENT, format!("prepared statement \"{name}\" does not exist")))
    }

    pub(super) async fn describe_statement(&mut self, name: &str) -> Result<(), Failure> {
        let prepared = self.prepared(name)?;
        let outputs = match &prepared.statement {
            Some(statement) => self.outputs(statement).await?,
            None => None,
        };
        self.connection.output.parameters(&prepared.types);
        self.describe(outputs.map(|outputs| fields(&outputs, &[])));
        Ok(())
    }

    pub(super) async fn describe_portal(&mut self, name: &str) -> Result<(), Failure> {
        let portal = self.portals.get(name).ok_or_else(|| no_cursor(name))?;
        let (prepared, formats) = (portal.prepared.clone(), portal.formats.clone());
        let outputs = match (&portal.running, &prepared.statement) {
            (Some(running), _) => Some(running.outputs.clone()),
            (None, Some(statement)) => self.outputs(statement).await?,
            (None, None) => None,
        };
        self.describe(outputs.map(|outputs| fields(&outputs, &formats)));
        Ok(())
    }

    fn describe(&mut self, fields: Option<Vec<crate::server::pg::wire::Field>>) {
        match fields {
            Some(fields) => self.connection.output.fields(&fields),
            None => self.connection.output.empty(b'n'),
        }
    }

    pub(super) async fn execute(&mut self, name: String, rows: u32, limits: &Limits) -> Result<(), Failure> {
        let portal = self.portals.get_mut(&name).ok_or_else(|| no_cursor(&name))?;
        let (prepared, formats, running) = (portal.prepared.clone(), portal.formats.clone(), portal.running.take());
        let params = portal.params.clone();
        let Some(statement) = &prepared.statement else {
            self.connection.output.empty(b'I');
            return Ok(());
        };
        self.refuse_failed(Some(statement))?;
        let mut running = match running {
            Some(running) => running,
            None => match guarded(limits, self.start(statement, &params, false)).await? {
                Started::Tag(tag) => {
                    self.complete(&tag);
                    return Ok(());
                }
                Started::Rows(running) => *running,
            },
        };
        let most = (rows > 0).then_some(u64::from(rows));
        let (sent, more) = self.send(&mut running, &formats, most, limits).await?;
        if more {
            self.connection.output.empty(b's');
        } else {
            self.complete(&running.tag(sent));
        }
        // It may have closed itself.
        if let Some(portal) = self.portals.get_mut(&name) {
            portal.running = Some(running);
        }
        Ok(())
    }
}
