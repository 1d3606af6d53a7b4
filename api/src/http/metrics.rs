//! Prometheus metrics: few, and all of their names in this file.

use std::fmt::{self, Write};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::openapi::Common;
use super::problem::{Code, Problem};
use crate::app::Shared;
use crate::catalog::SourceRow;
use crate::clock::now;
use crate::supervisor::Snapshot;

/// One source at the moment of the question.
struct Sample {
    name: String,
    snapshot: Option<Snapshot>,
    segments: u64,
    stored_bytes: u64,
    base_age_seconds: Option<i64>,
}

/// A gauge with one value a source.
type Gauge = (&'static str, &'static str, fn(&Sample) -> Option<u64>);

const GAUGES: &[Gauge] = &[
    (
        "lastgood_source_generation",
        "Number of the lineage: it counts up at every gap.",
        |sample| Some(sample.snapshot.as_ref()?.lineage?.generation().into()),
    ),
    (
        "lastgood_source_durable_lsn_bytes",
        "End of what is durable in the repository, as a byte position in the WAL.",
        |sample| Some(sample.snapshot.as_ref()?.durable_lsn?.as_u64()),
    ),
    (
        "lastgood_source_lag_bytes",
        "WAL between what is durable and the end of the source's WAL.",
        |sample| sample.snapshot.as_ref()?.lag_bytes,
    ),
    (
        "lastgood_source_lag_seconds",
        "Age of what is durable, by the source's clock; 0 if nothing is missing.",
        |sample| sample.snapshot.as_ref()?.lag_seconds,
    ),
    (
        "lastgood_source_retained_wal_bytes",
        "WAL the source keeps for the slot.",
        |sample| sample.snapshot.as_ref()?.retained_wal_bytes,
    ),
    (
        "lastgood_source_uncovered_tables",
        "Tables that no segment holds until the next base.",
        |sample| Some(sample.snapshot.as_ref()?.uncovered_counts().0 as u64),
    ),
    (
        "lastgood_source_base_only_tables",
        "Tables that no segment ever holds: as old as the last base.",
        |sample| Some(sample.snapshot.as_ref()?.uncovered_counts().1 as u64),
    ),
    (
        "lastgood_source_segments",
        "Segments in the repository.",
        |sample| Some(sample.segments),
    ),
    (
        "lastgood_source_segment_bytes",
        "Stored size of the segments.",
        |sample| Some(sample.stored_bytes),
    ),
    (
        "lastgood_source_base_age_seconds",
        "Age of the newest complete base.",
        |sample| sample.base_age_seconds.and_then(|age| age.try_into().ok()),
    ),
];

const STATES: &[&str] = &[
    "starting",
    "base_backup",
    "streaming",
    "paused",
    "degraded",
    "failed",
];

/// Metrics for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = 200, body = String, content_type = "text/plain"), Common)
)]
pub(super) async fn metrics(State(app): State<Shared>) -> Result<Response, Problem> {
    let mut samples = Vec::new();
    for row in app.catalog.sources(None, usize::MAX).await? {
        samples.push(sample(&app, row).await?);
    }
    let restores = app.catalog.restore_counts().await?;
    let key_safe = app.is_key_safe().await?;
    let mut text = String::new();
    write(&mut text, &samples)
        .and_then(|()| {
            header(&mut text, "lastgood_restores", "Restores by status.")?;
            for (status, count) in restores {
                writeln!(
                    text,
                    "lastgood_restores{{status=\"{}\"}} {count}",
                    status.as_str()
                )?;
            }
            let help = "Whether the master key is known to be kept elsewhere too.";
            header(&mut text, "lastgood_key_confirmed", help)?;
            writeln!(text, "lastgood_key_confirmed {}", u8::from(key_safe))
        })
        .map_err(|_| Problem::new(Code::Internal))?;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

async fn sample(app: &Shared, row: SourceRow) -> Result<Sample, Problem> {
    let totals = app.catalog.segment_totals(row.id).await?;
    let (_, last_base) = app.catalog.last_bases(row.id).await?;
    Ok(Sample {
        name: row.name,
        snapshot: app.supervisor.snapshot(row.id),
        segments: totals.segments,
        stored_bytes: totals.stored_bytes,
        base_age_seconds: last_base
            .map(|time| (now().as_unix_micros() - time.as_unix_micros()) / 1_000_000),
    })
}

fn write(text: &mut String, samples: &[Sample]) -> fmt::Result {
    let help = "1 for the status a source is in, 0 for the others.";
    header(text, "lastgood_source_status", help)?;
    for sample in samples {
        let state = sample
            .snapshot
            .as_ref()
            .map_or("starting", |snapshot| snapshot.state.as_str());
        for known in STATES {
            writeln!(
                text,
                "lastgood_source_status{{source=\"{}\",status=\"{known}\"}} {}",
                sample.name,
                u8::from(*known == state)
            )?;
        }
    }
    for (name, help, value) in GAUGES {
        header(text, name, help)?;
        for sample in samples {
            if let Some(value) = value(sample) {
                // A source's name needs no escaping: it is checked to be plain.
                writeln!(text, "{name}{{source=\"{}\"}} {value}", sample.name)?;
            }
        }
    }
    Ok(())
}

fn header(text: &mut String, name: &str, help: &str) -> fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge")
}
