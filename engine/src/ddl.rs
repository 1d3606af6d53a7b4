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

use std::collections::BTreeSet;

use lastgood_pg::Session;
use lastgood_proto::{Lsn, PgTimestamp, SourceId, Xid};
use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, chain};
use crate::publication;
use crate::remove::Removal;

/// Of the messages.
pub(crate) const PREFIX: &[u8] = b"lastgood.ddl";

/// The first version that sends messages.
pub(crate) const MESSAGES_SINCE: u32 = 140_000;

/// Fires at the end of each command, and for what it drops. Materialized views are filled again without being
/// altered, and what IF NOT EXISTS passes over names no object. 3577 is
/// `pg_logical_emit_message(boolean, text, text)` in `pg_proc.dat`.
///
/// `touched` are OIDs of relations, types and publications: what the command names, and what the shape has of others
/// because of it: the table of an index or a constraint, the children and parents of a table, its
/// sequences, all in a schema. Every lookup has an index: it is
/// done for each command.
const BODY: &str = r"
DECLARE
    command record;
    names text;
    touched oid[];
    relations oid[];
    is_temporary boolean;
BEGIN
    IF tg_tag = 'REFRESH MATERIALIZED VIEW'
       OR tg_event = 'ddl_command_end' AND tg_tag LIKE 'DROP %' AND tg_tag <> 'DROP OWNED' THEN
        RETURN;
    END IF;
    BEGIN
        IF tg_event = 'sql_drop' THEN
            SELECT string_agg(object_identity, ', ') FILTER (WHERE original),
                   bool_or(d.is_temporary)
                       AND bool_and(d.is_temporary OR schema_name IS NULL OR schema_name ~ '^pg_(toast_)?temp'),
                   array_agg(objid) || array_agg(CASE object_type
                       WHEN 'table constraint' THEN
                           to_regclass(format('%I.%I', address_names[1], address_names[2]))::oid
                       WHEN 'publication relation' THEN
                           (SELECT p.oid FROM pg_publication p WHERE p.pubname = address_args[1]) END)
              INTO names, is_temporary, touched FROM pg_event_trigger_dropped_objects() d;
        ELSE
            SELECT string_agg(DISTINCT object_identity, ', '), bool_and(schema_name = 'pg_temp')
              INTO names, is_temporary FROM pg_event_trigger_ddl_commands();
            IF names IS NULL AND tg_tag ~ '^(CREATE|SELECT)' THEN
                RETURN;
            END IF;
            IF is_temporary THEN
                RETURN;
            END IF;
            FOR command IN SELECT classid, objid FROM pg_event_trigger_ddl_commands() WHERE objid <> 0 LOOP
                touched := touched || command.objid;
                CASE command.classid
                    WHEN 'pg_class'::regclass THEN
                        relations := relations || command.objid
                            || (SELECT indrelid FROM pg_index WHERE indexrelid = command.objid);
                        touched := touched || (SELECT reltype FROM pg_class WHERE oid = command.objid);
                    WHEN 'pg_constraint'::regclass THEN
                        relations := relations || (SELECT conrelid FROM pg_constraint WHERE oid = command.objid);
                        touched := touched || (SELECT contypid FROM pg_constraint WHERE oid = command.objid);
                    WHEN 'pg_publication_rel'::regclass THEN
                        touched := touched || (SELECT prpubid FROM pg_publication_rel WHERE oid = command.objid);
                    WHEN 'pg_namespace'::regclass THEN
                        IF tg_tag = 'ALTER SCHEMA' THEN
                            touched := touched
                                || array(SELECT oid FROM pg_class WHERE relnamespace = command.objid)
                                || array(SELECT oid FROM pg_type WHERE typnamespace = command.objid);
                        END IF;
                    ELSE
                END CASE;
            END LOOP;
            IF relations IS NOT NULL THEN
                WITH RECURSIVE below(rel) AS (
                    SELECT unnest(relations) UNION SELECT inhrelid FROM below JOIN pg_inherits ON inhparent = rel),
                family(rel) AS (
                    SELECT rel FROM below UNION SELECT inhparent FROM family JOIN pg_inherits ON inhrelid = rel)
                SELECT touched || array_agg(rel) INTO touched FROM (
                    SELECT rel FROM family
                    UNION ALL
                    SELECT d.objid FROM family JOIN pg_depend d ON d.refobjid = rel
                     WHERE d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass
                       AND d.deptype IN ('a', 'i')) touching(rel);
            END IF;
        END IF;
        IF cardinality(touched) > 10000 THEN
            touched := NULL;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        is_temporary := false;
        touched := NULL;
    END;
    IF is_temporary IS NOT TRUE AND has_function_privilege(3577, 'EXECUTE') THEN
        PERFORM pg_logical_emit_message(true, 'lastgood.ddl', json_build_object(
            'tag', tg_tag, 'drops', tg_event = 'sql_drop' AND tg_tag NOT LIKE 'DROP %', 'names', left(names, 1000),
            'role', session_user, 'touched', array_remove(touched, NULL)::int8[])::text);
    END IF;
