//! DDL, told by the source itself: an event trigger of ours leaves a message in the transaction that
//! alters something, so its place among the rows is exact.
//!
//! A user's DDL never fails because of it: what it reads of the command it reads in a block that
//! swallows errors, and writing a message takes no lock and has no condition but the right to do it, which is
//! asked first. That block writes nothing, so it costs no transaction id. A command's text is left out: it
//! may hold passwords.
//!
//! The trigger needs a right that few roles have, and PostgreSQL 14, since 13 sends no messages. Without it changes are
//! seen by looking (`shape`), and lie between two looks.

use lastgood_pg::Session;
use lastgood_proto::{Lsn, PgTimestamp, SourceId};
use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, chain};
use crate::remove::Removal;

/// Of the messages.
pub(crate) const PREFIX: &[u8] = b"lastgood.ddl";

/// The first version that sends messages.
const MESSAGES_SINCE: u32 = 140_000;

/// Fires at the end of each command, and for what it drops. Whether something is temporary is told by its schema, or by
/// `is_temporary`; only sessions that have anything temporary are asked. 3577 is
/// `pg_logical_emit_message(boolean, text, text)` in `pg_proc.dat`. Materialized views are filled again
/// without being altered.
const BODY: &str = r"
DECLARE
    names text;
    is_temporary boolean;
BEGIN
    IF tg_tag = 'REFRESH MATERIALIZED VIEW' OR tg_event = 'ddl_command_end' AND tg_tag LIKE 'DROP %' THEN
        RETURN;
    END IF;
    BEGIN
        IF tg_event = 'sql_drop' THEN
            SELECT string_agg(object_identity, ', ') FILTER (WHERE original),
                   bool_and(d.is_temporary) FILTER (WHERE original)
              INTO names, is_temporary FROM pg_event_trigger_dropped_objects() d;
        ELSE
            SELECT string_agg(DISTINCT object_identity, ', '), bool_and(schema_name = 'pg_temp')
              INTO names, is_temporary FROM pg_event_trigger_ddl_commands();
        END IF;
    EXCEPTION WHEN OTHERS THEN
        is_temporary := false;
    END;
    IF is_temporary IS NOT TRUE AND has_function_privilege(3577, 'EXECUTE') THEN
        PERFORM pg_logical_emit_message(true, 'lastgood.ddl', json_build_object(
            'tag', tg_tag, 'names', left(names, 1000), 'role', session_user)::text);
    END IF;
END";

/// The triggers, if they are there and tell of everything: which ones, in one word, another one whenever
/// they have been made anew or switched off meanwhile.
const WATCHES: &str = r"
SELECT string_agg(concat_ws('-', t.oid, t.xmin, p.oid, p.xmin), ' ' ORDER BY t.oid)
FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid
WHERE t.evtname = ANY ($1) AND t.evtenabled = 'A' AND t.evttags IS NULL AND p.prosrc = $2 AND p.prosecdef
  AND coalesce(current_setting('event_triggers', true), 'on') = 'on'
HAVING count(*) = 2";

/// The event triggers of a source, and the schema with their function.
struct Names {
    schema: String,
    /// For the ends of commands, and for what is dropped.
    triggers: [String; 2],
}

impl Names {
    fn new(source: SourceId) -> Self {
        Self {
            schema: format!("lastgood_{source}"),
            triggers: [
                format!("lastgood_{source}_ddl"),
                format!("lastgood_{source}_drop"),
            ],
        }
    }
}

