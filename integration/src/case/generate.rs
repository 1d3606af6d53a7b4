//! From a seed to a case: the setting, a random schema, several sessions at random, and what happens to
//! the service.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{Case, Operation, Replay, Restore, Setting, Target};
use crate::seed;
use crate::tools::MAJORS;
use crate::workload::Schema;

const SESSIONS: u32 = 4;

/// The case of a seed. Six seeds in a row are six majors.
pub fn case(seed: u64) -> Case {
    let mut rng = seed::rng(seed, "setting");
    let at = usize::try_from(seed % 6).unwrap_or_default();
    let source = MAJORS[at];
    let target = match rng.random_bool(0.6) {
        true => source,
        false => MAJORS[rng.random_range(at..MAJORS.len())],
    };
    let mut setting = Setting {
        seed,
        source,
        target,
        s3: rng.random_ratio(1, 4),
        encryption: rng.random_ratio(3, 4),
        settings: json!({
            "segment_bytes": 4096 << rng.random_range(0..8),
            "segment_seconds": 1,
            "idle_seconds": 1,
        }),
        fault: None,
    };
    let mut migrations = seed::rng(seed, "migrations");
    // Each waits for a change to settle: one seed in three does, of every major.
    let migrates = (seed + seed / 6).is_multiple_of(3);
    if migrates && migrations.random_bool(0.7) {
        setting.settings["big_table_bytes"] = json!(8192);
    }
    if rng.random_bool(0.7) {
        setting.settings["no_identity"] = json!("full");
    }
    let mut writer = Writer {
        schema: Schema::random(seed, source),
        rng: seed::rng(seed, "operations"),
        restores: seed::rng(seed, "restores"),
        migrations,
        migrates: if migrates { 2 } else { 0 },
        is_told: source >= 14,
        open: Default::default(),
        prepared: Vec::new(),
        transactions: 0,
        operations: Vec::new(),
    };
    writer.history();
    Case {
        setting,
        operations: writer.operations,
    }
}

struct Writer {
    schema: Schema,
    rng: ChaCha8Rng,
    /// Of its own: how a state is restored has nothing to do with what happens.
    restores: ChaCha8Rng,
    migrations: ChaCha8Rng,
    /// How many are to come.
    migrates: u32,
    /// The source tells of DDL.
    is_told: bool,
    /// What each session has yet to say of its transaction, the last statement first.
    open: [Vec<String>; SESSIONS as usize],
    prepared: Vec<String>,
    transactions: u32,
    operations: Vec<Operation>,
}

impl Writer {
    fn history(&mut self) {
        for sql in self.schema.statements() {
            self.operations.push(Operation::Sql { session: 0, sql });
        }
        self.work(20);
        self.operations.push(Operation::Register);
        self.work(40);
        self.settle();
        let mut moments = 3;
        let mut base = true;
        while moments > 0 {
            let statements = self.rng.random_range(10..40);
            self.work(statements);
            if self.migrates > 0 && self.migrations.random_ratio(1, 2) {
                self.migrate();
            }
            match self.rng.random_range(0..9) {
                0 if base => {
                    base = false;
                    self.operations.push(Operation::Base);
                }
                // From here on, restores begin at the new base.
                1 if base => {
                    base = false;
                    self.operations.push(Operation::Base);
                    self.work(5);
                    self.settle();
                }
                2 => self.operations.push(Operation::Kill),
                3 => {
                    self.operations.push(Operation::Pause);
                    self.work(15);
                    self.operations.push(Operation::Resume);
                }
                _ => {
                    moments -= 1;
                    let target = Target::ALL[self.rng.random_range(0..Target::ALL.len() - 1)];
                    self.moment(target);
                }
            }
        }
        self.work(20);
        self.settle();
        self.moment(Target::Latest);
    }

