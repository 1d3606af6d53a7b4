//! The database that is restored into: made or found empty, and never the source.

use lastgood_pg::{ConnectionConfig, Purpose, Session};
use lastgood_proto::manifest::{BaseManifest, LineageFile};
use lastgood_proto::{SourceId, encoding};
use tokio_postgres::error::SqlState;

use crate::sql::{literal, quoted};
use crate::{Error, Into, locale, lock, progress_table};

/// A destination that may be written to.
pub(crate) struct Destination {
    pub(crate) config: ConnectionConfig,
    pub(crate) session: Session,
    /// We made it in this attempt.
    pub(crate) created: bool,
    /// An earlier attempt's state.
    pub(crate) earlier: Option<progress_table::State>,
}

/// What a look found; nothing was written.
pub(crate) enum Found {
    /// A database to restore into, empty or with an earlier attempt's state.
    Ready {
        session: Session,
        earlier: Option<progress_table::State>,
    },
    /// Still to be made, through this session.
    Missing(Session),
}

/// Whether a restore may go there.
pub(crate) async fn look(
    into: &Into,
    source: SourceId,
    lineage: &LineageFile,
    resume: bool,
) -> Result<Found, Error> {
    let entry = Session::connect(&into.connection, Purpose::Restore).await?;
    let name = into.database();
    if !into.allow_source && is_source(&entry, source, lineage, name).await? {
        return Err(Error::IsSource {
            database: name.to_owned(),
        });
    }
    let session = match &into.create_database {
        None => entry,
        Some(_) => {
            let exists = entry
                .client()
                .query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name])
                .await?
                .is_some();
            match (exists, resume) {
                (false, _) => return Ok(Found::Missing(entry)),
                (true, false) => {
                    return Err(Error::DatabaseExists {
                        database: name.to_owned(),
                    });
                }
                (true, true) => {
                    entry.close().await;
                    let config = into.connection.with_database(name);
                    Session::connect(&config, Purpose::Restore).await?
                }
            }
        }
    };
    check_encoding(&session, &lineage.server_encoding, name).await?;
    // Before the state is read, which another restore may be about to change.
    lock::take(&session).await?;
    let earlier = progress_table::read(session.client()).await?;
    match &earlier {
        Some(_) if resume => {}
        Some(_) => {
            return Err(Error::NotEmpty {
                database: name.to_owned(),
                objects: "an unfinished restore".to_owned(),
            });
        }
        None => check_empty(&session, name).await?,
    }
    Ok(Found::Ready { session, earlier })
}

/// Looks, and creates the database if asked.
pub(crate) async fn open(
    into: &Into,
    source: SourceId,
    lineage: &LineageFile,
    base: &BaseManifest,
    resume: bool,
) -> Result<Destination, Error> {
    let config = into.connection.with_database(into.database());
    match look(into, source, lineage, resume).await? {
        Found::Ready { session, earlier } => {
            if earlier.is_some() {
                end_tools(&session).await?;
            }
            Ok(Destination {
                config,
                session,
                created: false,
                earlier,
            })
        }
        Found::Missing(entry) => {
            create(&entry, into.database(), base).await?;
            entry.close().await;
            let session = Session::connect(&config, Purpose::Restore).await?;
            lock::take(&session).await?;
            Ok(Destination {
                config,
                session,
                created: true,
                earlier: None,
            })
        }
    }
}

