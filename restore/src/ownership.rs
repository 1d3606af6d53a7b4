//! Owners and privileges: applied last, statement by statement, where the role exists and we may.
//!
//! `pg_restore` writes each archive's SQL with owners and without; what the first has and the second
//! has not are the statements that set owners. So nothing has to be guessed from names, and no text
//! inside a function can be taken for a statement.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_pg::dump::ArchiveMaker;
use lastgood_pg::{PgTools, Purpose, Session};
use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::BaseManifest;
use lastgood_store::SourceStore;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::archive::{self, Archives, Head};
use crate::execute::major;
use crate::plan::Plan;
use crate::selection::identifier;
use crate::sql::ends_statement;
use crate::{Error, Into};

/// The roles that own something in the plan's base or have privileges there and are not at the place
/// it is to be restored to.
///
/// # Errors
/// If the server or the base cannot be asked.
pub async fn missing_roles(
    plan: &Plan,
    store: &SourceStore,
    into: &Into,
) -> Result<Vec<String>, Error> {
    // All of it will belong to the role that restores.
    if plan.schema().is_some() {
        return Ok(Vec::new());
    }
    let manifest = SourceObject::Manifest(plan.lineage, plan.base.id);
    let manifest: BaseManifest = store.get_json(&manifest).await?;
    let session = Session::connect(&into.connection, Purpose::Restore).await?;
    let maker = ArchiveMaker(major(&manifest.pg_dump_version));
    let found = PgTools::discover().await;
    let tools = PgTools::for_restore(&found, session.server_version(), maker)?;
    let archives = Archives {
        store,
        lineage: plan.lineage,
        base: plan.base.id,
        tools: &tools,
    };
    let head = archives.head().await?;
    let roles = missing(session.client(), &archives, &head).await?;
    session.close().await;
    Ok(roles)
}

/// Those roles that the server does not have.
pub(crate) async fn missing(
    client: &Client,
    archives: &Archives<'_>,
    head: &Head,
) -> Result<Vec<String>, Error> {
    let statements = statements(archives, head).await?;
    let named: BTreeSet<String> = statements.iter().filter_map(|text| role(text)).collect();
    let named: Vec<String> = named.into_iter().collect();
    let sql = "SELECT name FROM unnest($1::text[]) name
                WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) ORDER BY 1";
    let missing = client.query(sql, &[&named]).await?;
    let names = missing.iter().map(|row| row.try_get(0));
    Ok(names.collect::<Result<_, _>>()?)
}

/// Whom a statement names: who owns, or who may. (What it names besides may be called anything.)
fn role(statement: &str) -> Option<String> {
    [" TO ", " FROM ", "SET SESSION AUTHORIZATION "]
        .iter()
        .flat_map(|word| statement.match_indices(word))
        .filter_map(|(at, word)| identifier(&statement[at + word.len()..]).ok())
        .find(|(_, rest)| matches!(*rest, ";" | " WITH GRANT OPTION;"))
        .map(|(name, _)| name)
        .filter(|name| name != "public")
}

/// Applies what can be applied; answers what could not. `pruned`: some of the objects were dropped
/// again.
pub(crate) async fn apply(
    client: &Client,
    archives: &Archives<'_>,
    head: &Head,
    pruned: bool,
) -> Result<Vec<String>, Error> {
    let mut statements = statements(archives, head).await?;
    statements.retain(|statement| !is_of_capture(statement));

    // One role that is missing may own ten thousand tables: one note.
    let mut refused: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for statement in statements {
        let Err(error) = client.batch_execute(&statement).await else {
            continue;
        };
        let Some(reported) = error.as_db_error() else {
            return Err(error.into());
        };
        let code = reported.code();
        let is_gone = [
            &SqlState::UNDEFINED_TABLE,
            &SqlState::UNDEFINED_FUNCTION,
            &SqlState::UNDEFINED_OBJECT,
            &SqlState::INVALID_SCHEMA_NAME,
        ];
        // Of what a partial restore has dropped again; a role that is missing is told below.
        if pruned && is_gone.contains(&code) && !reported.message().starts_with("role ") {
            continue;
        }
        match code {
            &SqlState::UNDEFINED_OBJECT | &SqlState::INSUFFICIENT_PRIVILEGE => {
                let message = reported.message().to_owned();
                refused.entry(message).or_insert((0, statement)).0 += 1;
            }
            // A sequence goes with its table, and the table has been refused.
            &SqlState::FEATURE_NOT_SUPPORTED if statement.starts_with("ALTER SEQUENCE ") => {}
            &SqlState::FEATURE_NOT_SUPPORTED if statement.starts_with("ALTER TABLE ") => {}
            _ => {
                return Err(Error::Statement {
                    statement,
                    source: error,
                });
            }
        }
    }
    client.batch_execute("RESET SESSION AUTHORIZATION").await?;
    let note = |(message, (count, statement)): (String, (u64, String))| match count {
        1 => format!("not kept: {statement} ({message})"),
        _ => format!(
            "not kept: {statement} and {} more of the kind ({message})",
            count - 1
        ),
    };
    Ok(refused.into_iter().map(note).collect())
}

/// The event triggers that capture has on the source are not restored.
fn is_of_capture(statement: &str) -> bool {
    let name = statement.strip_prefix("ALTER EVENT TRIGGER ");
    name.is_some_and(archive::is_trigger_of_capture)
}

