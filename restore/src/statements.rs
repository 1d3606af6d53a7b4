//! The SQL of ordered replay for one table: staging table, COPY, and the function that applies a
//! staged run row by row on the server.
//!
//! The function walks the staged rows in the order of their number and raises unless each UPDATE
//! and DELETE hits exactly one row. Its one exception block wraps the whole loop, so it costs one
//! subtransaction a call, and adds to any error which change it was.
//!
//! A whole old row (REPLICA IDENTITY FULL) is compared as text, by the types' output functions,
//! because a type need not have an equality operator; `concat` is the one built-in that calls them
//! (a cast to text is something else for boolean, char(n), inet and xml). Of several equal rows one
//! is taken, by its ctid.

use crate::binding::{Binding, Bound, Find, Layout};
use crate::sql::literal;

/// SQLSTATE raised by our function when a change hits no row or several.
pub(crate) const NOT_ONE_ROW: &str = "LG001";

/// Separates the parts of the hint that our function adds to an error.
pub(crate) const HINT_MARK: &str = "lastgood replay";

/// Columns of a key that are shown as evidence.
const EVIDENCE_COLUMNS_MAX: usize = 16;

/// What narrows the search for a whole row to an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    /// No index: every row is compared.
    None,
    /// Columns of a primary key or other identity index: never null.
    Identity(Vec<Bound>),
    /// A column with a lookup index of ours; may be null.
    Column(Bound),
}

impl Probe {
    fn columns(&self) -> &[Bound] {
        match self {
            Probe::None => &[],
            Probe::Identity(columns) => columns,
            Probe::Column(column) => std::slice::from_ref(column),
        }
    }
}

/// The names in `pg_temp`, by the number of the table within the session.
pub(crate) struct Names {
    pub(crate) stage: String,
    pub(crate) function: String,
    /// Types of a wide table's old key and new row.
    old: String,
    new: String,
    /// Type with one value of a column that a whole row is looked up by, before the column's number.
    probe: String,
}

impl Names {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            stage: format!("pg_temp.lastgood_stage_{number}"),
            function: format!("pg_temp.lastgood_apply_{number}"),
            old: format!("pg_temp.lastgood_old_{number}"),
            new: format!("pg_temp.lastgood_new_{number}"),
            probe: format!("pg_temp.lastgood_probe_{number}_"),
        }
    }
}

/// `COPY` of new rows straight into the table; `encoding` is that of their bytes.
pub(crate) fn copy_into_table(binding: &Binding, encoding: &str) -> String {
    let table = binding.table.sql();
    let encoding = literal(encoding);
    if binding.written.is_empty() {
        return format!("COPY {table} FROM STDIN (ENCODING {encoding})");
    }
    let columns = written(binding);
    format!("COPY {table} ({columns}) FROM STDIN (ENCODING {encoding})")
}

/// The staging table; its content goes at the end of the transaction.
pub(crate) fn create_stage(binding: &Binding, names: &Names) -> String {
    let find = binding.find.columns();
    let typed = matches!(binding.find, Find::Key(_));
    let staged_type = |_, bound| binding.column(bound).staged_type.clone();
    let numbered = |letter: char, columns: &[Bound], of: &dyn Fn(usize, Bound) -> String| {
        join(columns, ", ", |at, bound| {
            format!("{letter}{at} {}", of(at, bound))
        })
    };
    let mut types = String::new();
    let mut columns = "n bigint, op \"char\", mask bit varying".to_owned();
    match binding.layout {
        Layout::Rows => {
            let mut row = |name: &str, fields: String| {
                types.push_str(&format!("CREATE TYPE {name} AS ({fields}); "));
            };
            row(&names.new, numbered('c', &binding.written, &staged_type));
            let old = match typed {
                true => {
                    row(&names.old, numbered('o', find, &staged_type));
                    &names.old
                }
                false => "text[]",
            };
            columns.push_str(&format!(", o {old}, c {}", names.new));
        }
        Layout::Columns => {
            let old = match typed {
                true => numbered('o', find, &staged_type),
                false => numbered('o', find, &|_, _| "text".to_owned()),
            };
            let new = numbered('c', &binding.written, &staged_type);
            for part in [old, new].iter().filter(|part| !part.is_empty()) {
                columns.push_str(", ");
                columns.push_str(part);
            }
        }
    }
    format!(
        "{types}CREATE TEMP TABLE {} ({columns}) ON COMMIT DELETE ROWS",
        names.stage
    )
}

pub(crate) fn copy_into_stage(names: &Names, encoding: &str) -> String {
    let encoding = literal(encoding);
    format!("COPY {} FROM STDIN (ENCODING {encoding})", names.stage)
}

