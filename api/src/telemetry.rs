//! Logs: one line an event on standard error, for people or as JSON.
//!
//! Fields carry names, positions and sizes. A row's value and a connection string never stand in
//! one: connection strings live in types that cannot be printed, and the formats below print
//! nothing but what an event names.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged unless `LASTGOOD_LOG` or `RUST_LOG` says otherwise, in the syntax of `EnvFilter`.
const DEFAULT_FILTER: &str = "info";

/// What others log about the bytes they carry (headers, queries, statements) is never ours to
/// publish, whatever the filter says.
const OTHERS: &[&str] = &[
    "h2=info",
    "hyper=info",
    "hyper_util=info",
    "object_store=info",
    "postgres_protocol=info",
    "reqwest=info",
    "rustls=info",
    "tokio_postgres=info",
];

/// Log to standard error from here on; only the first call has an effect.
pub(crate) fn init(format: LogFormat) {
    let given = ["LASTGOOD_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    let filter = filter(given.as_deref().unwrap_or(DEFAULT_FILTER));
    let subscriber = subscriber(format, filter, std::io::stderr);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging was set up already");
    }
}

fn filter(text: &str) -> EnvFilter {
    let filter = EnvFilter::new(text);
    OTHERS
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive)
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .with_target(true);
    match format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Everything that is ever logged about a connection goes through one of these.
    #[test]
    fn a_connection_is_logged_without_its_password() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let sink = Sink::default();
            let writer = sink.clone();
            let subscriber = subscriber(format, filter("trace"), move || writer.clone());
            tracing::subscriber::with_default(subscriber, || {
                for text in [
                    "postgresql://app:hunter2@db/shop",
                    "host=db user=app password=hunter2 dbname=shop",
                ] {
                    let connection: lastgood_pg::ConnectionConfig = text.parse().unwrap();
                    tracing::info!(endpoint = connection.redacted(), "registered");
                }
                for text in [
                    "postgresql://app:hunter2@db:5432x/shop",
                    "postgresql://app:hun@ter2:hunter2@db/shop",
                    "host=db password=hunter2 pasword=hunter2",
                    "host=db password='hunter2",
                ] {
                    let Err(error) = text.parse::<lastgood_pg::ConnectionConfig>() else {
                        panic!("it is no connection string");
                    };
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "refused");
                    tracing::warn!(?error, "refused");
                }
            });
            let log = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            assert!(
                log.contains("registered") && log.contains("refused"),
                "{log}"
            );
            assert!(!log.contains("hunter2"), "{log}");
            assert!(!log.contains("ter2"), "{log}");
        }
    }
}
