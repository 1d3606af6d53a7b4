//! What the tests of planning and executing share: a source on a real server with its repository,
//! filled the way capture fills it, but at the test's command.

use std::collections::BTreeMap;

use lastgood_integration::{TestDatabase, digest};
use lastgood_pg::dump::DumpOptions;
use lastgood_pg::{
    ConnectionConfig, PgTools, Purpose, ReplicationConnection, ReplicationOptions, Session,
    SlotKind,
};
use lastgood_proto::key::{ArchiveName, SegmentKey, SegmentKind, SourceObject};
use lastgood_proto::manifest::{
    Archive, BaseManifest, LineageFile, Protection, SourceFile, TableEntry, Version1,
};
use lastgood_proto::pgoutput::{self, Message};
use lastgood_proto::segment::{Header, SegmentWriter, SequenceSample};
use lastgood_proto::{
    BaseId, LineageId, Lsn, Oid, PgTimestamp, Sha256, SourceId, SystemId, TimelineId, encoding,
};
use lastgood_store::{
    Encryption, MasterKey, Repository, RepositoryUrl, SealedBody, SourceStore, StorageOptions,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

pub(crate) const PINNED: &str = "SET DateStyle='ISO'; SET IntervalStyle='postgres'; SET TimeZone='UTC'; \
     SET extra_float_digits=3; SET bytea_output='hex'; SET lc_monetary='C'; SET search_path='pg_catalog'";

/// With its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A source, its slot and its repository.
pub(crate) struct Fixture {
    pub(crate) source: TestDatabase,
    pub(crate) store: SourceStore,
    pub(crate) folder: TempDir,
    slot: String,
    pub(crate) lineage: LineageId,
    /// End of the last segment.
    durable: Lsn,
    tools: PgTools,
    encoding: String,
    /// What segments say their values are in. None: version 1, as earlier programs wrote it.
    pub(crate) sent_in: Option<String>,
}

/// The majors whose tools can be found; `make test` has them all.
pub(crate) async fn majors() -> Vec<u32> {
    majors_of(&[15, 18]).await
}

/// Those of `wanted` whose tools can be found.
pub(crate) async fn majors_of(wanted: &[u32]) -> Vec<u32> {
    let found = PgTools::discover().await;
    let has = |major: &u32| found.iter().any(|tools| tools.major() >= *major);
    wanted.iter().copied().filter(has).collect()
}

/// Writes everything the slot has as a segment, with a sample of the sequences at its end.
pub(crate) async fn capture<W: std::io::Write>(
    source: &TestDatabase,
    slot: &str,
    header: Header,
    sink: W,
) -> (W, SegmentKey, Vec<pgoutput::Begin>) {
    let client = source.connect().await.unwrap();
    client.batch_execute(PINNED).await.unwrap();
    let encoding = match &header.encoding {
        Some(encoding) => encoding.clone(),
        None => {
            let server = client.query_one("SHOW server_encoding", &[]).await;
            let server: String = server.unwrap().get(0);
            let raw = server == "SQL_ASCII";
            if raw { server } else { "UTF8".to_owned() }
        }
    };
    let sql = format!("SET client_encoding = '{encoding}'");
    client.batch_execute(&sql).await.unwrap();
    let mark = client
        .query_one(
            "SELECT pg_current_wal_insert_lsn()::text,
                    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
            &[],
        )
        .await
        .unwrap();
    let (mark, clock): (String, i64) = (mark.get(0), mark.get(1));
    let mark: Lsn = mark.parse().unwrap();
    let samples = client
        .query(
            "SELECT schemaname::text, sequencename::text, coalesce(last_value, start_value)::text,
                    last_value IS NOT NULL FROM pg_sequences",
            &[],
        )
        .await
        .unwrap();
    let samples: Vec<SequenceSample> = samples
        .iter()
        .map(|row| SequenceSample {
            schema: row.get(0),
            name: row.get(1),
            last_value: row.get(2),
            is_called: row.get(3),
        })
        .collect();
    // 13 does not know logical messages yet.
    let knows_messages = source.server.major() >= 14;
    let sql = format!(
        "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
             'proto_version', '1', 'publication_names', 'everything'{})",
        if knows_messages {
            ", 'messages', 'true'"
        } else {
            ""
        }
    );
    let messages = client.query(&sql, &[&slot]).await.unwrap();
    let mut writer = SegmentWriter::new(sink, &header).unwrap();
    let mut commits = Vec::new();
    for row in messages {
        let data: &[u8] = row.get(0);
        match pgoutput::decode_in(data, &encoding).unwrap() {
            Message::Begin(begin) => {
                writer.begin(&begin).unwrap();
                commits.push(begin);
            }
            Message::Commit(commit) => writer.commit(&commit).unwrap(),
            Message::Relation(relation) => {
                let columns = relation.columns.iter();
                let types: Vec<String> =
                    columns.map(|column| column.type_oid.to_string()).collect();
                writer.relation(&relation, &types).unwrap();
            }
            Message::Insert(insert) => writer.insert(&insert).unwrap(),
            Message::Update(update) => writer.update(&update).unwrap(),
            Message::Delete(delete) => writer.delete(&delete).unwrap(),
            Message::Truncate(truncate) => writer.truncate(&truncate).unwrap(),
            Message::Message(message) => writer.message(&message).unwrap(),
            Message::Origin(_) | Message::Type(_) => {}
        }
    }
    writer.sequences(mark, &samples).unwrap();
    let end = writer
        .last_end()
        .max(mark)
        .max(Lsn::new(header.start.as_u64() + 1));
    let observed = PgTimestamp::from_unix_micros(clock);
    let (sink, footer) = writer.finish(end, Some(observed)).unwrap();
    (sink, footer.key(header.start), commits)
}

