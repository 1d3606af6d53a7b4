//! `lastgood window`: from the service, or from the repository by itself.

use lastgood_restore::Survey;
use serde_json::Value;

use super::failure::Failure;
use super::output::{Output, show};
use super::place::{Place, PlaceArgs, SourceArg, source_path, source_store};
use crate::http::WindowsView;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArg,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let wanted = args.source.wanted();
    let windows = match args.place.open().await? {
        Place::Service(client) => {
            let path = source_path(&client, wanted).await?;
            client.get(&format!("{path}/window")).await?
        }
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, wanted).await?;
            let survey = Survey::read(&store).await?;
            serde_json::to_value(WindowsView::from(&survey))
                .map_err(|error| Failure::failed(error.to_string()))?
        }
    };
    output.answer(&windows, describe);
    Ok(())
}

fn describe(value: &Value) -> String {
    let each = |name: &str| value[name].as_array().cloned().unwrap_or_default();
    let (windows, gaps) = (each("windows"), each("gaps"));
    if windows.is_empty() {
        return "nothing can be restored yet: the first base is not complete\n".to_owned();
    }
    let mut text = String::new();
    for (at, window) in windows.iter().enumerate() {
        text.push_str(&format!("recoverable  {}\n", span(window)));
        let gap = gaps
            .iter()
            .find(|gap| gap["from"]["lsn"] == window["to"]["lsn"]);
        if let Some(gap) = gap {
            text.push_str(&format!("GAP          {}\n", span(gap)));
            text.push_str(&format!("             because {}\n", show(&gap["reason"])));
        } else if let Some(reason) = window["reason"].as_str()
            && at + 1 < windows.len()
        {
            text.push_str(&format!("             then {reason}, without a gap\n"));
        }
    }
    if let Some(why) = value["latest_refused"].as_str() {
        text.push_str(&format!("NOT YET      {why}\n"));
    }
    text
}

fn span(value: &Value) -> String {
    let (from, to) = (&value["from"], &value["to"]);
    format!(
        "{}  to  {}   ({} to {})",
        show(&from["time"]),
        show(&to["time"]),
        show(&from["lsn"]),
        show(&to["lsn"])
    )
}
