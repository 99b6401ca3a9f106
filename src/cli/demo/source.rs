//! The demo's own side of PostgreSQL: the table, what is written to it, and where its WAL ends.

use crate::cli::demo::data::Data;
use crate::model::Lsn;
use crate::source::connect::Dsn;
use anyhow::{Context, Result};
use bytes::{BufMut, BytesMut};
use postgres_types::{IsNull, ToSql, Type, to_sql_checked};
use std::error::Error;
use std::pin::pin;
use tokio::runtime::Handle;
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyInWriter;

/// A connection, used as one would from psql: one statement after the other.
pub struct Source {
    runtime: Handle,
    client: Client,
}

impl Source {
    /// Connects.
    pub fn connect(runtime: &Handle, dsn: &str) -> Result<Source> {
        let client = runtime.block_on(Dsn::parse(dsn)?.connect())?;
        let source = Source { runtime: runtime.clone(), client };
        source.run("SET search_path = public")?;
        Ok(source)
    }

    /// Runs statements; each is a transaction unless they say BEGIN.
    pub fn run(&self, sql: &str) -> Result<()> {
        self.runtime.block_on(self.client.batch_execute(sql)).with_context(|| sql.to_owned())
    }

    /// Runs one statement and tells how many rows it wrote.
    pub fn write(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        self.runtime.block_on(self.client.execute(sql, params)).with_context(|| sql.to_owned())
    }

    /// Where the WAL ends: at or behind the end of the last COMMIT.
    pub fn position(&self) -> Result<Lsn> {
        let row = self.runtime.block_on(self.client.query_one("SELECT pg_current_wal_lsn()::text", &[]))?;
        Ok(row.get::<_, String>(0).parse()?)
    }

    /// Rows of the table.
    pub fn count(&self) -> Result<i64> {
        Ok(self.runtime.block_on(self.client.query_one("SELECT count(*) FROM docs", &[]))?.get(0))
    }

    /// Ids and vectors of a section's rows as PostgreSQL has them now.
    pub fn section(&self, section: &str) -> Result<Vec<(i64, Vec<f32>)>> {
        let sql = "SELECT id, embedding::real[] FROM docs WHERE section = $1";
        let rows = self.runtime.block_on(self.client.query(sql, &[&section]))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The type of the embeddings: pgvector's where it is installed, else PostgreSQL's own.
    pub fn vector_type(&self, dimensions: usize) -> String {
        match self.run("CREATE EXTENSION vector SCHEMA public") {
            Ok(()) => format!("vector({dimensions})"),
            Err(_) => "real[]".to_owned(),
        }
    }

    /// Makes the table and loads the documents by binary COPY.
    pub fn load(&self, data: &Data, vector_type: &str) -> Result<()> {
        self.run(&format!(
            "CREATE TABLE docs (id bigint PRIMARY KEY, name text NOT NULL, section text NOT NULL, body text NOT NULL, \
             views int NOT NULL DEFAULT 0, embedding {vector_type})"
        ))?;
        self.runtime.block_on(self.copy(data)).context("COPY docs")?;
        self.run("ANALYZE docs")
    }

    async fn copy(&self, data: &Data) -> Result<()> {
        let columns = "id, name, section, body, embedding";
        let empty = self.client.prepare(&format!("SELECT {columns} FROM docs")).await?;
        let types: Vec<Type> = empty.columns().iter().map(|column| column.type_().clone()).collect();
        let sink = self.client.copy_in(&format!("COPY docs ({columns}) FROM STDIN BINARY")).await?;
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
        for text in &data.documents {
            let vector = Embedding(data.vectors.row(text.id as usize));
            writer.as_mut().write(&[&text.id, &text.name, &text.section, &text.text, &vector]).await?;
        }
        writer.finish().await?;
        Ok(())
    }
}

/// A vector as a parameter of either type.
#[derive(Debug)]
pub struct Embedding<'a>(pub &'a [f32]);

impl ToSql for Embedding<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        if *kind == Type::FLOAT4_ARRAY {
            return self.0.to_sql(kind, out);
        }
        // pgvector's `vector_send`: dimensions, a word of zero, the elements.
        out.put_u16(self.0.len().try_into()?);
        out.put_u16(0);
        self.0.iter().for_each(|&x| out.put_f32(x));
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::FLOAT4_ARRAY || kind.name() == "vector"
    }

    to_sql_checked!();
}
