//! Random values of many types, as SQL literals, with a liking for the awkward ones.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

pub(super) const TYPES_SQL: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy, "really"');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE SCHEMA "Odd Schema";
"#;

/// Types of ordinary columns.
pub(super) const TYPES: &[&str] = &[
    "integer",
    "bigint",
    "smallint",
    "numeric",
    "numeric(12,3)",
    "double precision",
    "real",
    "boolean",
    "text",
    "varchar(20)",
    "char(5)",
    "\"char\"",
    "bytea",
    "uuid",
    "json",
    "jsonb",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "timestamptz(2)",
    "interval",
    "inet",
    "cidr",
    "macaddr",
    "bit(5)",
    "varbit",
    "money",
    "point",
    "box",
    "int4range",
    "tstzrange",
    "tsvector",
    "text[]",
    "integer[]",
    "mood",
    "pair",
    "positive",
    "pg_lsn",
    "oid",
    "xid",
    "mood[]",
];

/// A literal that has the type.
pub(super) fn literal(type_name: &str, rng: &mut ChaCha8Rng) -> String {
    if rng.random_ratio(1, 10) {
        return "NULL".to_owned();
    }
    let text = text_of(type_name, rng);
    format!("'{}'::{type_name}", text.replace('\'', "''"))
}

fn text_of(type_name: &str, rng: &mut ChaCha8Rng) -> String {
    let mut pick = |values: &[&str]| values.choose(rng).copied().unwrap_or_default().to_owned();
    match type_name {
        "boolean" => pick(&["t", "f"]),
        "numeric" => pick(&[
            "NaN",
            "0",
            "-0.000000000000000000001",
            "123456789012345678901234567890.5",
            "1e100",
        ]),
        "numeric(12,3)" => pick(&["0", "1.5", "-999999999.999", "NaN"]),
        "double precision" => pick(&[
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "5e-324",
            "0.1",
            "1.7976931348623157e308",
        ]),
        "real" => pick(&["NaN", "1e-45", "3.4028235e38", "0.1"]),
        "char(5)" => pick(&["", "a", "ab  ", "é"]),
        "\"char\"" => pick(&["", "a", "'"]),
        "json" => pick(&[
            "{\"b\":1, \"a\": [1,2,  3], \"a\": null}",
            "[]",
            "\"\\u00e9 \\\" \"",
            "1e3",
        ]),
        "jsonb" => pick(&[
            "{\"b\":1,\"a\":[1,2,3]}",
            "[]",
            "\"x\\ny\"",
            "12345678901234567890.123",
        ]),
        "date" => pick(&[
            "2026-11-20",
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "5874897-12-31",
        ]),
        "time" => pick(&["00:00", "24:00", "12:34:56.789012"]),
        "timetz" => pick(&["00:00+14", "12:34:56.789012-03:30"]),
        "timestamp" => pick(&["2026-11-20 20:00:00.000001", "infinity", "4713-01-01 BC"]),
        "timestamptz" | "timestamptz(2)" => pick(&[
            "2026-11-20 20:00:00.123456+02",
            "-infinity",
            "1900-01-01 00:00:00+01:23",
            "99999-12-31 00:00Z",
        ]),
        "interval" => pick(&[
            "1 year -2 mons +3 days -04:05:06.7",
            "0",
            "-178000000 years",
            "-00:00:00.000001",
        ]),
        "inet" => pick(&["10.0.0.1", "::1", "fe80::1/64", "192.168.1.5/24"]),
        "cidr" => pick(&["10.0.0.0/8", "2001:db8::/32"]),
        "macaddr" => pick(&["08:00:2b:01:02:03"]),
        "bit(5)" => pick(&["00000", "10101"]),
        "varbit" => pick(&["", "1", "1010101010101"]),
        "money" => pick(&["0", "-12.34", "92233720368547758.07"]),
        "point" => pick(&["(1,2)", "(-0.1,1e300)", "(NaN,0)"]),
        "box" => pick(&["(1,1),(0,0)", "(0.3,5),(0.1,2)"]),
        "int4range" => pick(&["empty", "[1,10)", "(,5)", "(,)"]),
        "tstzrange" => pick(&[
            "[2026-01-01,infinity)",
            "empty",
            "[2026-01-01 00:00+01,2026-01-02)",
        ]),
        "tsvector" => pick(&["a:1A fat:2B,4C cat:5D", "'it''s' '\\\\'", ""]),
        "text[]" => pick(&[
            "{}",
            "{NULL,\"NULL\",\"\"}",
            "{{a,b},{\"c,d\",\"\\\"\\\\\"}}",
            "[2:3]={x,y}",
        ]),
        "integer[]" => pick(&["{}", "{1,NULL,3}", "[0:1]={1,2}"]),
        "mood" => pick(&["sad", "it's ok", "happy, \"really\""]),
        "mood[]" => pick(&["{sad,\"it's ok\"}", "{}"]),
        "pair" => pick(&["(1,x)", "(,)", "(-5,\"a \"\"quoted\"\", text\\\\\")"]),
        "bytea" => {
            let bytes: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
            bytes
                .iter()
                .fold("\\x".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
        }
        "uuid" => format!("{:032x}", rng.random::<u128>()),
        "pg_lsn" => format!("{:X}/{:X}", rng.random::<u32>(), rng.random::<u32>()),
        "oid" | "xid" => rng.random::<u32>().to_string(),
        "integer" => rng.random::<i32>().to_string(),
        "bigint" => rng.random::<i64>().to_string(),
        "smallint" => rng.random::<i16>().to_string(),
        "positive" => rng.random_range(1..i32::MAX).to_string(),
        "varchar(20)" => text(rng).chars().take(20).collect(),
        _ => text(rng),
    }
}

/// Text that breaks careless quoting, COPY included.
fn text(rng: &mut ChaCha8Rng) -> String {
    const PIECES: &[&str] = &[
        "", "a", "\\", "\\N", "\\.", "\t", "\n", "\r\n", "'", "\"", "''", "é", "日本", "🦀",
        "\u{1}", "\u{7f}", "\u{2028}", " ", "NULL", "{", "}", "$$", "--", "%s", "\u{feff}",
    ];
    (0..rng.random_range(0..6))
        .filter_map(|_| PIECES.choose(rng).copied())
        .collect()
}

/// A value that is stored out of line, as an expression.
pub(super) fn toast(rng: &mut ChaCha8Rng) -> String {
    if rng.random_ratio(1, 8) {
        return "NULL".to_owned();
    }
    format!(
        "repeat(md5('{}'), {})",
        rng.random::<u32>(),
        rng.random_range(70..400)
    )
}
