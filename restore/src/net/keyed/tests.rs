//! Net changes, held against the changes themselves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn image(text: &str) -> Image {
    let text = text.replace('?', "\0");
    Image {
        has_holes: text.contains('\0'),
        text: text.into_bytes(),
    }
}

/// Plays `k:op` on a base of `a`, `b` and `c`, and answers the rows that come out, sorted.
fn check(operations: &[(&str, &str, &str)], expect: Result<&[&str], &str>) {
    let mut net = Keyed::default();
    let played: Result<(), Unusable> = operations.iter().try_for_each(|(op, key, new)| {
        let key = key.as_bytes();
        match *op {
            "insert" => net.insert(key, new.as_bytes()),
            "update" => net.update(key, &image(new), false).map(drop),
            "delete" => net.delete(key, false),
            to => net.rename(key, to.as_bytes(), &image(new), false).map(drop),
        }
    });
    let rows = played.map(|()| {
        let mut rows = Vec::new();
        let mut awaited = net.awaited();
        let mut text = Vec::new();
        net.close();
        for row in ["a\t1\tx", "b\t2\ty", "c\t3\tz"] {
            let met = net.meet(&row.as_bytes()[..1]);
            awaited -= usize::from(met != Met::Untouched);
            match met {
                Met::Untouched => rows.push(row.as_bytes().to_vec()),
                Met::Gone => {}
                Met::Became(image) => {
                    fill(image, row.as_bytes(), &mut text);
                    rows.push(text.clone());
                }
                Met::Unexpected => panic!("{row}"),
            }
        }
        assert_eq!((awaited, net.missing()), (0, None));
        rows.extend(net.new_rows().map(<[u8]>::to_vec));
        rows.sort();
        let text = rows.into_iter().map(|row| String::from_utf8(row).unwrap());
        text.collect::<Vec<_>>()
    });
    let expect = expect.map(|rows| rows.iter().map(ToString::to_string).collect());
    assert_eq!(
        rows,
        expect.map_err(|why: &str| Unusable(Box::leak(why.into())))
    );
}

#[test]
fn only_the_end_counts() {
    check(&[], Ok(&["a\t1\tx", "b\t2\ty", "c\t3\tz"]));
    check(
        &[("update", "a", "a\t5\t?"), ("update", "a", "a\t6\t?")],
        Ok(&["a\t6\tx", "b\t2\ty", "c\t3\tz"]),
    );
    check(
        &[
            ("update", "a", "a\t5\tlong"),
            ("update", "a", "a\t6\t?"),
            ("delete", "b", ""),
            ("insert", "d", "d\t4\tw"),
            ("update", "d", "d\t?\tv"),
        ],
        Ok(&["a\t6\tlong", "c\t3\tz", "d\t4\tv"]),
    );
    // Came and went; went and came.
    check(
        &[
            ("insert", "d", "d\t4\tw"),
            ("delete", "d", ""),
            ("delete", "a", ""),
            ("insert", "a", "a\t9\tq"),
        ],
        Ok(&["a\t9\tq", "b\t2\ty", "c\t3\tz"]),
    );
}

#[test]
fn rows_take_their_values_along_under_another_key() {
    // Two rows change places; what was not sent comes from where the row was.
    check(
        &[
            ("t", "a", "t\t1\t?"),
            ("a", "b", "a\t2\t?"),
            ("b", "t", "b\t1\t?"),
        ],
        Ok(&["a\t2\ty", "b\t1\tx", "c\t3\tz"]),
    );
    // Moved on and deleted; another one takes the place.
    check(
        &[
            ("d", "a", "d\t1\t?"),
            ("delete", "d", ""),
            ("a", "b", "a\t7\t?"),
            ("insert", "b", "b\t8\tn"),
        ],
        Ok(&["a\t7\ty", "b\t8\tn", "c\t3\tz"]),
    );
    // There and back.
    check(
        &[("d", "a", "d\t1\t?"), ("a", "d", "a\t1\t?")],
        Ok(&["a\t1\tx", "b\t2\ty", "c\t3\tz"]),
    );
}