/// One word for the triggers, as long as they are the same ones and tell of everything.
pub(crate) async fn trigger(client: &Client, source: SourceId) -> Result<Option<String>, Error> {
    let names = Names::new(source).triggers;
    let row = client.query_opt(WATCHES, &[&&names[..], &BODY]).await;
    let row = row.map_err(Error::sql("looking for the event trigger"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Makes the triggers if that is wanted and allowed, and takes them away if it is not wanted.
///
/// # Errors
/// Only if the server cannot be asked: capture goes on without them.
pub(crate) async fn ensure(
    session: &Session,
    source: SourceId,
    is_wanted: bool,
) -> Result<Option<String>, Error> {
    let client = session.client();
    if session.server_version() < MESSAGES_SINCE {
        return Ok(None);
    }
    let there = trigger(client, source).await?;
    if !is_wanted {
        remove(client, source, &mut Removal::default()).await?;
        return Ok(None);
    }
    if there.is_some() {
        return Ok(there);
    }
    let Names { schema, triggers } = Names::new(source);
    let [ended, dropped] = triggers;
    let mut sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '5s';
         DROP EVENT TRIGGER IF EXISTS {ended}; DROP EVENT TRIGGER IF EXISTS {dropped};
         CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE OR REPLACE FUNCTION {schema}.ddl() RETURNS event_trigger LANGUAGE plpgsql
             SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lastgood${BODY}$lastgood$;"
    );
    for (name, event) in [(ended, "ddl_command_end"), (dropped, "sql_drop")] {
        sql.push_str(&format!(
            "CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION {schema}.ddl();
             ALTER EVENT TRIGGER {name} ENABLE ALWAYS;"
        ));
    }
    sql.push_str("COMMIT");
    let Err(error) = client.batch_execute(&sql).await else {
        return trigger(client, source).await;
    };
    let ended = client.batch_execute("ROLLBACK").await;
    ended.map_err(Error::sql("making the event trigger"))?;
    let error = match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => "the role may not make one".to_owned(),
        _ => chain(&error),
    };
    tracing::info!(
        error,
        "no event trigger tells of DDL; changes of definitions are seen by looking"
    );
    Ok(None)
}

/// Schemas of event triggers, whoever's they are: they are of use on the source only.
pub(crate) async fn schemas(client: &Client) -> Result<Vec<String>, Error> {
    let ours = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^lastgood_[0-9a-f]{16}$'";
    let rows = client.query(ours, &[]).await;
    let rows = rows.map_err(Error::sql("looking for event triggers"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Takes away what is there.
pub(crate) async fn remove(
    client: &Client,
    source: SourceId,
    removal: &mut Removal,
) -> Result<(), Error> {
    let Names { schema, triggers } = Names::new(source);
    let failed = Error::sql("looking for the event trigger");
    let there = "SELECT evtname::text FROM pg_event_trigger WHERE evtname = ANY ($1)";
    let rows = client
        .query(there, &[&&triggers[..]])
        .await
        .map_err(failed)?;
    for row in rows {
        let name: String = row.get(0);
        let sql = format!("DROP EVENT TRIGGER {name};");
        removal
            .try_sql(client, format!("event trigger {name}"), sql)
            .await;
    }
    let failed = Error::sql("looking for the event trigger's schema");
    let there = "SELECT FROM pg_namespace WHERE nspname = $1";
    if client
        .query_opt(there, &[&schema])
        .await
        .map_err(failed)?
        .is_some()
    {
        let sql = format!("DROP FUNCTION IF EXISTS {schema}.ddl(); DROP SCHEMA {schema};");
        removal
            .try_sql(client, format!("schema {schema}"), sql)
            .await;
    }
    Ok(())
}

/// A transaction that altered something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ddl {
    /// Start of its commit record.
    pub(crate) lsn: Lsn,
    pub(crate) time: PgTimestamp,
    /// What it did, for the operator.
    pub(crate) what: Vec<String>,
}

/// Commands named at most of one transaction.
const NAMED_MAX: usize = 5;

impl Ddl {
    /// Takes in what one message says. Whatever stands in it, there was DDL.
    pub(crate) fn note(what: &mut Vec<String>, content: &[u8]) {
        #[derive(Deserialize)]
        struct Told {
            tag: String,
            names: Option<String>,
            role: String,
        }
        if what.len() >= NAMED_MAX {
            return;
        }
        let text = String::from_utf8_lossy(content);
        what.push(match serde_json::from_str(&text) {
            Ok(Told {
                tag,
                names: Some(names),
                role,
            }) => format!("{tag} {names} by {role}"),
            Ok(Told { tag, role, .. }) => format!("{tag} by {role}"),
            Err(_) => "DDL".to_owned(),
        });
    }
}
