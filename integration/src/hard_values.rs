//! The hard values of every type that a column can have: those that a float printed too short, a
//! careless quote, a wrong setting or an equality that is not identity would change.
//!
//! A value is what one would write between quotes. The tests compare the list with `pg_type`, so a
//! type that a new major brings is missing here until somebody adds it.

/// A type and its values; two at least.
#[derive(Debug, Clone)]
pub struct HardType {
    /// `pg_type.typname`.
    pub name: &'static str,
    /// As a column declares it.
    pub sql: &'static str,
    /// The extension that brings it, if it is not built in.
    pub extension: Option<&'static str>,
    /// The first major that has it.
    pub since: u32,
    pub values: Vec<String>,
}

/// Types that a column may have and no value can be written for: their input functions refuse
/// everything, so neither a dump nor a replay can bring one back, and both say so.
pub const WITHOUT_INPUT: &[&str] = &[
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
];

/// The objects that values of `regclass` and its friends name.
pub const OBJECTS: &str = r#"
CREATE SCHEMA "Odd ""Schema""";
CREATE TYPE "Odd ""Schema"""."mood 'x'" AS ENUM ('sad', 'it''s', 'a,b', '"q"', '{', '', 'größe', E'\\', ' ', 'NULL', '(x)');
CREATE TABLE "Odd ""Schema"""."Täble.日本" (id int);
CREATE FUNCTION "Odd ""Schema"""."fünc"(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
"#;

/// Those of one major, extensions included.
#[must_use]
pub fn all(major: u32) -> Vec<HardType> {
    let mut types = scalars(major);
    types.extend(texts());
    types.extend(times(major));
    types.extend(shapes());
    types.extend(networks_and_ids());
    types.extend(search_and_objects());
    types.extend(ranges(major));
    types.extend(extensions());
    types.retain(|hard| major >= hard.since);
    types
}

fn hard(name: &'static str, values: &[&str]) -> HardType {
    HardType {
        name,
        sql: name,
        extension: None,
        since: 13,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

impl HardType {
    fn sql(mut self, sql: &'static str) -> Self {
        self.sql = sql;
        self
    }

    fn since(mut self, since: u32) -> Self {
        self.since = since;
        self
    }

    fn of(mut self, extension: &'static str) -> Self {
        self.extension = Some(extension);
        self
    }

    fn and(mut self, values: impl IntoIterator<Item = String>) -> Self {
        self.values.extend(values);
        self
    }

    fn from(self, major: u32, since: u32, values: &[&str]) -> Self {
        let known: &[&str] = if major >= since { values } else { &[] };
        self.and(known.iter().map(|value| (*value).to_owned()))
    }
}

fn scalars(major: u32) -> Vec<HardType> {
    let wide = "9".repeat(3000);
    vec![
        hard("bool", &["t", "f"]),
        hard("int2", &["0", "-32768", "32767"]),
        hard("int4", &["0", "-2147483648", "2147483647"]),
        hard(
            "int8",
            &["0", "-9223372036854775808", "9223372036854775807"],
        ),
        hard(
            "float4",
            &[
                "0",
                "-0",
                "NaN",
                "Infinity",
                "-Infinity",
                "1e-45",
                "-1e-45",
                "1.1754942e-38",
                "1.17549435e-38",
                "3.4028235e38",
                "0.1",
                "0.3",
                "16777217",
                "1.00000012",
            ],
        ),
        hard(
            "float8",
            &[
                "0",
                "-0",
                "NaN",
                "Infinity",
                "-Infinity",
                "5e-324",
                "2.225073858507201e-308",
                "2.2250738585072014e-308",
                "1.7976931348623157e308",
                "0.1",
                "0.30000000000000004",
                "0.3",
                "1e22",
                "1e23",
                "9007199254740993",
                "123456789.12345679",
                "1.0000000000000002",
            ],
        ),
        hard(
            "numeric",
            &[
                "0",
                "0.0",
                "-0.00",
                "1",
                "1.0",
                "1.00",
                "100",
                "1e2",
                "-1",
                "NaN",
                "1e400",
                "1e-400",
                "-0.000000000000000000001",
                "123456789012345678901234567890.5",
                "1e5000",
            ],
        )
        .from(major, 14, &["Infinity", "-Infinity"])
        .and([format!("{wide}.{wide}")]),
        hard("numeric", &["0", "1.50", "-999999999.999", "NaN"]).sql("numeric(12,3)"),
        hard(
            "money",
            &[
                "0",
                "-0.01",
                "1234567.89",
                "92233720368547758.07",
                "-92233720368547758.08",
            ],
        ),
        hard("oid", &["0", "4294967295"]),
        hard("xid", &["0", "4294967295"]),
        hard("xid8", &["0", "18446744073709551615"]),
        hard("cid", &["0", "4294967295"]),
        hard("tid", &["(0,0)", "(4294967295,65535)"]),
        hard("int2vector", &["", "1 -32768 32767"]),
        hard("oidvector", &["", "1 2 4294967295"]),
        hard("bit", &["00000", "10101", "11111"]).sql("bit(5)"),
        hard("varbit", &["", "0", "00", "1"]).and(["10".repeat(777)]),
        hard("bytea", &["\\x", "\\x00", "\\x5c5c270a0d09", "\\xffFE"]).and([
            (0..=255).fold("\\x".to_owned(), |hex, byte| hex + &format!("{byte:02x}")),
            "\\x".to_owned() + &"00ff".repeat(4000),
        ]),
        hard("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
        hard("pg_snapshot", &["1:1:", "10:20:10,14,15"]),
        hard("txid_snapshot", &["1:1:", "10:20:10,14,15"]),
    ]
}

/// Every character from U+0001 to U+0100, and those that broke somebody's code.
fn characters() -> String {
    let low = (1..=256).filter_map(char::from_u32);
    low.chain("\u{2028}\u{feff}\u{fffd}\u{10ffff}日本🦀e\u{301}".chars())
        .collect()
}

fn texts() -> Vec<HardType> {
    let plain = [
        "",
        " ",
        "a",
        "A",
        "a ",
        "\\N",
        "\\.",
        "\\",
        "NULL",
        "'",
        "\"",
        "{}",
        "\t\n\r\u{b}\u{1}",
        "é",
        "e\u{301}",
        "日本 🦀",
        "\u{feff}",
        "$$ -- %s",
    ];
    vec![
        hard("text", &plain).and([characters(), "x\\\"'".repeat(3000)]),
        hard("varchar", &plain).sql("varchar(40)"),
        hard("varchar", &plain),
        hard("bpchar", &["", "a", "a\t", "abcde", "é", "日本 🦀x"]).sql("char(5)"),
        hard("bpchar", &["", " ", "a", "a ", "a  "]),
        hard("char", &["", "a", "'", "\\", " "]).sql("\"char\""),
        hard("name", &["", "a", "\"Q\" 'é'"]).and(["n".repeat(63), "é".repeat(31)]),
        hard("refcursor", &["", "odd \"c\""]),
        hard(
            "json",
            &[
                "{\"b\":1, \"a\": [1,2,  3], \"a\": null}",
                "{\"b\":1,\"a\":[1,2,3],\"a\":null}",
                " [ ] ",
                "\"\\u0000\"",
                "1e3",
                "-0",
                "1.0",
                "\"\\u00e9 \\\" \"",
                "null",
                "{}",
            ],
        ),
        hard(
            "jsonb",
            &[
                "{\"b\":1,\"a\":[1,2,3]}",
                "[]",
                "\"x\\ny\\u0001\"",
                "1.0",
                "1.00",
                "1",
                "null",
                "{\"\":{}}",
                "12345678901234567890.123",
                "1e400",
                "[1.0]",
                "[1.00]",
            ],
        ),
        hard(
            "jsonpath",
            &[
                "$",
                "strict $.\"a b\"[*] ? (@.b > 1 && @.c like_regex \"^x\" flag \"i\").d",
                "lax $.\"q\\\"\".**{2 to 5}",
            ],
        ),
        hard(
            "xml",
            &[
                "",
                "<a/>",
                "<a></a>",
                "abc<foo>bar &amp; </foo> <bar>é</bar>",
                "<!DOCTYPE a [<!ENTITY e \"x\">]><a>&e;</a>",
                "<?xml version=\"1.0\" standalone=\"yes\"?><a/>",
                "<![CDATA[ ]]><!-- c -->",
            ],
        ),
        hard(
            "uuid",
            &[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
        ),
    ]
}

fn times(major: u32) -> Vec<HardType> {
    vec![
        hard(
            "date",
            &[
                "2000-01-01",
                "4714-11-24 BC",
                "0001-12-31 BC",
                "0044-03-15 BC",
                "5874897-12-31",
                "infinity",
                "-infinity",
                "1582-10-10",
            ],
        ),
        hard(
            "time",
            &["00:00", "24:00", "12:34:56.789012", "00:00:00.000001"],
        ),
        hard(
            "timetz",
            &[
                "00:00+15:59:59",
                "24:00-15:59:59",
                "12:00+00",
                "12:00+02",
                "10:00+00",
                "12:34:56.789012-03:30",
            ],
        ),
        hard(
            "timestamp",
            &[
                "2026-11-20 20:00:00.000001",
                "4714-11-24 00:00 BC",
                "294276-12-31 23:59:59.999999",
                "infinity",
                "-infinity",
                "0001-12-31 23:59:59 BC",
            ],
        ),
        hard(
            "timestamptz",
            &[
                "2026-11-20 20:00:00.123456+02",
                "4714-11-24 00:00:00+00 BC",
                "294276-12-31 23:59:59.999999+00",
                "infinity",
                "-infinity",
                "1900-01-01 00:00:00+01:23",
                "2026-10-25 02:30:00 Europe/Berlin",
            ],
        ),
        hard("timestamptz", &["2026-11-20 20:00:00.126+02", "infinity"]).sql("timestamptz(2)"),
        hard(
            "interval",
            &[
                "0",
                "1 day",
                "24:00:00",
                "1 mon",
                "30 days",
                "720:00:00",
                "1 mon -30 days",
                "1 year -2 mons +3 days -04:05:06.7",
                "-178000000 years",
                "178000000 years",
                "-00:00:00.000001",
                "2147483646 mons 2147483646 days",
                "-1 days +02:03:00",
            ],
        )
        .from(major, 17, &["infinity", "-infinity"]),
        hard("interval", &["1-2", "-3 years"]).sql("interval year to month"),
    ]
}

fn shapes() -> Vec<HardType> {
    vec![
        hard(
            "point",
            &[
                "(1,2)",
                "(-0,0)",
                "(0,0)",
                "(NaN,Infinity)",
                "(5e-324,1.7976931348623157e308)",
            ],
        ),
        hard("lseg", &["[(0,0),(1,1)]", "[(-0,0),(0.1,1e300)]"]),
        hard("path", &["[(0,0),(1,1)]", "((0,0),(1,1))", "((0.1,-0))"]),
        hard("box", &["(1,1),(0,0)", "(0.3,5),(0.1,-0)"]),
        hard(
            "polygon",
            &["((0,0))", "((0,0),(-0,1),(0.30000000000000004,0))"],
        ),
        hard("line", &["{1,-1,0}", "{0,1,-0}"]),
        hard(
            "circle",
            &["<(0,0),0>", "<(-0,0.1),1e300>", "<(0,0),Infinity>"],
        ),
    ]
}

fn networks_and_ids() -> Vec<HardType> {
    vec![
        hard(
            "inet",
            &[
                "10.0.0.1",
                "10.0.0.1/8",
                "0.0.0.0/0",
                "::",
                "::1/0",
                "::ffff:1.2.3.4",
                "fe80::1/64",
                "192.168.1.5/24",
            ],
        ),
        hard(
            "cidr",
            &["10.0.0.0/8", "10.0.0.0/32", "2001:db8::/32", "::/0"],
        ),
        hard("macaddr", &["08:00:2b:01:02:03", "00:00:00:00:00:00"]),
        hard(
            "macaddr8",
            &["08:00:2b:01:02:03:04:05", "08:00:2b:ff:fe:01:02:03"],
        ),
        hard(
            "aclitem",
            &[
                "postgres=arwdDxt/postgres",
                "=r/postgres",
                "postgres=r*/postgres",
            ],
        ),
    ]
}

fn search_and_objects() -> Vec<HardType> {
    let odd = "\"Odd \"\"Schema\"\"\"";
    let own = |name: &str| [format!("{odd}.{name}")];
    vec![
        hard(
            "tsvector",
            &["", "a:1A fat:2B,4C cat:5D", "'it''s' '\\\\' 'A B':16383"],
        ),
        hard(
            "tsquery",
            &["", "'fat' & (!'rat' | 'cat':*AB) <2> x", "'it''s' & '\\\\'"],
        ),
        hard(
            "regclass",
            &["-", "pg_class", "information_schema.tables", "123456789"],
        )
        .and(own("\"Täble.日本\"")),
        hard(
            "regtype",
            &[
                "-",
                "integer",
                "text[]",
                "timestamp with time zone",
                "\"char\"",
                "interval",
            ],
        )
        .and(own("\"mood 'x'\"")),
        hard("regproc", &["-", "now", "information_schema._pg_truetypid"]).and(own("\"fünc\"")),
        hard("regprocedure", &["-", "now()", "sum(integer)"]).and(own("\"fünc\"(integer)")),
        hard("regoper", &["0", "pg_catalog.||/"]),
        hard(
            "regoperator",
            &["0", "+(integer,integer)", "-(NONE,integer)"],
        ),
        hard("regnamespace", &["-", "pg_catalog"]).and([odd.to_owned()]),
        hard("regrole", &["-", "postgres", "pg_monitor"]),
        hard("regcollation", &["-", "\"C\"", "\"POSIX\""]),
        hard("regconfig", &["-", "simple", "german"]),
        hard("regdictionary", &["-", "simple", "german_stem"]),
    ]
}

fn ranges(major: u32) -> Vec<HardType> {
    let numbers = ["empty", "(,)", "[1,10)", "(,5)", "[-3,)"];
    let sets = ["{}", "{(,)}", "{[1,2),[5,9)}", "{(,0),[7,)}"];
    let times = [
        "empty",
        "[2026-01-01,infinity]",
        "(-infinity,2026-01-01 00:00:00.000001)",
        "[infinity,)",
    ];
    let spans = ["{}", "{[2026-01-01,2026-01-02),(2026-01-03,)}"];
    vec![
        hard("int4range", &numbers),
        hard("int8range", &numbers),
        hard("numrange", &numbers).and(["[1.0,2.00]", "[1,2]", "(,NaN]"].map(str::to_owned)),
        hard(
            "daterange",
            &[
                "empty",
                "[2026-01-01,infinity)",
                "[2026-01-01,infinity]",
                "[0044-03-15 BC,)",
            ],
        ),
        hard("tsrange", &times),
        hard("tstzrange", &times),
        hard("int4multirange", &sets).since(14),
        hard("int8multirange", &sets).since(14),
        hard("nummultirange", &sets)
            .and(["{[1.0,2.00]}".to_owned()])
            .since(14),
        hard("datemultirange", &spans).since(14),
        hard("tsmultirange", &spans).since(14),
        hard("tstzmultirange", &spans).since(14),
    ]
    .into_iter()
    .filter(|range| range.since <= major)
    .collect()
}

fn extensions() -> Vec<HardType> {
    vec![
        hard(
            "hstore",
            &[
                "",
                "a=>1",
                "\"a b\"=>NULL, \"q\\\"x\"=>\"y\\\\z\"",
                "\"NULL\"=>\"NULL\", é=>\"\"",
            ],
        )
        .of("hstore"),
        hard("citext", &["", "abc", "ABC", "aBc", "É", "é", "abc "]).of("citext"),
        hard("ltree", &["", "Top.Science.Astronomy", "a_1.B"]).of("ltree"),
        hard("lquery", &["*", "*.foo|bar@*{1,3}.!x"]).of("ltree"),
        hard("ltxtquery", &["a", "Europe & Russia@* & !Transportation"]).of("ltree"),
        hard(
            "cube",
            &[
                "(0)",
                "(-0)",
                "(1,2),(3,4)",
                "(0.1,1e-300,5e-324)",
                "(3,4),(1,2)",
            ],
        )
        .of("cube"),
        hard(
            "seg",
            &[
                "1",
                "1.0",
                "1.00",
                "~6.50",
                "<1 .. 2.50e5",
                "0 .. ",
                " .. 7",
            ],
        )
        .of("seg"),
        hard("query_int", &["1", "1&(2|!3)"]).of("intarray"),
        hard("ean13", &["978-0-11-000322-1", "0220500896372"]).of("isn"),
        hard("isbn13", &["978-0-11-000322-1", "978-0-393-04002-9"]).of("isn"),
        hard("isbn", &["0-11-000322-5", "0-393-04002-X"]).of("isn"),
        hard("issn", &["1436-4522", "0317-8471"]).of("isn"),
        hard("issn13", &["977-1436-452-00-8", "977-0317-847-00-1"]).of("isn"),
        hard("ismn", &["M-010-05510-7", "M-060-11561-5"]).of("isn"),
        hard("ismn13", &["979-0-010-05510-7", "979-0-060-11561-5"]).of("isn"),
        hard("upc", &["220500896372", "036000291452"]).of("isn"),
    ]
}