    /// Beside what else is written; then a base is waited for.
    fn migrate(&mut self) {
        self.settle();
        // What lies before is looked at: the span that is uncertain begins there.
        self.operations.push(Operation::Rebased);
        self.work(4);
        let rng = &mut self.migrations;
        let migration = self.schema.migration(self.migrates, rng);
        // 13 sends no messages: there the span begins with a look; as it does where a value that no row has yet is
        // written into all of them, which no event trigger is told of.
        let is_told = self.is_told && !migration.iter().any(|sql| sql.contains("VACUUM FULL"));
        self.beside_migration(is_told);
        for sql in migration {
            self.operations.push(Operation::Sql { session: 0, sql });
            self.beside_migration(false);
            let session = self.migrations.random_range(0..SESSIONS);
            self.step(session);
        }
        self.work(4);
        self.beside_migration(false);
        self.work(4);
        self.settle();
        self.operations.push(Operation::Rebased);
        self.migrates -= 1;
    }

    fn moment(&mut self, target: Target) {
        let rng = &mut self.restores;
        let part = rng.random_ratio(2, 5).then(|| rng.random_range(0..1000));
        let beside = part.is_some() && rng.random_bool(0.5);
        let meanwhile = rng.random_ratio(2, 5) && target != Target::Latest;
        let replay = match rng.random_range(0..6) {
            0 => Replay::Ordered,
            1 | 2 => Replay::Memory(1 << rng.random_range(10..19)),
            _ => Replay::Merged,
        };
        self.operations.push(Operation::Moment(Restore {
            target,
            part,
            beside,
            replay,
            meanwhile,
            perhaps: false,
        }));
    }

    /// A state right before a migration, in its midst, or right after it.
    fn beside_migration(&mut self, is_sure: bool) {
        let targets = [Target::LsnExclusive, Target::Time];
        let replay = match self.migrations.random_ratio(1, 4) {
            true => Replay::Ordered,
            false => Replay::Merged,
        };
        self.operations.push(Operation::Moment(Restore {
            target: targets[self.migrations.random_range(0..targets.len())],
            part: None,
            beside: false,
            replay,
            meanwhile: false,
            perhaps: !is_sure,
        }));
    }

    /// So many statements of all sessions.
    fn work(&mut self, statements: usize) {
        for _ in 0..statements {
            let session = self.rng.random_range(0..SESSIONS);
            self.step(session);
        }
    }

    fn step(&mut self, session: u32) {
        let at = session as usize;
        if self.open[at].is_empty() {
            self.open[at] = self.transaction();
        }
        if let Some(sql) = self.open[at].pop() {
            if let Some(name) = sql.strip_prefix("PREPARE TRANSACTION ") {
                self.prepared.push(name.to_owned());
            }
            let session = session + 1;
            self.operations.push(Operation::Sql { session, sql });
        }
    }

    /// Every session ends what it has begun.
    fn settle(&mut self) {
        for session in 0..SESSIONS {
            while !self.open[session as usize].is_empty() {
                self.step(session);
            }
        }
        self.operations.push(Operation::Settle);
        self.prepared.clear();
    }

    /// The statements of one, the last first.
    fn transaction(&mut self) -> Vec<String> {
        if !self.prepared.is_empty() && self.rng.random_bool(0.4) {
            let name = self.prepared.remove(0);
            let end = ["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"].choose(&mut self.rng);
            return vec![format!("{} PREPARED {name}", end.unwrap_or(&"COMMIT"))];
        }
        // A statement that is a transaction by itself.
        if self.rng.random_bool(0.2) {
            return vec![self.schema.change(&mut self.rng)];
        }
        let mut statements = self.schema.transaction(&mut self.rng);
        self.transactions += 1;
        if self.rng.random_ratio(1, 10) {
            let name = format!("'{{database}}-{}'", self.transactions);
            statements.pop();
            statements.push(format!("PREPARE TRANSACTION {name}"));
        }
        statements.reverse();
        statements
    }
}