/// Whether this database is the one that was captured: by the cluster's system identifier, or by
/// a slot of this source, which also a newer lineage may have.
pub(crate) async fn is_source(
    session: &Session,
    source: SourceId,
    lineage: &LineageFile,
    name: &str,
) -> Result<bool, Error> {
    if name == lineage.database {
        match session.system_id().await {
            Ok(id) if id == lineage.system_id => return Ok(true),
            Ok(_) => {}
            Err(lastgood_pg::Error::Server { source, .. })
                if source.code == SqlState::INSUFFICIENT_PRIVILEGE.code() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let slot = session
        .client()
        .query_opt(
            "SELECT FROM pg_replication_slots
              WHERE database = $3 AND (slot_name = $1 OR starts_with(slot_name, $2))",
            &[&lineage.slot, &format!("lastgood_{source}_"), &name],
        )
        .await?;
    Ok(slot.is_some())
}

/// With the source's encoding, so that every value fits, and its locale if the server has it with
/// that encoding.
async fn create(session: &Session, name: &str, base: &BaseManifest) -> Result<(), Error> {
    let mut options = locale::options(base.locale.as_ref()).into_iter().peekable();
    while let Some(option) = options.next() {
        let create = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {}{option}",
            quoted(name),
            literal(&base.encoding)
        );
        match session.client().batch_execute(&create).await {
            Err(error) if locale::is_unknown(&error) && options.peek().is_some() => {}
            result => return Ok(result?),
        }
    }
    Ok(())
}

/// The server converts between most encodings and UTF8, and between few others. The bytes of SQL_ASCII
/// mean nothing to it: from 14 on COPY puts them into any database as they are, text or not.
pub(crate) async fn check_encoding(
    session: &Session,
    source: &str,
    name: &str,
) -> Result<(), Error> {
    let target = session.server_encoding();
    if target == source {
        return Ok(());
    }
    let refused = |error| Error::OtherEncoding {
        database: name.to_owned(),
        target: target.to_owned(),
        encoding: source.to_owned(),
        error,
    };
    if [source, target].contains(&"SQL_ASCII") {
        return Err(refused(None));
    }
    let sent_in = literal(encoding::sent_in(source));
    let sql = format!("SET client_encoding = {sent_in}; SET client_encoding = 'UTF8'");
    match session.client().batch_execute(&sql).await {
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
            Err(refused(Some(error)))
        }
        result => Ok(result?),
    }
}

/// What extensions brought along does not count: some providers install theirs in every database.
async fn check_empty(session: &Session, name: &str) -> Result<(), Error> {
    let objects = session
        .client()
        .query(
            "WITH own AS (SELECT oid, nspname FROM pg_namespace
                           WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
             SELECT kind, name FROM (
                 SELECT 'pg_class'::regclass AS class, c.oid, 'relation' AS kind,
                        format('%I.%I', own.nspname, c.relname) AS name
                   FROM pg_class c JOIN own ON own.oid = c.relnamespace WHERE c.relkind NOT IN ('i', 'I', 't')
                 UNION ALL
                 SELECT 'pg_proc'::regclass, p.oid, 'function', format('%I.%I', own.nspname, p.proname)
                   FROM pg_proc p JOIN own ON own.oid = p.pronamespace
                 UNION ALL
                 SELECT 'pg_type'::regclass, t.oid, 'type', format('%I.%I', own.nspname, t.typname)
                   FROM pg_type t JOIN own ON own.oid = t.typnamespace
                  WHERE t.typrelid = 0 AND t.typelem = 0
                 UNION ALL
                 SELECT 'pg_namespace'::regclass, own.oid, 'schema', format('%I', own.nspname)
                   FROM own WHERE own.nspname <> 'public'
                 UNION ALL
                 SELECT 'pg_largeobject'::regclass, m.oid, 'large object', m.oid::text
                   FROM pg_largeobject_metadata m
             ) objects
             WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = objects.class
                                  AND d.objid = objects.oid AND d.deptype = 'e')
               AND NOT (kind = 'schema' AND EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = objects.oid))
             ORDER BY kind = 'relation' DESC, name LIMIT 4",
            &[],
        )
        .await?;
    if objects.is_empty() {
        return Ok(());
    }
    let mut names = Vec::new();
    for row in &objects {
        let (kind, object): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        names.push(format!("{kind} {object}"));
    }
    if names.len() > 3 {
        names.truncate(3);
        names.push("more".to_owned());
    }
    Err(Error::NotEmpty {
        database: name.to_owned(),
        objects: names.join(", "),
    })
}

/// Ends the tools of an attempt that was killed, which may have lived on: what they still write would
/// come beside what is written now.
async fn end_tools(session: &Session) -> Result<(), Error> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND usename = current_user
                  AND application_name = 'pg_restore'";
    Ok(session.client().batch_execute(sql).await?)
}

/// Ends what a cancelled or failed restore may still have running on the server: a client that is
/// gone does not stop a statement. A best effort.
pub(crate) async fn end_sessions(config: &ConnectionConfig) {
    let Ok(session) = Session::connect(config, Purpose::Restore).await else {
        return;
    };
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND usename = current_user
                  AND pid <> pg_backend_pid()
                  AND application_name IN ('lastgood restore', 'pg_restore')";
    if let Err(error) = session.client().batch_execute(sql).await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "sessions not ended"
        );
    }
    session.close().await;
}
