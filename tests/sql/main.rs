//! SQL: the endpoint with the real postgres_fdw, psql and tokio-postgres. Roles that search are no superusers, and what is
//! found is compared with a full scan by the source itself.

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod direct;
mod foreign;
mod hostile;
mod majors;
mod pack;
mod parallel;
mod pgvector;
mod roles;
mod world;
