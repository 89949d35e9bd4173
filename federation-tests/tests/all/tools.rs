//! Programs of others that some tests need, and network namespaces.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::process::PATIENCE;

/// Says that a test is skipped for want of `what`; fails where nothing may be skipped (`MIMI_TEST_TOOLS=required`).
pub(crate) fn skip(what: &str, why: &str) {
    assert!(std::env::var("MIMI_TEST_TOOLS").as_deref() != Ok("required"), "needs {what}: {why}");
    eprintln!("skipped: needs {what} ({why})");
}

/// Runs a program to its end; what is wrong, when it ends with anything but success or is not there.
pub(crate) async fn tool(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs an ignored test of this program in a network namespace of its own, in which it may lay wires and set up counters. What it
/// said; `None` when that cannot be had here and the test is skipped.
pub(crate) async fn in_a_namespace(test: &str) -> Option<String> {
    for (program, arguments) in [("unshare", ["--net", "true"]), ("ip", ["-Version", "link"]), ("nft", ["--version", "-n"])] {
        if let Err(why) = tool(program, &arguments).await {
            skip("root, iproute2 and nftables", &why);
            return None;
        }
    }
    let this: &Path = &std::env::current_exe().expect("this program");
    let mut command = Command::new("unshare");
    command.arg("--net").arg(this).args(["--exact", test, "--ignored", "--nocapture"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    Some(said)
}
