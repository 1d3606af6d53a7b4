//! `lastgood demo`: the story this product exists for, on a throw-away PostgreSQL.
//!
//! A shop under steady writes is registered. A tired operator overwrites every customer's e-mail.
//! The demo finds the moment, shows the plan, restores to just before it into a new database, and
//! proves that every e-mail is back and that exactly the orders up to that moment are there. It
//! fails if any of it is not so.

mod server;
mod service;
mod shop;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lastgood_pg::{ConnectionConfig, Purpose, Session};
use serde_json::Value;
use tokio::time::Instant;

use server::Server;
use service::Service;
use shop::{Order, Writers};

/// How many writers place orders.
const WRITERS: usize = 3;
/// No step of the demo takes this long.
const PATIENCE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(100);
const RESTORED: &str = "shop_restored";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the database and the service running, and say what to try next
    #[arg(long)]
    keep: bool,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let demo = Demo {
        started: Instant::now(),
        folder: server::folder()?,
    };
    let result = Box::pin(demo.play(args.keep)).await;
    if !args.keep && result.is_ok() {
        std::fs::remove_dir_all(&demo.folder)
            .with_context(|| format!("cannot remove {}", demo.folder.display()))?;
    }
    if result.is_err() {
        demo.say(&format!(
            "what is left, with the logs: {}",
            demo.folder.display()
        ));
    }
    result
}

struct Demo {
    started: Instant,
    folder: PathBuf,
}

