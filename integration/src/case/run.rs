//! Plays a case on real servers with a real service, restores its moments and compares.
//!
//! One statement at a time: whoever would wait for another session's lock is refused instead, so what
//! happens depends on the case alone (autovacuum, the service and the clock apart). Nothing is in
//! flight at a moment, so a snapshot taken there is the truth about it, open transactions or not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{Case, Operation, Replay, Restore, Setting, Target};
use crate::digest::{self, Content};
use crate::postgres::{self, Postgres, TestDatabase};
use crate::service::Service;
use crate::storage::Storage;
use crate::workload::KEYLESS;
use crate::{history, seed, truth, wait};

/// What is wrong with the product; trouble with the case or the machine is an error instead.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: Kind,
    /// Number of the [`Operation::Moment`] among the moments of the case.
    pub moment: Option<usize>,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The source is not captured as it should be.
    Capture,
    /// A restore fails.
    Restore,
    /// A restore gives something else.
    Content,
}

/// What becomes of a statement that cannot be right whatever the server's state: a table that is not
/// there, a syntax error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonsense {
    /// The generator must not write it.
    IsAnError,
    /// In a case that is being shortened, the table may have been left out.
    IsRefused,
}

/// Where tables come back beside others, and what stands there already.
const BESIDE: &str = "recovered";
/// The schema of the source that is not `public`.
const ODD: &str = "\"Odd Schema\"";
const HERE: &str = "CREATE TABLE public.here (id int); INSERT INTO public.here VALUES (1)";

/// A state of the source.
struct Moment {
    number: usize,
    target: Value,
    content: Content,
    /// Only these tables, as they are named to the service; all, if none.
    tables: Vec<String>,
    /// Under the schema [`BESIDE`] of a database that exists.
    beside: bool,
    replay: Replay,
    /// It may be refused, for a change of definitions.
    perhaps: bool,
    /// The definitions, where they change.
    schema: Option<Vec<String>>,
    /// The id of the restore that has begun.
    begun: Option<String>,
}

struct Player<'a> {
    case: &'a Case,
    nonsense: Nonsense,
    database: TestDatabase,
    service: Service,
    control: Client,
    sessions: BTreeMap<u32, Client>,
    moments: Vec<Moment>,
    /// Moments of the case that have been passed, recorded or not.
    passed: usize,
    registered: bool,
    /// There is a base: from now on, every state can be restored.
    protected: bool,
    paused: bool,
}

/// Plays the case; answers what is wrong, if anything is.
///
/// # Errors
/// When the case cannot be played.
pub async fn run(case: &Case, nonsense: Nonsense) -> Result<Option<Failure>> {
    let Setting { source, target, .. } = case.setting;
    ensure!(target >= source, "a dump cannot go back to an older major");
    let storage = match case.setting.s3 {
        true => Storage::s3().map_or_else(Storage::local, Ok)?,
        false => Storage::local()?,
    };
    let mut service = Service::builder().storage(&storage);
    if !case.setting.encryption {
        service = service.argument("--encryption").argument("off");
    }
    let service = service.start().await?;
    let database = TestDatabase::new(source).await?;
    let control = database.connect().await?;
    let prepare = "CREATE TABLE public.marks (id bigserial PRIMARY KEY, what text);
        SET lock_timeout = '5s'";
    control.batch_execute(prepare).await?;
    let mut player = Player {
        case,
        nonsense,
        database,
        service,
        control,
        sessions: BTreeMap::new(),
        moments: Vec::new(),
        passed: 0,
        registered: false,
        protected: false,
        paused: false,
    };
    let played = player.play().await;
    // Whatever came of it: what is left on a server that is shared would hold up all other cases.
    let cleaned = player.clean().await;
    let failure = played?;
    cleaned?;
    Ok(failure)
}

/// `Err(Ok(failure))` is the product's fault, `Err(Err(error))` is ours.
type Played<T> = std::result::Result<T, Result<Failure>>;

