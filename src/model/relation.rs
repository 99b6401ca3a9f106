//! A table as the stream describes it.

/// One column of a Relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity.
    pub is_key: bool,
    /// Its name when the row was written.
    pub name: String,
    /// OID of its type; extension types have other OIDs in every database.
    pub type_oid: u32,
    /// Type modifier; for `vector` the dimension, -1 when unconstrained.
    pub typmod: i32,
}

/// A table with the columns in force for the rows that follow it in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// OID of the table: the same table keeps it when it is renamed.
    pub oid: u32,
    /// Schema name.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: u8,
    /// In the order of the rows' values.
    pub columns: Vec<RelationColumn>,
}
