//! `mimi-node lanes` and `mimi-node dead-letters`: what waits for other domains, and what was given up.

use hyper::Method;

use super::admin::Asking;
use super::peers::show;
use super::table::{age, or_dash, table};
use crate::base::{Domain, Fault};
use crate::node::admin::view::{DeadLetterView, LaneView};

/// Which lanes.
#[derive(clap::Args)]
pub(super) struct LanesArguments {
    /// Those to this domain; without it, to all.
    domain: Option<Domain>,
    #[command(flatten)]
    asking: Asking,
}

impl LanesArguments {
    fn path(&self, of: &str) -> String {
        self.domain.as_ref().map_or_else(|| of.to_owned(), |domain| format!("{of}?domain={domain}"))
    }
}

pub(super) async fn list(arguments: LanesArguments) -> Result<(), Fault> {
    let answered = arguments.asking.ask(Method::GET, &arguments.path("/lanes"), None).await?;
    show(&arguments.asking, &answered, |lanes: Vec<LaneView>| {
        let rows = lanes.into_iter().map(|lane| {
            [
                lane.domain.to_string(),
                lane.frames.to_string(),
                lane.bytes.to_string(),
                age(lane.oldest_age_seconds),
                or_dash(lane.refused_since),
                lane.group,
            ]
        });
        table(["PEER", "FRAMES", "BYTES", "OLDEST", "REFUSED SINCE", "GROUP"], rows)
    })
}

pub(super) async fn dead_letters(arguments: LanesArguments) -> Result<(), Fault> {
    let answered = arguments.asking.ask(Method::GET, &arguments.path("/dead-letters"), None).await?;
    show(&arguments.asking, &answered, |letters: Vec<DeadLetterView>| {
        let rows = letters.into_iter().map(|letter| {
            [letter.died_at, letter.domain.to_string(), letter.frames.to_string(), letter.reason, letter.detail, letter.group]
        });
        table(["DIED AT", "PEER", "FRAMES", "REASON", "DETAIL", "GROUP"], rows)
    })
}
