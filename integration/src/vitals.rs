//! Memory and file descriptors of processes over time: sampled, written down as CSV, drawn as SVG, judged.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What a process held at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the beginning.
    pub seconds: f64,
    pub pid: u32,
    pub rss_kib: u64,
    pub descriptors: u64,
}

/// The samples of one process, or of those that took its place.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    pub name: String,
    pub samples: Vec<Sample>,
}

/// A median at the beginning and one at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub first: u64,
    pub last: u64,
}

/// The most memory that a process ever had; none if it is gone.
pub fn peak_bytes(pid: u32) -> Option<u64> {
    Some(kib(&format!("/proc/{pid}/status"), "VmHWM")? << 10)
}

/// What processes could have now without anything being taken from another.
pub(crate) fn available_bytes() -> Option<u64> {
    Some(kib("/proc/meminfo", "MemAvailable")? << 10)
}

/// A figure that the kernel gives as `Name:   1234 kB`.
fn kib(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let figure = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')?
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(figure)
}

/// Reads what the kernel says of a process; none if it is gone.
pub fn sample(seconds: f64, pid: u32) -> Option<Sample> {
    Some(Sample {
        seconds,
        pid,
        rss_kib: kib(&format!("/proc/{pid}/status"), "VmRSS")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
    })
}

impl Vitals {
    /// The median of the last third beside that of the first; none of fewer than six samples.
    pub fn growth(&self, what: fn(&Sample) -> u64) -> Option<Growth> {
        let third = self.samples.len() / 3;
        let median = |samples: &[Sample]| {
            let mut values: Vec<u64> = samples.iter().map(what).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        if third < 2 {
            return None;
        }
        Some(Growth {
            first: median(&self.samples[..third])?,
            last: median(&self.samples[self.samples.len() - third..])?,
        })
    }

    /// Memory may grow by a quarter and `slack_kib`, descriptors by eight, from the median of the first third
    /// to that of the last: what is lost at every step grows with the steps, and passes that.
    ///
    /// # Errors
    /// With both medians when it grew by more, or when there are too few samples to say.
    pub fn judge(&self, slack_kib: u64) -> Result<()> {
        let name = &self.name;
        let too_few = || format!("{name}: {} samples are too few", self.samples.len());
        let memory = self.growth(|sample| sample.rss_kib).with_context(too_few)?;
        let descriptors = self
            .growth(|sample| sample.descriptors)
            .with_context(too_few)?;
        eprintln!("{name}: memory (KiB) {memory:?}, descriptors {descriptors:?}");
        ensure!(
            memory.last <= memory.first + memory.first / 4 + slack_kib,
            "{name}: its memory grows: {memory:?} KiB"
        );
        ensure!(
            descriptors.last <= descriptors.first + 8,
            "{name}: its file descriptors grow: {descriptors:?}"
        );
        Ok(())
    }
}

/// One line a sample.
///
/// # Errors
/// When the file cannot be written.
pub fn write_csv(path: &Path, all: &[Vitals]) -> Result<()> {
    let mut text = "seconds,process,pid,rss_kib,descriptors\n".to_owned();
    for vitals in all {
        for sample in &vitals.samples {
            let Sample {
                seconds,
                pid,
                rss_kib,
                descriptors,
            } = sample;
            let name = &vitals.name;
            writeln!(text, "{seconds:.1},{name},{pid},{rss_kib},{descriptors}")?;
        }
    }
    Ok(fs::write(path, text)?)
}

const WIDTH: f64 = 900.0;
const PANEL: f64 = 220.0;
const MARGIN: f64 = 50.0;
const COLOURS: [&str; 4] = ["#1f6feb", "#d9480f", "#2b8a3e", "#862e9c"];

/// Memory above, descriptors below, a line each process.
///
/// # Errors
/// When the file cannot be written.
pub fn write_svg(path: &Path, title: &str, all: &[Vitals]) -> Result<()> {
    let height = 2.0 * (PANEL + MARGIN) + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\">{title}</text>\n"
    );
    for (number, vitals) in all.iter().enumerate() {
        let (x, colour) = (WIDTH - 300.0 + 100.0 * number as f64, colour(number));
        let name = &vitals.name;
        writeln!(
            svg,
            "<text x=\"{x}\" y=\"20\" fill=\"{colour}\">{name}</text>"
        )?;
    }
    let memory = |sample: &Sample| sample.rss_kib as f64 / 1024.0;
    let descriptors = |sample: &Sample| sample.descriptors as f64;
    panel(&mut svg, MARGIN, "memory, MiB", all, &memory)?;
    let below = PANEL + 2.0 * MARGIN;
    panel(&mut svg, below, "file descriptors", all, &descriptors)?;
    svg.push_str("</svg>\n");
    Ok(fs::write(path, svg)?)
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

fn panel(
    svg: &mut String,
    top: f64,
    label: &str,
    all: &[Vitals],
    value: &dyn Fn(&Sample) -> f64,
) -> Result<()> {
    let samples = || all.iter().flat_map(|vitals| &vitals.samples);
    let end = samples().fold(1.0, |end: f64, sample| end.max(sample.seconds));
    let most = samples().fold(1.0, |most: f64, sample| most.max(value(sample)));
    let (right, bottom) = (WIDTH - MARGIN, top + PANEL);
    writeln!(
        svg,
        "<path d=\"M{MARGIN} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\">{label}: up to {most:.0}; {end:.0} s</text>",
        top - 6.0
    )?;
    for (number, vitals) in all.iter().enumerate() {
        let mut points = String::new();
        for sample in &vitals.samples {
            let x = MARGIN + sample.seconds / end * (right - MARGIN);
            let y = bottom - value(sample) / most * PANEL;
            write!(points, "{x:.1},{y:.1} ")?;
        }
        let colour = colour(number);
        writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory: impl Fn(u64) -> u64, descriptors: impl Fn(u64) -> u64) -> Vitals {
        let sample = |number: u64| Sample {
            seconds: number as f64,
            pid: 1,
            rss_kib: memory(number),
            descriptors: descriptors(number),
        };
        Vitals {
            name: "it".to_owned(),
            samples: (0..90).map(sample).collect(),
        }
    }

    #[test]
    fn the_kernel_tells_memory() {
        let peak = peak_bytes(std::process::id()).unwrap();
        assert!(peak > 1 << 20, "{peak}");
        assert!(available_bytes().unwrap() > 1 << 20);
        assert_eq!(kib("/proc/meminfo", "MemAvail"), None);
    }

    #[test]
    fn what_grows_is_found_out_and_what_swings_is_not() {
        let swinging = |number: u64| 100_000 + number % 7 * 10_000;
        of(swinging, |number| 20 + number % 5).judge(0).unwrap();
        let grows = of(|number| 100_000 + number * 1_000, |_| 20).judge(0);
        assert!(grows.unwrap_err().to_string().contains("memory grows"));
        let grows = of(swinging, |number| 20 + number / 4).judge(0);
        assert!(grows.unwrap_err().to_string().contains("descriptors grow"));
        assert!(Vitals::default().judge(0).is_err());
    }

    #[test]
    fn our_own_process_has_some_of_both() {
        let sample = sample(1.0, std::process::id()).unwrap();
        assert!(sample.rss_kib > 100 && sample.descriptors > 2, "{sample:?}");
        assert_eq!(super::sample(1.0, u32::MAX), None);
    }
}
