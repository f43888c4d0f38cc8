//! Who makes the faults: the process of `pontoon cluster`, or commands for whatever else runs the members.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::fault::Act;
use super::shell;
use super::template::Template;
use crate::cli::cluster::remote::Control;

/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long a process may take to be gone once it was told.
const GONE: Duration = Duration::from_secs(15);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(2);

/// Breaks members in one way, and puts them right.
pub enum Breaker {
    /// Those of `pontoon cluster`.
    Cluster(Control),
    /// Those that commands reach.
    Commands {
        /// Breaks one.
        strike: Template,
        /// Puts it right.
        mend: Template,
    },
}

impl Breaker {
    /// Breaks a member. When this returns, it serves nobody any more.
    pub async fn strike(&self, act: Act, name: &str) -> anyhow::Result<()> {
        let control = match self {
            Breaker::Cluster(control) => control,
            Breaker::Commands { strike, .. } => return command(strike, name).await,
        };
        match act {
            Act::Kill => ask(control, "kill", name).await,
            Act::Stop => {
                ask(control, "stop", name).await?;
                until_gone(control, name).await
            }
            Act::Pause => ask(control, "pause", name).await,
            Act::Cut => control.link(name, "cut").await,
        }
    }

    /// Puts right what was done to it, also if that was only begun.
    pub async fn mend(&self, act: Act, name: &str) -> anyhow::Result<()> {
        let control = match self {
            Breaker::Cluster(control) => control,
            Breaker::Commands { mend, .. } => return command(mend, name).await,
        };
        match act {
            Act::Kill | Act::Stop => {
                until_gone(control, name).await?;
                ask(control, "start", name).await
            }
            Act::Pause => ask(control, "resume", name).await,
            Act::Cut => control.link(name, "up").await,
        }
    }
}

async fn command(template: &Template, name: &str) -> anyhow::Result<()> {
    let command = template.filled(name).map_err(anyhow::Error::msg)?;
    shell::run(&command, COMMAND).await
}

async fn ask(control: &Control, act: &str, name: &str) -> anyhow::Result<()> {
    let asked = control.act(&json!({"act": act, "member": name})).await;
    asked.map(|_| ()).with_context(|| format!("cannot {act} {name}"))
}

/// A process is gone when it was waited for; only then can it be started again.
async fn until_gone(control: &Control, name: &str) -> anyhow::Result<()> {
    let gone = async {
        while control.does(name).await? != "stopped" {
            tokio::time::sleep(LOOK).await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(GONE, gone).await {
        Ok(gone) => gone,
        Err(_) => bail!("{name} is not gone within {GONE:?}"),
    }
}
