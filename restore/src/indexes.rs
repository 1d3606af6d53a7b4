//! The indexes of chosen tables, from a dump's own text: each needs what its columns do not.

use std::collections::HashSet;

use tokio_postgres::Client;

use crate::Error;
use crate::relations::{Name, qualified, strip_any};
use crate::selection::identifier;

/// What stands before each definition of a script, and before its end.
const HEADER: &str = "\n--\n-- ";

/// Those statements of a script of indexes and constraints that belong to chosen tables.
pub(crate) fn statements(script: &str, chosen: &HashSet<Name>) -> Vec<String> {
    let definitions = script.split(HEADER).skip(1);
    let statements = definitions.filter_map(|definition| definition.split_once("\n--\n\n"));
    statements
        .filter(|(_, statement)| table(statement).is_some_and(|table| chosen.contains(&table)))
        .map(|(_, statement)| statement.trim().to_owned())
        .collect()
}

fn table(statement: &str) -> Option<Name> {
    let rest = match strip_any(statement, &["CREATE INDEX ", "CREATE UNIQUE INDEX "]) {
        Some(rest) => identifier(rest).ok()?.1.strip_prefix(" ON ")?,
        None => statement.strip_prefix("ALTER TABLE ")?,
    };
    let rest = rest.strip_prefix("ONLY ").unwrap_or(rest);
    Some(qualified(rest)?.0)
}

/// Makes them of tables that are empty still, in a transaction that is given up afterwards, so that
/// the server knows what they need. What cannot be made so is left to when it is made in earnest.
pub(crate) async fn try_out(client: &Client, statements: &[String]) -> Result<(), Error> {
    for statement in statements {
        client.batch_execute("SAVEPOINT before_index").await?;
        match client.batch_execute(statement).await {
            Err(error) if error.as_db_error().is_some() => {
                client.batch_execute("ROLLBACK TO before_index").await?;
            }
            made => made?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_chosen_tables_only() {
        let head =
            |name: &str| format!("--\n-- Name: {name}; Type: X; Schema: public; Owner: -\n--\n\n");
        let own = [
            "CREATE UNIQUE INDEX \"a ON b\" ON ONLY public.\"T, 1\" USING btree (id) WHERE (note <> ';\n'::text);",
            "ALTER TABLE ONLY public.\"T, 1\"\n    ADD CONSTRAINT t_key EXCLUDE USING gist (id WITH =);",
            "CREATE INDEX i ON public.\"T, 1\" USING gin (name public.gin_trgm_ops);",
        ];
        let mut script = "SET x = 1;\n\n".to_owned();
        for statement in [
            own[0],
            "CREATE INDEX j ON public.other USING btree (\"T, 1\");",
            own[1],
            "ALTER INDEX public.i ATTACH PARTITION public.j;",
            own[2],
        ] {
            script.push_str(&format!("{}{statement}\n\n\n", head("n")));
        }
        script.push_str("--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict a\n");
        let chosen = HashSet::from([("public".to_owned(), "T, 1".to_owned())]);
        assert_eq!(statements(&script, &chosen), own);
    }
}
