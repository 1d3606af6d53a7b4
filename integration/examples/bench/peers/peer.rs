//! A program's row.

use std::process::Output;

use anyhow::{Result, bail};

use crate::{median, ratio, row, seconds};

/// How `timeout` ends if it had to end the program.
const TIMED_OUT: i32 = 124;

/// In seconds.
#[derive(Clone, Copy)]
pub(super) struct Took {
    whole: f64,
    /// What the changes since the base have of it, where that can be told.
    changes: Option<f64>,
}

impl Took {
    pub(super) fn whole(whole: f64) -> Self {
        Self {
            whole,
            changes: None,
        }
    }

    pub(super) fn with_changes(whole: f64, changes: f64) -> Self {
        Self {
            whole,
            changes: Some(changes),
        }
    }
}

/// The cells before its times, and these, until a run fails.
pub(super) struct Peer {
    cells: Vec<String>,
    times: Vec<Took>,
    failed: Option<String>,
}

impl Peer {
    pub(super) fn new(cells: &[&str]) -> Self {
        Self {
            cells: cells.iter().map(|&cell| cell.to_owned()).collect(),
            times: Vec::new(),
            failed: None,
        }
    }

    pub(super) fn add(&mut self, run: Result<Took>) {
        match run {
            Ok(took) => self.times.push(took),
            Err(error) => {
                eprintln!("{}: {error:#}", self.cells.join(", "));
                self.failed.get_or_insert(format!("{error:#}"));
            }
        }
    }

    pub(super) fn works(&self) -> bool {
        self.failed.is_none()
    }

    pub(super) fn without_changes(&self, first: Option<f64>) -> String {
        self.row(first, false)
    }

    pub(super) fn with_changes(&self, first: Option<f64>) -> String {
        self.row(first, true)
    }

    fn row(&self, first: Option<f64>, with_changes: bool) -> String {
        let whole = self.median();
        let mut changes: Vec<f64> = self.times.iter().filter_map(|took| took.changes).collect();
        let mut cells = self.cells.clone();
        cells.push(match (&self.failed, whole) {
            (Some(error), _) => format!("failed: {}", error.replace('|', "\\|")),
            (None, time) => time.map(seconds).unwrap_or_default(),
        });
        if with_changes {
            let told = self.works() && !changes.is_empty();
            cells.push(if told {
                seconds(median(&mut changes))
            } else {
                String::new()
            });
        }
        let both = whole.zip(first);
        cells.push(
            both.map(|(ours, first)| ratio(ours, first))
                .unwrap_or_default(),
        );
        row(&cells)
    }

    /// None if a run failed.
    fn median(&self) -> Option<f64> {
        let mut times: Vec<f64> = self.times.iter().map(|took| took.whole).collect();
        (self.works() && !times.is_empty()).then(|| median(&mut times))
    }
}

/// Their ratios are to the first.
pub(super) fn rows(peers: &[Peer], row: fn(&Peer, Option<f64>) -> String) -> Vec<String> {
    let first = peers.first().and_then(Peer::median);
    peers.iter().map(|peer| row(peer, first)).collect()
}

/// What it wrote; an error is the first that it told of, which the others follow from, or its last line.
pub(super) fn succeeded(output: &Output) -> Result<String> {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    // Without its clock and process.
    let told = |line| {
        ["ERROR", "FATAL"]
            .iter()
            .find_map(|&word| str::find(line, word))
    };
    let first = text.lines().find_map(|line| Some(&line[told(line)?..]));
    let how = match output.status.code() {
        Some(TIMED_OUT) => "not done within the time limit".to_owned(),
        _ => output.status.to_string(),
    };
    let first = first.or(text.lines().last());
    bail!("{how}: {}", first.unwrap_or("nothing told"))
}
