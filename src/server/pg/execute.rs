//! What statements do: transactions, cursors, settings, and the plans of queries.

use crate::model::{Consistency, Recheck};
use crate::query::{Pinned, QueryError};
use crate::server::pg::condition::Params;
use crate::server::pg::plan::{self, Context, Plan};
use crate::server::pg::portal::{Portal, Prepared, Running};
use crate::server::pg::rows::Rows;
use crate::server::pg::select::{Output, parts, random_share};
use crate::server::pg::session::{Session, Started, no_cursor};
use crate::server::pg::settings::Settings;
use crate::server::pg::statement::Statement;
use crate::server::pg::tables::Table;
use crate::server::pg::types::Param;
use crate::server::pg::{catalog, explain, functions, infer, scalars, viewer};
use crate::server::problem::{self, Problem};
use sqlparser::ast::Query;
use std::pin::Pin;
use std::sync::Arc;

/// Rows that ANALYZE of an other side before 16 may read of a table: what it wants at its default.
const SAMPLE: u64 = 30_000;

/// Longest name that a session keeps, in bytes; PostgreSQL cuts names shorter.
const MAX_NAME: usize = 1_000;

fn check_name(name: &str) -> Result<(), Problem> {
    if name.len() <= MAX_NAME {
        return Ok(());
    }
    let detail = format!("a name of {} bytes", name.len());
    Err(Problem::new(problem::TOO_LARGE, detail).hint(format!("at most {MAX_NAME} are taken")))
}

fn tag(tag: impl Into<String>) -> Result<Started, Problem> {
    Ok(Started::Tag(tag.into()))
}

fn rows(running: Running) -> Result<Started, Problem> {
    Ok(Started::Rows(Box::new(running)))
}

impl Session {
    /// Begins a statement. `simple`: it came by the simple protocol.
    pub(super) async fn start(
        &mut self,
        statement: &Statement,
        params: &[Param],
        simple: bool,
    ) -> Result<Started, Problem> {
        match statement {
            Statement::Query(query) => rows(self.query(query, params).await?),
            Statement::Declare(name, query) => self.declare(name, query, params, simple).await,
            Statement::Fetch(name, count) => self.fetch(name, *count).await,
            Statement::Move(name, count) => match self.fetch(name, *count).await? {
                Started::Rows(mut running) => tag(format!("MOVE {}", running.next(usize::MAX).await?.len())),
                started => Ok(started),
            },
            Statement::Rewind(name) => self.rewind(name),
            Statement::Close(name) => self.close(name.as_deref()),
            Statement::Explain(query) => self.explain(query).await,
            Statement::Catalog(sql) => {
                let view = self.view(None).await?;
                let found = catalog::answer(sql, params, view.as_ref(), &self.user)?;
                self.analysed = found.analysed.or(self.analysed.take());
                rows(Running::ready("SELECT", found.outputs, found.rows))
            }
            Statement::Lookup(query) => {
                let view = self.view(None).await?;
                let params = Params(Some(params));
                let found = catalog::lookup(query, params, view.as_ref(), &self.user, self.limits.as_ref())?;
                rows(Running::ready("SELECT", found.outputs, found.rows))
            }
            Statement::Begin(repeatable) => self.begin(*repeatable),
            Statement::Commit | Statement::Rollback => {
                let committed = matches!(statement, Statement::Commit) && !self.transaction.failed;
                self.end_transaction(committed);
                tag(if committed { "COMMIT" } else { "ROLLBACK" })
            }
            Statement::Savepoint(name) => {
                self.needs_transaction("SAVEPOINT")?;
                self.check_kept()?;
                check_name(name)?;
                self.transaction.savepoints.push(name.clone());
                tag("SAVEPOINT")
            }
            Statement::Release(name) => {
                let at = self.savepoint(name)?;
                self.transaction.savepoints.truncate(at);
                self.portals.values_mut().for_each(|portal| portal.level = portal.level.min(at));
                tag("RELEASE")
            }
            Statement::RollbackTo(name) => {
                let at = self.savepoint(name)?;
                self.transaction.savepoints.truncate(at + 1);
                self.portals.retain(|_, portal| portal.level <= at);
                self.transaction.failed = false;
                tag("ROLLBACK")
            }
            Statement::Set(name, value, local) => {
                if name == "transaction_isolation" || name == "default_transaction_isolation" {
                    return self.isolation(value.contains("repeatable") || value.contains("serializable"));
                }
                self.settings.set(name, value, *local)?;
                self.tell(name);
                tag("SET")
            }
            Statement::SetIsolation(repeatable) => self.isolation(*repeatable),
            Statement::Reset(name) => {
                self.settings.reset(name.as_deref());
                tag("RESET")
            }
            Statement::Show(name) => {
                let value = match name.as_str() {
                    "transaction_isolation" if self.transaction.repeatable => "repeatable read".to_owned(),
                    name => self.settings.show(name)?,
                };
                rows(Running::lines("SHOW", name, vec![value]))
            }
            Statement::Deallocate(name) => self.deallocate(name.as_deref()),
            Statement::Discard => {
                if self.transaction.open {
                    let detail = "DISCARD ALL cannot run inside a transaction block";
                    return Err(Problem::new(problem::DUPLICATE_TRANSACTION, detail));
                }
                self.statements.clear();
                self.portals.clear();
                self.settings.reset(None);
                tag("DISCARD ALL")
            }
            Statement::Nothing(done) => tag(*done),
        }
    }