fn capture(error: anyhow::Error) -> Result<Failure> {
    Ok(Failure {
        kind: Kind::Capture,
        moment: None,
        text: format!("{error:#}"),
    })
}

impl Player<'_> {
    async fn play(&mut self) -> Result<Option<Failure>> {
        let played = async {
            for operation in &self.case.operations {
                self.operate(operation).await?;
            }
            self.finish().await?;
            self.check().await
        };
        match played.await {
            Ok(()) => Ok(None),
            Err(failure) => failure.map(Some),
        }
    }

    async fn operate(&mut self, operation: &Operation) -> Played<()> {
        let name = self.database.name.clone();
        match operation {
            Operation::Sql { session, sql } => self.say(*session, sql).await.map_err(Err),
            Operation::Register => {
                let settings = self.case.setting.settings.clone();
                let url = self.database.url();
                let added = self.service.add_source(&name, &url, settings).await;
                added.map_err(capture)?;
                self.registered = true;
                Ok(())
            }
            Operation::Settle => self.settle().await,
            // Refused while one is running, which is as good.
            Operation::Base => {
                let path = format!("/api/v1/sources/{name}/bases");
                let post = reqwest::Method::POST;
                let asked = self.service.request(post, &path, Some(&json!({}))).await;
                asked.map(drop).map_err(capture)
            }
            Operation::Kill => {
                // A restore that is killed is another test's matter.
                for moment in &self.moments {
                    if let Some(id) = &moment.begun {
                        self.service.wait_restore(id).await.map_err(capture)?;
                    }
                }
                self.service.kill().map_err(Err)?;
                self.service.start_again().await.map_err(capture)
            }
            Operation::Pause => {
                let path = format!("/api/v1/sources/{name}/pause");
                let paused = self.service.post(&path, json!({"slot": "keep"})).await;
                self.paused = true;
                paused.map(drop).map_err(capture)
            }
            Operation::Resume => self.resume().await,
            Operation::Rebased => self.rebased().await,
            Operation::Moment(restore) => self.moment(*restore).await,
        }
    }

    async fn say(&mut self, session: u32, sql: &str) -> Result<()> {
        if !self.sessions.contains_key(&session) {
            let client = self.database.connect().await?;
            client.batch_execute("SET lock_timeout = '40ms'").await?;
            self.sessions.insert(session, client);
        }
        let client = &self.sessions[&session];
        let sql = sql.replace("{database}", &self.database.name);
        let Err(error) = client.batch_execute(&sql).await else {
            return Ok(());
        };
        // Duplicate keys, locks and the like are part of the game, and so is a transaction that failed
        // before it could be prepared.
        if sql.contains(" PREPARED ") {
            return Ok(());
        }
        let code = error.code().map_or("", |code| code.code());
        let is_nonsense = code.is_empty() || code.starts_with("42") || code.starts_with("0A");
        ensure!(
            self.nonsense == Nonsense::IsRefused || !is_nonsense,
            "{sql}: {error:?}"
        );
        Ok(())
    }

    async fn resume(&mut self) -> Played<()> {
        if !std::mem::take(&mut self.paused) {
            return Ok(());
        }
        let path = format!("/api/v1/sources/{}/resume", self.database.name);
        let resumed = self.service.post(&path, json!({})).await;
        resumed.map(drop).map_err(capture)
    }

    async fn close(&mut self) -> Result<()> {
        for client in self.sessions.values() {
            client.batch_execute("ROLLBACK").await?;
        }
        let sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        for row in self.control.query(sql, &[]).await? {
            let gid: String = row.get(0);
            let sql = format!("ROLLBACK PREPARED '{gid}'");
            self.control.batch_execute(&sql).await?;
        }
        Ok(())
    }

    async fn settle(&mut self) -> Played<()> {
        self.close().await.map_err(Err)?;
        self.resume().await?;
        if self.registered {
            let (service, name) = (&self.service, &self.database.name);
            service.wait_protected(name).await.map_err(capture)?;
            let path = format!("/api/v1/sources/{name}/bases");
            let at_rest = |bases: &Value| {
                let items = bases["items"].as_array();
                items.is_some_and(|items| items.iter().all(|base| base["status"] != "running"))
            };
            wait::until_value("the bases to be done", || service.get(&path), at_rest)
                .await
                .map_err(capture)?;
            self.protected = true;
        }
        Ok(())
    }

    /// Until the latest can be restored, whatever has changed.
    async fn rebased(&mut self) -> Played<()> {
        if !self.protected {
            return Ok(());
        }
        self.resume().await?;
        // Looked at, more than once: the event trigger has been there from one look to the next.
        for _ in 0..3 {
            let mark = "INSERT INTO public.marks (what) VALUES ('look')";
            let marked = self.control.batch_execute(mark).await;
            marked.map_err(|error| Err(error.into()))?;
            self.durable().await?;
        }
        let (service, name) = (&self.service, &self.database.name);
        let path = format!("/api/v1/sources/{name}/window");
        let window = wait::until_value(
            "a base after the change",
            || service.get(&path),
            |window: &Value| window["latest_refused"].is_null(),
        );
        window.await.map(drop).map_err(capture)
    }

    async fn moment(&mut self, restore: Restore) -> Played<()> {
        let number = self.passed;
        self.passed += 1;
        if !self.protected {
            return Ok(());
        }
        let mut moment = match self.record(restore.target, number).await {
            Ok(moment) => moment,
            // A transaction that is open has truncated a table: nobody can look.
            Err(error) if is_locked(&error) => return Ok(()),
            Err(error) => return Err(Err(error)),
        };
        moment.replay = restore.replay;
        moment.perhaps = restore.perhaps;
        if let Some(part) = restore.part {
            moment.tables = some(&moment.content, part);
            moment.beside = restore.beside;
        }
        // Nothing becomes durable while the source is paused.
        if restore.meanwhile && restore.target != Target::Latest && !self.paused {
            self.durable().await?;
            moment.begun = Some(self.begin(&moment).await?);
        }
        self.moments.push(moment);
        Ok(())
    }

    /// All that was written so far is durable, and known to be.
    async fn durable(&self) -> Played<()> {
        let lsn = truth::wal_position(&self.control).await.map_err(Err)?;
        let time = truth::clock(&self.control).await.map_err(Err)?;
        let (service, name) = (&self.service, &self.database.name);
        service.wait_durable(name, &lsn).await.map_err(capture)?;
        service.wait_observed(name, &time).await.map_err(capture)
    }

    async fn record(&mut self, target: Target, number: usize) -> Result<Moment> {
        let mut content = digest::of(&mut self.control, None).await?;
        let control = &self.control;
        let target = match target {
            Target::Latest => json!("latest"),
            Target::Lsn => {
                // The next record may be a commit, which would begin exactly here and be included.
                let lsn = truth::wal_position(control).await?;
                let sql = "SELECT pg_logical_emit_message(false, 'moment', '')";
                control.batch_execute(sql).await?;
                json!({"lsn": lsn})
            }
            Target::LsnExclusive => {
                json!({"lsn": truth::wal_position(control).await?, "inclusive": false})
            }
            Target::Time => json!({"time": truth::clock(control).await?}),
            Target::TimeExclusive => {
                json!({"time": truth::clock(control).await?, "inclusive": false})
            }
            Target::Xid | Target::XidExclusive => {
                let sql = "INSERT INTO public.marks (what) VALUES ('moment')
                    RETURNING pg_current_xact_id()::text::bigint % 4294967296";
                let xid: i64 = control.query_one(sql, &[]).await?.get(0);
                let inclusive = target == Target::Xid;
                if inclusive {
                    content = digest::of(&mut self.control, None).await?;
                }
                json!({"xid": xid, "inclusive": inclusive})
            }
            Target::Name => {
                let point = format!("point-{number}");
                let path = format!("/api/v1/sources/{}/points", self.database.name);
                self.service.post(&path, json!({"name": point})).await?;
                json!({"name": point})
            }
        };
        // Sequences are sampled: a restore to a moment just before one is set back cannot know how far
        // it was, only that it is past every row.
        let sets_back = |operation: &Operation| matches!(operation, Operation::Sql { sql, .. } if sql.contains("RESTART IDENTITY"));
        if self.case.operations.iter().any(sets_back) {
            content.sequences.clear();
        }
        if self.case.setting.settings["no_identity"] != "full" {
            content.tables.retain(|name, _| !name.starts_with(KEYLESS));
        }
        let server = &self.database.server;
        let schema = match self.case.operations.contains(&Operation::Rebased) {
            true if server.major() == self.case.setting.target => {
                // Not where somebody has an open transaction that has truncated a table.
                history::schema(server, &self.database.name).ok()
            }
            _ => None,
        };
        Ok(Moment {
            number,
            target,
            content,
            tables: Vec::new(),
            beside: false,
            replay: Replay::Merged,
            perhaps: false,
            schema,
            begun: None,
        })
    }

    /// Everything is over, and durable.
    async fn finish(&mut self) -> Played<()> {
        self.settle().await?;
        if !self.registered {
            return Ok(());
        }
        self.durable().await?;
        let (service, name) = (&self.service, &self.database.name);
        let path = format!("/api/v1/sources/{name}/window");
        let window = service.get(&path).await.map_err(capture)?;
        let migrates = self.case.operations.contains(&Operation::Rebased);
        let gaps = window["gaps"].as_array().into_iter().flatten();
        let mut unknown = gaps.filter(|gap| !migrates || gap["reason"].is_null());
        if unknown.next().is_some() {
            return Err(capture(anyhow::anyhow!("there are gaps: {window:#}")));
        }
        Ok(())
    }

    async fn check(&self) -> Played<()> {
        for moment in &self.moments {
            self.restore(moment).await?;
        }
        let log = self.service.log();
        match log.lines().find(|line| line.contains("panicked at")) {
            Some(line) => Err(capture(anyhow::anyhow!("{line}"))),
            None => Ok(()),
        }
    }

    /// Whether the moment lies where definitions were altered and no base has them yet.
    async fn is_refused(&self, moment: &Moment) -> Played<bool> {
        let path = format!("/api/v1/sources/{}/plan", self.database.name);
        let body = json!({"target": moment.target});
        let planned = self
            .service
            .request(reqwest::Method::POST, &path, Some(&body));
        let planned = planned.await.map_err(capture)?;
        let why = planned.body["detail"].as_str().unwrap_or_default();
        Ok(
            planned.code() == "target_outside_windows"
                && why.contains("the target lies in a gap ("),
        )
    }

    fn copy(&self, moment: &Moment) -> String {
        format!("{}_{}", self.database.name, moment.number)
    }

    /// Begins a restore; answers its id.
    async fn begin(&self, moment: &Moment) -> Played<String> {
        let server = postgres::shared(self.case.setting.target).await;
        let server = server.map_err(Err)?;
        let mut body = json!({"target": moment.target, "tables": moment.tables});
        match moment.replay {
            Replay::Merged => {}
            Replay::Memory(bytes) => body["memory_bytes"] = json!(bytes),
            Replay::Ordered => body["replay"] = json!("ordered"),
        }
        if moment.beside {
            let url = self.database_beside(&server, moment).await.map_err(Err)?;
            body["into"] = json!({"connection": url});
            body["into_schema"] = json!(BESIDE);
        } else {
            let url = server.url("postgres");
            body["into"] = json!({"connection": url, "create_database": self.copy(moment)});
        }
        let path = format!("/api/v1/sources/{}/restores", self.database.name);
        let begun = self.service.post(&path, body).await;
        let begun = begun.map_err(|error| moment.wrong(Kind::Restore, error))?;
        Ok(begun["id"].as_str().unwrap_or_default().to_owned())
    }

    /// A database in use, with the source's extensions: what comes under a schema brings none.
    async fn database_beside(&self, server: &Postgres, moment: &Moment) -> Result<String> {
        let copy = self.copy(moment);
        let url = server.create_database(&copy).await?;
        server.execute(&copy, HERE).await?;
        let sql = "SELECT quote_ident(extname) FROM pg_extension";
        for row in self.control.query(sql, &[]).await? {
            let name: String = row.get(0);
            let sql = format!("CREATE EXTENSION IF NOT EXISTS {name}");
            server.execute(&copy, &sql).await?;
        }
        Ok(url)
    }

    async fn restore(&self, moment: &Moment) -> Played<()> {
        let wrong = |kind, error| moment.wrong(kind, error);
        let server = postgres::shared(self.case.setting.target)
            .await
            .map_err(Err)?;
        let (copy, source) = (self.copy(moment), &self.database.name);
        let id = match &moment.begun {
            Some(id) => id.clone(),
            None if moment.perhaps && self.is_refused(moment).await? => return Ok(()),
            None => self.begin(moment).await?,
        };
        let ended = async {
            let ended = self.service.wait_restore(&id).await?;
            ensure!(ended["status"] == "succeeded", "{ended:#}");
            anyhow::Ok(ended)
        };
        let ended = ended.await.map_err(|error| wrong(Kind::Restore, error))?;
        if let Some(fault) = &self.case.setting.fault {
            // What it damages may have been left out of the case.
            let _ = server.execute(&copy, fault).await;
        }
        let compared = async {
            let mut client = server.connect(&copy).await?;
            let mut restored = digest::of(&mut client, None).await?;
            if moment.beside {
                let here = restored.tables.remove("public.here");
                ensure!(here.is_some_and(|it| it.rows == 1), "what was here is not");
                // Its tables are compared by their names without the schema.
                restored = restored.renamed(BESIDE, "public");
            }
            if self.case.setting.settings["no_identity"] != "full" {
                restored.tables.retain(|name, _| !name.starts_with(KEYLESS));
            }
            let expected = moment.expected(&ended, &restored)?;
            let mut differences = expected.differences(&restored);
            differences.extend(digest::collisions(&client).await?);
            let named = ended["plan"]["not_covered"]
                .as_array()
                .into_iter()
                .flatten();
            let mut named = named.map(|entry| &entry["object"]);
            if let Some(schema) = &moment.schema
                && moment.tables.is_empty()
                && named.all(|object| *object != "definitions")
            {
                let compared = history::compare_schema(schema, &server, &copy);
                differences.extend(compared.err().map(|error| error.to_string()));
            }
            let is_comparable = moment.target == json!("latest") && moment.tables.is_empty();
            if is_comparable && server.major() == self.database.server.major() {
                let schemas = history::compare_schemas(&server, source, &copy);
                differences.extend(schemas.err().map(|error| error.to_string()));
            }
            anyhow::Ok(differences)
        };
        let differences = compared.await.map_err(Err)?;
        if !differences.is_empty() {
            let text = anyhow::anyhow!(differences.join("\n"));
            return Err(wrong(Kind::Content, text));
        }
        history::drop_database(&server, &copy).await.map_err(Err)
    }

    /// Servers are shared: nothing stays on them.
    async fn clean(mut self) -> Result<()> {
        self.close().await?;
        self.service.kill()?;
        let name = &self.database.name;
        let server = &self.database.server;
        let slots = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
             WHERE database = '{name}' AND active"
        );
        server.execute("postgres", &slots).await?;
        let dropped = async || {
            let sql = format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'"
            );
            server.execute("postgres", &sql).await?;
            Ok(Some(()))
        };
        wait::until("the slots to be dropped", dropped).await?;
        drop(self.sessions);
        drop(self.control);
        history::drop_database(server, name).await?;
        let target = postgres::shared(self.case.setting.target).await?;
        for moment in &self.moments {
            let copy = format!("{name}_{}", moment.number);
            let sql = format!("DROP DATABASE IF EXISTS \"{copy}\" WITH (FORCE)");
            target.execute("postgres", &sql).await?;
        }
        Ok(())
    }
}

