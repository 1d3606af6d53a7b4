//! Two pictures: capture's rate over the width of rows and the size of transactions, and the time of a
//! restore over the number of changes, with what stands beside it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lastgood_integration::history::drop_database;
use lastgood_integration::truth;
use serde_json::json;

use crate::restore::{RESTORED, into_new_database};
use crate::{DATABASE, SOURCE, median, protect, psql, start_pgbench, start_server};

/// A picture's points are medians of so many.
const RUNS: usize = 3;
const ROW_BYTES: [usize; 5] = [16, 64, 256, 1024, 4096];
const TRANSACTION_ROWS: [usize; 3] = [1, 100, 10_000];
const CHANGES: [usize; 5] = [1_000, 10_000, 100_000, 300_000, 1_000_000];

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

pub(crate) async fn draw_capture() -> Result<()> {
    let lines = capture_lines().await?;
    let capture = svg("Capture: thousand rows a second, over bytes a row", &lines)?;
    Ok(std::fs::write(picture("capture.svg"), capture)?)
}

pub(crate) async fn draw_restore() -> Result<()> {
    let lines = restore_lines().await?;
    let restore = svg(
        "Restore of 1,000,000 rows: seconds, over the number of rows that were updated since the base",
        &lines,
    )?;
    Ok(std::fs::write(picture("restore.svg"), restore)?)
}

fn picture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/images")
        .join(name)
}

async fn capture_lines() -> Result<Vec<Line>> {
    let server = start_server(&["autovacuum=off"]).await?;
    server.create_database(DATABASE).await?;
    let table = "CREATE TABLE rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text STORAGE EXTERNAL)";
    server.execute(DATABASE, table).await?;
    let settings = json!({"segment_seconds": 1, "wal_budget_bytes": 1_u64 << 40});
    let service = protect(&server, settings).await?;
    let client = server.connect(DATABASE).await?;
    let path = format!("/api/v1/sources/{SOURCE}");
    let mut lines = Vec::new();
    for rows in TRANSACTION_ROWS {
        let mut points = Vec::new();
        for bytes in ROW_BYTES {
            // Enough that the wait for the last cut, which is less than a second, weighs little.
            let total = (600_000_000 / (bytes + 300)).clamp(150_000, 1_000_000) / rows * rows;
            let mut rates = Vec::new();
            for _ in 0..RUNS {
                let pause = format!("{path}/pause");
                service.post(&pause, json!({"slot": "keep"})).await?;
                let text = format!("left(repeat(md5(n::text), {}), {bytes})", bytes / 32 + 1);
                let sql = format!(
                    "DO $$ BEGIN FOR one IN 1..{} LOOP
                       INSERT INTO rows (text) SELECT {text} FROM generate_series(1, {rows}) n;
                       COMMIT; END LOOP; END $$",
                    total / rows
                );
                psql(&server, &sql)?;
                let end = truth::wal_position(&client).await?;
                psql(&server, "INSERT INTO rows (text) VALUES ('end')")?;
                let begun = Instant::now();
                service.post(&format!("{path}/resume"), json!({})).await?;
                service.wait_durable(SOURCE, &end).await?;
                rates.push(total as f64 / begun.elapsed().as_secs_f64() / 1e3);
                psql(&server, "TRUNCATE rows")?;
            }
            points.push((bytes as f64, median(&mut rates)));
        }
        lines.push(Line {
            name: format!("{rows} rows a transaction"),
            points,
        });
    }
    Ok(lines)
}

async fn restore_lines() -> Result<Vec<Line>> {
    let server = start_pgbench(&["autovacuum=off"], 10).await?;
    let settings =
        json!({"segment_seconds": 1, "no_identity": "full", "wal_budget_bytes": 1_u64 << 40});
    let service = protect(&server, settings).await?;
    let client = server.connect(DATABASE).await?;
    let (mut net, mut ordered) = (Vec::new(), Vec::new());
    let mut done = 0;
    for changes in CHANGES {
        // In transactions of a hundred, each row once.
        let sql = format!(
            "DO $$ BEGIN FOR one IN {}..{} LOOP
               UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN one * 100 + 1 AND one * 100 + 100;
               COMMIT; END LOOP; END $$",
            done / 100,
            changes / 100 - 1
        );
        psql(&server, &sql)?;
        done = changes;
        let end = truth::wal_position(&client).await?;
        psql(
            &server,
            "UPDATE pgbench_branches SET filler = 'end' WHERE bid = 1",
        )?;
        service.wait_durable(SOURCE, &end).await?;
        for (replay, points) in [("merged", &mut net), ("ordered", &mut ordered)] {
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let latest = json!("latest");
                times.push(into_new_database(&server, &service, SOURCE, &latest, replay).await?);
                drop_database(&server, RESTORED).await?;
            }
            points.push((changes as f64, median(&mut times)));
        }
    }
    Ok(vec![
        Line {
            name: "merged into the base".to_owned(),
            points: net,
        },
        Line {
            name: "replayed in commit order".to_owned(),
            points: ordered,
        },
    ])
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 3] = ["#1f6feb", "#d9480f", "#2b8a3e"];

/// Lines over a logarithmic axis, each point with its value.
fn svg(title: &str, lines: &[Line]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let least = all().fold(f64::MAX, |least, (x, _)| least.min(*x)).ln();
    let most = all().fold(0.0, |most: f64, (x, _)| most.max(*x)).ln();
    let top = all().fold(0.0, |top: f64, (_, y)| top.max(*y));
    let at = |(x, y): (f64, f64)| {
        (
            MARGIN + (x.ln() - least) / (most - least) * (WIDTH - 2.0 * MARGIN),
            HEIGHT - MARGIN - y / top * (HEIGHT - 2.5 * MARGIN),
        )
    };
    let bottom = HEIGHT - MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\">{title}</text>\n\
         <path d=\"M{MARGIN} {bottom}H{}\" stroke=\"#888\"/>\n",
        WIDTH - MARGIN
    );
    if let Some(line) = lines.first() {
        for (x, _) in &line.points {
            let (across, _) = at((*x, 0.0));
            writeln!(
                svg,
                "<text x=\"{across:.0}\" y=\"{}\" text-anchor=\"middle\">{x}</text>",
                bottom + 18.0
            )?;
        }
    }
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let (mut path, mut labels) = (String::new(), String::new());
        for point in &line.points {
            let (x, y) = at(*point);
            write!(path, "{x:.1},{y:.1} ")?;
            let value = point.1;
            let shown = if value < 10.0 {
                format!("{value:.1}")
            } else {
                format!("{value:.0}")
            };
            writeln!(
                labels,
                "<text x=\"{x:.0}\" y=\"{:.0}\" fill=\"{colour}\" text-anchor=\"middle\">{shown}</text>",
                y - 6.0
            )?;
        }
        writeln!(
            svg,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n{labels}\
             <text x=\"{:.0}\" y=\"40\" fill=\"{colour}\">{}</text>",
            MARGIN + 210.0 * number as f64,
            line.name
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