/// The function that applies what is staged.
pub(crate) fn create_function(binding: &Binding, names: &Names, probe: &Probe) -> String {
    let writer = Writer { binding, names };
    let insert = writer.insert();
    let evidence = writer.evidence();
    let mut branches = format!("WHEN 'i' THEN {insert};\n");
    if !matches!(&binding.find, Find::Key(columns) if columns.is_empty()) {
        let update = writer.find(probe, |rows| writer.update(rows, false));
        let masked = writer.find(probe, |rows| writer.update(rows, true));
        let delete = writer.find(probe, |rows| writer.delete(rows));
        branches.push_str(&format!(
            "WHEN 'u' THEN {update}\nWHEN 'v' THEN {masked}\nWHEN 'd' THEN {delete}\n"
        ));
    }
    // Whole rows go into variables: PL/pgSQL takes them apart once, not at each use. They are named
    // with the block's label, so that no column can be meant.
    let (variables, unpack) = match (binding.layout, &binding.find) {
        (Layout::Columns, _) => (String::new(), ""),
        (Layout::Rows, find) => {
            let old = match find {
                Find::Key(_) => &names.old,
                Find::Row(_) => "text[]",
            };
            let variables = format!("old {old}; new {};", names.new);
            (variables, "old := r.o; new := r.c;")
        }
    };
    let body = format!(
        "<<lastgood>> DECLARE r record; hits bigint; place bigint; why text; detail text; {variables}
BEGIN
  FOR r IN SELECT * FROM {stage} ORDER BY n LOOP
    place := r.n; {unpack}
    CASE r.op
    {branches}    END CASE;
  END LOOP;
EXCEPTION WHEN OTHERS THEN
  IF place IS NULL THEN RAISE; END IF;
  GET STACKED DIAGNOSTICS why = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
  RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = why, DETAIL = detail,
    HINT = concat('{HINT_MARK} ', r.n, ' ', r.op, ' ', pg_catalog.left({evidence}, 1000));
END",
        stage = names.stage,
    );
    let mut types = String::new();
    for (at, bound) in binding.find.columns().iter().enumerate() {
        if probe.columns().contains(bound) {
            let staged_type = &binding.column(*bound).staged_type;
            types.push_str(&format!(
                "CREATE TYPE {}{at} AS (v {staged_type}); ",
                names.probe
            ));
        }
    }
    format!(
        "{types}CREATE FUNCTION {}() RETURNS void LANGUAGE plpgsql AS {}",
        names.function,
        literal(&body)
    )
}

fn written(binding: &Binding) -> String {
    join(&binding.written, ", ", |_, bound| {
        binding.column(bound).sql()
    })
}

fn join(columns: &[Bound], separator: &str, text: impl Fn(usize, Bound) -> String) -> String {
    let each = columns.iter().enumerate();
    let texts: Vec<String> = each.map(|(at, bound)| text(at, *bound)).collect();
    texts.join(separator)
}

struct Writer<'a> {
    binding: &'a Binding,
    names: &'a Names,
}

