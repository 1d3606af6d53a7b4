//! Some tables under a new schema of a database that exists and has other things in it.
//!
//! They are restored into a scratch database on the same server, as into any new one, and gathered
//! there under one schema (see `gather`). Then one transaction makes that schema in the existing
//! database: definitions from `pg_dump`, rows by COPY from one server session to the other. So the
//! existing database sees all of it or nothing, and nothing but the one schema.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{SinkExt as _, StreamExt as _};
use lastgood_pg::dump::Section;
use lastgood_pg::{Canceller, ConnectionConfig, PgTools, Purpose, Session};
use lastgood_proto::manifest::LineageFile;
use lastgood_proto::{SourceId, encoding};
use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use crate::destination::{check_encoding, is_source};
use crate::sql::{literal, qualified, quoted};
use crate::{Error, Into};

/// The schema that is to be made, and where.
pub(crate) struct Existing {
    config: ConnectionConfig,
    schema: String,
    /// The scratch database: the same for the same schema of the same database, so that a second
    /// attempt finds it and two at a time cannot be.
    scratch: String,
    /// The advisory lock of the transaction that makes the schema: who gets it, knows that it ended.
    lock: i64,
    /// That transaction was told to commit.
    committing: AtomicBool,
}

/// What is known of the schema after a failure.
enum Made {
    Yes,
    No,
    Unknown(Error),
}

