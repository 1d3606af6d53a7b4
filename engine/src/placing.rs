//! Where a change lies that two looks saw the ends of: at the transactions in between that told of DDL.
//!
//! It is known only if the event trigger was there, the same one, from the first look to the second, and if everything
//! that looks otherwise is named by one of these transactions: not every change of it fires a trigger.

use std::collections::VecDeque;

use lastgood_proto::Lsn;
use lastgood_proto::key::ShapeKey;
use lastgood_proto::manifest::{DdlCommit, DdlFile, Version1};

use crate::ddl::Ddl;
use crate::shape::few;

/// Transactions remembered between two cuts; of more than that nothing is placed.
const DDL_MAX: usize = 10_000;

/// What may still be placed.
#[derive(Default)]
pub(crate) struct Placing {
    /// The trigger, and from where on it has been the same and everything it told has been heard.
    trigger: Option<(String, Lsn)>,
    /// In the order of their commits.
    commits: VecDeque<Ddl>,
    /// Changes whose end the durable run has not passed, with the OIDs by which each object that looks otherwise may be
    /// named.
    open: Vec<(ShapeKey, Vec<Vec<u32>>)>,
    /// Something that nobody told of was done before this.
    untold: Lsn,
}

impl Placing {
    /// The stream begins at `start`, and `trigger` was there before.
    pub(crate) fn new(trigger: Option<String>, start: Lsn) -> Self {
        Self {
            trigger: trigger.map(|trigger| (trigger, start)),
            ..Self::default()
        }
    }

    /// A transaction with DDL has come.
    pub(crate) fn committed(&mut self, ddl: Ddl) {
        if self.commits.len() >= DDL_MAX {
            *self = Self::default();
        }
        self.commits.push_back(ddl);
    }

    /// Rows have another form from here on, and nobody told why: what is told of at the same time is not all.
    pub(crate) fn untold(&mut self, lsn: Lsn) {
        self.untold = self.untold.max(lsn);
    }

    /// The trigger as a look at `lsn` saw it.
    pub(crate) fn looked(&mut self, trigger: Option<&String>, lsn: Lsn) {
        self.trigger = trigger.map(|trigger| match self.trigger.take() {
            Some((before, since)) if before == *trigger => (before, since),
            _ => (trigger.clone(), lsn),
        });
    }

    /// A look saw a change, of these objects.
    pub(crate) fn changed(&mut self, key: ShapeKey, objects: Vec<Vec<u32>>) {
        let since = self.trigger.as_ref().map(|(_, since)| *since);
        if since.is_some_and(|since| since <= key.from) {
            self.open.push((key, objects));
        }
    }