#[test]
fn the_sieve_holds_back_most_keys_and_none_that_is_there() {
    let mut net = Keyed::default();
    let key = |number: u32| number.to_string().into_bytes();
    for number in 0..5000 {
        net.update(&key(number), &image("x"), false).unwrap();
    }
    net.close();
    let passes = |number: &u32| {
        let hash = net.hash(&key(*number));
        net.sieve.as_ref().is_some_and(|sieve| sieve.passes(hash))
    };
    assert!((0..5000).all(|number| passes(&number)));
    let others = (5000..15_000).filter(passes).count();
    assert!(others < 1000, "{others} of 10000");
    assert!((0..5000).all(|number| net.meet(&key(number)) == Met::Became(b"x")));
    assert_eq!(net.meet(&key(5000)), Met::Untouched);
}

#[test]
fn what_comes_and_goes_takes_no_room() {
    let mut net = Keyed::default();
    for _ in 0..1000 {
        net.insert(b"d", b"d\t1").unwrap();
        net.delete(b"d", false).unwrap();
        net.delete(b"a", false).unwrap_or(());
        net.insert(b"a", b"a\t1").unwrap();
    }
    assert!(net.entries.len() < 3 && net.table.len() == 1);
}

#[test]
fn long_keys_that_come_and_go_take_no_room() {
    let mut net = Keyed::default();
    let mut taken = 0;
    for number in 0..1000 {
        let key = format!("{number:050}");
        net.insert(key.as_bytes(), b"x").unwrap();
        net.delete(key.as_bytes(), false).unwrap();
        if number == 10 {
            taken = net.bytes();
        }
    }
    assert_eq!(net.bytes(), taken);
}

/// What moved on is there no more, and never was in the base.
#[test]
fn a_key_that_was_left_is_not_the_bases() {
    let mut net = Keyed::default();
    net.insert(b"a", b"a\t1").unwrap();
    net.rename(b"a", b"b", &image("b\t1"), false).unwrap();
    assert_eq!(net.update(b"a", &image("a\t2"), false), Err(NO_ROW));
    net.close();
    assert_eq!(net.meet(b"a"), Met::Unexpected);
}

#[test]
fn what_grows_leaves_nothing_behind() {
    let mut net = Keyed::default();
    let text = |number: usize| number.to_string().into_bytes();
    for bytes in 1..1000 {
        for number in 0..200 {
            let image = image(&"x".repeat(bytes));
            net.update(&text(number), &image, false).unwrap();
        }
    }
    for number in 0..100 {
        net.rename(&text(number), &text(number + 500), &image("there"), false)
            .unwrap();
    }
    assert!(net.bytes() > 10_000_000);
    net.compact();
    assert!(net.bytes() < 400_000, "{}", net.bytes());
    // Each still knows which row of the base it was.
    for number in 500..550 {
        net.delete(&text(number), false).unwrap();
    }
    net.close();
    for number in 0..200 {
        let there = "x".repeat(999);
        let expect = match number {
            ..50 => Met::Gone,
            50..100 => Met::Became(b"there"),
            _ => Met::Became(there.as_bytes()),
        };
        assert_eq!(net.meet(&text(number)), expect);
    }
    assert_eq!((net.new_rows().count(), net.missing()), (0, None));
}

/// What a change adds is counted with what it did not send.
#[test]
fn holes_count_as_what_is_in_them() {
    let mut net = Keyed::default();
    let long = "x".repeat(1000);
    net.insert(b"a", long.as_bytes()).unwrap();
    assert_eq!(net.update(b"a", &image("?"), false), Ok(1000));
    assert_eq!(net.rename(b"a", b"b", &image("?"), false), Ok(1000));
    assert_eq!(net.update(b"c", &image("?\ty"), false), Ok(3));
}

#[test]
fn what_cannot_be() {
    check(
        &[("delete", "a", ""), ("update", "a", "a\t1\tx")],
        Err(NO_ROW.0),
    );
    check(&[("delete", "a", ""), ("delete", "a", "")], Err(NO_ROW.0));
    check(&[("d", "a", "d\t1\tx"), ("delete", "a", "")], Err(NO_ROW.0));
    let twice = [("insert", "d", "d\t1\tx"), ("insert", "d", "d\t1\tx")];
    check(&twice, Err(SECOND.0));
    check(
        &[("insert", "d", "d\t1\tx"), ("d", "a", "d\t1\tx")],
        Err(SECOND.0),
    );
    let mut truncated = Keyed::default();
    assert!(truncated.update(b"a", &image("a\t1\tx"), true).is_err());
    assert!(truncated.delete(b"a", true).is_err());
}

