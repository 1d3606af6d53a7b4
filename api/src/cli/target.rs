//! `--latest | --time | --lsn | --xid | --name`, each with `--exclusive`.

use lastgood_proto::{Lsn, PgTimestamp, Xid};
use lastgood_restore::{Target, TargetKind};

/// Where a restore stops.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "target", required = true, multiple = false)]
#[command(next_help_heading = "Target")]
pub(super) struct TargetArgs {
    /// Everything that is durable
    #[arg(long)]
    latest: bool,
    /// The state at this time, such as 2026-11-20T20:01:02Z
    #[arg(long, value_name = "TIME")]
    time: Option<PgTimestamp>,
    /// The state at this LSN, such as 0/16B3748
    #[arg(long, value_name = "LSN")]
    lsn: Option<Lsn>,
    /// The state after this transaction
    #[arg(long, value_name = "XID")]
    xid: Option<Xid>,
    /// The state at this named restore point
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Target")]
pub(super) struct ExclusiveArg {
    /// Stop just before what the target names
    #[arg(long, conflicts_with = "latest")]
    exclusive: bool,
}

impl TargetArgs {
    pub(super) fn target(&self, exclusive: ExclusiveArg) -> Target {
        let kinds = [
            self.time.map(TargetKind::Time),
            self.lsn.map(TargetKind::Lsn),
            self.xid.map(TargetKind::Xid),
            self.name.clone().map(TargetKind::Name),
        ];
        match kinds.into_iter().flatten().next() {
            Some(kind) => Target::new(kind, !exclusive.exclusive),
            None => Target::latest(),
        }
    }
}
