//! `lastgood probe`: works without a service.

use lastgood_engine::SourceSettings;
use lastgood_engine::probe as engine;

use super::failure::Failure;
use super::output::{Output, bytes, findings, pairs, show};
use super::place::{CONNECTION_VARIABLE, connection, parse_connection};
use crate::http::ProbeView;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Connection string, as a URL or as key=value pairs; - reads it from standard input. Others on
    /// this machine see arguments: LASTGOOD_CONNECTION may hold it instead
    #[arg(env = CONNECTION_VARIABLE, hide_env_values = true)]
    connection: String,
    /// Print the SQL that makes the smallest role that works, called NAME, and nothing else
    #[arg(long, value_name = "NAME")]
    sql_role: Option<String>,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let config = parse_connection("CONNECTION", &connection(args.connection)?)?;
    let report = Box::pin(engine::probe(&config, &SourceSettings::default())).await;
    if let (Some(name), Some(server)) = (&args.sql_role, &report.server) {
        let sql = engine::role_sql(name, server);
        output.value(&serde_json::json!({"role": name, "sql": sql}));
        if !output.is_json() {
            output.raw(sql.as_bytes());
        }
        return Ok(());
    }
    let blocked = report.is_blocked();
    let view = serde_json::to_value(ProbeView::from(report))
        .map_err(|error| Failure::failed(error.to_string()))?;
    output.answer(&view, |report| {
        let server = &report["server"];
        let mut text = String::new();
        if server.is_object() {
            text.push_str(&pairs(&[
                ("server", format!("PostgreSQL {}", show(&server["version"]))),
                ("database", show(&server["database"])),
                ("size", bytes(&server["database_bytes"])),
                ("role", show(&server["role"])),
                (
                    "tables",
                    format!(
                        "{} of {} can be protected",
                        show(&server["tables_protected"]),
                        show(&server["tables"])
                    ),
                ),
                ("pg_dump", show(&server["pg_dump"])),
            ]));
            text.push('\n');
        }
        text.push_str(&findings(&report["findings"]));
        text.push_str(match blocked {
            true => "\nIt cannot be protected as it is: mend every BLOCKER first.\n",
            false => "\nReady: lastgood source add NAME CONNECTION\n",
        });
        text
    });
    match blocked {
        true => Err(Failure::operator("the probe found a blocker")),
        false => Ok(()),
    }
}