impl Moment {
    fn wrong(&self, kind: Kind, error: anyhow::Error) -> Result<Failure> {
        let only = match self.tables.as_slice() {
            [] => String::new(),
            tables => format!(" of {}", tables.join(", ")),
        };
        Ok(Failure {
            kind,
            moment: Some(self.number),
            text: format!("restore{only} to {}: {error:#}", self.target),
        })
    }

    /// What must have come back: everything, or the tables asked for with their children, and with
    /// such sequences as came with them.
    fn expected(&self, ended: &Value, restored: &Content) -> Result<Content> {
        if self.tables.is_empty() {
            return Ok(self.content.clone());
        }
        let mut wanted: BTreeSet<&str> = self.tables.iter().map(String::as_str).collect();
        let came = ended["report"]["partial"]["tables"].as_array();
        for table in came.context("a report of some tables")? {
            let is_child = table["child_of"].is_string();
            let quoted = self.content.tables.keys().map(String::as_str);
            wanted.extend(quoted.filter(|name| is_child && is_named(name, table)));
        }
        let mut expected = self.content.clone();
        let sequences = &restored.sequences;
        expected
            .tables
            .retain(|name, _| wanted.contains(name.as_str()));
        if self.beside {
            expected = expected.renamed(ODD, "public");
        }
        expected
            .sequences
            .retain(|name, _| sequences.contains_key(name));
        Ok(expected)
    }
}

