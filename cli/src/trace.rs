//! The trace of an attach or a detach: how long each step and each call took.

use hotslot_driver::text::escape;
use serde_json::Value;

use crate::output::{self, Output};
use crate::table::aligned;
use crate::value::at;

/// The query of a request whose answer is to have a trace.
pub(crate) const QUERY: &str = "trace=1";

/// Prints a trace below what was done, if there is one.
pub(crate) fn print_if(output: Output, trace: &Value) -> anyhow::Result<()> {
    if output.is_names() || trace.is_null() {
        return Ok(());
    }
    output::print(&format!("\n{}", text(trace)))
}

/// Formats a trace: a line for each operation, step and call, and how much of the time libvirt's own calls took, which is
/// the least that hotslot can reach.
fn text(trace: &Value) -> String {
    let parts = trace["parts"].as_array().map_or(&[][..], Vec::as_slice);
    let title = ["STEP", "BEGAN", "TIME", "RESULT"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(title).chain(parts.iter().map(row)).collect();
    let all = trace["milliseconds"].as_f64().unwrap_or_default();
    let operation = parts.iter().find(|part| part["kind"] == "operation");
    let table = aligned(&rows);
    // A dry run has no operation.
    let Some(operation) = operation.and_then(|part| part["name"].as_str()) else {
        return format!("{table}{all:.1} ms in all\n");
    };
    // The address is verified after the answer, or while an answer with a trace waits for it.
    let rest = if parts.iter().any(|part| part["name"] == "verify") { " without verify" } else { " in all" };
    let is_own = |part: &&Value| part["kind"] == "call" && part["name"] == operation;
    let own: f64 = parts.iter().filter(is_own).filter_map(|part| part["milliseconds"].as_f64()).sum();
    let share = if all > 0.0 { 100.0 * own / all } else { 0.0 };
    let operation = escape(operation);
    format!("{table}{all:.1} ms{rest}; of these, libvirt's own {operation} took {own:.1} ms ({share:.0} %)\n")
}

fn row(part: &Value) -> Vec<String> {
    let level = part["level"].as_u64().unwrap_or_default().min(10);
    let name =
        if part["kind"] == "call" { format!("libvirt {}", at(part, "/name")) } else { at(part, "/name") };
    let indent: String = (0..level).map(|_| "  ").collect();
    let time = |key: &str| part[key].as_f64().map_or_else(|| "-".to_owned(), |time| format!("{time:.1} ms"));
    vec![indent + &name, time("began"), time("milliseconds"), result(part)]
}

/// The result of a part. An address that could not be verified stays the computed one, which is no failure of the attach.
fn result(part: &Value) -> String {
    let verifies = part["kind"] == "step" && part["name"] == "verify";
    match part["result"].as_str() {
        Some("agent-away") if verifies => "not verified: no guest agent answers".into(),
        Some("pending") if verifies => "not verified yet: the guest does not show the device".into(),
        Some("failed") if verifies => "not verified".into(),
        _ => at(part, "/result"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trace_shows_libvirts_own_call_beside_the_whole() {
        let part = |kind: &str, name: &str, level: u32, began: f64, took: Option<f64>| {
            json!({ "kind": kind, "name": name, "level": level, "began": began, "milliseconds": took,
                    "result": took.map(|_| "done") })
        };
        let trace = json!({ "milliseconds": 40.0, "parts": [
            part("operation", "attach", 0, 0.0, Some(40.0)),
            part("step", "plug", 1, 4.0, Some(34.2)),
            part("call", "attach", 2, 4.1, Some(30.0)),
            part("step", "verify", 1, 540.0, None),
            json!({ "kind": "step", "name": "verify", "level": 1, "began": 900.0, "milliseconds": 2.0,
                    "result": "agent-away" }),
        ] });
        assert_eq!(
            text(&trace),
            "\
STEP                 BEGAN      TIME      RESULT
attach               0.0 ms     40.0 ms   done
  plug               4.0 ms     34.2 ms   done
    libvirt attach   4.1 ms     30.0 ms   done
  verify             540.0 ms   -         -
  verify             900.0 ms   2.0 ms    not verified: no guest agent answers
40.0 ms without verify; of these, libvirt's own attach took 30.0 ms (75 %)
"
        );
    }
}
