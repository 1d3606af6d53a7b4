//! A slot can only be made once every transaction that is writing has ended. Meanwhile it holds WAL
//! back, as every slot does, so the wait is told, and ends at the WAL budget.

use std::time::Duration;

use lastgood_pg::slot::{slot_info, terminate_reader};
use lastgood_pg::{CreatedSlot, ReplicationConnection, Session, SlotKind};

use crate::error::Error;

const INTERVAL: Duration = Duration::from_secs(2);

/// The transactions that a slot waits for, oldest first: not what they say, which may be anybody's
/// data. What belongs to other roles shows only to members of `pg_read_all_stats`.
const WRITERS: &str = "\
SELECT 'process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') \
       || ', whose transaction began ' || date_trunc('second', now() - xact_start) || ' ago and whose ' \
       || CASE state WHEN 'active' THEN 'query runs since ' ELSE 'last query began at ' END \
       || date_trunc('second', query_start), xact_start AS begun \
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
UNION ALL \
SELECT 'the prepared transaction ' || quote_literal(gid) || ' of ' \
       || date_trunc('second', prepared), prepared \
FROM pg_prepared_xacts ORDER BY begun LIMIT 3";

/// Makes a slot, and tells every few seconds what it waits for.
///
/// # Errors
/// [`Error::SlotWait`] if what it holds back reaches `budget_bytes`; what was begun is taken away.
pub(crate) async fn make(
    session: &Session,
    connection: &mut ReplicationConnection,
    name: &str,
    kind: SlotKind,
    budget_bytes: u64,
    mut tell: impl FnMut(String),
) -> Result<CreatedSlot, Error> {
    let created = connection.create_slot(name, kind);
    tokio::pin!(created);
    loop {
        tokio::select! {
            biased;
            created = &mut created => return Ok(created?),
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let waited_for = waited_for(session).await;
        let slot = slot_info(session, name).await.ok().flatten();
        let retained = slot.map_or(0, |slot| slot.retained_bytes);
        if retained >= budget_bytes {
            // The server would not notice that its client is gone before the wait is over.
            terminate_reader(session, name).await.ok();
            return Err(Error::SlotWait {
                held: format!(
                    "it held back {retained} bytes of WAL before it was ready, the budget is \
                     {budget_bytes}"
                ),
                waited_for,
            });
        }
        tell(waited_for);
    }
}

async fn waited_for(session: &Session) -> String {
    let rows = session.client().query(WRITERS, &[]).await;
    // What others do is not shown to every role.
    let shown = |row: &tokio_postgres::Row| row.try_get::<_, Option<String>>(0).ok().flatten();
    let writers: Vec<String> = rows.iter().flatten().filter_map(shown).collect();
    match writers.is_empty() {
        true => "waiting for writing or prepared transactions to end (to a role with \
                 pg_read_all_stats they can be named)"
            .to_owned(),
        false => format!("waiting for {} to end", writers.join(", and ")),
    }
}
