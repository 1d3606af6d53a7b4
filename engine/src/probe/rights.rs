//! Rights, each tried and rolled back.
//!
//! First everything at once; only if that is refused one by one, to name the culprits. Tables are
//! tried under a short lock timeout: a probe must not queue up behind somebody's ALTER TABLE.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Finding, ServerFacts, Severity, finding, quoted};
use crate::ddl;
use crate::error::Error;
use crate::settings::SourceSettings;
use crate::tables::{Table, published};

/// Never committed, so the name matters to nobody; it only must not exist.
const PUBLICATION: &str = "lastgood_probe_rolled_back";

pub(super) async fn attempt(
    client: &Client,
    tables: &[Table],
    settings: &SourceSettings,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let done = transaction(client, tables, settings, facts, findings).await;
    client
        .batch_execute("ROLLBACK")
        .await
        .map_err(Error::sql("ending the probe"))?;
    done
}

async fn transaction(
    client: &Client,
    tables: &[Table],
    settings: &SourceSettings,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    client
        .batch_execute("BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL row_security = off")
        .await
        .map_err(Error::sql("beginning the probe"))?;
    publication(client, tables, settings, facts, findings).await?;
    event_trigger(client, settings, facts, findings).await?;
    reading(client, tables, facts, findings).await
}

async fn publication(
    client: &Client,
    tables: &[Table],
    settings: &SourceSettings,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let create = format!("CREATE PUBLICATION {PUBLICATION}");
    if let Some(refused) = refused(client, &create).await? {
        findings.push(finding(
            "no_publication_right",
            Severity::Blocker,
            facts.database.clone(),
            format!("a publication cannot be made: {}", refused.message),
            format!(
                "GRANT CREATE ON DATABASE {} TO {};",
                quoted(&facts.database),
                quoted(&facts.role)
            ),
        ));
        return Ok(());
    }
    client
        .batch_execute(&create)
        .await
        .map_err(Error::sql("trying a publication"))?;
    let published = published(tables, settings);
    let add = |names: &str| format!("ALTER PUBLICATION {PUBLICATION} ADD TABLE ONLY {names}");
    let all: Vec<&str> = published
        .iter()
        .map(|table| table.quoted.as_str())
        .collect();
    if all.is_empty() || refused(client, &add(&all.join(", ONLY "))).await?.is_none() {
        return Ok(());
    }
    for table in published {
        let Some(refused) = refused(client, &add(&table.quoted)).await? else {
            continue;
        };
        if refused.busy {
            busy(findings, table_name(table));
            continue;
        }
        findings.push(finding(
            "cannot_publish",
            Severity::Blocker,
            format!("{}.{}", table.schema, table.name),
            format!("the table cannot be published: {}", refused.message),
            format!("GRANT {} TO {};", quoted(&table.owner), quoted(&facts.role)),
        ));
    }
    Ok(())
}

/// Not needed, and few roles may make one.
async fn event_trigger(
    client: &Client,
    settings: &SourceSettings,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    if !settings.ddl_trigger || facts.version < ddl::MESSAGES_SINCE {
        return Ok(());
    }
    let create = format!(
        "CREATE FUNCTION pg_temp.{PUBLICATION}() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
         CREATE EVENT TRIGGER {PUBLICATION} ON ddl_command_end EXECUTE FUNCTION pg_temp.{PUBLICATION}()"
    );
    if let Some(refused) = refused(client, &create).await? {
        findings.push(finding(
            "no_event_trigger",
            Severity::Info,
            facts.database.clone(),
            format!(
                "where DDL lies is told by looks, {} seconds apart, and not by an event trigger: {}",
                settings.segment_seconds, refused.message
            ),
            "capture with a superuser, or with the provider's administrator if that one may make event triggers"
                .to_owned(),
        ));
    }
    Ok(())
}