END";

/// Of the function, as `pg_proc.proconfig` has them. The planner takes what `unnest` and the recursion give for
/// millions of rows, and would read whole catalogs and compile that.
const SETTINGS: [&str; 5] = [
    "search_path=pg_catalog, pg_temp",
    "jit=off",
    "enable_hashjoin=off",
    "enable_mergejoin=off",
    "enable_seqscan=off",
];

/// The triggers, if they are there and tell of everything: which ones, in one word, another one whenever
/// they have been made anew or switched off meanwhile.
const WATCHES: &str = r"
SELECT string_agg(concat_ws('-', t.oid, t.xmin, p.oid, p.xmin), ' ' ORDER BY t.oid)
FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid
WHERE t.evtname = ANY ($1) AND t.evtenabled = 'A' AND t.evttags IS NULL AND p.prosrc = $2 AND p.prosecdef
  AND p.proconfig = $3
  AND coalesce(current_setting('event_triggers', true), 'on') = 'on'
HAVING count(*) = 2";

/// The event triggers of a source, and the schema with their function, which is called as the publication is.
struct Names {
    schema: String,
    /// For the ends of commands, and for what is dropped.
    triggers: [String; 2],
}

impl Names {
    fn new(source: SourceId) -> Self {
        let schema = publication::name(source);
        Self {
            triggers: [format!("{schema}_ddl"), format!("{schema}_drop")],
            schema,
        }
    }
}