impl Fixture {
    pub(crate) async fn new(major: u32, schema: &str) -> Self {
        Self::with_encoding(major, schema, "UTF8").await
    }

    pub(crate) async fn with_encoding(major: u32, schema: &str, encoding: &str) -> Self {
        let mut source = TestDatabase::new(major).await.unwrap();
        if encoding != "UTF8" {
            let name = format!("{}_encoded", source.name);
            let sql = format!(
                "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            );
            source.server.execute("postgres", &sql).await.unwrap();
            source.name = name;
        }
        source.execute(schema).await.unwrap();
        let client = source.connect().await.unwrap();
        // As capture does: only tables with a usable replica identity.
        let tables = client
            .query(
                "SELECT c.oid::regclass::text FROM pg_class c
                  WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text NOT LIKE 'pg\\_%' AND c.relnamespace <> 'information_schema'::regnamespace AND c.relpersistence = 'p'
                    AND (c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
                         AND (i.indisprimary AND c.relreplident = 'd' OR i.indisreplident)))",
                &[],
            )
            .await
            .unwrap();
        let tables: Vec<String> = tables.iter().map(|row| row.get(0)).collect();
        let publish = format!(
            "CREATE PUBLICATION everything FOR TABLE {}",
            tables.join(", ")
        );
        source.execute(&publish).await.unwrap();
        let folder = TempDir::new().unwrap();
        let key = MasterKey::generate().unwrap();
        let repository = Repository::create_or_open(
            &RepositoryUrl::local(folder.path()),
            &StorageOptions::default(),
            Encryption::On(key),
        )
        .await
        .unwrap();
        let id = SourceId::from_bytes(rand_bytes());
        let store = repository.create_source(id).await.unwrap();
        let system_id: String = client
            .query_one(
                "SELECT system_identifier::text FROM pg_control_system()",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let system_id: SystemId = system_id.parse().unwrap();
        let file = SourceFile {
            v: Version1,
            id,
            name: "shop".to_owned(),
            database: source.name.clone(),
            system_id,
            created: PgTimestamp::from_micros(0),
        };
        store.put_json(&SourceObject::Source, &file).await.unwrap();
        let found = PgTools::discover().await;
        let tools = PgTools::for_dump(&found, major * 10_000).unwrap();
        let mut fixture = Self {
            slot: format!("slot_{}", source.name),
            source,
            store,
            folder,
            lineage: LineageId::new(1, 1),
            durable: Lsn::INVALID,
            tools,
            encoding: encoding.to_owned(),
            sent_in: None,
        };
        let config = fixture.config();
        let mut connection =
            ReplicationConnection::connect(&config, &ReplicationOptions::default())
                .await
                .unwrap();
        let slot = connection
            .create_slot(&fixture.slot, SlotKind::Permanent)
            .await
            .unwrap();
        fixture.durable = slot.consistent_point;
        let lineage = LineageFile {
            v: Version1,
            id: fixture.lineage,
            system_id,
            timeline: TimelineId::new(1),
            slot: fixture.slot.clone(),
            publication: "everything".to_owned(),
            publication_oid: Oid::new(1),
            server_version: major * 10_000,
            server_encoding: encoding.to_owned(),
            database: fixture.source.name.clone(),
            start: slot.consistent_point,
            created: PgTimestamp::from_micros(0),
            writer: None,
        };
        let object = SourceObject::Lineage(fixture.lineage);
        fixture.store.put_json(&object, &lineage).await.unwrap();
        fixture.dump(slot.consistent_point, &slot.snapshot).await;
        fixture
    }

    pub(crate) fn config(&self) -> ConnectionConfig {
        self.source.url().parse().unwrap()
    }

    /// Another base, from a temporary slot.
    pub(crate) async fn base(&self) {
        let mut connection =
            ReplicationConnection::connect(&self.config(), &ReplicationOptions::default())
                .await
                .unwrap();
        let name = format!("{}_tmp", self.slot);
        let slot = connection
            .create_slot(&name, SlotKind::Temporary)
            .await
            .unwrap();
        self.dump(slot.consistent_point, &slot.snapshot).await;
    }

    async fn dump(&self, consistent_point: Lsn, snapshot: &str) {
        let client = self.source.connect().await.unwrap();
        let clock: i64 = client
            .query_one(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let clock = PgTimestamp::from_unix_micros(clock);
        let base = BaseId::new(consistent_point, 1);
        let session = Session::connect(&self.config(), Purpose::Base)
            .await
            .unwrap();
        let import = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'"
        );
        session.client().batch_execute(&import).await.unwrap();
        let session = session.lend().await.unwrap();
        // As a base is taken.
        let options = DumpOptions {
            encoding: Some(encoding::sent_in(&self.encoding).to_owned()),
            ..DumpOptions::default()
        };
        let process = self.tools.dump(session, &self.source.name, &options);
        let mut process = process.unwrap();
        let object = SourceObject::Archive(self.lineage, base, ArchiveName::Main);
        let mut writer = self.store.put_stream(&object).await.unwrap();
        let (mut bytes, mut digest, mut chunk) = (0, Sha256::new(), vec![0; 1 << 16]);
        loop {
            let count = process.stdout.read(&mut chunk).await.unwrap();
            if count == 0 {
                break;
            }
            digest.update(&chunk[..count]);
            writer.write(&chunk[..count]).await.unwrap();
            bytes += count as u64;
        }
        process.wait().await.unwrap();
        let stored_bytes = writer.finish().await.unwrap();
        let manifest = BaseManifest {
            v: Version1,
            id: base,
            consistent_point,
            fingerprint: String::new(),
            definitions: None,
            snapshot_time: clock,
            started: clock,
            finished: clock,
            server_version: self.source.server.major() * 10_000,
            pg_dump_version: self.tools.version().to_owned(),
            database: self.source.name.clone(),
            encoding: self.encoding.clone(),
            locale: None,
            settings: Vec::new(),
            archives: vec![Archive {
                name: ArchiveName::Main,
                table: None,
                parts: None,
                bytes,
                stored_bytes,
                sha256: digest.digest().to_string(),
            }],
            borrowed: Vec::new(),
            tables: self.tables().await,
            sequences: Vec::new(),
            large_objects: 0,
            snapshot_xmin: None,
        };
        let object = SourceObject::Manifest(self.lineage, base);
        self.store.put_json(&object, &manifest).await.unwrap();
    }

    async fn tables(&self) -> Vec<TableEntry> {
        let client = self.source.connect().await.unwrap();
        let rows = client
            .query(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, i.relname::text,
                        p.prrelid IS NOT NULL
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   LEFT JOIN pg_publication_rel p ON p.prrelid = c.oid
                   LEFT JOIN LATERAL (SELECT ic.relname FROM pg_index x JOIN pg_class ic ON ic.oid = x.indexrelid
                        WHERE x.indrelid = c.oid AND (x.indisprimary OR x.indisreplident)
                        ORDER BY x.indisreplident DESC LIMIT 1) i ON true
                  WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
                &[],
            )
            .await
            .unwrap();
        let entry = |row: &tokio_postgres::Row| TableEntry {
            oid: Oid::new(row.get(0)),
            schema: row.get(1),
            name: row.get(2),
            kind: row.get::<_, String>(3).chars().next().unwrap(),
            protection: match (row.get::<_, String>(3).as_str(), row.get(5)) {
                ("p", _) => Protection::Derived,
                (_, true) => Protection::Full,
                (_, false) => Protection::NoIdentity,
            },
            identity_index: row.get(4),
            rows_estimate: None,
            bytes: 0,
            unaltered: None,
            checks: None,
            columns: Vec::new(),
            attributes: None,
        };
        rows.iter().map(entry).collect()
    }

    pub(crate) async fn run(&self, sql: &str) {
        let ran = self.source.execute(sql).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {error:#}"));
    }

    /// Makes everything so far durable: one segment. Answers its transactions.
    pub(crate) async fn seal(&mut self) -> Vec<pgoutput::Begin> {
        let header = Header {
            source: self.store.id(),
            lineage: self.lineage,
            start: self.durable,
            server: self.source.server.major() * 10_000,
            encoding: self.sent_in.clone(),
        };
        let start = SegmentKey {
            start: self.durable,
            end: self.durable,
            max_commit_time: None,
            observed_through: None,
            kind: SegmentKind::Captured,
        };
        let object = SourceObject::Segment(self.lineage, start);
        let sealer = self.store.sealer(&object, Vec::new(), 1).unwrap();
        let (sealer, key, commits) = capture(&self.source, &self.slot, header, sealer).await;
        let body = SealedBody::Memory(sealer.finish().unwrap().into());
        let object = SourceObject::Segment(self.lineage, key);
        self.store.put_sealed(&object, &body).await.unwrap();
        self.durable = key.end;
        commits
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    pub(crate) async fn content(&self) -> digest::Content {
        content(&self.source).await
    }
}

pub(crate) async fn content(database: &TestDatabase) -> digest::Content {
    let mut client = database.connect().await.unwrap();
    digest::of(&mut client, None).await.unwrap()
}

/// Tables only, by name: what a test compares when sequences do not matter.
pub(crate) fn tables(content: &digest::Content) -> &BTreeMap<String, digest::Table> {
    &content.tables
}

fn rand_bytes() -> [u8; 8] {
    let nonce = std::time::Instant::now();
    let digest = Sha256::of(format!("{nonce:?}{}", std::process::id()).as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.0[..8]);
    bytes
}