#[test]
fn a_base_that_does_not_fit_is_noticed() {
    let mut net = Keyed::default();
    net.insert(b"a", b"a\t1").unwrap();
    assert_eq!(net.meet(b"a"), Met::Unexpected);
    net.update(b"b", &image("b\t1"), false).unwrap();
    assert_eq!((net.awaited(), net.missing()), (1, Some(&b"b"[..])));
    assert_eq!(net.meet(b"b"), Met::Became(b"b\t1"));
    assert_eq!((net.awaited(), net.missing()), (0, None));
    assert_eq!(net.meet(b"b"), Met::Unexpected);
}

/// Keys that are empty, short, as long as an entry holds at most, and longer.
fn key(number: u8) -> String {
    let lengths = [1, SHORT_KEY_BYTES_MAX, SHORT_KEY_BYTES_MAX + 1, 40];
    let length = lengths[usize::from(number % 4)];
    let letter = char::from(b'a' + number).to_string();
    letter.repeat(if number == 0 { 0 } else { length })
}

const KEYS: u8 = 14;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever happens to rows, what comes of them is what would have come of them one change after the other.
    #[test]
    fn the_end_is_that_of_the_changes_in_order(
        steps in prop::collection::vec((0..5_u8, 0..KEYS, 0..KEYS, any::<bool>()), 0..60),
        truncated: bool,
    ) {
        let mut net = Keyed::default();
        let base: BTreeMap<String, (String, String)> = (0..KEYS / 2)
            .map(|number| (key(number), ("0".to_owned(), format!("long {number}"))))
            .collect();
        let mut rows = if truncated { BTreeMap::new() } else { base.clone() };
        for (at, (what, from, to, hole)) in steps.into_iter().enumerate() {
            let (from, to) = (key(from), key(to));
            // An image grows, so that it must move.
            let value = "v".repeat(at);
            let written = |key: &str, row: &(String, String)| format!("{key}\t{}\t{}", row.0, row.1);
            let changed = |before: &(String, String)| {
                let long = if hole { before.1.clone() } else { format!("long {at}") };
                (value.clone(), long)
            };
            let sent = |key: &str, row: &(String, String)| {
                let long = if hole { "?" } else { row.1.as_str() };
                image(&format!("{key}\t{}\t{long}", row.0))
            };
            match (what, rows.contains_key(&from), rows.contains_key(&to)) {
                (0, false, _) => {
                    let row = (value, format!("long {at}"));
                    net.insert(from.as_bytes(), written(&from, &row).as_bytes()).unwrap();
                    rows.insert(from, row);
                }
                (1, true, _) => {
                    let row = changed(&rows[&from]);
                    net.update(from.as_bytes(), &sent(&from, &row), truncated).unwrap();
                    rows.insert(from, row);
                }
                (2, true, false) => {
                    let row = changed(&rows[&from]);
                    net.rename(from.as_bytes(), to.as_bytes(), &sent(&to, &row), truncated).unwrap();
                    rows.remove(&from);
                    rows.insert(to, row);
                }
                (3, true, _) => {
                    net.delete(from.as_bytes(), truncated).unwrap();
                    rows.remove(&from);
                }
                (4, ..) => net.compact(),
                _ => {}
            }
        }
        net.close();
        let mut found = Vec::new();
        for (key, (value, long)) in base.iter().filter(|_| !truncated) {
            let row = format!("{key}\t{value}\t{long}").into_bytes();
            match net.meet(key.as_bytes()) {
                Met::Untouched => found.push(row),
                Met::Gone => {}
                Met::Became(image) => {
                    let mut filled = Vec::new();
                    fill(image, &row, &mut filled);
                    found.push(filled);
                }
                Met::Unexpected => prop_assert!(false, "{key}"),
            }
        }
        prop_assert_eq!((net.awaited(), net.missing()), (0, None));
        found.extend(net.new_rows().map(<[u8]>::to_vec));
        found.sort();
        let rows = rows.iter();
        let mut rows: Vec<Vec<u8>> = rows
            .map(|(key, (value, long))| format!("{key}\t{value}\t{long}").into_bytes())
            .collect();
        rows.sort();
        prop_assert_eq!(found, rows);
    }
}