fn is_named(quoted: &str, table: &Value) -> bool {
    let plain = |part: &str| part.trim_matches('"').replace("\"\"", "\"");
    let parts = (table["schema"].as_str(), table["name"].as_str());
    let (Some(schema), Some(name)) = parts else {
        return false;
    };
    // The dot that parts them may not be the only one.
    quoted
        .match_indices('.')
        .any(|(dot, _)| plain(&quoted[..dot]) == schema && plain(&quoted[dot + 1..]) == name)
}

/// About half of the tables, never none.
fn some(content: &Content, part: u32) -> Vec<String> {
    let draw = |name: &String| {
        let mut rng = seed::rng(u64::from(part), "");
        // The generator's seed takes only so many bytes; names may be longer.
        let sum = name.bytes().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        sum.wrapping_add(rng.random::<u64>())
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            >> 32
    };
    let chosen: Vec<String> = content
        .tables
        .keys()
        .filter(|name| draw(name).is_multiple_of(2))
        .cloned()
        .collect();
    match chosen.is_empty() {
        true => content
            .tables
            .keys()
            .min_by_key(|name| draw(name))
            .cloned()
            .into_iter()
            .collect(),
        false => chosen,
    }
}

fn is_locked(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<tokio_postgres::Error>()
        .and_then(tokio_postgres::Error::code)
        .is_some_and(|code| *code == tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
}

/// Where a failing case is left: below the folder that cargo builds in.
///
/// # Errors
/// When the file cannot be written.
pub fn leave(name: &str, failure: &Failure, case: &Case) -> Result<std::path::PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(3).context("the folder of the build")?;
    let folder = folder.join("oracle");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    let evidence: String = failure.text.lines().take(60).fold(
        format!(
            "-- {:?}, LASTGOOD_SEED={}\n",
            failure.kind, case.setting.seed
        ),
        |text, line| text + "--   " + line + "\n",
    );
    std::fs::write(&path, format!("{evidence}{case}"))?;
    Ok(path)
}