/// One word for the triggers, as long as they are the same ones and tell of everything.
pub(crate) async fn trigger(client: &Client, source: SourceId) -> Result<Option<String>, Error> {
    let names = Names::new(source).triggers;
    let (names, settings) = (&names[..], &SETTINGS[..]);
    let row = client.query_opt(WATCHES, &[&names, &BODY, &settings]).await;
    let row = row.map_err(Error::sql("looking for the event trigger"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Since when the triggers can be trusted: what was under way when they were made fires none.
pub(crate) struct Trust {
    /// Trusted before.
    word: Option<String>,
    /// Was under way when they were first seen, and has not ended.
    before: Option<(String, BTreeSet<String>)>,
}

/// Whatever is under way in the database, with or without a transaction id. Everybody sees all locks; of
/// other roles' sessions at least which database they are in. The transaction of the look itself is left out.
const UNDER_WAY: &str = r"
SELECT 'virtual ' || l.virtualxid FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid()
  AND (a.datid IS NULL OR a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT 'prepared ' || transaction FROM pg_prepared_xacts WHERE database = current_database()";

impl Trust {
    /// `word` was trusted when it was seen last.
    pub(crate) fn new(word: Option<String>) -> Self {
        Self { word, before: None }
    }

    /// The word for the triggers, once nothing is left that fires none.
    pub(crate) async fn look(
        &mut self,
        client: &Client,
        source: SourceId,
    ) -> Result<Option<String>, Error> {
        let word = trigger(client, source).await?;
        if word.is_none() || word == self.word {
            self.before = None;
            self.word.clone_from(&word);
            return Ok(word);
        }
        let rows = client.query(UNDER_WAY, &[]).await;
        let rows = rows.map_err(Error::sql("looking at what is under way"))?;
        let now: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let has_prepared = now.iter().any(|one| one.starts_with("prepared"));
        let before = match self.before.take() {
            Some((seen, before)) if Some(&seen) == word.as_ref() => &before & &now,
            _ => now,
        };
        self.word = None;
        match word {
            // One that was under way may have become a prepared one meanwhile.
            Some(word) if before.is_empty() && !has_prepared => self.word = Some(word),
            Some(word) => self.before = Some((word, before)),
            None => {}
        }
        Ok(self.word.clone())
    }
}

/// Makes the triggers if that is wanted and allowed, and takes them away if it is not wanted.
///
/// # Errors
/// Only if the server cannot be asked: capture goes on without them.
pub(crate) async fn ensure(
    session: &Session,
    source: SourceId,
    is_wanted: bool,
) -> Result<(), Error> {
    let client = session.client();
    if session.server_version() < MESSAGES_SINCE {
        return Ok(());
    }
    if !is_wanted {
        return remove(client, source, &mut Removal::default()).await;
    }
    if trigger(client, source).await?.is_some() {
        return Ok(());
    }
    let Names { schema, triggers } = Names::new(source);
    let [ended, dropped] = triggers;
    let settings = SETTINGS.map(|setting| format!("SET {} ", setting.replacen('=', " = ", 1)));
    let settings = settings.concat();
    let mut sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '5s';
         DROP EVENT TRIGGER IF EXISTS {ended}; DROP EVENT TRIGGER IF EXISTS {dropped};
         CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE OR REPLACE FUNCTION {schema}.ddl() RETURNS event_trigger LANGUAGE plpgsql
             SECURITY DEFINER {settings} AS $lastgood${BODY}$lastgood$;"
    );
    for (name, event) in [(ended, "ddl_command_end"), (dropped, "sql_drop")] {
        sql.push_str(&format!(
            "CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION {schema}.ddl();
             ALTER EVENT TRIGGER {name} ENABLE ALWAYS;"
        ));
    }
    sql.push_str("COMMIT");
    let Err(error) = client.batch_execute(&sql).await else {
        return Ok(());
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
    Ok(())
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
    pub(crate) xid: Xid,
    /// Start of its commit record.
    pub(crate) lsn: Lsn,
    pub(crate) time: PgTimestamp,
    /// Nothing that committed up to it has a later commit time.
    pub(crate) by: PgTimestamp,
    pub(crate) what: What,
}

/// What a transaction did to definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct What {
    /// It told of it; else its rows have another form than before.
    pub(crate) told: bool,
    /// Its rows have another form, and nobody told of what made it.
    pub(crate) untold: bool,
    /// For the operator.
    pub(crate) commands: Vec<String>,
    /// OIDs of relations, types and publications that may look otherwise because of it, as far as they are known.
    pub(crate) touched: BTreeSet<u32>,
}

/// Commands named at most of one transaction.
const NAMED_MAX: usize = 5;

impl What {
    /// Takes in what one message says, and answers what it touched, if that is known. Whatever stands in it, there was
    /// DDL.
    pub(crate) fn note(&mut self, content: &[u8]) -> Option<BTreeSet<u32>> {
        #[derive(Deserialize)]
        struct Told {
            tag: String,
            #[serde(default)]
            drops: bool,
            names: Option<String>,
            role: String,
            touched: Option<Vec<u32>>,
        }
        self.told = true;
        let text = String::from_utf8_lossy(content);
        let told: Option<Told> = serde_json::from_str(&text).ok();
        let command = match &told {
            Some(Told {
                tag,
                drops,
                names: Some(names),
                role,
                ..
            }) => match drops {
                true => format!("{tag} dropping {names} by {role}"),
                false => format!("{tag} {names} by {role}"),
            },
            Some(Told { tag, role, .. }) => format!("{tag} by {role}"),
            None => "DDL".to_owned(),
        };
        if self.commands.len() < NAMED_MAX {
            self.commands.push(command);
        }
        let touched = told.and_then(|told| told.touched);
        let touched: Option<BTreeSet<u32>> = touched.map(|touched| touched.into_iter().collect());
        self.touched.extend(touched.iter().flatten());
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_cannot_be_read_tells_of_ddl_all_the_same() {
        let mut what = What::default();
        what.note(br#"{"tag":"ALTER TABLE","names":"public.t","role":"app","touched":[3,5]}"#);
        assert_eq!(what.commands, ["ALTER TABLE public.t by app"]);
        assert_eq!(what.touched, BTreeSet::from([3, 5]));
        assert!(what.told);
        what.note(br#"{"tag":"GRANT","names":null,"role":"app","touched":null}"#);
        assert_eq!(what.commands[1], "GRANT by app");
        for content in [&b""[..], b"\xff", b"{}"] {
            let mut what = What::default();
            what.note(content);
            assert!(what.told && what.touched.is_empty() && what.commands == ["DDL"]);
        }
    }
}
