//! `lastgood point`

use serde_json::json;

use super::client::ServerArgs;
use super::failure::Failure;
use super::output::{Output, show, table};
use super::place::source_path;

#[derive(clap::Args)]
pub(super) struct Args {
    /// What to call this moment; without a name, list the points there are
    name: Option<String>,
    /// Name or id of the source; not needed if there is only one
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = args.server.client()?;
    let path = source_path(&client, args.source.as_deref()).await?;
    let path = format!("{path}/points");
    let Some(name) = args.name else {
        let points = json!({"items": client.list(&path).await?});
        output.answer(&points, |points| {
            let rows: Vec<Vec<String>> = points["items"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|point| {
                    vec![
                        show(&point["name"]),
                        show(&point["time"]),
                        show(&point["lsn"]),
                    ]
                })
                .collect();
            table(&["NAME", "TIME", "LSN"], &rows)
        });
        return Ok(());
    };
    let point = client.post(&path, &json!({"name": name})).await?;
    output.answer(&point, |point| {
        format!(
            "{} is {} ({}); restore to it with --name {0}\n",
            show(&point["name"]),
            show(&point["time"]),
            show(&point["lsn"])
        )
    });
    Ok(())
}
