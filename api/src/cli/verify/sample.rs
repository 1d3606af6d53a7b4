//! A share of the segments, chosen by a seed.

use std::str::FromStr;

use lastgood_proto::key::SourceObject;
use lastgood_store::{ObjectEntry, SourceStore};
use sha2::{Digest as _, Sha256};

/// How many segments are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sample {
    Percent(f64),
    Objects(usize),
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sample = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(Sample::Percent),
            None => text.parse().ok().map(Sample::Objects),
        };
        let within = |sample: &Sample| match sample {
            Sample::Percent(percent) => (0.0..=100.0).contains(percent),
            Sample::Objects(_) => true,
        };
        sample
            .filter(within)
            .ok_or_else(|| "a share such as 5%, or a number of objects".to_owned())
    }
}

impl Sample {
    fn of(self, all: usize) -> usize {
        match self {
            Sample::Objects(objects) => objects.min(all),
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a number of objects, rounded up"
            )]
            Sample::Percent(percent) => ((all as f64 * percent / 100.0).ceil() as usize).min(all),
        }
    }

    /// The segments to be read: the same ones whenever seed and objects are the same.
    pub(super) fn choose(
        self,
        store: &SourceStore,
        objects: &[ObjectEntry],
        seed: u32,
    ) -> Vec<SourceObject> {
        let segments = objects.iter().map(|entry| &entry.object);
        let segments = segments.filter(|object| matches!(object, SourceObject::Segment(..)));
        let mut drawn: Vec<([u8; 32], &SourceObject)> = segments
            .map(|object| {
                let ticket = Sha256::new()
                    .chain_update(seed.to_be_bytes())
                    .chain_update(store.path(object));
                (ticket.finalize().into(), object)
            })
            .collect();
        drawn.sort_unstable_by_key(|(ticket, _)| *ticket);
        drawn.truncate(self.of(drawn.len()));
        drawn
            .into_iter()
            .map(|(_, object)| object.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up() {
        let of = |text: &str, all| text.parse::<Sample>().map(|sample| sample.of(all));
        assert_eq!(of("5%", 100), Ok(5));
        assert_eq!(of("5%", 1), Ok(1));
        assert_eq!(of("0.5 %", 1000), Ok(5));
        assert_eq!(of("100%", 7), Ok(7));
        assert_eq!(of("3", 7), Ok(3));
        assert_eq!(of("9", 7), Ok(7));
        assert_eq!(of("0", 7), Ok(0));
        for text in ["", "%", "101%", "-1%", "some", "1.5", "NaN%"] {
            assert!(of(text, 1).is_err(), "{text}");
        }
    }
}