/// What `pg_dump` does first: it locks and reads every table with row security off.
async fn reading(
    client: &Client,
    tables: &[Table],
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let read = |table: &Table| format!("SELECT FROM ONLY {} LIMIT 0", table.quoted);
    let dumped: Vec<&Table> = tables
        .iter()
        .filter(|table| matches!(table.kind, 'r' | 'p') && !table.extension)
        .collect();
    for chunk in dumped.chunks(100) {
        let all: Vec<String> = chunk.iter().map(|table| read(table)).collect();
        if refused(client, &all.join("; ")).await?.is_none() {
            continue;
        }
        for table in chunk {
            let Some(refusal) = refused(client, &read(table)).await? else {
                continue;
            };
            if refusal.busy {
                busy(findings, table_name(table));
                continue;
            }
            let filtered = format!("SET LOCAL row_security = on; {}", read(table));
            let name = format!("{}.{}", table.schema, table.name);
            let role = quoted(&facts.role);
            findings.push(match refused(client, &filtered).await? {
                None => finding(
                    "row_security",
                    Severity::Blocker,
                    name,
                    "row-level security would hide rows from the base",
                    format!("ALTER ROLE {role} BYPASSRLS;"),
                ),
                Some(refusal) => finding(
                    "no_select_right",
                    Severity::Blocker,
                    name,
                    format!("the table cannot be read: {}", refusal.message),
                    format!(
                        "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {} TO {role};",
                        quoted(&table.schema),
                        table.quoted
                    ),
                ),
            });
        }
    }
    sequences(client, facts, findings).await
}

async fn sequences(
    client: &Client,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let rows = client
        .query(
            r"SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname),
                     n.nspname || '.' || c.relname, n.nspname
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                                AND d.objid = c.oid AND d.deptype = 'e')",
            &[],
        )
        .await
        .map_err(Error::sql("listing sequences"))?;
    for row in rows {
        let (sequence, name, schema): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let read = format!("SELECT last_value FROM {sequence} LIMIT 0");
        let Some(refused) = refused(client, &read).await? else {
            continue;
        };
        if refused.busy {
            busy(findings, name);
        } else {
            let role = quoted(&facts.role);
            findings.push(finding(
                "no_sequence_right",
                Severity::Blocker,
                name,
                format!("the sequence cannot be read: {}", refused.message),
                format!(
                    "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {sequence} TO {role};",
                    quoted(&schema)
                ),
            ));
        }
    }
    Ok(())
}

fn table_name(table: &Table) -> String {
    format!("{}.{}", table.schema, table.name)
}

/// Said once of each, however many of its rights could not be tried.
fn busy(findings: &mut Vec<Finding>, object: String) {
    let code = "table_locked";
    if findings
        .iter()
        .any(|it| it.code == code && it.object == object)
    {
        return;
    }
    findings.push(finding(
        code,
        Severity::Warning,
        object,
        "it is locked by somebody else, so its rights could not be tried; a base waits for \
         such locks",
        "probe again when the lock is gone".to_owned(),
    ));
}

/// Why a command was refused.
struct Refusal {
    message: String,
    /// By a lock, not by a right.
    busy: bool,
}

/// Runs `sql` in a savepoint and rolls it back; the refusal, if it was refused.
async fn refused(client: &Client, sql: &str) -> Result<Option<Refusal>, Error> {
    let command = |text: &'static str| async move {
        client
            .batch_execute(text)
            .await
            .map_err(Error::sql("probing rights"))
    };
    command("SAVEPOINT probe").await?;
    let outcome = client.batch_execute(sql).await;
    // An error that comes from no server ends the connection, so this fails as well then.
    command("ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe").await?;
    Ok(outcome.err().map(|error| match error.as_db_error() {
        Some(refusal) => Refusal {
            message: refusal.message().to_owned(),
            busy: *refusal.code() == SqlState::LOCK_NOT_AVAILABLE,
        },
        None => Refusal {
            message: error.to_string(),
            busy: false,
        },
    }))
}
