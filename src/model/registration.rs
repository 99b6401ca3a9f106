//! Collections that are registered by SQL: a row of a table of the source is one, in the form of the configuration file.

/// Schema and name of the table.
pub const TABLE: (&str, &str) = ("ruvector", "registrations");

/// A row of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The slot of the service it is for; empty: for all.
    pub service: String,
    /// The collection's name.
    pub name: String,
    /// What stands under `[[collections]]` in a configuration file, as JSON, without the name.
    pub spec: String,
    /// What operators may set: `tiers` in place of those of `spec`, `encoding` in place of those of its vectors.
    pub tuning: String,
    /// Stands for both where an outcome is told.
    pub seen: String,
    /// May the owner of all these rows read its table?
    pub readable: bool,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The slot of the service it is for; empty: for all.
    pub service: String,
    /// The collection's name.
    pub name: String,
    /// Stands for what it said when it was looked at.
    pub seen: String,
    /// Why it was not taken, if so.
    pub refused: Option<String>,
}

/// What became of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// In the order in which they were registered.
    pub rows: Vec<Outcome>,
    /// Why what is registered cannot be looked at, or is noticed late, if so.
    pub trouble: Option<String>,
}