impl Existing {
    pub(crate) fn new(into: &Into, schema: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(into.connection.database());
        digest.update([0]);
        digest.update(schema);
        let mut scratch = "lastgood_scratch_".to_owned();
        let mut lock = 0;
        for byte in digest.finalize().iter().take(8) {
            let _ = write!(scratch, "{byte:02x}");
            lock = lock << 8 | i64::from(*byte);
        }
        Self {
            config: into.connection.clone(),
            schema: schema.to_owned(),
            scratch,
            lock,
            committing: AtomicBool::new(false),
        }
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    pub(crate) fn scratch(&self) -> ConnectionConfig {
        self.config.with_database(&self.scratch)
    }

    pub(crate) fn database(&self) -> &str {
        self.config.database()
    }

    /// Whether the schema may be made; answers where the scratch database goes.
    pub(crate) async fn check(
        &self,
        into: &Into,
        source: SourceId,
        lineage: &LineageFile,
        resume: bool,
    ) -> Result<Into, Error> {
        let session = Session::connect(&self.config, Purpose::Restore).await?;
        let database = self.database().to_owned();
        if into.create_database.is_some() {
            return Err(Error::InvalidSchema {
                name: self.schema.clone(),
                why: "it is made in a database that exists, so none can be created for it",
            });
        }
        if !into.allow_source && is_source(&session, source, lineage, &database).await? {
            return Err(Error::IsSource { database });
        }
        check_encoding(&session, &lineage.server_encoding, &database).await?;
        let found = session
            .client()
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1),
                        EXISTS (SELECT FROM pg_database WHERE datname = $2),
                        has_database_privilege(current_database(), 'CREATE'), current_user::text",
                &[&self.schema, &self.scratch],
            )
            .await?;
        session.close().await;
        let (has_schema, has_scratch): (bool, bool) = (found.try_get(0)?, found.try_get(1)?);
        if has_schema {
            return Err(Error::SchemaExists {
                schema: self.schema.clone(),
                database,
                scratch: has_scratch.then(|| self.scratch.clone()),
            });
        }
        if has_scratch && !resume {
            return Err(Error::ScratchExists {
                scratch: self.scratch.clone(),
                schema: self.schema.clone(),
                database,
            });
        }
        if !found.try_get::<_, bool>(2)? {
            return Err(Error::MayNotCreateSchema {
                role: found.try_get(3)?,
                database,
            });
        }
        Ok(Into {
            connection: self.config.clone(),
            create_database: Some(self.scratch.clone()),
            allow_source: true,
        })
    }

    /// Says in the server's own list what the scratch database is.
    pub(crate) async fn label(&self, client: &Client) -> Result<(), Error> {
        let text = format!(
            "lastgood restores tables here that go to schema {} of database {}; it is dropped when they are there",
            quoted(&self.schema),
            quoted(self.database())
        );
        let sql = format!(
            "COMMENT ON DATABASE {} IS {}",
            quoted(&self.scratch),
            literal(&text)
        );
        Ok(client.batch_execute(&sql).await?)
    }

    /// Refuses if the existing database has not these extensions where the tables look for them.
    pub(crate) async fn has_extensions(
        &self,
        scratch: &Client,
        needed: &[String],
    ) -> Result<(), Error> {
        let session = Session::connect(&self.config, Purpose::Restore).await?;
        let sql = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                    WHERE quote_ident(e.extname) = $1";
        for extension in needed {
            let wanted: String = scratch.query_one(sql, &[extension]).await?.try_get(0)?;
            let found = session.client().query_opt(sql, &[extension]).await?;
            let found: Option<String> = found.map(|row| row.try_get(0)).transpose()?;
            if found.as_ref() != Some(&wanted) {
                let schema = quoted(&wanted);
                return Err(Error::MissingExtension {
                    extension: extension.clone(),
                    database: self.database().to_owned(),
                    remedy: match found {
                        None => format!("CREATE EXTENSION {extension} SCHEMA {schema}"),
                        Some(_) => format!("ALTER EXTENSION {extension} SET SCHEMA {schema}"),
                    },
                });
            }
        }
        session.close().await;
        Ok(())
    }

    /// A session for [`Existing::transfer`], and what ends its statement.
    pub(crate) async fn connect(&self) -> Result<(Session, Canceller), Error> {
        let session = Session::connect(&self.config, Purpose::Restore).await?;
        let canceller = session.canceller();
        Ok((session, canceller))
    }

    /// Makes the schema, in one transaction, so that nobody but its owner reads what is in it:
    /// `row_security` names the tables that some could not read all of. `fed` is told of each piece of
    /// rows.
    pub(crate) async fn transfer(
        &self,
        scratch: &Session,
        session: &Session,
        server_encoding: &str,
        row_security: &[&str],
        fed: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        let tools = PgTools::for_dump(&PgTools::discover().await, scratch.server_version())?;
        let config = self.scratch();
        let encoding = encoding::sent_in(server_encoding);
        let version = session.server_version();
        let script = async |section| {
            let session = Session::connect(&config, Purpose::Restore).await?;
            let lent = session.lend().await?;
            let script = tools.script(lent, config.database(), &self.schema, section, encoding);
            let script = script.await?;
            Ok::<_, Error>(for_a_session(&script, version))
        };
        let before = script(Section::PreData).await?;
        let after = script(Section::PostData).await?;
        let (from, client) = (scratch.client(), session.client());
        from.batch_execute(SAME_TEXT).await?;
        let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({})", self.lock);
        client.batch_execute(&begin).await?;
        client.batch_execute(&before).await?;
        client.batch_execute(SAME_TEXT).await?;
        let encoding = literal(encoding);
        for row in from.query(TABLES, &[&self.schema]).await? {
            let (name, columns): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let columns = columns.map_or_else(String::new, |columns| format!(" ({columns})"));
            let table = format!("{}{columns}", qualified(&self.schema, &name));
            let copy = format!("COPY {table} TO STDOUT (ENCODING {encoding})");
            let mut rows = Box::pin(from.copy_out(&copy).await?);
            let copy = format!("COPY {table} FROM STDIN (ENCODING {encoding})");
            let mut sink = Box::pin(client.copy_in(&copy).await?);
            while let Some(chunk) = rows.next().await {
                let chunk = chunk?;
                fed(chunk.len() as u64);
                sink.feed(chunk).await?;
            }
            sink.as_mut().finish().await?;
        }
        for row in from.query(SEQUENCES, &[&self.schema]).await? {
            let name: String = row.try_get(0)?;
            let sequence = qualified(&self.schema, &name);
            let sql = format!("SELECT last_value, is_called FROM {sequence}");
            let state = from.query_one(&sql, &[]).await?;
            let (last, called): (i64, bool) = (state.try_get(0)?, state.try_get(1)?);
            let set = format!(
                "SELECT pg_catalog.setval({}, {last}, {called})",
                literal(&sequence)
            );
            client.batch_execute(&set).await?;
        }
        client.batch_execute(&after).await?;
        for table in row_security {
            // Without a policy, nobody else sees a row.
            let enable = format!(
                "ALTER TABLE {} ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY",
                qualified(&self.schema, table)
            );
            client.batch_execute(&enable).await?;
        }
        for row in client.query(GRANTED, &[&self.schema]).await? {
            let revoke: String = row.try_get(0)?;
            client.batch_execute(&revoke).await?;
        }
        for row in client.query(CAPTURING, &[]).await? {
            let (role, schema): (String, String) = (row.try_get(0)?, quoted(&self.schema));
            let grant = format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}; \
                 GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
            );
            client.batch_execute(&grant).await?;
        }
        self.committing.store(true, Ordering::Relaxed);
        client.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// Drops the scratch database. Nobody of ours may be connected to it.
    pub(crate) async fn drop_scratch(&self) -> Result<(), Error> {
        let session = Session::connect(&self.config, Purpose::Restore).await?;
        let drop = format!(
            "DROP DATABASE IF EXISTS {} WITH (FORCE)",
            quoted(&self.scratch)
        );
        session.client().batch_execute(&drop).await?;
        session.close().await;
        Ok(())
    }

    /// Whether the schema was made, after a failure or a cancel that may have come during its COMMIT.
    async fn made(&self) -> Made {
        // Whatever is there of that name now, is not ours.
        if !self.committing.load(Ordering::Relaxed) {
            return Made::No;
        }
        let look = async {
            let session = Session::connect(&self.config, Purpose::Restore).await?;
            let client = session.client();
            let ended = format!(
                "SET lock_timeout = '10s'; SELECT pg_advisory_lock({})",
                self.lock
            );
            client.batch_execute(&ended).await?;
            let exists = "SELECT FROM pg_namespace WHERE nspname = $1";
            let found = client.query_opt(exists, &[&self.schema]).await?;
            session.close().await;
            Ok::<_, Error>(found.is_some())
        };
        match look.await {
            Ok(true) => Made::Yes,
            Ok(false) => Made::No,
            Err(error) => Made::Unknown(error),
        }
    }

    /// What is left after a failure, in one sentence. The scratch database stays while it is
    /// `wanted`: another attempt may go on with it.
    pub(crate) async fn left_behind(&self, wanted: bool) -> String {
        let name = format!(
            "schema {} of database {}",
            quoted(&self.schema),
            quoted(self.database())
        );
        let scratch = quoted(&self.scratch);
        match self.made().await {
            Made::Yes => {
                let rest = match self.drop_scratch().await {
                    Ok(()) => String::new(),
                    Err(_) => {
                        format!("; not dropped: the scratch database; DROP DATABASE {scratch}")
                    }
                };
                format!("{name}, which was made all the same and is complete{rest}")
            }
            Made::No if !wanted && self.drop_scratch().await.is_ok() => {
                format!("nothing: {name} was not made, and the scratch database was dropped")
            }
            Made::No => format!(
                "scratch database {scratch} of an unfinished restore; {name} was not made: resume the restore, \
                 or drop the scratch database with DROP DATABASE {scratch}"
            ),
            Made::Unknown(error) => format!(
                "scratch database {scratch}, and perhaps {name}, which could not be found out ({error}): if the \
                 schema is there, it is complete, and DROP DATABASE {scratch}; else resume the restore"
            ),
        }
    }

    /// Of a restore that succeeded otherwise.
    pub(crate) fn scratch_stays(&self, error: &Error) -> String {
        let scratch = quoted(&self.scratch);
        let cause = std::error::Error::source(error).map_or(String::new(), |it| format!(": {it}"));
        format!("not dropped: the scratch database; DROP DATABASE {scratch} ({error}{cause})")
    }
}