    /// Tells the client what became of a setting, if it wants to know.
    fn tell(&mut self, name: &str) {
        if let (Some(name), Ok(value)) = (Settings::reported(name), self.settings.show(name)) {
            self.connection.output.parameter_status(name, &value);
        }
    }

    fn begin(&mut self, repeatable: bool) -> Result<Started, Problem> {
        // Twice is a warning in Postgres, and changes nothing.
        if !self.transaction.open {
            self.transaction.open = true;
            self.transaction.repeatable = repeatable || self.usually_repeatable;
            self.settings.begin();
        }
        tag("BEGIN")
    }

    fn end_transaction(&mut self, committed: bool) {
        self.transaction = Default::default();
        self.portals.retain(|name, portal| name.is_empty() && !portal.is_cursor);
        self.settings.end(committed);
    }

    fn isolation(&mut self, repeatable: bool) -> Result<Started, Problem> {
        if self.transaction.open {
            self.transaction.repeatable = repeatable;
        } else {
            self.usually_repeatable = repeatable;
        }
        tag("SET")
    }

    fn needs_transaction(&self, what: &str) -> Result<(), Problem> {
        if self.transaction.open {
            return Ok(());
        }
        let detail = format!("{what} can only be used in transaction blocks");
        Err(Problem::new(problem::NO_TRANSACTION, detail).hint("send BEGIN first"))
    }

    fn savepoint(&self, name: &str) -> Result<usize, Problem> {
        self.needs_transaction("a savepoint")?;
        let found = self.transaction.savepoints.iter().rposition(|other| other == name);
        found.ok_or_else(|| Problem::new(problem::NO_SAVEPOINT, format!("savepoint \"{name}\" does not exist")))
    }

    fn deallocate(&mut self, name: Option<&str>) -> Result<Started, Problem> {
        match name {
            None => self.statements.clear(),
            Some(name) => {
                self.statements.remove(name).ok_or_else(|| {
                    Problem::new(problem::NO_STATEMENT, format!("prepared statement \"{name}\" does not exist"))
                })?;
            }
        }
        tag(if name.is_none() { "DEALLOCATE ALL" } else { "DEALLOCATE" })
    }

    /// What a statement sees: in a repeatable transaction what its first one saw, unless something newer is asked for.
    /// None while no data is loaded and nothing newer is asked for.
    async fn view(&mut self, consistency: Option<&Consistency>) -> Result<Option<Pinned>, Problem> {
        if let Some(view) = self.transaction.view.as_ref().filter(|_| self.transaction.repeatable)
            && consistency.is_none_or(|consistency| view.meets(consistency))
        {
            return Ok(Some(view.clone()));
        }
        let service = &self.endpoint.service;
        let view = match (service.pin(consistency.unwrap_or(&Consistency::default())).await, consistency) {
            (Ok(view), _) => view,
            (Err(QueryError::NoView(_)), None) => return Ok(None),
            (Err(error), _) => return Err(error.into()),
        };
        if self.transaction.open && self.transaction.repeatable {
            self.transaction.view = Some(view.clone());
        }
        Ok(Some(view))
    }

