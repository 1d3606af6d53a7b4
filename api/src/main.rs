//! lastgood: point-in-time recovery for any PostgreSQL that you can connect to.
//!
//! The composition root. Only this crate knows all the others: it binds capture (`engine`) and
//! restore (`restore`) to the catalog, the HTTP API and the command line. What it must never do:
//! stand between bytes and their repository.

mod app;
mod catalog;
mod cli;
mod clock;
mod config;
mod demo;
mod execute;
mod exit;
mod http;
mod jobs;
mod rebuild;
mod secrets;
mod serve;
mod supervisor;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Every TLS connection, ours and the object store's, uses this one provider.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        // Somebody installed one before us; there is nobody, but it would do.
        tracing::debug!("a TLS provider was installed already");
    }
    cli::main()
}