impl Writer<'_> {
    /// The staged old value, typed for a key and text for a whole row.
    fn staged_old(&self, at: usize) -> String {
        match (self.binding.layout, &self.binding.find) {
            (Layout::Columns, _) => format!("r.o{at}"),
            (Layout::Rows, Find::Row(_)) => format!("lastgood.old[{}]", at + 1),
            (Layout::Rows, Find::Key(_)) => format!("lastgood.old.o{at}"),
        }
    }

    fn staged(&self, at: usize) -> String {
        match self.binding.layout {
            Layout::Columns => format!("r.c{at}"),
            Layout::Rows => format!("lastgood.new.c{at}"),
        }
    }

    /// The staged text of a whole row's column as a value. Not by a cast: where one from text exists
    /// (`regclass`, or a user's own) it need not understand what the type prints. A composite's input
    /// is that of its fields.
    fn typed_old(&self, at: usize) -> String {
        let old = self.staged_old(at);
        format!(
            r#"(CAST(concat('("', replace(replace({old}, '\', '\\'), '"', '""'), '")') AS {}{at})).v"#,
            self.names.probe
        )
    }

    fn insert(&self) -> String {
        let table = self.binding.table.sql();
        if self.binding.written.is_empty() {
            return format!("INSERT INTO {table} DEFAULT VALUES");
        }
        let values = join(&self.binding.written, ", ", |at, _| self.staged(at));
        format!(
            "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE VALUES ({values})",
            written(self.binding)
        )
    }

    fn update(&self, rows: &str, masked: bool) -> String {
        let set = join(&self.binding.written, ", ", |at, bound| {
            let column = self.binding.column(bound);
            let (name, new) = (column.sql(), self.staged(at));
            if masked && column.toastable {
                format!("{name} = CASE WHEN get_bit(r.mask, {at}) = 1 THEN t.{name} ELSE {new} END")
            } else {
                format!("{name} = {new}")
            }
        });
        let table = self.binding.table.sql();
        match set.is_empty() {
            // Nothing but generated columns: the row itself is all there is to change.
            true => format!("PERFORM FROM ONLY {table} AS t WHERE {rows}"),
            false => format!("UPDATE ONLY {table} AS t SET {set} WHERE {rows}"),
        }
    }

    fn delete(&self, rows: &str) -> String {
        format!(
            "DELETE FROM ONLY {} AS t WHERE {rows}",
            self.binding.table.sql()
        )
    }

    /// A statement over the row looked for, and the check that it was exactly one.
    fn find(&self, probe: &Probe, statement: impl Fn(&str) -> String) -> String {
        let check = format!(
            "GET DIAGNOSTICS hits = ROW_COUNT; IF hits <> 1 THEN \
             RAISE EXCEPTION USING ERRCODE = '{NOT_ONE_ROW}', MESSAGE = concat(hits, ' rows'); END IF;"
        );
        let columns = match &self.binding.find {
            Find::Key(columns) => {
                let rows = join(columns, " AND ", |at, bound| self.same_key("t", at, bound));
                return format!("{}; {check}", statement(&rows));
            }
            Find::Row(columns) => columns,
        };
        let one = |narrowed: &str| {
            let rows = join(columns, "", |at, bound| {
                format!(" AND {}", self.same_text(at, bound))
            });
            statement(&format!(
                "t.ctid = (SELECT x.ctid FROM ONLY {} AS x WHERE {narrowed}true{rows} LIMIT 1)",
                self.binding.table.sql()
            ))
        };
        let place = |bound: Bound| columns.iter().position(|column| *column == bound);
        match probe {
            Probe::None => format!("{}; {check}", one("")),
            Probe::Identity(probes) => {
                let narrowed = join(probes, "", |_, bound| match place(bound) {
                    Some(at) => format!("{} AND ", self.same_key("x", at, bound)),
                    None => String::new(),
                });
                format!("{}; {check}", one(&narrowed))
            }
            Probe::Column(bound) => {
                let Some(at) = place(*bound) else {
                    return format!("{}; {check}", one(""));
                };
                format!(
                    "IF {} IS NULL THEN {}; ELSE {}; END IF; {check}",
                    self.staged_old(at),
                    one(""),
                    one(&format!("{} AND ", self.same_key("x", at, *bound)))
                )
            }
        }
    }

    /// Equality as the index has it that the row is found by: the identity's, else a lookup index.
    fn same_key(&self, alias: &str, at: usize, bound: Bound) -> String {
        let column = self.binding.column(bound);
        let name = column.sql();
        let old = match self.binding.find {
            Find::Key(_) => self.staged_old(at),
            Find::Row(_) => self.typed_old(at),
        };
        let operator = column
            .equality
            .as_deref()
            .or(column.hash_equality.as_deref());
        let operator = operator.unwrap_or("OPERATOR(pg_catalog.=)");
        match &column.collation {
            Some(collation) => format!("{alias}.{name} {operator} {old} COLLATE {collation}"),
            None => format!("{alias}.{name} {operator} {old}"),
        }
    }

    /// Equality of the text form; a null equals a null.
    fn same_text(&self, at: usize, bound: Bound) -> String {
        let (name, old) = (self.binding.column(bound).sql(), self.staged_old(at));
        format!(
            "CASE WHEN {old} IS NULL THEN x.{name} IS NOT DISTINCT FROM NULL \
             ELSE x.{name} IS DISTINCT FROM NULL AND concat(x.{name}) = {old} COLLATE \"C\" END"
        )
    }

    /// The old key, or an INSERT's new one, as text for the error.
    fn evidence(&self) -> String {
        let shown = |columns: &[Bound], value: &dyn Fn(usize, Bound) -> String| {
            let columns = columns.get(..EVIDENCE_COLUMNS_MAX).unwrap_or(columns);
            join(columns, ", ', ', ", |at, bound| {
                let name = literal(&format!("{}=", self.binding.column(bound).name));
                format!("{name}, {}", value(at, bound))
            })
        };
        let old = shown(self.binding.find.columns(), &|at, _| self.staged_old(at));
        let keys: Vec<(usize, Bound)> = self
            .binding
            .written
            .iter()
            .enumerate()
            .filter(|(_, bound)| self.binding.find.columns().contains(bound))
            .map(|(at, bound)| (at, *bound))
            .collect();
        let bounds: Vec<Bound> = keys.iter().map(|(_, bound)| *bound).collect();
        let new = shown(&bounds, &|at, _| {
            self.staged(keys.get(at).map_or(at, |(place, _)| *place))
        });
        let concat = |parts: String| match parts.is_empty() {
            true => "''".to_owned(),
            false => format!("concat({parts})"),
        };
        format!(
            "CASE r.op WHEN 'i' THEN {} ELSE {} END",
            concat(new),
            concat(old)
        )
    }
}