    fn context<'a>(&'a self, view: Option<&'a Pinned>, params: Params<'a>) -> Context<'a> {
        Context { view, user: &self.user, settings: &self.settings, params, repeatable: self.transaction.repeatable }
    }

    async fn plan(&mut self, query: &Query, params: Params<'_>) -> Result<(Plan, Option<Pinned>), Problem> {
        let view = self.view(None).await?;
        let mut plan = plan::plan(query, self.context(view.as_ref(), params))?;
        let asks = |consistency: &&Consistency| consistency.at_least.is_some() || consistency.max_staleness.is_some();
        let newer = plan::consistency(&plan.source).filter(asks).cloned();
        let view = match newer {
            Some(consistency) if params.0.is_some() => {
                let view = self.view(Some(&consistency)).await?;
                // Collections may have been made again meanwhile, with other columns: a plan is of the view that answers.
                plan = plan::plan(query, self.context(view.as_ref(), params))?;
                view
            }
            _ => view,
        };
        Ok((plan, view))
    }

    /// In a box, because a query may have others in it.
    pub(super) fn query<'a>(
        &'a mut self,
        query: &'a Query,
        params: &'a [Param],
    ) -> Pin<Box<dyn Future<Output = Result<Running, Problem>> + Send + 'a>> {
        Box::pin(async move {
            let without = if scalars::any(query) { self.without_scalars(query, params).await? } else { None };
            let (query, params) = (without.as_ref().unwrap_or(query), Params(Some(params)));
            let (plan, view) = self.plan(query, params).await?;
            if plan.table.is_none() {
                let projection = parts(query)?.projection;
                let set = |item| functions::set_config(item, self.context(None, params));
                for (name, value, local) in projection.iter().filter_map(set).collect::<Vec<_>>() {
                    self.settings.set(&name, &value, local)?;
                    self.tell(&name);
                }
            }
            Ok(self.running(plan, view))
        })
    }

    fn running(&self, plan: Plan, view: Option<Pinned>) -> Running {
        let (service, user) = (self.endpoint.service.clone(), self.user.clone());
        Running::lazy(plan, view, |plan, view| Rows::new(service, view, user, plan))
    }

    async fn declare(&mut self, name: &str, query: &Query, params: &[Param], simple: bool) -> Result<Started, Problem> {
        self.needs_transaction("DECLARE CURSOR")?;
        if self.portals.get(name).is_some_and(|portal| portal.is_cursor) {
            return Err(Problem::new(problem::CURSOR_EXISTS, format!("cursor \"{name}\" already exists")));
        }
        self.check_kept()?;
        check_name(name)?;
        let running = match self.sample(query, simple).await? {
            Some(running) => running,
            None => self.query(query, params).await?,
        };
        let prepared = Arc::new(Prepared { statement: None, types: Vec::new() });
        let level = self.transaction.savepoints.len();
        let running = Some(running);
        let portal = Portal { prepared, params: Vec::new(), formats: Vec::new(), running, level, is_cursor: true };
        self.portals.insert(name.to_owned(), portal);
        tag("DECLARE CURSOR")
    }

    /// The sample that ANALYZE of a foreign table reads: a part of a collection, nothing of a table that is a function.
    async fn sample(&mut self, query: &Query, simple: bool) -> Result<Option<Running>, Problem> {
        let Some(analysed) = self.analysed.take().filter(|_| simple) else { return Ok(None) };
        let parts = parts(query)?;
        let drawn = parts.condition.is_none_or(|condition| random_share(condition).is_some());
        if !drawn || parts.table != Some(catalog::name_pieces(&analysed)) {
            return Ok(None);
        }
        let (mut plan, view) = self.plan(query, Params(Some(&[]))).await?;
        // From 16 on the other side has drawn a share that is small enough; before, it reads everything.
        plan.limit = if plan.sample.is_some() { None } else { Some(SAMPLE) };
        match &plan.table {
            Some(Table::Search | Table::Stream) => plan.source = plan::Source::Nothing,
            // All columns are asked for, also those that only a search has.
            Some(Table::Collection(def)) => {
                let asked = viewer::asked(None, &self.settings, &self.user, Recheck::None)?;
                let scan = plan::Scan { recheck: asked.level, viewer: asked.viewer, ..plan::Scan::of(def) };
                plan.source = plan::Source::Every(scan);
            }
            _ => {}
        }
        Ok(Some(self.running(plan, view)))
    }

    fn cursor(&mut self, name: &str) -> Result<&mut Running, Problem> {
        let portal = self.portals.get_mut(name);
        portal.and_then(|portal| portal.running.as_mut()).ok_or_else(|| no_cursor(name))
    }

    async fn fetch(&mut self, name: &str, count: Option<u64>) -> Result<Started, Problem> {
        // Out of its place while it works: what is cancelled half-way is lost, not gone on with.
        let portal = self.portals.get_mut(name);
        let mut running = portal.and_then(|portal| portal.running.take()).ok_or_else(|| no_cursor(name))?;
        let outputs = running.outputs.clone();
        let want = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        let found = running.next(want).await;
        match (&found, self.portals.get_mut(name)) {
            (Ok(_), Some(portal)) => portal.running = Some(running),
            _ => drop(self.portals.remove(name)),
        }
        rows(Running::ready("FETCH", outputs, found?))
    }

    fn rewind(&mut self, name: &str) -> Result<Started, Problem> {
        let (service, user) = (self.endpoint.service.clone(), self.user.clone());
        let moved = self.cursor(name)?.rewind(|plan, view| Rows::new(service, view, user, plan));
        tag(format!("MOVE {moved}"))
    }

    fn close(&mut self, name: Option<&str>) -> Result<Started, Problem> {
        match name {
            None => self.portals.retain(|_, portal| !portal.is_cursor),
            Some(name) => drop(self.portals.remove(name).ok_or_else(|| no_cursor(name))?),
        }
        tag(if name.is_none() { "CLOSE CURSOR ALL" } else { "CLOSE CURSOR" })
    }

    /// What cannot be run is explained all the same: as dearer than anything else, so that a planner takes another way.
    async fn explain(&mut self, query: &Query) -> Result<Started, Problem> {
        let lines = match self.plan(query, Params(None)).await {
            Ok((plan, view)) => {
                let counted = view.as_ref().filter(|_| self.user.may_count() && self.settings.recheck_role().is_none());
                explain::lines(&plan, counted)
            }
            Err(problem) if problem.kind == problem::UNSUPPORTED => explain::impossible(&problem.detail),
            Err(problem) => return Err(problem),
        };
        rows(Running::lines("EXPLAIN", "QUERY PLAN", lines))
    }

    /// Types of a statement's parameters.
    pub(super) async fn types(&mut self, statement: &Statement, said: Vec<u32>) -> Result<Vec<u32>, Problem> {
        match statement {
            Statement::Query(query) | Statement::Declare(_, query) | Statement::Explain(query) => {
                let view = self.view(None).await?;
                Ok(infer::infer(query, &said, view.as_ref(), &self.user))
            }
            Statement::Lookup(query) => Ok(infer::by_text(&query.to_string(), &said)),
            Statement::Catalog(sql) => Ok(infer::by_text(sql, &said)),
            _ => Ok(said),
        }
    }

    /// Columns of a statement's answer; none where it has no rows.
    pub(super) async fn outputs(&mut self, statement: &Statement) -> Result<Option<Vec<Output>>, Problem> {
        let line = |name: &str| Some(vec![Output::constant(name, crate::model::ColumnType::Text, None)]);
        Ok(match statement {
            Statement::Query(query) => Some(self.plan(query, Params(None)).await?.0.outputs),
            Statement::Fetch(name, _) => Some(self.cursor(name)?.outputs.clone()),
            Statement::Explain(_) => line("QUERY PLAN"),
            Statement::Show(name) => line(name),
            Statement::Catalog(sql) => {
                let view = self.view(None).await?;
                Some(catalog::answer(sql, &[], view.as_ref(), &self.user)?.outputs)
            }
            Statement::Lookup(query) => {
                let view = self.view(None).await?;
                Some(catalog::lookup(query, Params(None), view.as_ref(), &self.user, None)?.outputs)
            }
            _ => None,
        })
    }
}
