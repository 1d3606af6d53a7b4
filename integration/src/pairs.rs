//! Covering arrays: few rows in which every value of every factor meets every value of every other one.
//!
//! Faults that need two particular circumstances at once are found by such rows; all combinations of
//! seven factors would be thousands.

/// Rows of one value number a factor, for factors with that many values each. The same every time.
///
/// Greedy: a row begins with the first pair that no row has yet, and takes for each other factor the
/// value that brings the most new pairs, the least used one if several do.
pub fn covering(levels: &[usize]) -> Vec<Vec<usize>> {
    let mut open = Open::all(levels);
    let mut used: Vec<Vec<usize>> = levels.iter().map(|count| vec![0; *count]).collect();
    let mut rows = Vec::new();
    while let Some(first) = open.first() {
        let mut row: Vec<Option<usize>> = vec![None; levels.len()];
        row[first.0.0] = Some(first.0.1);
        row[first.1.0] = Some(first.1.1);
        for factor in 0..levels.len() {
            if row[factor].is_none() {
                row[factor] = (0..levels[factor]).max_by_key(|value| {
                    let new = open.new_pairs(&row, (factor, *value));
                    (new, std::cmp::Reverse(used[factor][*value]))
                });
            }
        }
        let row: Vec<usize> = row.into_iter().flatten().collect();
        for (factor, value) in row.iter().enumerate() {
            used[factor][*value] += 1;
        }
        open.close(&row);
        rows.push(row);
    }
    rows
}

/// A factor and one of its values.
type Choice = (usize, usize);

/// The pairs that no row has yet, the lower factor first.
struct Open(std::collections::BTreeSet<(Choice, Choice)>);

impl Open {
    fn all(levels: &[usize]) -> Self {
        let choices = |factor: usize| (0..levels[factor]).map(move |value| (factor, value));
        let factors = 0..levels.len();
        let pairs = factors.clone().flat_map(|left| {
            factors.clone().skip(left + 1).flat_map(move |right| {
                choices(left).flat_map(move |a| choices(right).map(move |b| (a, b)))
            })
        });
        Self(pairs.collect())
    }

    fn first(&self) -> Option<(Choice, Choice)> {
        self.0.first().copied()
    }

    /// How many open pairs `choice` makes with what the row has already.
    fn new_pairs(&self, row: &[Option<usize>], choice: Choice) -> usize {
        let others = row
            .iter()
            .enumerate()
            .filter_map(|(factor, value)| Some((factor, (*value)?)));
        others
            .filter(|other| {
                self.0
                    .contains(&((*other).min(choice), (*other).max(choice)))
            })
            .count()
    }

    fn close(&mut self, row: &[usize]) {
        self.0
            .retain(|(left, right)| row[left.0] != left.1 || row[right.0] != right.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(levels: &[usize], rows_max: usize) {
        let rows = covering(levels);
        for left in 0..levels.len() {
            for right in left + 1..levels.len() {
                for a in 0..levels[left] {
                    for b in 0..levels[right] {
                        let met = rows.iter().any(|row| row[left] == a && row[right] == b);
                        assert!(met, "{left}={a} never meets {right}={b}");
                    }
                }
            }
        }
        for row in &rows {
            assert_eq!(row.len(), levels.len());
            assert!(row.iter().zip(levels).all(|(value, count)| value < count));
        }
        assert!(rows.len() <= rows_max, "{} rows", rows.len());
        assert_eq!(rows, covering(levels));
    }

    #[test]
    fn every_pair_is_in_some_row() {
        check(&[2, 2], 4);
        check(&[2, 2, 2], 5);
        check(&[3, 1, 4], 12);
        check(&[5, 4, 3, 2], 24);
        check(&[6, 6, 2, 2, 2, 4, 2], 40);
    }
}