impl Demo {
    #[expect(
        clippy::print_stdout,
        reason = "the demo is a story told on standard output"
    )]
    fn say(&self, text: &str) {
        println!("{:5.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    #[expect(
        clippy::print_stdout,
        reason = "the demo is a story told on standard output"
    )]
    fn typed(&self, command: &str) {
        println!("\n         $ lastgood {command}");
    }

    async fn play(&self, keep: bool) -> Result<()> {
        let mut server = Server::start(&self.folder).await?;
        self.say(&format!("a throw-away PostgreSQL {} runs", server.major));
        let admin = session(&server.url("postgres")).await?;
        admin.client().batch_execute("CREATE DATABASE shop").await?;
        let shop = session(&server.url("shop")).await?;
        shop::create(&shop).await?;
        let mut sessions = Vec::new();
        for _ in 0..WRITERS {
            sessions.push(session(&server.url("shop")).await?);
        }
        let writers = Writers::start(sessions);
        self.say("a shop with 10,000 customers; orders keep coming");

        let mut service = Service::start(&self.folder)?;
        self.say("lastgood serve runs, on its embedded defaults");
        let connection = server.url("shop");
        self.typed(&format!("source add shop '{connection}'"));
        service.show(&[
            "source",
            "add",
            "shop",
            &connection,
            "--segment-seconds",
            "1",
        ])?;
        self.until("the first base", || {
            let window = service.ask(&["window", "shop"])?;
            Ok(window["windows"].get(0).is_some().then_some(()))
        })
        .await?;
        self.say("the first base is complete, every change since is captured");
        // Orders that are in no base: the restore has to replay them.
        tokio::time::sleep(Duration::from_secs(2)).await;

        let before = shop::emails(&shop).await?;
        let (asked, answered) = shop::disaster(&shop).await?;
        self.say("a tired operator: UPDATE customers SET email = 'test@example.com'   -- no WHERE");
        ensure!(
            shop::emails(&shop).await? != before,
            "the disaster changed nothing"
        );
        // The shop goes on: nobody has noticed yet.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let orders = writers.stop().await?;
        self.say(&format!(
            "{} orders were placed meanwhile; somebody notices",
            orders.len()
        ));

        let xid = self.find_the_moment(&service).await?;
        self.typed(&format!("plan --xid {xid} --exclusive"));
        service.show(&["plan", "--xid", &xid, "--exclusive"])?;
        let into = server.url("postgres");
        self.typed(&format!(
            "restore --xid {xid} --exclusive --into '{into}' --create-database {RESTORED}"
        ));
        let began = Instant::now();
        service.show(&[
            "restore",
            "--xid",
            &xid,
            "--exclusive",
            "--into",
            &into,
            "--create-database",
            RESTORED,
        ])?;
        self.say(&format!(
            "restored in {:.1} s",
            began.elapsed().as_secs_f64()
        ));

        let restored = session(&server.url(RESTORED)).await?;
        ensure!(
            shop::emails(&restored).await? == before,
            "not every e-mail is back"
        );
        self.say("every one of the 10,000 e-mails is back");
        let back = shop::order_ids(&restored).await?;
        let verdict = compare(&orders, &back, asked, answered)?;
        ensure!(
            shop::broken_orders(&restored).await? == 0,
            "an order lost its lines"
        );
        self.say(&verdict);

        if keep {
            self.what_next(&mut server, &mut service);
        }
        Ok(())
    }

    /// The transaction that changed as many customers as there are.
    async fn find_the_moment(&self, service: &Service) -> Result<String> {
        let filter = [
            "transactions",
            "--table",
            "public.customers",
            "--min-rows",
            "1000",
        ];
        let found = self
            .until("the disaster to be durable", || {
                let found = service.ask(&filter)?;
                Ok(found["items"].get(0).cloned())
            })
            .await?;
        self.typed(&filter.join(" "));
        service.show(&filter)?;
        let xid: &Value = &found["xid"];
        Ok(xid
            .as_u64()
            .context("a transaction without an xid")?
            .to_string())
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "waited in vain for {what}");
            tokio::time::sleep(POLL).await;
        }
    }

    #[expect(
        clippy::print_stdout,
        reason = "the demo is a story told on standard output"
    )]
    fn what_next(&self, server: &mut Server, service: &mut Service) {
        let program = std::env::current_exe().unwrap_or_else(|_| "lastgood".into());
        let (stop_service, stop_server) = (service.keep_running(), server.keep_running());
        println!(
            "\nEverything is still running. Try:\n\
             \n  export LASTGOOD_SERVER={} LASTGOOD_DATA_DIR={}\
             \n  alias lastgood={}\
             \n  psql {}\
             \n  lastgood source show shop\
             \n  lastgood window shop\
             \n  lastgood transactions --table public.orders\
             \n  lastgood plan --latest\
             \n\nand when you are done:\n\
             \n  {}; {}; rm -rf {}\n",
            service.url,
            service.data_dir.display(),
            program.display(),
            server.url("shop"),
            stop_service,
            stop_server,
            self.folder.display(),
        );
    }
}

/// Every order answered before the UPDATE was asked for must be back, none that was asked for after
/// the UPDATE was answered may be, and whatever else is back must be one of the shop's.
fn compare(
    orders: &[Order],
    back: &HashSet<String>,
    asked: Instant,
    answered: Instant,
) -> Result<String> {
    let before = orders.iter().filter(|order| order.answered < asked);
    let (mut kept, mut left_out) = (0, 0);
    for order in before {
        ensure!(back.contains(&order.id), "order {} is missing", order.id);
        kept += 1;
    }
    for order in orders.iter().filter(|order| order.asked > answered) {
        ensure!(
            !back.contains(&order.id),
            "order {} came after the moment",
            order.id
        );
        left_out += 1;
    }
    let known: HashSet<&str> = orders.iter().map(|order| order.id.as_str()).collect();
    let strange = back.iter().find(|id| !known.contains(id.as_str()));
    ensure!(strange.is_none(), "an order came back that nobody placed");
    ensure!(
        kept > 0 && left_out > 0,
        "the shop was idle: this proves nothing"
    );
    Ok(format!(
        "all {kept} orders up to that moment are there, and none of the {left_out} after it"
    ))
}

async fn session(url: &str) -> Result<Session> {
    let config: ConnectionConfig = url.parse()?;
    Ok(Session::connect(&config, Purpose::Verify).await?)
}