/// How values look as text must not depend on a database's or role's own settings.
const SAME_TEXT: &str =
    "SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3;
    SET TimeZone = 'UTC'; SET search_path = ''; SET row_security = off; SET statement_timeout = 0;
    SET idle_in_transaction_session_timeout = 0; SET lock_timeout = 0";

const TABLES: &str = "
SELECT c.relname::text, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 WHERE n.nspname = $1 AND c.relkind = 'r'
 GROUP BY c.oid, c.relname ORDER BY c.oid";

const SEQUENCES: &str = "
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relkind = 'S'";

/// Whoever captures this database must be able to read all of it: else its next base fails, and with it everything.
/// Anybody may make a publication of that name; who may replicate reads every change anyway.
const CAPTURING: &str = "
SELECT DISTINCT quote_ident(r.rolname) FROM pg_publication p JOIN pg_roles r ON r.oid = p.pubowner
 WHERE p.pubname ~ '^lastgood_[0-9a-f]{16}$'
   AND (r.rolsuper OR r.rolreplication
        OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER')))";

/// What ALTER DEFAULT PRIVILEGES of the existing database has given away of the new objects. (Array and
/// multirange types have the privileges of what they are made of.)
const GRANTED: &str = "
WITH made(kind, name, acl, owner) AS (
    SELECT 'SCHEMA', quote_ident(nspname), nspacl, nspowner FROM pg_namespace WHERE nspname = $1
  UNION ALL
    SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, relacl, relowner
      FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1
  UNION ALL
    SELECT 'ROUTINE', p.oid::regprocedure::text, proacl, proowner
      FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = $1
  UNION ALL
    SELECT 'TYPE', t.oid::regtype::text, typacl, typowner
      FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
     WHERE nspname = $1 AND typtype <> 'm' AND typcategory <> 'A'
)
SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %s', kind, name,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
  FROM made CROSS JOIN LATERAL aclexplode(acl) WHERE grantee <> owner";

/// A script of `pg_dump` without what only `psql` knows, and without the setting that only 17 knows.
/// Only before the first and after the last definition: a function may have such a line.
fn for_a_session(script: &str, server_version: u32) -> String {
    let first = script.find("\n-- Name: ").unwrap_or(script.len());
    let (head, body) = script.split_at(first);
    let body = match body.rfind("\n\\unrestrict ") {
        Some(at) if !body[at + 1..].trim_end().contains('\n') => &body[..at],
        _ => body,
    };
    let is_known = |line: &&str| {
        // The text has become UTF-8, whatever it was asked for in.
        !line.starts_with('\\')
            && !line.starts_with("SET client_encoding ")
            && (server_version >= 170_000 || !line.starts_with("SET transaction_timeout "))
    };
    let head: Vec<&str> = head.lines().filter(is_known).collect();
    format!("{}{body}", head.join("\n"))
}

#[cfg(test)]
mod tests {
    use lastgood_integration::{TestDatabase, wait};

    use super::*;

    /// The connection was lost, or somebody cancelled, while the schema's transaction was ending.
    #[tokio::test]
    async fn whether_the_schema_was_made() {
        let database = TestDatabase::new(15).await.unwrap();
        let into = Into {
            connection: database.url().parse().unwrap(),
            create_database: None,
            allow_source: false,
        };
        let existing = Existing::new(&into, "Recovered");
        database
            .execute("CREATE SCHEMA \"Recovered\"")
            .await
            .unwrap();
        let left = existing.left_behind(true).await;
        assert!(left.contains("was not made: resume"), "another's: {left}");
        database.execute("DROP SCHEMA \"Recovered\"").await.unwrap();

        existing.committing.store(true, Ordering::Relaxed);
        for (end, words) in [
            ("ROLLBACK", "nothing: schema \"Recovered\""),
            ("COMMIT", "was made all the same"),
        ] {
            let client = database.connect().await.unwrap();
            let begin = format!(
                "BEGIN; SELECT pg_advisory_xact_lock({}); CREATE SCHEMA \"Recovered\"",
                existing.lock
            );
            client.batch_execute(&begin).await.unwrap();
            let ending = async {
                let waits = async || {
                    let sql = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
                    let row = client.query_one(sql, &[]).await?;
                    Ok(row.get::<_, bool>(0).then_some(()))
                };
                wait::until("somebody to wait for the end", waits)
                    .await
                    .unwrap();
                client.batch_execute(end).await.unwrap();
            };
            let (left, ()) = tokio::join!(existing.left_behind(false), ending);
            assert!(left.contains(words), "{end}: {left}");
        }

        let nowhere = Into {
            connection: "postgresql://x@127.0.0.1:1/x?connect_timeout=2"
                .parse()
                .unwrap(),
            ..into
        };
        let existing = Existing::new(&nowhere, "Recovered");
        existing.committing.store(true, Ordering::Relaxed);
        let left = existing.left_behind(false).await;
        assert!(left.contains("could not be found out"), "{left}");
    }

    #[test]
    fn a_script_without_the_words_of_psql() {
        let script = "--\n\\restrict abc\n\nSET statement_timeout = 0;\nSET transaction_timeout = 0;\n\n--\n-- Name: f; Type: FUNCTION\n--\n\nCREATE FUNCTION f() AS $$\n\\unrestrict x\nSET transaction_timeout = 0;\n$$;\n\n--\n-- done\n--\n\n\\unrestrict abc\n\n";
        let expected = "--\n\nSET statement_timeout = 0;\n\n--\n-- Name: f; Type: FUNCTION\n--\n\nCREATE FUNCTION f() AS $$\n\\unrestrict x\nSET transaction_timeout = 0;\n$$;\n\n--\n-- done\n--\n";
        assert_eq!(for_a_session(script, 130_000), expected);
        assert!(for_a_session(script, 170_000).contains("0;\nSET transaction_timeout"));
        assert_eq!(
            for_a_session("--\n\\restrict a\n\\unrestrict a\n", 180_000),
            "--"
        );
    }
}