/// What sets owners and privileges.
async fn statements(archives: &Archives<'_>, head: &Head) -> Result<Vec<String>, Error> {
    let plain = ["--no-privileges", "--no-owner", "--schema-only"];
    let without = archives.script(head, None, &plain).await?;
    let with = archives
        .script(head, None, &["--no-privileges", "--schema-only"])
        .await?;
    let mut statements = added(&without, &with);

    let grants: Vec<_> = head
        .entries
        .iter()
        .filter(|entry| matches!(entry.kind(), "ACL" | "DEFAULT ACL"))
        .collect();
    if !grants.is_empty() {
        let script = archives.script(head, Some(&grants), &[]).await?;
        statements.extend(split(&script));
    }
    Ok(statements)
}

/// The lines that `with` has in addition, those that follow each other as one statement. Both have
/// the same lines in the same order otherwise, but for the comments that name an owner.
fn added(without: &str, with: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    // Each run of the tool has a key of its own for psql.
    let keyed =
        |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    let mut plain = without.lines().filter(keyed).peekable();
    for line in with.lines().filter(keyed) {
        let same = plain.peek().is_some_and(|other| {
            *other == line || line.starts_with("-- ") && names_owner(line) && names_owner(other)
        });
        if same {
            plain.next();
            if !statement.is_empty() {
                statements.push(std::mem::take(&mut statement));
            }
        } else if !line.is_empty() {
            if !statement.is_empty() {
                statement.push('\n');
            }
            statement.push_str(line);
        }
    }
    if !statement.is_empty() {
        statements.push(statement);
    }
    statements
}

fn names_owner(line: &str) -> bool {
    line.starts_with("-- ") && line.contains("; Owner: ")
}

/// The statements of a script that has nothing but GRANT, REVOKE, SET and ALTER DEFAULT PRIVILEGES.
fn split(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    for line in script.lines() {
        if statement.is_empty()
            && (line.is_empty() || line.starts_with("--") || line.starts_with('\\'))
        {
            continue;
        }
        if !statement.is_empty() {
            statement.push('\n');
        }
        statement.push_str(line);
        if ends_statement(&statement) {
            statements.push(std::mem::take(&mut statement));
        }
    }
    let wanted = [
        "GRANT ",
        "REVOKE ",
        "ALTER DEFAULT PRIVILEGES ",
        "SET SESSION AUTHORIZATION ",
    ];
    statements.retain(|statement| {
        wanted.iter().any(|start| statement.starts_with(start))
            || statement.starts_with("RESET SESSION AUTHORIZATION")
    });
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_sets_an_owner() {
        let head = "--\n-- PostgreSQL database dump\n--\n\n";
        let without = format!(
            "{head}\\restrict a\n--\n-- Name: t; Type: TABLE; Schema: public; Owner: -\n--\n\nCREATE TABLE public.t (\n    id integer\n);\n\n\n--\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: -\n--\n\nCREATE FUNCTION f() AS $$\nALTER TABLE x OWNER TO y;\n$$;\n\n\n"
        );
        let with = format!(
            "{head}\\restrict b\n--\n-- Name: t; Type: TABLE; Schema: public; Owner: bob\n--\n\nCREATE TABLE public.t (\n    id integer\n);\n\n\nALTER TABLE public.t OWNER TO bob;\n\n--\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: eve\n--\n\nCREATE FUNCTION f() AS $$\nALTER TABLE x OWNER TO y;\n$$;\n\n\nALTER FUNCTION f() OWNER TO \"a\nb\";\n\n"
        );
        assert_eq!(
            added(&without, &with),
            [
                "ALTER TABLE public.t OWNER TO bob;",
                "ALTER FUNCTION f() OWNER TO \"a\nb\";"
            ]
        );
    }

    #[test]
    fn whom_a_statement_names() {
        for (statement, name) in [
            (
                "ALTER TABLE public.\" TO x;\" OWNER TO \"a TO b\";",
                Some("a TO b"),
            ),
            (
                "GRANT SELECT,UPDATE(c) ON TABLE public.t TO eve WITH GRANT OPTION;",
                Some("eve"),
            ),
            (
                "REVOKE ALL ON TABLE public.\" FROM bob;\" FROM \"Eve \"\"E\"\"\";",
                Some("Eve \"E\""),
            ),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA s GRANT ALL ON TABLES TO ann;",
                Some("ann"),
            ),
            ("SET SESSION AUTHORIZATION carl;", Some("carl")),
            ("RESET SESSION AUTHORIZATION;", None),
            ("GRANT USAGE ON SCHEMA public TO PUBLIC;", None),
        ] {
            assert_eq!(role(statement).as_deref(), name, "{statement}");
        }
    }

    #[test]
    fn grants() {
        let script = "--\n-- x\n--\n\nSET statement_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\n\n--\n-- Name: TABLE t; Type: ACL\n--\n\nREVOKE ALL ON TABLE public.t FROM bob;\nGRANT SELECT ON TABLE public.\"a;\nb\" TO eve;\n";
        assert_eq!(
            split(script),
            [
                "REVOKE ALL ON TABLE public.t FROM bob;",
                "GRANT SELECT ON TABLE public.\"a;\nb\" TO eve;"
            ]
        );
    }
}