    /// Everything up to `end` has come and is being stored; no change that is seen later on begins before `holds_to`.
    pub(crate) fn place(&mut self, end: Lsn, holds_to: Lsn) -> Vec<DdlFile> {
        let passed = self.open.extract_if(.., |(key, _)| key.to <= end);
        let placed = passed.filter_map(|(key, objects)| {
            let within = |ddl: &&Ddl| (key.from..key.to).contains(&ddl.lsn);
            let all: Vec<&Ddl> = self.commits.iter().filter(within).collect();
            let by = all.iter().map(|ddl| ddl.by).max()?;
            let touched = |oid: &u32| all.iter().any(|ddl| ddl.what.touched.contains(oid));
            let is_all = key.from > self.untold;
            if !is_all || !objects.iter().all(|names| names.iter().any(touched)) {
                return None;
            }
            let told: Vec<&String> = all.iter().flat_map(|ddl| &ddl.what.commands).collect();
            Some(DdlFile {
                v: Version1,
                from: key.from,
                to: key.to,
                commits: all
                    .iter()
                    .map(|ddl| DdlCommit {
                        lsn: ddl.lsn,
                        time: ddl.time,
                    })
                    .collect(),
                by,
                detail: few(&told, "; "),
            })
        });
        let placed = placed.collect();
        let open = self.open.iter().map(|(key, _)| key.from).min();
        let needed = open.unwrap_or(Lsn::MAX).min(holds_to);
        while self.commits.pop_front_if(|ddl| ddl.lsn < needed).is_some() {}
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ddl::What;
    use lastgood_proto::{PgTimestamp, Xid};
    use std::collections::BTreeSet;

    fn ddl(lsn: u64) -> Ddl {
        Ddl {
            xid: Xid::new(1),
            lsn: Lsn::new(lsn),
            time: PgTimestamp::from_micros(0),
            by: PgTimestamp::from_micros(0),
            what: What {
                told: true,
                untold: false,
                commands: vec![format!("DDL {lsn}")],
                touched: BTreeSet::from([u32::try_from(lsn).unwrap()]),
            },
        }
    }

    fn key(from: u64, to: u64) -> ShapeKey {
        ShapeKey {
            from: Lsn::new(from),
            to: Lsn::new(to),
        }
    }

    fn spans(placed: &[DdlFile]) -> Vec<(u64, u64)> {
        let span = |file: &DdlFile| {
            let lsn = |commit: Option<&DdlCommit>| commit.unwrap().lsn.as_u64();
            (lsn(file.commits.first()), lsn(file.commits.last()))
        };
        placed.iter().map(span).collect()
    }

    #[test]
    fn a_change_lies_at_the_transactions_between_the_looks() {
        let trigger = "x".to_owned();
        let mut placing = Placing::new(Some(trigger.clone()), Lsn::new(5));
        for lsn in [8, 12, 17, 30] {
            placing.committed(ddl(lsn));
        }
        placing.looked(Some(&trigger), Lsn::new(25));
        placing.changed(key(10, 25), vec![vec![12, 7]]);
        assert_eq!(placing.place(Lsn::new(24), Lsn::new(10)), []);
        let placed = placing.place(Lsn::new(25), Lsn::new(25));
        assert_eq!(spans(&placed), [(12, 17)]);
        assert_eq!(placed[0].detail, "DDL 12; DDL 17");
        // The next one, of which one transaction had come already.
        placing.committed(ddl(40));
        placing.changed(key(25, 50), vec![vec![30], vec![40]]);
        assert_eq!(
            spans(&placing.place(Lsn::new(60), Lsn::new(60))),
            [(30, 40)]
        );
    }

    #[test]
    fn nothing_is_placed_without_the_same_trigger_all_along() {
        let (one, other) = ("x".to_owned(), "y".to_owned());
        let check = |before: Option<(&String, u64)>, seen: Option<&String>| {
            let since = before.map_or(0, |(_, since)| since);
            let before = before.map(|(word, _)| word.clone());
            let mut placing = Placing::new(before, Lsn::new(since));
            placing.committed(ddl(12));
            placing.looked(seen, Lsn::new(25));
            placing.changed(key(10, 25), Vec::new());
            spans(&placing.place(Lsn::new(30), Lsn::new(30)))
        };
        assert_eq!(check(Some((&one, 10)), Some(&one)), [(12, 12)]);
        assert_eq!(check(Some((&one, 11)), Some(&one)), []);
        assert_eq!(check(Some((&one, 10)), Some(&other)), []);
        assert_eq!(check(Some((&one, 10)), None), []);
        assert_eq!(check(None, Some(&one)), []);
    }

    /// What nobody told of lies anywhere between the looks.
    #[test]
    fn a_change_without_ddl_is_not_placed() {
        let mut placing = Placing::new(Some("x".to_owned()), Lsn::new(5));
        placing.changed(key(10, 25), Vec::new());
        assert_eq!(placing.place(Lsn::new(30), Lsn::new(30)), []);
        // Nor if something that was not told of was done as well.
        placing.committed(ddl(27));
        placing.untold(Lsn::new(28));
        placing.changed(key(26, 29), vec![vec![27]]);
        assert_eq!(placing.place(Lsn::new(30), Lsn::new(30)), []);
        // Nor if something else told of DDL.
        placing.committed(ddl(35));
        placing.changed(key(30, 45), vec![vec![7], vec![35]]);
        assert_eq!(placing.place(Lsn::new(50), Lsn::new(50)), []);
    }
}
