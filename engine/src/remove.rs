//! Leaving a source as it was found: slots, event trigger and publication gone, replica identities given back.

use lastgood_pg::slot::{drop_slot, slots_with_prefix, terminate_reader};
use lastgood_pg::{Purpose, Session};
use lastgood_proto::Oid;
use serde::Serialize;
use tokio_postgres::Client;

use crate::ddl;
use crate::error::{Error, chain};
use crate::publication;
use crate::source::Source;

/// What a removal did to the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    pub dropped: Vec<String>,
    /// Still there, with the SQL that takes it away.
    pub left: Vec<Left>,
}

/// Something that could not be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    pub object: String,
    pub sql: String,
    pub error: String,
}

/// Takes everything of ours away from the source. Capture must have been stopped.
///
/// # Errors
/// Only if the source cannot be reached or looked at; what cannot be dropped is in the answer.
pub async fn remove(source: &Source) -> Result<Removal, Error> {
    let session = Session::connect(&source.connection, Purpose::Capture).await?;
    let mut removal = Removal::default();
    drop_slots(&session, source, &mut removal).await?;
    ddl::remove(session.client(), source.id, &mut removal).await?;
    let name = publication::name(source.id);
    if let Some(oid) = lastgood_pg::publication::oid(&session, &name).await? {
        give_identities_back(session.client(), oid, &mut removal).await?;
        let object = format!("publication {name}");
        let sql = format!("DROP PUBLICATION {name};");
        removal.try_sql(session.client(), object, sql).await;
    }
    Ok(removal)
}

/// Drops every slot of the source, reader or not.
pub(crate) async fn drop_slots(
    session: &Session,
    source: &Source,
    removal: &mut Removal,
) -> Result<(), Error> {
    let prefix = format!("lastgood_{}_", source.id);
    for slot in slots_with_prefix(session, &prefix).await? {
        if slot.active_pid.is_some() {
            terminate_reader(session, &slot.name).await.ok();
        }
        let mut outcome = drop_slot(session, &slot.name).await;
        // The reader that was just ended needs a moment to let go.
        for _ in 0..20 {
            if !matches!(&outcome, Err(error) if error.sqlstate() == Some("55006")) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            outcome = drop_slot(session, &slot.name).await;
        }
        let sql = format!("SELECT pg_drop_replication_slot('{}');", slot.name);
        let outcome = outcome.map(|_| ()).map_err(|error| chain(&error));
        removal.note(format!("slot {}", slot.name), sql, outcome);
    }
    Ok(())
}

async fn give_identities_back(
    client: &Client,
    publication: Oid,
    removal: &mut Removal,
) -> Result<(), Error> {
    let remembered = publication::remembered(client, publication).await?;
    for (oid, before) in remembered.replica_identity_before_full {
        let row = client
            .query_opt(
                "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.oid = $1 AND c.relreplident = 'f'",
                &[&oid],
            )
            .await
            .map_err(Error::sql(
                "looking for tables with a changed replica identity",
            ))?;
        let Some(row) = row else {
            continue;
        };
        let table: String = row.get(0);
        let identity = match before {
            'n' => "NOTHING",
            _ => "DEFAULT",
        };
        let sql = format!("ALTER TABLE {table} REPLICA IDENTITY {identity};");
        let guarded = format!("BEGIN; SET LOCAL lock_timeout = '5s'; {sql} COMMIT");
        let outcome = client.batch_execute(&guarded).await;
        if outcome.is_err() {
            client
                .batch_execute("ROLLBACK")
                .await
                .map_err(Error::sql("giving replica identities back"))?;
        }
        let object = format!("replica identity of {table}");
        removal.note(object, sql, outcome.map_err(|error| chain(&error)));
    }
    Ok(())
}

impl Removal {
    /// # Errors
    /// If something is left: a slot would go on holding WAL back.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some(left) => Err(Error::Unfit(format!(
                "{} could not be dropped ({}); run {}",
                left.object, left.error, left.sql
            ))),
        }
    }

    pub(crate) async fn try_sql(&mut self, client: &Client, object: String, sql: String) {
        let outcome = client.batch_execute(&sql).await;
        self.note(object, sql, outcome.map_err(|error| chain(&error)));
    }

    fn note(&mut self, object: String, sql: String, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.dropped.push(object),
            Err(error) => self.left.push(Left { object, sql, error }),
        }
    }
}
