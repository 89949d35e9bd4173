//! `mimi-node doctor`: what stands between this node and another domain's.

use hyper::Method;

use super::admin::Asking;
use super::table::table;
use crate::base::{Context as _, Domain, Fault};
use crate::federation::diagnose::Verdict;
use crate::federation::{Depth, Diagnosis};
use crate::node::doctor;

/// `mimi-node doctor DOMAIN`.
#[derive(clap::Args)]
pub(super) struct DoctorArguments {
    /// The other domain.
    domain: Domain,
    #[command(flatten)]
    asking: Asking,
}

/// Asks the running node to look, or looks from this process when there is none. Returns the exit code: 0, or that of the first
/// trouble.
pub(super) async fn run(arguments: DoctorArguments) -> Result<u8, Fault> {
    let DoctorArguments { domain, asking } = arguments;
    let diagnosis: Diagnosis = if asking.is_running().await? {
        asking.ask(Method::POST, &format!("/doctor/{domain}"), None).await?.read()?
    } else {
        doctor::outward(&asking.config()?, &domain).await?
    };
    if asking.json {
        println!("{}", serde_json::to_string(&diagnosis).context("the diagnosis cannot be written as JSON")?);
    } else {
        print!("{}", text(&diagnosis));
    }
    Ok(diagnosis.exit_code)
}

/// The table for people.
fn text(diagnosis: &Diagnosis) -> String {
    let findings = &diagnosis.findings;
    let how = match findings.depth {
        Depth::BothWays => "both ways",
        Depth::Outward | Depth::OnBehalf => {
            "outward only: no node of this domain is running here, so this process looked with the node's files"
        }
    };
    let mut rows = Vec::new();
    for check in &diagnosis.checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "-",
        };
        rows.push([check.name.replace('_', " "), verdict.to_owned(), printable(&check.seen)]);
        rows.extend(check.advice.iter().map(|advice| [String::new(), String::new(), format!("  do: {}", printable(advice))]));
    }
    let end = match diagnosis.trouble {
        Some(trouble) => format!("{}: {trouble} (exit code {})", findings.domain, diagnosis.exit_code),
        None => format!("{}: all is well{}", findings.domain, if findings.depth == Depth::BothWays { "" } else { ", outward" }),
    };
    let head = format!("From {} to {}, {how}", findings.own, findings.domain);
    format!("{head}\n\n{}\n{end}\n", table(["CHECK", "VERDICT", "SEEN"], rows))
}

/// `text` without characters that a terminal would act upon: some of it was said by others.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}
